"""From traces to log-weights."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from pyro.distributions.util import is_identically_one, is_identically_zero, scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext.infer.enumeration import Site, Term, is_enumerated, sum_except, sum_out
from pyro_ext.infer.mismatch import refuse_mismatch, refuse_sequential_enumeration
from pyro_ext.infer.plates import (
    Scale,
    common_plates,
    kept_plates,
    particle_dims,
    refuse_partial_subsampling,
    split,
    split_scales,
    subsampling,
)
from pyro_ext.infer.point_mass import is_stochastic_path
from pyro_ext.poutine.cut_messenger import innermost, unmasked


class Weights(NamedTuple):
    """Log-weights, and the scale that belongs outside of any function of them."""

    log_w: Tensor  # (K, *plates), or (*plates) from a trace of one particle
    scale: Scale
    plates: tuple[str, ...]  # names of the plates that log_w keeps, outermost first


def trace_weights(model_trace: Trace, guide_trace: Trace, particle_dim: int | None) -> Weights:
    """Sums log densities over all dimensions but the particles and the plates of every site.

    Args:
        model_trace: with computed log-probabilities.
        guide_trace: with computed score parts.
        particle_dim: the (negative) dimension of vectorised particles, if there is one.

    Raises:
        ValueError: as :class:`ParticleTraces`.
    """
    traces = ParticleTraces(model_trace, guide_trace, particle_dim, nested=False)
    return Weights(traces.log_w(), traces.scale, traces.plate_names)


def importance_traces(
    max_plate_nesting: float, model: Callable, guide: Callable, args, kwargs
) -> tuple[Trace, Trace]:
    """Pyro's traces, without its warnings of what :class:`ParticleTraces` refuses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found (vars in model|non-auxiliary vars)")
        return get_importance_trace("flat", max_plate_nesting, model, guide, args, kwargs)


class ParticleTraces:
    """The terms of log-weights in a pair of traces, of one particle or of vectorised ones.

    The weight of a datum sums the *local* sites, those inside of all ``plates``. There are sites
    outside, summed in :meth:`outer`, only if the bound is nested, which it is when the guide draws
    inside of a plate that is not around all sites.

    Args:
        model_trace: with computed log-probabilities.
        guide_trace: with computed score parts.
        particle_dim: the (negative) dimension of vectorised particles, if there is one.
        nested: whether plates may be kept that are not around all sites.

    Raises:
        ValueError: if the sites of model and guide do not match, if a plate is subsampled that the
            weights do not keep, if a site is enumerated one value at a time, if a scale is not a
            scalar.
    """

    def __init__(
        self,
        model_trace: Trace,
        guide_trace: Trace,
        particle_dim: int | None = None,
        nested: bool = True,
    ):
        self.traces = model_trace, guide_trace
        model, guide = random_sites(model_trace), random_sites(guide_trace)
        sites = model + guide
        refuse_sequential_enumeration(sites)
        refuse_mismatch(model, guide)
        self.plates = kept_plates(model, guide) if nested else common_plates(sites)
        refuse_partial_subsampling(sites, self.plates)
        self.model, self.outer_model = split(model, self.plates)
        self.guide, self.outer_guide = split(guide, self.plates)
        tempers, self.scale = split_scales(self.model + self.guide, self.plates)
        self.model_tempers = tempers[: len(self.model)]
        self.guide_tempers = tempers[len(self.model) :]
        self.factor: Any = self.scale / subsampling(self.plates)
        self.is_tempered = len(set(map(float, tempers))) > 1
        self.particle_dim = particle_dim
        self.particle_dims = particle_dims(sites)
        plate_dims = [frame.dim for frame in self.plates if frame.dim is not None]
        self.dims = sorted(self.particle_dims + plate_dims)

    @property
    def plate_names(self) -> tuple[str, ...]:
        """Names of the plates that log-weights keep, outermost first."""
        return tuple(frame.name for frame in self.plates)

    @property
    def is_nested(self) -> bool:
        """Whether there are sites outside of the kept plates."""
        return bool(self.outer_model or self.outer_guide)

    def log_w(self, held: Collection[str] | None = None, masked: bool = False) -> Tensor:
        """Log-weights ``(particles, *plates)``.

        Args:
            held: if given, the score function of every draw is left out of the gradient, and that
                of these sites is that of their density, even if they are reparameterised.
            masked: whether scores have the masks of their sites.
        """
        model = zip(self.model, self.model_tempers, strict=True)
        guide = zip(self.guide, self.guide_tempers, strict=True)
        terms = [Term(site, _model_term(site, temper)) for site, temper in model]
        terms += [
            Term(site, -_guide_term(site, temper, None if self._is_many(site) else held, masked))
            for site, temper in guide
            if not is_enumerated(site)
        ]
        return _keep(sum_out(terms, *self.traces, self.dims), self.dims)

    @property
    def draws_many(self) -> bool:
        """Whether the guide draws for each value of an enumerated site."""
        return any(self._is_many(site) for site in self.guide)

    @property
    def has_stochastic_paths(self) -> bool:
        """Whether a draw of a stochastic density in the guide carries a path."""
        sites = self.guide + self.outer_guide
        return any(is_stochastic_path(innermost(site["fn"])) for site in sites)

    def _is_many(self, site: Site) -> bool:
        dims = [s["infer"]["_enumerate_dim"] for s in self.guide if is_enumerated(s)]
        shape = site["unscaled_log_prob"].shape
        return not is_enumerated(site) and any(len(shape) >= -d and shape[d] > 1 for d in dims)

    def impossible_sites(self) -> list[str]:
        """Names of the model's sites with a log density of minus infinity somewhere."""
        sites = self.model + self.outer_model
        return [s["name"] for s in sites if bool((s["unscaled_log_prob"] == -math.inf).any())]

    @property
    def outer_names(self) -> frozenset[str]:
        """Names of the guide's sites outside of the kept plates."""
        return frozenset(site["name"] for site in self.outer_guide)

    def outer(self) -> Any:
        """Log-weights ``(particles,)`` of the sites outside of the plates, with their scales."""
        terms = [_log_prob(site, site["scale"]) for site in self.outer_model]
        terms += [-_log_prob(site, site["scale"]) for site in self.outer_guide]
        return _sum(terms, self.particle_dims)

    def log_q(self) -> Any:
        """Log densities ``(particles, *plates)`` of the guide, with the powers they have inside."""
        guide = zip(self.guide, self.guide_tempers, strict=True)
        return _sum([_log_prob(site, temper) for site, temper in guide], self.dims)

    def outer_log_q(self) -> Any:
        """Log densities ``(particles,)`` of the guide's draws outside of the plates."""
        terms = [_log_prob(site, site["scale"]) for site in self.outer_guide]
        return _sum(terms, self.particle_dims)

    def score(self, held: Collection[str], masked: bool = False) -> Any:
        """Score functions ``(particles, *plates)`` of the draws; arguments as in :meth:`log_w`."""
        sites = [site for site in self.guide if not self._is_many(site)]
        return _sum([_score(site, held, masked) for site in sites], self.dims)

    def score_of_many(self) -> Any:
        """Score functions of draws for each value of an enumerated site, summed over the values."""
        sites = [site for site in self.guide if self._is_many(site)]
        return _sum([_score(site, ()) for site in sites], self.dims)

    def outer_score(self) -> Any:
        """Score functions ``(particles,)`` of the draws outside of the plates."""
        return _sum([_score(site, ()) for site in self.outer_guide], self.particle_dims)


