"""Point masses by which a guide says what it drew and how probable it was."""

from typing import Any

import torch
from pyro.distributions import Delta, Distribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero
from torch import Tensor
from torch.distributions import register_kl

from pyro_ext.distributions.stochastic_density import AuxiliaryLost, StochasticDensity


class Drawn(Delta):
    """A value that was drawn already, with the score function owed for it, but no density.

    Whatever value its site gets in the end, one that particles share for instance, its density is
    one. A value that was detached is refused: the gradient of the guide would be lost.

    Args:
        v: the value.
        score: log density of the choices without a path, of the batch shape; or zero.
        event_dim: as in ``Delta``.
    """

    def __init__(self, v: Tensor, score: Tensor | float = 0.0, event_dim: int = 0):
        super().__init__(v, event_dim=event_dim, validate_args=False)
        self.score = score

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether no score is owed."""
        return bool(is_identically_zero(self.score))

    def __call__(self, sample_shape=torch.Size()) -> Tensor:
        """The value, with whatever path it has."""
        return self.rsample(sample_shape)

    def expand(self, batch_shape, _instance=None):
        """The value and the score along more dimensions."""
        batch_shape = torch.Size(batch_shape)
        score: Any = self.score
        if not self.has_rsample and batch_shape != self.batch_shape:
            raise ValueError(
                f"A draw of batch shape {tuple(self.batch_shape)} with a score function cannot be "
                f"repeated for {tuple(batch_shape)}. Open the plates around the whole guide."
            )
        return Drawn(self.v.expand(batch_shape + self.event_shape), score, self.event_dim)

    def log_prob(self, x: Tensor) -> Tensor:
        """Zero."""
        if self.v.requires_grad and torch.is_grad_enabled() and not x.requires_grad:
            raise AuxiliaryLost(
                "The draw of an automatic guide was detached before it was scored, so that its "
                "density is none of the detached value. Train it with Trace_ELBO, TraceGraph_ELBO "
                "or MultiSampleELBO, not ReweightedWakeSleep."
            )
        return x.new_zeros(x.shape[: x.dim() - self.event_dim])

    def score_parts(self, x: Tensor) -> ScoreParts:
        """The score, and nothing else."""
        score: Any = self.score
        zero = self.log_prob(x)
        return ScoreParts(zero, score, zero)


class Weighed(Delta):
    """A point mass whose Kullback-Leibler divergence does not forget its ``log_density``."""

    def expand(self, batch_shape, _instance=None):
        """The value and its density along more dimensions."""
        batch_shape = torch.Size(batch_shape)
        return Weighed(
            self.v.expand(batch_shape + self.event_shape),
            self.log_density.expand(batch_shape),
            self.event_dim,
            validate_args=False,
        )


def is_stochastic_path(distribution: Any) -> bool:
    """Whether it is a stochastic density whose draws carry a path, or a draw of one."""
    if isinstance(distribution, StochasticDensity):
        return distribution.has_path
    return isinstance(distribution, Drawn) and distribution.v.requires_grad


@register_kl(Weighed, Distribution)
def _kl_weighed(p: Weighed, q: Distribution) -> Tensor:
    return p.log_density - q.log_prob(p.v)
