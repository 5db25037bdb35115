"""Families of data: functions from what a decoder puts out to a distribution."""

from pyro.distributions import Bernoulli
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor


def bernoulli(logits: Tensor) -> Distribution:
    """Independent pixels in {0, 1}."""
    return Bernoulli(logits=logits).to_event(1)
