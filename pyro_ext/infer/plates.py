"""Which plates a log-weight keeps, and which scale stays outside of it."""

import math
from collections.abc import Iterable
from typing import Any

from pyro.distributions import Delta
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_ext.infer.enumeration import Site, is_enumerated
from pyro_ext.poutine.cut_messenger import innermost

PARTICLES = "num_particles_vectorized"  # how names of plates begin that hold particles, Pyro's too

Frames = list[CondIndepStackFrame]
Scale = float | Tensor


def _plates(site: Site) -> dict[str, CondIndepStackFrame]:
    return {f.name: f for f in site["cond_indep_stack"] if not holds_particles(f)}


def split(sites: list[Site], plates: Frames) -> tuple[list[Site], list[Site]]:
    """Sites inside of all plates, and the others."""
    names = {frame.name for frame in plates}
    halves: tuple[list[Site], list[Site]] = [], []
    for site in sites:
        halves[not names <= _plates(site).keys()].append(site)
    return halves


def holds_particles(frame: CondIndepStackFrame) -> bool:
    """Whether the dimension is one of particles, not of data."""
    return frame.name.startswith(PARTICLES)


def particle_dims(sites: list[Site]) -> list[int]:
    """Dimensions of the particles, one's own and those of whoever calls, leftmost first."""
    frames = [f for site in sites for f in site["cond_indep_stack"] if holds_particles(f)]
    return sorted({frame.dim for frame in frames if frame.dim is not None})


def common_plates(sites: list[Site]) -> Frames:
    """The plates around all sites, outermost first."""
    if not sites:
        raise ValueError("Model and guide have no sample site, so there is nothing to weigh.")
    plates = [_plates(site) for site in sites]
    names = set(plates[0]).intersection(*plates[1:])
    return _outermost_first(plates[0][name] for name in names)


def _outermost_first(frames: Iterable[Any]) -> Frames:
    return sorted((f for f in frames if f.vectorized), key=lambda frame: frame.dim)


def kept_plates(model: list[Site], guide: list[Site]) -> Frames:
    """The plates around all sites or else around the most, draws and data among them."""
    sites = model + guide
    common = common_plates(sites)
    if common:
        return common
    drawn = _around(site for site in guide if _is_drawn(site))
    observed = _around(site for site in model if site["is_observed"])
    candidates = _outermost_first(frame for name, frame in drawn.items() if name in observed)
    inside = {frame.name: [frame.name in _plates(site) for site in sites] for frame in candidates}
    most = max(inside.values(), key=sum, default=[])
    kept = [frame for frame in candidates if inside[frame.name] == most]
    return [] if any(is_enumerated(site) for site in split(sites, kept)[1]) else kept


def _around(sites: Iterable[Site]) -> dict[str, CondIndepStackFrame]:
    return {name: frame for site in sites for name, frame in _plates(site).items()}


def _is_drawn(site: Site) -> bool:
    return not site["is_observed"] and not isinstance(innermost(site["fn"]), Delta)


def subsampling(plates: Frames) -> float:
    """The factor by which data stand for others."""
    return math.prod((frame.full_size or frame.size) / frame.size for frame in plates)


def split_scales(sites: list[Site], plates: Frames) -> tuple[list[Scale], Scale]:
    """Splits each site's scale into a power of its density and one factor of the whole bound."""
    common = subsampling(plates)
    scales = [_scalar(site) / common for site in sites]
    if all(_equal(scale, scales[0]) for scale in scales):
        return [1.0] * len(sites), common * scales[0]
    _refuse_tempered_enumeration(sites, scales)
    return scales, common


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
    names = {frame.name for frame in kept}
    for name, frame in _around(sites).items():
        if name not in names and (frame.full_size or 0) > frame.size:
            outside = sorted({s["name"] for s in sites if name not in _plates(s)})
            raise ValueError(
                f"Plate '{frame.name}' is subsampled ({frame.size} of {frame.full_size}), but "
                "is not a vectorised plate around every sample site of model and guide "
                f"(outside are {outside}), and its data have no weights of their own here, so "
                "that a subsample does not stand for the whole. Put all sites inside the plate or "
                "use the full data; to train, Trace_ELBO or TraceEnum_ELBO are alternatives."
            )
