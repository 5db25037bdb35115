"""``to_event`` and ``mask`` that pass ``score_parts`` on, as stochastic densities need."""

from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch import Independent
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor


class KeepsScoreParts:
    """Wraps so that ``score_parts`` reaches the density inside; Pyro's Independent asks log_prob.

    Mixed into a stochastic density, and into what wraps one.
    """

    sample: Any
    rsample: Any
    score_parts: Any

    def to_event(self, reinterpreted_batch_ndims=None):
        """Reinterprets batch dimensions as event dimensions."""
        wrapped = super().to_event(reinterpreted_batch_ndims)  # type: ignore[misc]
        if type(wrapped) is Independent:
            return IndependentDensity(wrapped.base_dist, wrapped.reinterpreted_batch_ndims)
        return wrapped

    def mask(self, mask):
        """Leaves out batch elements."""
        return MaskedDensity(self, mask)

    def sample_and_log_prob(self, sample_shape=torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws values together with the stochastic upper bound on their log density."""
        value = self.sample(sample_shape)
        return value, self.score_parts(value).log_prob

    def rsample_and_log_prob(self, sample_shape=torch.Size()) -> tuple[Tensor, Tensor]:
        """The same with pathwise gradients, where the sampler has them."""
        value = self.rsample(sample_shape)
        return value, self.score_parts(value).log_prob


class _Wrapper(KeepsScoreParts):
    base_dist: Any
    batch_shape: Any
    _rewrap: Any

    @property
    def density_kind(self) -> str:
        return self.base_dist.density_kind

    @property
    def _num_weights(self) -> int:
        return self.base_dist._num_weights

    def __call__(self, sample_shape=torch.Size()) -> Tensor:
        return self.base_dist(sample_shape)

    def tight(self, num: int):
        return self._rewrap(self.base_dist.tight(num))

    def frozen(self, seed: int):
        return self._rewrap(self.base_dist.frozen(seed))

    def separate(self, batch_shape: torch.Size):
        inner = self.base_dist.batch_shape[len(self.batch_shape) :]
        return self._rewrap(self.base_dist.separate(torch.Size(batch_shape) + inner))


class IndependentDensity(_Wrapper, Independent):  # type: ignore[override]
    """What ``to_event`` makes of a stochastic density."""

    def _rewrap(self, base_dist):
        return IndependentDensity(base_dist, self.reinterpreted_batch_ndims)

    def score_parts(self, value):
        """The parts of the density inside, summed over the reinterpreted dimensions."""
        parts = self.base_dist.score_parts(value)
        return ScoreParts(*(sum_rightmost(part, self.reinterpreted_batch_ndims) for part in parts))


class MaskedDensity(_Wrapper, MaskedDistribution):
    """What ``mask`` makes of a stochastic density."""

    def _rewrap(self, base_dist):
        return MaskedDensity(base_dist, self._mask)

    def score_parts(self, value):
        """The parts of the density inside, masked."""
        if self._mask is False:
            return super().score_parts(value)
        parts = self.base_dist.score_parts(value)
        return parts if self._mask is True else parts.scale_and_mask(mask=self._mask)


def density_kind(distribution: Any) -> str:
    """``"lower"`` if ``log_prob`` of a distribution, or of one that it wraps, is only a bound."""
    own = getattr(distribution, "density_kind", None)
    if own is not None:
        return own
    names = ("base_dist", "component_distribution", "component0", "component1")
    inner = [getattr(distribution, name, None) for name in names]
    kinds = [density_kind(part) for part in inner if part is not None]
    return next((kind for kind in kinds if kind != "exact"), "exact")
