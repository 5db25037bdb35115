"""Log-normal multiplicative noise between two limits."""

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_ext.distributions.parameters import broadcast, check_order, expanded
from pyro_ext.distributions.truncated_log_uniform import TruncatedLogUniform
from pyro_ext.ops.hard_concrete import logistic_noise
from pyro_ext.ops.truncated_normal import (
    HALF_LOG_TAU,
    far_limit,
    log_normal_mass,
    truncated_normal,
)

FAR = 40.0  # scales outside of the limits
LENGTHS = 100.0  # of the exponential law beyond a limit, which the other limit is away


class TruncatedLogNormal(TorchDistribution):
    r"""A positive variable whose logarithm is Normal, cut off at two limits.

    .. math::

        p(\theta) = \frac{1}{Z \sigma \theta}\, \phi\Bigl(\frac{\log\theta - \mu}{\sigma}\Bigr),
        \qquad e^l \le \theta \le e^h, \qquad
        Z = \Phi(b) - \Phi(a), \quad a = \frac{l - \mu}{\sigma}, \; b = \frac{h - \mu}{\sigma}

    The posterior of multiplicative noise in structured Bayesian pruning. Its divergence from
    :class:`TruncatedLogUniform` is exact,

    .. math::

        \mathrm{KL} = \log(h' - l') - \log\sigma - \log Z - \tfrac12 \log(2 \pi e)
        - \frac{a \phi(a) - b \phi(b)}{2 Z}

    and infinite if the limits exceed those of the prior. All is computed from logarithms, and the
    location may lie outside the limits, however far: beyond 40 scales the divergence and moments
    are those of the exponential law that is left there, with corrections. Densities keep the
    precision of their type, which :math:`n` scales outside is :math:`n^2` units of rounding.

    Args:
        loc: :math:`\mu`.
        scale: :math:`\sigma > 0`.
        low: :math:`l`, the lower limit of the logarithm.
        high: :math:`h > l`, its upper limit.
        validate_args: checks arguments and values.

    Shape:
        ``batch_shape`` is that of the arguments, broadcast; ``event_shape`` is ``()``.

    Raises:
        ValueError: unless :math:`l < h` and :math:`\sigma > 0`.

    References:
        Neklyudov, Molchanov, Ashukha and Vetrov, *Structured Bayesian Pruning via Log-Normal
        Multiplicative Noise*, arXiv 1705.07283.

    Example:
        >>> d = TruncatedLogNormal(torch.tensor([0.0, -3.0]), torch.tensor([0.01, 2.0]), -20.0, 0.0)
        >>> d.mean, d.signal_to_noise
        (tensor([0.9921, 0.1216]), tensor([166.3865,   0.6560]))
        >>> torch.distributions.kl_divergence(d, TruncatedLogUniform(-20.0, 0.0))
        tensor([6.8751, 1.0569])
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.real,
        "high": constraints.real,
    }
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = -20.0,
        high: Tensor | float = 0.0,
        *,
        validate_args: bool | None = None,
    ):
        self.loc, self.scale, self.low, self.high = broadcast(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)
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
        return self._transport(logistic_noise(self._extended_shape(sample_shape), self.loc))

    def log_prob(self, value):
        """Log density; outside the support only a validating instance refuses."""
        if self._validate_args:
            self._validate_sample(value)
        log_value = value.log()
        square = ((log_value - self.loc) / self.scale).square()
        return -square / 2 - HALF_LOG_TAU - self.scale.log() - self._log_mass - log_value

    def cdf(self, value):
        """Probability of this value or less."""
        lower, upper = self._limits
        x = torch.minimum((value.log() - self.loc) / self.scale, upper)
        inside = log_normal_mass(lower, torch.maximum(x, lower)) - self._log_mass
        return torch.where(x > lower, inside.exp(), 0.0)

    def icdf(self, value):
        """Quantiles."""
        return self._transport(torch.logit(value))

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._logarithm[1].exp().to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        _, first, excess = self._logarithm
        return ((2 * first).exp() * torch.expm1(excess)).to(self.loc.dtype)

    @property
    def signal_to_noise(self) -> Tensor:
        """Mean over standard deviation; noise with a ratio below one is pruned."""
        return torch.expm1(self._logarithm[2]).rsqrt().to(self.loc.dtype)

    @property
    def _logarithm(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Of :math:`y = \log\theta`: entropy, log mean of ``exp(y)``, and excess, in float64.

        The excess is :math:`\log \mathbb{E}[e^{2 y}] - 2 \log \mathbb{E}[e^y]`.
        """
        loc, scale, low, high = (x.double() for x in (self.loc, self.scale, self.low, self.high))
        limit = torch.where(loc > high, high, low)
        distance = limit - loc
        mean = scale.square() / distance
        is_far = (distance.abs() > FAR * scale) & ((loc < low) | (loc > high))
        is_far = is_far & (high - low > LENGTHS * mean.abs()) & (mean < 0.25)
        safe = torch.where(is_far, distance, FAR * scale.clamp(min=1.0) * 4)
        entropy, first, excess = far_limit(safe, torch.where(is_far, scale, 1.0))
        near = self._near(loc, scale, low, high)
        parts = zip((entropy, limit + first, excess), near, strict=True)
        result = [torch.where(is_far, far, other) for far, other in parts]
        return result[0], result[1], result[2]

    @staticmethod
    def _near(loc, scale, low, high) -> tuple[Tensor, Tensor, Tensor]:
        """The same from probabilities of the Normal; far from the limits its terms are huge."""
        lower, upper = (low - loc) / scale, (high - loc) / scale
        masses = [log_normal_mass(lower - k * scale, upper - k * scale) for k in range(3)]
        shares = [x * (-x.square() / 2 - HALF_LOG_TAU - masses[0]).exp() for x in (lower, upper)]
        entropy = HALF_LOG_TAU + scale.log() + masses[0] + (1 + shares[0] - shares[1]) / 2
        first = loc + scale.square() / 2 + masses[1] - masses[0]
        return entropy, first, scale.square() + masses[2] - 2 * masses[1] + masses[0]

    def _transport(self, logistic: Tensor) -> Tensor:
        x = truncated_normal(logistic, *self._limits)
        value = (self.loc + self.scale * x).exp()
        return torch.maximum(torch.minimum(value, self.high.exp()), self.low.exp())

    @property
    def _limits(self) -> tuple[Tensor, Tensor]:
        return (self.low - self.loc) / self.scale, (self.high - self.loc) / self.scale

    @property
    def _log_mass(self) -> Tensor:
        return log_normal_mass(*self._limits)


@register_kl(TruncatedLogNormal, TruncatedLogUniform)
def _kl_log_normal(q, p):
    inside = (q.low >= p.low) & (q.high <= p.high)
    divergence = (p.high - p.low).double().log() - q._logarithm[0]
    return torch.where(inside, divergence.to(q.loc.dtype), math.inf)
