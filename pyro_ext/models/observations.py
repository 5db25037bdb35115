"""Families of data: functions from what a decoder puts out to a distribution."""

import math
from typing import Any

import torch
from pyro.distributions import Bernoulli, NegativeBinomial, Normal, Poisson
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_ext.ops.counts import count
from pyro_ext.ops.soft_bound import soft_bound

MAX_LOG = 6.0
SMALLEST_RATE = 1e-6


def bernoulli(logits: Tensor) -> Distribution:
    """Independent pixels in {0, 1}."""
    return Bernoulli(logits=logits).to_event(1)


def poisson(raw: Tensor) -> Distribution:
    r"""Independent counts, of rate :math:`\operatorname{softplus}(h) + 10^{-6}`.

    Args:
        raw: :math:`h`, ``(..., input_dim)``.

    Example:
        >>> poisson(torch.zeros(5, 3)).mean[0]
        tensor([0.6931, 0.6931, 0.6931])
    """
    return Poisson(_rate(raw)).to_event(1)


class NormalObservation(nn.Module):
    r"""Independent numbers with a standard deviation for each column, learned or not.

    .. math:: p(x \mid h) = \mathcal N(x; h, \operatorname{diag} \sigma^2)

    A learned one stays within a factor of :math:`e^{6}` of where it starts: with as many latents as
    numbers, and no noise, the likelihood has no bound.

    Args:
        input_dim: size of a datum.
        scale: :math:`\sigma`, at the start.
        is_learned: whether it is learned.

    Attributes:
        feature_dim: numbers that it takes of the decoder, ``input_dim``.

    Raises:
        ValueError: if the size or the scale is not positive.

    Example:
        >>> observation = NormalObservation(3, scale=0.5)
        >>> observation(torch.zeros(5, 3)).stddev[0]
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    start: Tensor

    def __init__(self, input_dim: int, scale: float = 0.1, *, is_learned: bool = True):
        super().__init__()
        self.feature_dim = count(input_dim, "input_dim")
        self.register_buffer("start", torch.full((input_dim,), _positive(scale, "scale")))
        self.log_ratio = nn.Parameter(torch.zeros(input_dim)) if is_learned else None

    @property
    def scale(self) -> Tensor:
        """The standard deviations, ``(input_dim,)``."""
        return _learned(self.start, self.log_ratio)

    def forward(self, loc: Tensor) -> Distribution:
        """The distribution."""
        return Normal(loc, self.scale).to_event(1)


class NegativeBinomialObservation(nn.Module):
    r"""Independent counts that vary more than Poisson's, with a dispersion for each column.

    .. math:: \mathbb E x = m = \operatorname{softplus}(h) + 10^{-6}, \qquad
        \operatorname{Var} x = m + m^2 / r

    Args:
        input_dim: size of a datum.
        dispersion: :math:`r` at the start; the larger, the nearer to Poisson's law. It is learned,
            within a factor of :math:`e^6`.

    Attributes:
        feature_dim: numbers that it takes of the decoder, ``input_dim``.

    Raises:
        ValueError: if the size or the dispersion is not positive.

    Example:
        >>> observation = NegativeBinomialObservation(3, dispersion=2.0)
        >>> law = observation(torch.zeros(5, 3))
        >>> law.mean[0, 0].item(), law.variance[0, 0].item()  # log 2, and that + half its square
        (0.693..., 0.933...)
    """

    start: Tensor

    def __init__(self, input_dim: int, dispersion: float = 1.0):
        super().__init__()
        self.feature_dim = count(input_dim, "input_dim")
        start = torch.full((input_dim,), _positive(dispersion, "dispersion"))
        self.register_buffer("start", start)
        self.log_ratio = nn.Parameter(torch.zeros(input_dim))

    @property
    def dispersion(self) -> Tensor:
        """The :math:`r`, ``(input_dim,)``."""
        return _learned(self.start, self.log_ratio)

    def forward(self, raw: Tensor) -> Distribution:
        """The distribution."""
        logits = _rate(raw).log() - self.dispersion.log()
        return NegativeBinomial(self.dispersion, logits=logits).to_event(1)


def _rate(raw: Tensor) -> Tensor:
    return softplus(raw) + SMALLEST_RATE


def _learned(start: Tensor, log_ratio: Tensor | None) -> Tensor:
    return start if log_ratio is None else start * soft_bound(log_ratio, MAX_LOG).exp()


def _positive(value: Any, name: str) -> float:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return float(value)