def random_sites(trace: Trace) -> list[Site]:
    """The sample sites of a trace, without deterministics."""
    nodes: Any = trace.nodes
    return [
        site
        for site in nodes.values()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    ]


# Densities.


def _log_prob(site: Site, scale: Scale) -> Tensor:
    return scale_and_mask(site["unscaled_log_prob"], scale, site["mask"])


def _model_term(site: Site, temper: Scale) -> Tensor:
    """An enumerated site keeps its whole distribution: the sum over a masked one is one."""
    return site["unscaled_log_prob"] if is_enumerated(site) else _log_prob(site, temper)


def _guide_term(site: Site, temper: Scale, held: Collection[str] | None, masked: bool) -> Tensor:
    log_prob = _log_prob(site, temper)
    score = 0.0 if held is None else _score(site, held, masked)
    return log_prob - (score - score.detach()) if isinstance(score, Tensor) else log_prob


def _score(site: Site, held: Collection[str], masked: bool = False) -> Tensor | float:
    """The score function of a draw, which no scale changes, nor, unless asked for, a mask."""
    if is_enumerated(site):
        return 0.0
    if site["name"] in held:
        return site["unscaled_log_prob"]
    if is_identically_zero(site["score_parts"].score_function):
        return 0.0
    fn = site["fn"] if masked else unmasked(site["fn"])
    if fn is site["fn"] and site["mask"] is None and is_identically_one(site["scale"]):
        return site["score_parts"].score_function
    parts = fn.score_parts(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(parts.score_function, 1.0, site["mask"] if masked else None)


def _sum(terms: Iterable[Tensor | float], dims: list[int]) -> Any:
    """A tensor, or zero if no term is one."""
    tensors = [sum_except(term, dims) for term in terms if isinstance(term, Tensor)]
    return _keep(sum(tensors), dims) if tensors else 0.0


def _keep(tensor: Any, dims: list[int]) -> Tensor:
    return tensor.reshape([tensor.shape[dim] for dim in dims])
