"""Which plates a log-weight keeps, and which scale stays outside of it."""

import math
from typing import Any

from pyro.distributions import Delta
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_ext.infer.enumeration import Site, is_enumerated
from pyro_ext.poutine.cut_messenger import innermost

PARTICLES = "num_particles_vectorized"  # the name of Pyro's own particle plate

Frames = list[CondIndepStackFrame]
Scale = float | Tensor


def _plates(site: Site) -> set[CondIndepStackFrame]:
    return {frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES}


def split(sites: list[Site], plates: Frames) -> tuple[list[Site], list[Site]]:
    """Sites inside of all plates, and the others."""
    inside = [site for site in sites if _plates(site).issuperset(plates)]
    return inside, [site for site in sites if not _plates(site).issuperset(plates)]


def common_plates(sites: list[Site]) -> Frames:
    """The plates around all sites, outermost first."""
    if not sites:
        raise ValueError("Model and guide have no sample site, so there is nothing to weigh.")
    common: list[Any] = [f for f in set.intersection(*map(_plates, sites)) if f.vectorized]
    return sorted(common, key=lambda frame: frame.dim)


def kept_plates(model: list[Site], guide: list[Site]) -> Frames:
    """The plates around all sites or else around the most, draws and data among them."""
    sites = model + guide
    common = common_plates(sites)
    drawn = set().union(*(_plates(site) for site in guide if _is_drawn(site)))
    observed = set().union(*(_plates(site) for site in model if site["is_observed"]))
    candidates: list[Any] = [frame for frame in drawn & observed if frame.vectorized]
    if common or not candidates:
        return common
    inside = {f: [f in _plates(site) for site in sites] for f in candidates}
    most = max(candidates, key=lambda frame: (sum(inside[frame]), frame.dim))
    kept = sorted((f for f in candidates if inside[f] == inside[most]), key=lambda f: f.dim)
    return [] if any(is_enumerated(site) for site in split(sites, kept)[1]) else kept


def _is_drawn(site: Site) -> bool:
    return not site["is_observed"] and not isinstance(innermost(site["fn"]), Delta)


def split_scales(sites: list[Site], plates: Frames) -> tuple[list[Scale], Scale]:
    """Splits each site's scale into a power of its density and one factor of the whole bound."""
    subsampling = math.prod((frame.full_size or frame.size) / frame.size for frame in plates)
    scales = [_scalar(site) / subsampling for site in sites]
    if all(_equal(scale, scales[0]) for scale in scales):
        return [1.0] * len(sites), subsampling * scales[0]
    _refuse_tempered_enumeration(sites, scales)
    return scales, subsampling


def _scalar(site: Site) -> Scale:
    scale = site["scale"]
    if isinstance(scale, Tensor) and scale.dim() > 0:
        raise ValueError(
            f"Site '{site['name']}' has a scale of shape {tuple(scale.shape)}; inside a "
            "multi-sample bound poutine.scale takes a number. Use poutine.mask to leave data out."
        )
    return scale


def _equal(scale: Scale, other: Scale) -> bool:
    return scale is other or math.isclose(_to_float(scale), _to_float(other), rel_tol=1e-6)


def _to_float(scale: Scale) -> float:
    return scale.item() if isinstance(scale, Tensor) else float(scale)


def _refuse_tempered_enumeration(sites: list[Site], scales: list[Scale]) -> None:
    for site, scale in zip(sites, scales, strict=True):
        if is_enumerated(site) and not _equal(scale, 1.0):
            raise ValueError(
                f"Enumerated site '{site['name']}' has another scale than other sites, but a sum "
                "over powers of probabilities is none of a distribution. Scale all sites alike."
            )


def refuse_partial_subsampling(sites: list[Site], kept: Frames) -> None:
    """Raises if a plate is subsampled that log-weights do not keep."""
    for site in sites:
        for frame in _plates(site).difference(kept):
            if frame.full_size is not None and frame.full_size > frame.size:
                outside = sorted({s["name"] for s in sites if frame not in _plates(s)})
                raise ValueError(
                    f"Plate '{frame.name}' is subsampled ({frame.size} of {frame.full_size}), but "
                    "is not a vectorised plate around every sample site of model and guide "
                    f"(outside are {outside}), nor does the guide draw inside of it. The weight of "
                    "a subsample is then not one of the whole data. Put all sites inside the plate "
                    "or use the full data; to train, Trace_ELBO is an alternative."
                )
