"""An energy and a flow, each trained against the other."""

import math

from torch import nn

from pyro_ext.distributions.noise import check_noise
from pyro_ext.infer.energy_objective import check_energy
from pyro_ext.infer.flow_contrastive_module import FlowContrastiveModule
from pyro_ext.ops.counts import count


class FlowContrastive:
    r"""Trains an energy to tell data from a flow, and the flow to be taken for data.

    .. math::

        \min_q \max_{p_\theta} V, \qquad
        V = \mathbb E_{x \sim p} \log \frac{p_\theta(x)}{p_\theta(x) + q(x)}
        + \mathbb E_{x \sim q} \log \frac{q(x)}{p_\theta(x) + q(x)}

    each density given the context. Both players are explicit densities. Where
    :math:`p_\theta = p`, :math:`V = -\log 4 + 2\, \mathrm{JSD}(p, q)`, so that the flow descends
    the Jensen-Shannon divergence; the energy's part is :class:`NoiseContrastive` with one draw per
    datum. Unlike the published code, gradients reach the flow along the paths of its draws, and
    noise rows take the contexts of data.

    The players take turns: the energy until it tells data from noise with an accuracy above
    ``high``, then the flow until that falls below ``low``. The module's loss is that of
    whose turn it is, and has no gradient for the other player, whose ``grad`` stays None: so one
    optimiser of all parameters does, or one for each player. A step of a turn asks the device for
    the accuracy.

    Fit the flow by likelihood first, and start from an energy relative to it: one whose base term
    is the log density of a copy of the flow, which stays. Its normaliser starts near zero, and
    the energy has the differences to learn only; from a wide Normal instead, learned normalisers
    of toys in the plane were still off by tenths of a nat where these had arrived. A flow
    that is too simple never passes for data, so that its turns all last ``max_turn`` and those of
    the energy one step: take ``low=0, high=1, max_turn=1`` then, for a step of each. Where
    likelihood has taken a flow as far as it goes, turns may move it little, and the energy is what
    is gained: draw from :class:`~pyro_ext.models.ICEBeeM` with the flow as noise.

    With a ``label_weight`` contexts are labels of which some are missing, -1. The energy is that
    of the mixture of all classes, the flow knows no context, and

    .. math::

        \mathcal L = -V - \frac{w}{B_{labelled}} \sum_{n\ labelled} \log p_\theta(u_n \mid x_n),
        \qquad p_\theta(x) = \frac1K \sum_u p_\theta(x \mid u)

    Unequal frequencies of the classes go into their learned normalisers.

    Args:
        low: accuracy at which the flow's turn ends.
        high: accuracy at which the energy's turn ends.
        label_weight: :math:`w`; None for contexts that are all known.
        max_turn: steps after which a turn ends anyway: noise of too simple a family may never
            pass for data.
        memory: of the moving average over batches by which accuracy is judged, in [0, 1).

    Raises:
        ValueError: if not ``0 <= low <= high <= 1``, or a number is out of its range; when called,
            if the ebm or the noise is not fit, or the noise has no parameters; when evaluated, as
            :class:`NoiseContrastive`, or if draws of the noise have no path.

    References:
        Gao, Nijkamp, Kingma, Xu, Dai and Wu, *Flow Contrastive Estimation of Energy-Based Models*,
        arXiv 1912.00589.

    Example:
        >>> import torch
        >>> from pyro_ext.distributions import Glow
        >>> from pyro_ext.nn import ConditionalEnergy, ConvEnergyNet, GlowNet
        >>> class Noise(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = GlowNet((1, 4, 4), depth=2, levels=1, width=8)
        ...     def forward(self, context):
        ...         return Glow(self.net)
        >>> images = torch.rand(32, 1, 4, 4) - 0.5
        >>> ebm = ConditionalEnergy((1, 4, 4), 2, hidden_dims=(20,))
        >>> fce = FlowContrastive(max_turn=1)(ebm, Noise())
        >>> groups = [{"params": ebm.parameters()}, {"params": fce.noise.parameters(), "lr": 1e-4}]
        >>> optimizer = torch.optim.Adam(groups, lr=1e-3)
        >>> turns = []
        >>> for _ in range(3):
        ...     turns.append(fce.turn)
        ...     optimizer.zero_grad()
        ...     fce(images).backward()
        ...     optimizer.step()
        >>> turns
        ['ebm', 'noise', 'ebm']
    """

    def __init__(
        self,
        low: float = 0.475,
        high: float = 0.525,
        *,
        label_weight: float | None = None,
        max_turn: int = 500,
        memory: float = 0.9,
    ):
        _check_options(low, high, label_weight, memory)
        self.low, self.high, self.memory = low, high, memory
        self.label_weight = label_weight
        self.max_turn = count(max_turn, "max_turn")

    def __call__(self, ebm: nn.Module, noise: nn.Module) -> FlowContrastiveModule:
        """The losses as a module.

        Args:
            ebm: a module with ``log_density(x, context)``, or with a ``label_weight``
                ``class_logits(x)``, such as :class:`~pyro_ext.nn.ConditionalEnergy`.
            noise: a module from contexts to a distribution with reparameterised draws: a flow, or
                a :class:`~pyro_ext.distributions.Glow`. With a ``label_weight`` it gets None.
        """
        check_energy(ebm, "log_density" if self.label_weight is None else "class_logits")
        check_noise(noise, trained=True)
        return FlowContrastiveModule(self, ebm, noise)


def _check_options(low: float, high: float, label_weight: float | None, memory: float) -> None:
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"low and high are accuracies with 0 <= low <= high <= 1, got {low} and {high}. Half "
            "is chance; the default band is 0.475 to 0.525."
        )
    if not 0 <= memory < 1:
        raise ValueError(f"memory is in [0, 1), got {memory}.")
    if label_weight is not None and not (label_weight >= 0 and math.isfinite(label_weight)):
        raise ValueError(f"label_weight must be None or a finite number >= 0, got {label_weight}.")
