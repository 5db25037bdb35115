"""The weights of a network as a guide has them, noise set to zero."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

UNCONSTRAINED = "_unconstrained"  # what Pyro's AutoNormal appends to a site's name


def plain_network(network: nn.Module, guide: Callable | None) -> tuple[nn.Module, Callable | None]:
    """A copy of the network in evaluation, and its guide.

    That of :func:`~pyro_ext.infer.bayesianize` holds both: its module gets parameters again, tied
    ones in each of their places.
    """
    claim: Any = getattr(network, "claim_names", None)
    if claim is not None:
        claim()  # what a file brought is not yet in the parameters to be copied
    network = copy.deepcopy(network).eval()
    if not all(hasattr(network, part) for part in ("module", "guide", "_places")):
        return network, guide
    parameters: dict[str, nn.Parameter] = {}
    for part, key, name in network._places:  # type: ignore[union-attr]
        empty = torch.full_like(part._buffers.pop(key), math.nan)
        part.register_parameter(key, parameters.setdefault(name, nn.Parameter(empty)))
    return network.module, network.guide if guide is None else guide  # type: ignore[return-value]


@torch.no_grad()
def read_guide(root: nn.Module, guide: Callable, args: tuple, threshold: float) -> dict[str, float]:
    """Puts the means of a guide's normal sites into the parameters of the same names, in place.

    Returns:
        The fraction of weights with a log ratio of variance to squared mean above the threshold,
        which are zero now, by parameter.

    Raises:
        ValueError: if the guide has no normal site with the name of a parameter, or none for a
            parameter that has no value of its own.
    """
    parameters = dict(root.named_parameters())
    masked: dict[str, float] = {}
    for name, law in _normal_sites(guide, args).items():
        match = _match(name, parameters)
        if match is not None and parameters[match].shape == law.loc.shape:
            noisy = 2 * (law.scale.log() - law.loc.abs().log()) > threshold
            parameters[match].copy_(law.loc.masked_fill(noisy, 0.0))
            masked[match] = float(noisy.double().mean())
    _refuse_missing(parameters, masked)
    return masked


def check_threshold(threshold: float) -> None:
    """Refuses a threshold that is no number."""
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got NaN: 3 is the published one.")


def _normal_sites(guide: Callable, args: tuple) -> Mapping[str, Any]:
    sites = {}
    for name, node in poutine.trace(guide).get_trace(*args).nodes.items():
        law: Any = node.get("fn") if node["type"] == "sample" else None
        while hasattr(law, "base_dist"):
            law = law.base_dist
        if hasattr(law, "loc") and hasattr(law, "scale"):
            sites[name.removesuffix(UNCONSTRAINED)] = law
    return sites


def _match(site: str, parameters: Mapping[str, Tensor]) -> str | None:
    """The parameter that a site stands for: its name may have a prefix."""
    found = [name for name in parameters if site == name or site.endswith(f".{name}")]
    return max(found, key=len, default=None)


def _refuse_missing(parameters: Mapping[str, Tensor], masked: Mapping[str, float]) -> None:
    empty = [name for name, value in parameters.items() if value.isnan().any()]
    if empty or not masked:
        raise ValueError(
            "The guide draws from no normal distribution at a site with the name and shape of "
            f"{empty or 'any parameter of the network'}; its parameters are {sorted(parameters)}."
        )
