"""All particles of a bound: log-weights with the parts that gradient estimates are made of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_ext.infer.particle_traces import ParticleTraces
from pyro_ext.ops.single_particle import SingleParticle


class Particles:
    """Several runs of one particle, or one run of vectorised particles, seen as one.

    Args:
        runs: the runs, particle ``k * num_outer + m`` at place ``k, m``.
        num_particles: the number :math:`K` of particles of a bound.
        num_outer: the number :math:`M` of bounds.
        draws: of each run, the draws that were cut from their densities.
        leaves: of each run, what the densities saw in their place.
    """

    def __init__(
        self,
        runs: list[ParticleTraces],
        num_particles: int,
        num_outer: int,
        draws: Sequence[Mapping[str, Tensor]],
        leaves: Sequence[Mapping[str, Tensor]],
    ):
        self.runs = runs
        self.num_particles, self.num_outer = num_particles, num_outer
        self.draws = [list(names.values()) for names in draws]
        self.leaves = [list(names.values()) for names in leaves]
        self.cut = frozenset(name for names in draws for name in names)

    @property
    def is_vectorized(self) -> bool:
        """Whether one run holds all particles."""
        return self.runs[0].particle_dim is not None

    @property
    def scale(self) -> float | Tensor:
        """The factor of the bound."""
        return self.runs[0].scale

    def log_w(self, held: bool = False, masked: bool = False) -> Tensor:
        """Log-weights ``(K, *outer, *plates)``; ``held`` leaves scores out of the gradient."""
        return self._join(lambda run: run.log_w(self.cut if held else None, masked))

    def log_q(self) -> Any:
        """Log densities of the guide, ``(K, *outer, *plates)``."""
        return self._join(ParticleTraces.log_q)

    def outer_log_q(self) -> Any:
        """Log densities of the guide's draws outside of a nested bound's plates, ``(*outer)``."""
        log_q = self._join(ParticleTraces.outer_log_q)
        return log_q[0] if isinstance(log_q, Tensor) else log_q

    def score(self, of_cut: bool, masked: bool = False) -> Any:
        """Score functions ``(K, *outer, *plates)``, of the cut draws too or only of the others."""
        return self._join(lambda run: run.score(self.cut if of_cut else (), masked))

    def score_of_many(self) -> Any:
        """Score functions ``(K, *outer, *plates)`` of draws for each value of enumerated sites."""
        return self._join(ParticleTraces.score_of_many)

    def outer(self) -> Any:
        """Log-weights of the sites outside of a nested bound's plates, ``(*outer)``."""
        outer = self._join(ParticleTraces.outer)
        if not isinstance(outer, Tensor):
            return outer
        if is_validation_enabled():
            self._refuse_dependent_outer(outer)
        return outer[0]

    def outer_score(self) -> Any:
        """Score functions of the draws outside of a nested bound's plates, ``(*outer)``."""
        score = self._join(ParticleTraces.outer_score)
        return score[0] if isinstance(score, Tensor) else score

    def single(self, bound: Callable[[Tensor], Tensor], log_w: Tensor) -> SingleParticle:
        """The bound as a function of one particle's log-weight."""
        return SingleParticle(bound, log_w, self.num_outer)

    def sum_data(self, tensor: Tensor) -> Tensor:
        """Sums a bound over its plates, ``(*outer, *plates) -> (*outer)``."""
        plates = list(range(int(self.num_outer > 1), tensor.dim()))
        return tensor.sum(plates) if plates else tensor

    def adjoints(self, objective: Tensor) -> list[Tensor]:
        """Inner products of all cut draws with the objective's derivatives along their paths."""
        leaves = [leaf for run in self.leaves for leaf in run]
        gradients = iter(
            torch.autograd.grad(objective, leaves, retain_graph=True, allow_unused=True)
        )
        return [
            term
            for draws, run in zip(self.draws, self.leaves, strict=True)
            for term in _chain(draws, run, [next(gradients) for _ in run])
        ]

    def refuse_zero_weights(self) -> None:
        """Raises if all weights of some datum are zero, and says which sites do it."""
        impossible = (self.log_w() == -torch.inf).all(0)
        if impossible.any():
            names = sorted({name for run in self.runs for name in run.impossible_sites()})
            raise ValueError(
                f"All {self.num_particles} weights are zero for {int(impossible.sum())} of "
                f"{impossible.numel()} data, the first at {impossible.nonzero()[0].tolist()}: "
                f"sites {names} have log density -inf. Give the guide the support of the model, "
                "or look for data outside of the support of the likelihood."
            )

    def _refuse_dependent_outer(self, outer: Tensor) -> None:
        if not torch.allclose(outer, outer[:1].expand_as(outer), equal_nan=True):
            run = self.runs[0]
            names = sorted({site["name"] for site in run.outer_model + run.outer_guide})
            raise ValueError(
                f"One of the sites {names} lies outside of the plates {list(run.plate_names)}, but "
                "its log density differs between particles that differ only in draws inside of "
                "them. Such a model has no bound per datum. Put the site inside, or draw what it "
                "depends on outside."
            )

    def _join(self, part: Callable[[ParticleTraces], Any]) -> Any:
        parts = [part(run) for run in self.runs]
        if not isinstance(parts[0], Tensor):
            return parts[0]
        joined = parts[0] if self.is_vectorized else torch.stack(parts)
        outer = (self.num_outer,) if self.num_outer > 1 else ()
        return joined.reshape(self.num_particles, *outer, *joined.shape[1:])


def _chain(
    draws: list[Tensor], leaves: list[Tensor], adjoints: list[Tensor | None]
) -> list[Tensor]:
    """Passes the adjoint of each draw on to the earlier draws that it depends on."""
    for i in reversed(range(1, len(draws))):
        if adjoints[i] is not None:
            upstream = torch.autograd.grad(
                draws[i], leaves[:i], adjoints[i], retain_graph=True, allow_unused=True
            )
            adjoints[:i] = [_add(*pair) for pair in zip(adjoints, upstream, strict=False)]
    pairs = zip(draws, adjoints, strict=True)
    return [(draw * adjoint).sum() for draw, adjoint in pairs if adjoint is not None]


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
