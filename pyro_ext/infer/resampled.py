"""One of several particles per datum, as sample statements of a guide."""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Categorical

from pyro_ext.infer.enumeration import Site, is_enumerated
from pyro_ext.infer.estimators import auto
from pyro_ext.infer.particles import Particles
from pyro_ext.infer.plates import holds_particles
from pyro_ext.ops.bounds import iwae
from pyro_ext.ops.pareto_smoothing import pareto_smoothed


class Resampled:
    """Chooses a particle for each datum and says so to Pyro.

    The latent sites become point masses; their joint density is a factor of its own, since it
    belongs to the plates of a weight, whichever plates a site is in.

    Args:
        particles: with nothing cut and one outer particle.
        subsamples: names of the plates whose subsample was drawn.
        psis: whether the choice follows Pareto-smoothed weights.

    Raises:
        ValueError: if sites are enumerated, if a draw outside of the plates needs its score, if
            ``psis`` meets gradients.
    """

    def __init__(self, particles: Particles, subsamples: Iterable[str], psis: bool):
        self.particles, self.run = particles, particles.runs[0]
        self.log_w = particles.log_w()
        _refuse(particles, self.log_w, psis)
        chosen = pareto_smoothed(self.log_w)[0] if psis else self.log_w.log_softmax(0)
        self.log_probs = chosen
        self.index = Categorical(logits=chosen.detach().movedim(0, -1)).sample()
        self.plates = {frame.name: _plate(frame, subsamples) for frame in _frames(self._sites)}

    def sample(self) -> dict[str, Tensor]:
        """The sample statements; returns the values by site."""
        self._factor("_importance_density", self._density(), self.run.plate_names)
        if self.run.is_nested:
            self._factor("_importance_outer_density", self._outer_density(), ())
        return {site["name"]: self._sample(site) for site in self._latents}

    @property
    def _sites(self) -> list[Site]:
        return self.run.guide + self.run.outer_guide

    @property
    def _latents(self) -> list[Site]:
        return [s for s in self._sites if not s["is_observed"] and s["name"] in self._model_names]

    @property
    def _model_names(self) -> set[str]:
        return {site["name"] for site in self.run.model + self.run.outer_model}

    def _factor(self, name: str, log_factor: Tensor, plates: Iterable[str]) -> None:
        with self._enter(plates):
            pyro.factor(name, log_factor, has_rsample=True)

    def _enter(self, names: Iterable[str]) -> ExitStack:
        stack = ExitStack()
        for name in names:
            stack.enter_context(self.plates[name])
        return stack

    def _density(self) -> Tensor:
        """Log density of the choice, an upper bound in expectation."""
        log_q = self.particles.log_q() + self.log_probs + math.log(len(self.log_w))
        density = log_q.gather(0, self.index[None])[0] - self._scores()
        return self.run.factor * _spread(density, self._dims(self.run.dims))

    def _outer_density(self) -> Tensor:
        density = torch.as_tensor(self.particles.outer_log_q())
        return _spread(density, self._dims(self.run.particle_dims))

    def _dims(self, dims: list[int]) -> list[int]:
        """Dimensions without that of the particles chosen from."""
        return dims[1:] if self.particles.is_vectorized else dims

    def _scores(self) -> Any:
        """Zero, with the gradient that draws need which are not reparameterised."""
        score = self.particles.score(of_cut=False)
        if not isinstance(score, Tensor):
            return 0.0
        weight, _, factor = auto(self.particles.single(iwae, self.log_w))
        return ((weight + factor) * (score - score.detach())).sum(0)

    def _sample(self, site: Site) -> Tensor:
        name, event_dim = site["name"], site["fn"].event_dim
        values = self._values(name)
        is_outer = name in self.run.outer_names
        value = values[0] if is_outer else self._chosen(values, event_dim)
        dims = [f.dim for f in site["cond_indep_stack"] if f.vectorized]
        batch_dim = max([0, *(-dim for dim in dims if dim != self.run.particle_dim)])
        with self._enter(frame.name for frame in _frames([site])):
            return pyro.sample(name, Delta(_trim(value, event_dim, batch_dim), event_dim=event_dim))

    def _values(self, name: str) -> Tensor:
        """The values of all particles, ``(K, *batch, *event)``."""
        values: list[Any] = [r.traces[1].nodes[name]["value"] for r in self.particles.runs]
        return values[0] if self.particles.is_vectorized else torch.stack(values)

    def _chosen(self, values: Tensor, event_dim: int) -> Tensor:
        batch = values.shape[1 : values.dim() - event_dim]
        index = _spread(self.index, self._dims(self.run.dims)).expand(batch)
        index = index.reshape((1, *batch) + (1,) * event_dim)
        return values.gather(0, index.expand(1, *values.shape[1:]))[0]


def _frames(sites: Iterable[Site]) -> list[Any]:
    """The user's own vectorised plates around the sites."""
    frames: set[Any] = {f for site in sites for f in site["cond_indep_stack"] if f.vectorized}
    return [frame for frame in frames if not holds_particles(frame)]


def _plate(frame: Any, subsamples: Iterable[str]) -> pyro.plate:
    """The plate of a frame; where no subsample was drawn, one was given."""
    size = frame.full_size or frame.size
    if frame.size == size or frame.name in subsamples:
        return pyro.plate(frame.name, size, subsample_size=frame.size, dim=frame.dim)
    return pyro.plate(frame.name, size, subsample=torch.arange(frame.size), dim=frame.dim)


def _spread(tensor: Tensor, dims: list[int]) -> Tensor:
    """Puts dimensions at ``dims``, which are negative and ascend, and ones between them."""
    shape = [1] * max([0, *(-dim for dim in dims)])
    for dim, size in zip(dims, tensor.shape, strict=True):
        shape[dim] = size
    return tensor.reshape(shape)


def _trim(value: Tensor, event_dim: int, num_dims: int) -> Tensor:
    """Leaves out batch dimensions of size one to the left of ``num_dims``."""
    superfluous = value.dim() - event_dim - num_dims
    return value.reshape(value.shape[max(0, superfluous) :])


def _refuse(particles: Particles, log_w: Tensor, psis: bool) -> None:
    run = particles.runs[0]
    for site in run.model + run.outer_model:
        if is_enumerated(site):
            raise ValueError(
                f"ImportanceGuide cannot weigh draws of a model that enumerates, as site "
                f"'{site['name']}' asks. Draw it in the base guide."
            )
    score = particles.outer_score()
    if isinstance(score, Tensor) and score.requires_grad:
        raise ValueError(
            "The base guide has a trainable draw outside of the plates "
            f"{list(run.plate_names)} that is not reparameterised, for which ImportanceGuide has "
            "no gradient. Train the base guide with MultiSampleELBO."
        )
    if psis and torch.is_grad_enabled() and log_w.requires_grad:
        raise ValueError(
            "psis=True has no pathwise gradient. Call the guide under torch.no_grad(), and train "
            "one with psis=False, or its base guide with MultiSampleELBO."
        )
