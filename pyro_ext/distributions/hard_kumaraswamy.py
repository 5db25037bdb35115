"""The hard Kumaraswamy distribution."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_ext.distributions.parameters import broadcast
from pyro_ext.distributions.rectified import LogParts, Rectified
from pyro_ext.ops.hard_concrete import clip
from pyro_ext.ops.log1mexp import log1mexp
from pyro_ext.ops.quadrature import logistic_nodes

UNDERFLOW = -80.0  # of a logarithm, in single precision


class HardKumaraswamy(Rectified):
    r"""A Kumaraswamy variable, stretched and clipped to hold exact zeros and ones.

    .. math::

        z = \min(1, \max(0, l + (h - l)\, x)), \qquad P(x \le t) = 1 - (1 - t^a)^b

    .. math::

        P(z = 0) = 1 - (1 - t_0^a)^b, \quad t_0 = \frac{-l}{h - l}, \qquad
        P(z = 1) = (1 - t_1^a)^b, \quad t_1 = \frac{1 - l}{h - l}

    The density is with respect to :math:`\delta_0 + \delta_1 + \mathrm{Lebesgue}(0, 1)`; see
    :class:`Rectified` for what this means for gradients and guides. The divergence from
    :class:`L0Prior` has a closed form, that from other rectified laws is found by quadrature.

    Args:
        concentration1: :math:`a > 0`.
        concentration0: :math:`b > 0`.
        stretch: the limits :math:`(l, h)`, numbers with :math:`l < 0`, :math:`h > 1`.
        validate_args: checks arguments and values.

    Shape:
        ``batch_shape`` is that of the concentrations, broadcast; ``event_shape`` is ``()``.

    Raises:
        ValueError: if a concentration or the stretch is out of range.

    References:
        Bastings, Aziz and Titov, *Interpretable Neural Predictions with Differentiable Binary
        Variables*, arXiv 1905.08160.

    Example:
        >>> d = HardKumaraswamy(torch.tensor(0.5), torch.tensor([0.5, 1.0]))
        >>> d.prob_zero, d.prob_one
        (tensor([0.1566, 0.2887]), tensor([0.2063, 0.0426]))
    """

    arg_constraints: ClassVar = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }

    def __init__(
        self,
        concentration1: Tensor | float,
        concentration0: Tensor | float,
        stretch: tuple[float, float] = (-0.1, 1.1),
        *,
        validate_args: bool | None = None,
    ):
        self.concentration1, self.concentration0 = broadcast(concentration1, concentration0)
        super().__init__(self.concentration1.shape, stretch, validate_args=validate_args)

    def transport(self, logistic):
        """Inverts the cdf at the noise's own probability, and clips the stretched result."""
        log_above = logsigmoid(-logistic) / self.concentration0
        share = (log1mexp(log_above) / self.concentration1).exp()
        return clip(share, *self.stretch)

    def log_parts(self, value):
        """From logarithms, so that large concentrations do not underflow."""
        low, high = self.stretch
        a, b = self.concentration1, self.concentration0
        log_width = math.log(high - low)
        log_share = (value - low).log() - log_width
        log_power = a * log_share
        log_rest = log1mexp(log_power)
        above = b * log_rest
        rare = log_power + b.log() < UNDERFLOW
        below = torch.where(rare, log_power + b.log(), log1mexp(above.masked_fill(rare, -1.0)))
        density = a.log() + b.log() + log_power - log_share + above - log_rest - log_width
        return LogParts(below, above, density)

    def expectation(self, function):
        r"""Mean of a smooth function, by quadrature over quantiles.

        .. math::

            \mathbb{E}[f(z)] = P(0) f(0) + P(1) f(1) + \int_{P(0)}^{1 - P(1)} f(z(p)) \, dp

        However narrow the law is. Arguments as in :meth:`Rectified.expectation`, but 130 values.

        Example:
            >>> HardKumaraswamy(torch.tensor(200.0), torch.tensor(1e10)).mean
            tensor(0.9664)
        """
        ends = self._like.new_tensor([0.0, 1.0]).reshape(-1, *(1,) * len(self.batch_shape))
        ends = ends.expand(2, *self.batch_shape)
        atoms = self.log_parts(ends)
        nodes, weights = logistic_nodes(*(atoms.below - atoms.above))
        value = torch.cat([ends, self.transport(nodes)])
        measure = torch.cat([atoms.below[:1].exp(), atoms.above[1:].exp(), weights])
        return (measure * function(value)).sum(0)
