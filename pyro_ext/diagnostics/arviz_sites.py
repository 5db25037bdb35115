"""What the sites of a trace are to ArviZ: kinds, dimensions and names."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_ext.infer.particle_traces import Site

OURS = ("chain", "draw", "log_weight", "lp", "log_q", "diverging")


def sites(trace: Trace) -> list[Site]:
    """All sample sites but the subsamples of plates."""
    found: Any = prune_subsample_sites(trace).nodes
    return [site for site in found.values() if site["type"] == "sample"]


def is_factor(site: Site) -> bool:
    """Whether a site is a factor."""
    return was_observed(site) and bool(site["infer"].get("is_auxiliary"))


def is_deterministic(site: Site) -> bool:
    """Whether a site is a deterministic function of others."""
    return bool(site["infer"].get("_deterministic"))


def was_observed(site: Site) -> bool:
    """Whether a site is observed, or was before ``pyro.poutine.uncondition``."""
    return site["is_observed"] or bool(site["infer"].get("was_observed"))


def is_likelihood(site: Site) -> bool:
    """Whether a site is data."""
    return was_observed(site) and not is_factor(site) and not is_deterministic(site)


def is_latent(site: Site) -> bool:
    """Whether a site is drawn."""
    return not was_observed(site) and not is_deterministic(site)


def is_all_event(site: Site) -> bool:
    """Whether no dimension is a batch's: the default of :func:`pyro.deterministic`."""
    return is_deterministic(site) and site["fn"].event_dim == site["value"].dim()


def log_prob(site: Site) -> Tensor:
    """Unscaled and computed before, NaN where masked, of the dimensions of its plates."""
    found, mask = site["unscaled_log_prob"], site["mask"]
    if isinstance(site["fn"], MaskedDistribution):
        mask = site["fn"]._mask if mask is None else mask & site["fn"]._mask
    if mask is not None and mask is not True:
        found = torch.where(torch.as_tensor(mask, device=found.device), found, math.nan)
    return arrange(found, site, 0)


def frames(site: Site) -> list[Any]:
    """The plates that are dimensions of a site's value, outermost first."""
    found: list[Any] = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    found = sorted(found, key=lambda frame: frame.dim)
    if is_all_event(site):
        # its plates are not told from its event, unless they are all there is
        return found if site["value"].shape == tuple(frame.size for frame in found) else []
    return found


def arrange(tensor: Tensor, site: Site, event_dim: int) -> Tensor:
    """Keeps of the batch dimensions those of plates: ``(*plates, *event)``.

    Raises:
        ValueError: if there are batch dimensions besides.
    """
    plates = frames(site)
    split = tensor.dim() - event_dim
    batch, event = tensor.shape[:split], tensor.shape[split:]
    full = [1] * max([len(batch), *(-frame.dim for frame in plates)])
    for frame in plates:
        full[frame.dim] = frame.size
    sizes = torch.broadcast_shapes(batch, torch.Size(full))
    kept = torch.Size(sizes[frame.dim] for frame in plates)
    if math.prod(kept) != math.prod(sizes):
        raise ValueError(
            f"Site '{site['name']}' has batch shape {tuple(sizes)}, but its plates are "
            f"{[frame.name for frame in plates]}. Declare the other dimensions by plates, or as "
            "an event with to_event."
        )
    return tensor.expand(sizes + event).reshape(kept + event)


def value(site: Site) -> Tensor:
    """A site's value, ``(*plates, *event)``."""
    if is_all_event(site):
        return site["value"]
    return arrange(site["value"], site, site["fn"].event_dim)


def names_of_dims(trace: Trace, users: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Names of the dimensions of each variable: its plates, then the user's for its event.

    Raises:
        ValueError: if a name is one of ours, or fits nothing.
    """
    dims: dict[str, list[str]] = {}
    for site in sites(trace):
        name, plates = site["name"], [frame.name for frame in frames(site)]
        refuse_reserved([name, *plates])
        given = list(users.get(name, []))
        dims[name] = given if plates and given[: len(plates)] == plates else plates + given
        _check_dims(name, dims[name], value(site).dim())
    return dims


def _check_dims(name: str, dims: list[str], num_dims: int) -> None:
    if len(dims) > num_dims:
        raise ValueError(
            f"'{name}' has {num_dims} dimensions beside chain and draw, but {len(dims)} names: "
            f"{dims}. Its plates stand before the names in dims by themselves."
        )


def refuse_unknown(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that are not among the known ones.

    Raises:
        ValueError: if there is one.
    """
    unknown = sorted(set(given).difference(known))
    if unknown:
        raise ValueError(f"{argument} names {unknown}, expected some of {sorted(set(known))}.")


def refuse_reserved(names: Iterable[str]) -> None:
    """Refuses names that ArviZ's data need for themselves.

    Raises:
        ValueError: if there is one.
    """
    reserved = set(OURS).intersection(names)
    if reserved:
        raise ValueError(
            f"The model calls a site or plate {sorted(reserved)}, which ArviZ's data need for "
            "themselves. Rename it."
        )
