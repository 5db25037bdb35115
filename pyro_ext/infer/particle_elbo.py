"""Runs of model and guide, as many as there are particles."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger

from pyro_ext.infer.mismatch import refuse_score_function
from pyro_ext.infer.particle_traces import ParticleTraces, importance_traces
from pyro_ext.infer.particles import Particles
from pyro_ext.infer.plates import PARTICLES
from pyro_ext.poutine.cut_messenger import CutMessenger
from pyro_ext.poutine.shared_site_messenger import SharedSiteMessenger
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger


class ParticleELBO(ELBO):
    """The part of an objective that draws particles.

    Attributes:
        num_outer: the number of bounds; ``num_particles``, Pyro's word, is that of all particles.
        has_path: whether gradients along the paths of reparameterised draws are taken apart.
        has_score: whether the scores of draws are used; without a path, of all draws.
    """

    num_outer: int
    has_path: bool
    has_score: bool

    _shared: frozenset[str] = frozenset()

    def draw_particles(self, model, guide, args, kwargs) -> Particles:
        """Draws all particles, those of a bound with the same values outside of its plates."""
        particles = self._run(model, guide, args, kwargs)
        shared = particles.runs[0].outer_names
        if shared != self._shared:
            self._shared = shared  # the structure is known now, and kept for the next call
            particles = self._run(model, guide, args, kwargs)
            _refuse_change(shared, particles.runs[0].outer_names)
        return particles

    def _run(self, model, guide, args, kwargs) -> Particles:
        if self.max_plate_nesting == math.inf:
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        cut = CutMessenger(self.has_path, self._shared, int(self.max_plate_nesting))
        handlers: list[Messenger] = [cut] if self._is_cut else []
        if self._shared:
            handlers += [SharedSiteMessenger(self._shared, self.num_outer, self._particle_dim)]
        runs, draws, leaves = [], [], []
        with SharedSubsampleMessenger():
            for _ in range(1 if self._is_vectorized else self.num_particles):
                runs.append(self._traces(model, guide, handlers, args, kwargs))
                draws.append(dict(cut.draws))
                leaves.append(dict(cut.leaves))
        num_particles = self.num_particles // self.num_outer
        return Particles(runs, num_particles, self.num_outer, draws, leaves)

    @property
    def _is_cut(self) -> bool:
        """Draws are taken apart if the estimator has a path, and cut off if it has only scores."""
        return torch.is_grad_enabled() and (self.has_path or self.has_score)

    def _traces(self, model, guide, handlers, args, kwargs) -> ParticleTraces:
        programs = self._particle_programs(model, guide, handlers)
        with self._explained_errors(model, guide, args, kwargs):
            model_trace, guide_trace = self._get_trace(*programs, args, kwargs)
        particles = ParticleTraces(model_trace, guide_trace, self._particle_dim)
        if torch.is_grad_enabled() and not self.has_score:
            refuse_score_function(particles.guide + particles.outer_guide)
        return particles

    def _particle_programs(self, model, guide, handlers) -> tuple[Callable, Callable]:
        if self._is_vectorized:
            model = self._vectorized_num_particles(model)
            guide = self._vectorized_num_particles(guide)
        guide = EnumMessenger(-1 - int(self.max_plate_nesting))(guide)
        for handler in handlers:
            guide = handler(guide)
        return EnumMessenger()(model), guide

    def _get_trace(self, model, guide, args, kwargs):
        return importance_traces(self.max_plate_nesting, model, guide, args, kwargs)

    @property
    def _is_vectorized(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    @property
    def _particle_dim(self) -> int | None:
        return -int(self.max_plate_nesting) if self._is_vectorized else None

    @contextmanager
    def _explained_errors(self, model, guide, args, kwargs) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            _refuse_functorch(error)
            self._refuse_unvectorizable(error, model, guide, args, kwargs)
            raise
        except KeyError as error:
            if not (self._is_cut and "intermediates cache" in str(error)):  # Pyro's words
                raise
            raise ValueError(
                "A normalising flow of the guide has no inverse, so that the density of a copy of "
                "its draw is unknown. Use gradient=pathwise."
            ) from error

    def _refuse_unvectorizable(self, error: Exception, model, guide, args, kwargs) -> None:
        """Blames the vectorisation if one particle alone runs."""
        if not self._is_vectorized:
            return
        try:
            with torch.no_grad(), poutine.block():
                importance_traces(math.inf, model, guide, args, kwargs)
        except Exception:
            return  # the caller raises the first error
        raise ValueError(
            f"Model and guide run with one particle, but not with {self.num_particles} along "
            f"dimension {self._particle_dim}: {error} Index dimensions from the right, let "
            "max_plate_nesting count all plates, or pass vectorize_particles=False."
        ) from error


class GuideParticles(ParticleELBO):
    """Draws particles inside of a guide, which other particles may surround; no objective."""

    num_outer = 1
    has_path = False
    has_score = True
    _is_cut = False

    def _vectorized_num_particles(self, fn):
        name = f"{PARTICLES}_of_importance_guide"
        dim = -int(self.max_plate_nesting)
        return fn if self.num_particles == 1 else pyro.plate(name, self.num_particles, dim=dim)(fn)


def _refuse_functorch(error: Exception) -> None:
    if "functorch" in str(error):
        raise ValueError(
            "Under a transform of torch.func draws cannot be taken apart. Use gradient=pathwise, "
            "or torch.func.functional_call with torch.autograd.grad."
        ) from error


def _refuse_change(before: Collection[str], after: Collection[str]) -> None:
    if before != after:
        raise ValueError(
            "The sites outside of the bound's plates were "
            f"{sorted(before)}, then {sorted(after)} in a second run. A nested bound needs a model "
            "and a guide of fixed structure."
        )
