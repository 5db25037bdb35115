"""Sites of a guide beside those of its model."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_ext.distributions.constraints import unit_interval_with_atoms
from pyro_ext.infer.divergence import analytic_divergence
from pyro_ext.infer.enumeration import Site, is_enumerated
from pyro_ext.poutine.cut_messenger import innermost
from pyro_ext.poutine.lazy_normal import LazyNormal


def is_mixed(distribution: Any) -> bool:
    """Whether a distribution has atoms and a density."""
    return getattr(innermost(distribution), "support", None) is unit_interval_with_atoms


def draw_of(site: Site) -> Tensor:
    """The value, for densities; a lazy weight is left lazy, and another draw is taken."""
    value = site["value"]
    if isinstance(value, LazyNormal) and not isinstance(innermost(site["fn"]), Delta):
        return value.draw_apart()
    return value


def merge_lazy_points(guide: dict[str, Site], model: dict[str, Site]) -> None:
    """Joins a lazy auxiliary site and the point mass at its value, as Pyro's AutoNormal has them.

    Args:
        guide: sites by name, changed in place.
        model: sites by name, of which the auxiliary ones are none.
    """
    for name, site in list(guide.items()):
        value = getattr(site["fn"], "v", None)
        if name in model and isinstance(value, LazyNormal):
            source = guide.get(value.state.name)
            if source is not None and source["value"] is value and value.state.name not in model:
                density = site["fn"].log_density
                guide[name] = {**site, "fn": source["fn"], "log_density": density}
                del guide[value.state.name]


def warn_of_order(guide: dict[str, Site], model: dict[str, Site]) -> None:
    """Warns if a divergence in closed form may miss a parent that the guide draws later.

    Args:
        guide: sites by name, in the order of their draws.
        model: the same.
    """
    places = {name: i for i, name in enumerate(guide)}
    shared = [name for name in model if name in places]
    if shared == sorted(shared, key=places.__getitem__):
        return
    early = {}
    for i, name in enumerate(shared):
        later = [parent for parent in shared[:i] if places[parent] > places[name]]
        if later and analytic_divergence(guide[name]["fn"], model[name]["fn"]) is not None:
            early[name] = later
    if early:
        parents = sorted({parent for later in early.values() for parent in later})
        warnings.warn(
            f"The guide draws {list(early)} before {parents}, the model after. If a prior of the "
            "former depends on the latter, and these on it in the guide, the divergence in closed "
            "form is wrong. Let the guide draw in the order of the model, or use Trace_ELBO.",
            UserWarning,
            stacklevel=2,
        )


def refuse_enumeration(sites: Iterable[Site]) -> None:
    """Raises if a site is to be summed out."""
    for site in sites:
        if site["infer"].get("enumerate") or is_enumerated(site):
            raise ValueError(
                f"Site '{site['name']}' asks for enumeration, which a mean-field ELBO does not do. "
                "Use TraceEnum_ELBO or MultiSampleELBO, or draw the site."
            )


def refuse_scales(guide: Site, model: Site) -> None:
    """Raises if a site does not count alike in both programs."""
    for word in ("scale", "mask"):
        if not _is_same(guide[word], model[word]):
            raise ValueError(
                f"Site '{model['name']}' has {word} {guide[word]} in the guide, but {model[word]} "
                f"in the model, so that no divergence counts for both. Put poutine.{word}, or the "
                "plate, around both programs, or around the observed sites alone."
            )


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return one is other or bool(one == other)
