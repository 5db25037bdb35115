"""From a pair of traces to log-weights: which plates a weight keeps, which scale stays outside."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

PARTICLES = "num_particles_vectorized"  # the name of Pyro's own particle plate

Site = Any  # a sample site of a trace, a Message of Pyro's


class Weights(NamedTuple):
    """Log-weights, and the scale that belongs outside of any function of them."""

    log_w: Tensor  # (K, *plates), or (*plates) from a trace of one particle
    scale: float | Tensor
    plates: tuple[str, ...]  # names of the plates that log_w keeps, outermost first


def trace_weights(model_trace: Trace, guide_trace: Trace, particle_dim: int | None) -> Weights:
    """Sums log densities over all dimensions but the particles and the plates of every site.

    Args:
        model_trace: with computed log-probabilities.
        guide_trace: with computed score parts.
        particle_dim: the (negative) dimension of vectorised particles, if there is one.

    Raises:
        ValueError: if a plate is subsampled but not around every site, if a site is enumerated,
            if a scale is not a scalar.
    """
    terms = [(site, 1) for site in _random_sites(model_trace)]
    terms += [(site, -1) for site in _random_sites(guide_trace)]
    sites = [site for site, _ in terms]
    plates = _common_plates(sites)
    _refuse_enumeration(sites)
    _refuse_partial_subsampling(sites, plates)
    inside, outside = _split_scales(sites, plates)
    dims = [] if particle_dim is None else [particle_dim]
    dims += [frame.dim for frame in plates if frame.dim is not None]
    log_w: Any = sum(
        sign * _sum_except(scale_and_mask(site["unscaled_log_prob"], scale, site["mask"]), dims)
        for (site, sign), scale in zip(terms, inside, strict=True)
    )
    log_w = log_w.reshape([log_w.shape[dim] for dim in dims])
    return Weights(log_w, outside, tuple(frame.name for frame in plates))


def refuse_score_function(guide_trace: Trace) -> None:
    """Raises if a site of the guide needs more than a pathwise gradient."""
    for site in _random_sites(guide_trace):
        score = site["score_parts"].score_function
        if not is_identically_zero(score) and score.requires_grad:
            raise ValueError(
                f"Guide site '{site['name']}' ({type(site['fn']).__name__}) has trainable "
                "parameters but is not reparameterised, so the pathwise gradient of a multi-sample "
                "bound would miss a term. Use a reparameterised distribution, detach its "
                "parameters, or train with Trace_ELBO or TraceGraph_ELBO; the value of the bound "
                "is available under torch.no_grad()."
            )


def _random_sites(trace: Trace) -> list[Site]:
    nodes: Any = trace.nodes
    return [
        site
        for site in nodes.values()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    ]


def _plates(site: Site) -> set[CondIndepStackFrame]:
    return {frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES}


def _common_plates(sites: list[Site]) -> list[CondIndepStackFrame]:
    if not sites:
        raise ValueError("Model and guide have no sample site, so there is nothing to weigh.")
    common: list[Any] = [f for f in set.intersection(*map(_plates, sites)) if f.vectorized]
    return sorted(common, key=lambda frame: frame.dim)


def _refuse_enumeration(sites: Iterable[Site]) -> None:
    for site in sites:
        if site["infer"].get("enumerate"):
            raise ValueError(
                f"Site '{site['name']}' asks for enumeration, which a multi-sample bound does not "
                "do. Remove infer={'enumerate': ...} and sample the site in the guide, or use "
                "TraceEnum_ELBO."
            )


def _refuse_partial_subsampling(sites: list[Site], common: list[CondIndepStackFrame]) -> None:
    for site in sites:
        for frame in _plates(site).difference(common):
            if frame.full_size is not None and frame.full_size > frame.size:
                outside = sorted({s["name"] for s in sites if frame not in _plates(s)})
                raise ValueError(
                    f"Plate '{frame.name}' is subsampled ({frame.size} of {frame.full_size}), but "
                    "is not a vectorised plate around every sample site of model and guide "
                    f"(outside are {outside}). The weight of a subsample is then not one of the "
                    "whole data. Put all sites inside the plate or use the full data; to train, "
                    "Trace_ELBO is an alternative."
                )


def _split_scales(
    sites: list[Site], plates: list[CondIndepStackFrame]
) -> tuple[list[float | Tensor], float | Tensor]:
    """Splits each site's scale into a power of its density and one factor of the whole bound."""
    subsampling = math.prod((frame.full_size or frame.size) / frame.size for frame in plates)
    scales = [_scalar(site) / subsampling for site in sites]
    if all(_equal(scale, scales[0]) for scale in scales):
        return [1.0] * len(sites), subsampling * scales[0]
    return scales, subsampling


def _scalar(site: Site) -> float | Tensor:
    scale = site["scale"]
    if isinstance(scale, Tensor) and scale.dim() > 0:
        raise ValueError(
            f"Site '{site['name']}' has a scale of shape {tuple(scale.shape)}; inside a "
            "multi-sample bound poutine.scale takes a number. Use poutine.mask to leave data out."
        )
    return scale


def _equal(scale: float | Tensor, other: float | Tensor) -> bool:
    return scale is other or math.isclose(_to_float(scale), _to_float(other), rel_tol=1e-6)


def _to_float(scale: float | Tensor) -> float:
    return scale.item() if isinstance(scale, Tensor) else float(scale)


def _sum_except(log_prob: Tensor, dims: list[int]) -> Tensor:
    summed = [dim for dim in range(-log_prob.dim(), 0) if dim not in dims]
    return log_prob.sum(summed, keepdim=True) if summed else log_prob
