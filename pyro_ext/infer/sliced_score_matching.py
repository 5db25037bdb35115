"""Score matching of energies by second derivatives."""

import torch
from torch import Tensor, nn

from pyro_ext.infer.energy_objective import EnergyObjective, check_energy
from pyro_ext.infer.score import event_dims, refuse_kinks, score_of, sum_event
from pyro_ext.ops.counts import count


class SlicedScoreMatching:
    r"""Fits the score of an energy to that of the data, without any noise on them.

    .. math::

        \mathcal L = \frac1B \sum_n \Bigl[ \tfrac12 \lVert s_\theta(x_n, u_n) \rVert^2
        + \frac1M \sum_{m=1}^M v_m^\top \frac{\partial s_\theta}{\partial x}(x_n, u_n)\, v_m \Bigr],
        \qquad s_\theta(x, u) = -\nabla_x E(x, u)

    In expectation over the directions, :math:`v_{mi} = \pm 1` at random and fresh for each datum,
    the second term is the trace of the Jacobian, and the loss is Hyvärinen's: half the Fisher
    divergence of data and model, up to a constant of the data. Each direction takes one more
    backward pass; ``num_slices=None`` takes each coordinate once, which is exact. In one dimension
    one slice is. No normaliser is needed; a learned one keeps its value.

    The data need a smooth density: on integers, or on few points, the loss falls without bound.
    Dequantise, or take :class:`DenoisingScoreMatching`.

    Args:
        num_slices: :math:`M \ge 1`, or None for the trace itself.

    Shape:
        the module maps ``x (*batch, *event_shape)`` and contexts to a scalar, the mean over the
        batch. It is no log density, and may be negative: its unit is that of :math:`1 / x^2`.

    Raises:
        ValueError: if ``num_slices < 1``; when called and evaluated, as
            :class:`DenoisingScoreMatching`.

    References:
        Hyvärinen, *Estimation of Non-Normalized Statistical Models by Score Matching* (2005). Song,
        Garg, Shi and Ermon, *Sliced Score Matching: A Scalable Approach to Density and Score
        Estimation*, arXiv 1905.07088: the variance-reduced form, with signs as directions.

    Example:
        >>> from pyro_ext.nn import ConditionalEnergy
        >>> x, label = torch.randn(64, 2), torch.randint(3, (64,))
        >>> loss = SlicedScoreMatching()(ConditionalEnergy(2, 4, num_classes=3))
        >>> loss(x, label).backward()
    """

    def __init__(self, num_slices: int | None = 1):
        self.num_slices = None if num_slices is None else count(num_slices, "num_slices")

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
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score = score_of(ebm, x, context, create_graph=True)
            curvature = self._trace(score, x, dims, recorded)
            loss = (sum_event(score.square(), dims) / 2 + curvature).mean()
        return loss if recorded else loss.detach()

    def _trace(self, score: Tensor, x: Tensor, dims: tuple[int, ...], recorded: bool) -> Tensor:
        slices = self._slices(x, dims)
        parts = [sum_event(v * _product(score, x, v, recorded), dims) for v in slices]
        total = torch.stack(parts).sum(0)
        return total if self.num_slices is None else total / self.num_slices

    def _slices(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Directions ``(M, *batch, *event_shape)``; of unit vectors the batch is broadcast."""
        if self.num_slices is not None:
            signs = torch.randint(2, (self.num_slices, *x.shape), device=x.device)
            return (2 * signs - 1).to(x.dtype)
        event = x.shape[x.dim() - len(dims) :]
        ones = (1 for _ in range(x.dim() - len(dims)))
        return torch.eye(event.numel(), dtype=x.dtype, device=x.device).reshape(-1, *ones, *event)


def _product(score: Tensor, x: Tensor, v: Tensor, recorded: bool) -> Tensor:
    """The Jacobian of the score, which is symmetric, times a vector; zero for a constant score."""
    if not score.requires_grad:
        return torch.zeros_like(x)
    total = (score * v).sum()
    grads = torch.autograd.grad(
        total, x, create_graph=recorded, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(x) if grads[0] is None else grads[0]
