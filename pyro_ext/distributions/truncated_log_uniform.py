"""A log-uniform prior between two limits, hence proper."""

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_ext.distributions.parameters import broadcast, check_order, expanded


class TruncatedLogUniform(TorchDistribution):
    r"""A positive variable whose logarithm is uniform between two limits.

    .. math:: p(\theta) = \frac{1}{(h - l)\, \theta}, \qquad e^l \le \theta \le e^h

    The prior of multiplicative noise in structured Bayesian pruning, whose divergence from
    :class:`TruncatedLogNormal` is exact.

    Args:
        low: :math:`l`, the lower limit of the logarithm.
        high: :math:`h > l`, its upper limit.
        validate_args: checks arguments and values.

    Shape:
        ``batch_shape`` is that of the limits, broadcast; ``event_shape`` is ``()``.

    Raises:
        ValueError: unless :math:`l < h`.

    References:
        Neklyudov, Molchanov, Ashukha and Vetrov, *Structured Bayesian Pruning via Log-Normal
        Multiplicative Noise*, arXiv 1705.07283.

    Example:
        >>> d = TruncatedLogUniform(torch.tensor(-20.0), 0.0)
        >>> d.mean, d.log_prob(torch.tensor(1.0))
        (tensor(0.0500), tensor(-2.9957))
    """

    arg_constraints: ClassVar = {"low": constraints.real, "high": constraints.real}
    has_rsample = True

    def __init__(
        self, low: Tensor | float, high: Tensor | float, *, validate_args: bool | None = None
    ):
        self.low, self.high = broadcast(low, high)
        super().__init__(self.low.shape, validate_args=validate_args)
        check_order(low, high, self._validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        """From ``exp(low)`` to ``exp(high)``."""
        return constraints.interval(self.low.exp(), self.high.exp())

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        return expanded(self, batch_shape, _instance, *self.arg_constraints)

    def rsample(self, sample_shape=torch.Size()):
        """Draws with pathwise gradients."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.low.dtype, device=self.low.device))

    def log_prob(self, value):
        """Log density; outside the support only a validating instance refuses."""
        if self._validate_args:
            self._validate_sample(value)
        return -self._width.log() - value.log()

    def cdf(self, value):
        """Probability of this value or less."""
        return ((value.log() - self.low) / self._width).clamp(0.0, 1.0)

    def icdf(self, value):
        """Quantiles."""
        quantile = (self.low + self._width * value).exp()
        return torch.maximum(torch.minimum(quantile, self.high.exp()), self.low.exp())

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return -self.high.exp() * torch.expm1(-self._width) / self._width

    @property
    def variance(self) -> Tensor:
        """The variance."""
        square = -(2 * self.high).exp() * torch.expm1(-2 * self._width) / (2 * self._width)
        return square - self.mean.square()

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return self._width.log() + (self.low + self.high) / 2

    @property
    def _width(self) -> Tensor:
        return self.high - self.low


@register_kl(TruncatedLogUniform, TruncatedLogUniform)
def _kl_log_uniform(p, q):
    divergence = q._width.log() - p._width.log()
    inside = (p.low >= q.low) & (p.high <= q.high)
    return torch.where(inside, divergence, torch.inf)
