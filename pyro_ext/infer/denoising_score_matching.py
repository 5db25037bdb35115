"""Denoising score matching of energies."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_ext.infer.energy_objective import EnergyObjective, check_energy
from pyro_ext.infer.score import event_dims, refuse_kinks, score_of, sum_event


class DenoisingScoreMatching:
    r"""Fits the score of an energy to that of data with Gaussian noise.

    .. math::

        \mathcal L = \frac1B \sum_n \frac{\lambda(\sigma_n)}{2}
        \Bigl\lVert s_\theta(x_n + \sigma_n \epsilon_n, u_n) + \frac{\epsilon_n}{\sigma_n}
        \Bigr\rVert^2, \qquad
        s_\theta(x, u) = -\nabla_x E(x, u), \quad \epsilon_n \sim \mathcal N(0, I)

    No normaliser and no noise density are needed; a learned normaliser keeps its value. With one
    level the minimum is at the density of the **noisy** data: Normal data of variance :math:`s^2`
    give an energy of variance :math:`s^2 + \sigma^2`. With several, each datum draws one of
    them, and the minimum is at the mixture
    :math:`\sum_k \lambda(\sigma_k) p_k / \sum_k \lambda(\sigma_k)` of the noisy densities
    :math:`p_k`, a single energy for all levels: broad where data are rare, fine where they are.
    Anneal by building the objective anew with smaller levels; the energy stays.

    Args:
        scale: :math:`\sigma > 0`, in the data's units; a number or several.
        weight: :math:`\lambda`, a function of the tensor of scales. Its square by default, by
            which all levels weigh alike and the loss has no units; ``lambda s: s**4`` is the
            published objective of ICE-BeeM, which is not divided by :math:`\sigma^2`.

    Shape:
        the module maps ``x (*batch, *event_shape)`` and contexts to a scalar, the mean over the
        batch of a sum over the event. It is no log density: with the default weight a number
        without units, between 0 and half the event's size at its minimum.

    Raises:
        ValueError: if a scale is not positive; when called, if the ebm is no module, or has an
            activation with kinks, such as ReLU, among its modules; when evaluated, if it does not
            return one energy for each datum or, while Pyro validates, if data are not finite or an
            activation with kinks was called as a function.

    References:
        Vincent, *A Connection Between Score Matching and Denoising Autoencoders* (2011). Song and
        Ermon, *Generative Modeling by Estimating Gradients of the Data Distribution*,
        arXiv 1907.05600, for the weight. Khemakhem et al., *ICE-BeeM*, arXiv 2002.11537.

    Example:
        >>> from pyro_ext.nn import ConditionalEnergy
        >>> x, label = torch.randn(64, 2), torch.randint(3, (64,))
        >>> loss = DenoisingScoreMatching([0.1, 0.5])(ConditionalEnergy(2, 4, num_classes=3))
        >>> loss(x, label).backward()
    """

    def __init__(
        self,
        scale: float | Sequence[float],
        weight: Callable[[Tensor], Tensor] = torch.square,
    ):
        scales = list(scale) if isinstance(scale, Sequence | Tensor) else [scale]
        self.scales = tuple(float(s) for s in scales)
        if not self.scales or not all(s > 0 and math.isfinite(s) for s in self.scales):
            raise ValueError(f"Each scale must be a finite number > 0, got {scale}.")
        if not callable(weight):
            raise ValueError(f"weight must be a function of the scales, got {weight!r}.")
        self.weight = weight

    def __call__(self, ebm: nn.Module) -> EnergyObjective:
        """The loss as a module.

        Args:
            ebm: a module from ``(x, context)`` to energies, or from ``x`` if there is no context.
        """
        check_energy(ebm, None)
        refuse_kinks(ebm)
        return EnergyObjective(self, ebm)

    def differentiable_loss(
        self, ebm: nn.Module, x: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The loss as a scalar tensor."""
        dims = event_dims(ebm, x)
        scale = self._draw_scales(x, dims)
        noise = torch.randn_like(x)
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            noisy = (x + scale * noise).detach().requires_grad_()
            score = score_of(ebm, noisy, context, create_graph=recorded)
        square = (score + noise / scale).square() * (self.weight(scale) / 2)
        return sum_event(square, dims).mean()

    def _draw_scales(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """One for each datum, with the event's dimensions of size one."""
        batch = x.shape[: x.dim() - len(dims)]
        scales = x.new_tensor(self.scales)
        index = torch.randint(len(scales), (*batch, *(1 for _ in dims)), device=x.device)
        return scales[index]
