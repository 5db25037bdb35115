"""A model and its guide as ArviZ data."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from pyro_ext.infer.particle_traces import Site, trace_weights
from pyro_ext.ops.backend import import_arviz
from pyro_ext.ops.counts import count
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

Groups = dict[str, dict[str, Any]]


def to_arviz(
    model: Callable,
    guide: Callable,
    *args,
    num_draws: int = 1000,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs,
):
    r"""Draws from a trained guide, scores the draws, and hands both to ArviZ.

    Groups, all from the same ``num_draws`` runs of guide and model on one subsample of the data:

    - ``posterior``: latent sites and deterministics of the model, constrained; the guide's
      auxiliary sites are left out.
    - ``log_likelihood``: :math:`\log p(x_n \mid z)` in nats of each observed site (factors and
      deterministics are none), unscaled, for ``az.loo``; NaN where :func:`pyro.poutine.mask`
      leaves a datum out.
    - ``sample_stats``: ``log_weight``, :math:`\log p(x_n, z_n) - \log q(z_n)` over the plates
      common to all sites; ``lp`` and ``log_q``, the two terms summed over all sites with
      their scales.
    - ``observed_data``.

    Plates become named dimensions, with the indices of their subsample as coordinates. The draws
    are not reweighted: what ArviZ shows is the guide. They are independent and form one
    chain, so ``az.summary(..., kind="stats")`` is what there is to say; r-hat and ESS judge Markov
    chains.

    Args:
        model: a Pyro model.
        guide: its guide, trained.
        *args: arguments of model and guide.
        num_draws: draws from the guide.
        coords: coordinates by dimension, beside those of the plates or in their place.
        dims: names for the event dimensions of a site, by site; its plates stand before them.
        **kwargs: keyword arguments of model and guide.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under ArviZ 1.x.

    Raises:
        ValueError: if ``num_draws < 1``, if a site is not drawn each time, if a name is one of
            ArviZ's or ours, or as :class:`~pyro_ext.infer.MultiSampleELBO` does.
        ImportError: if ArviZ is not installed.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.7))
        >>> data = to_arviz(model, guide, torch.tensor([0.0, 1.0]), num_draws=50)
        >>> dict(data.posterior.sizes)
        {'chain': 1, 'draw': 50, 'data': 2}
    """
    num_draws = count(num_draws, "num_draws")
    arviz = import_arviz()
    draws: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    with torch.no_grad(), SharedSubsampleMessenger() as subsamples:
        for _ in tqdm(range(num_draws), desc="draws for ArviZ", delay=5):
            traces = get_importance_trace("flat", float("inf"), model, guide, args, kwargs)
            for group, name, value in _score(*traces):
                draws[group][name].append(value)
    groups = {group: _stack(variables, num_draws) for group, variables in draws.items()}
    groups["observed_data"] = _observed(traces[0])
    plate_coords = {name: _numpy(index) for name, index in subsamples.subsamples.items()}
    all_dims = _all_dims(traces[0], traces[1], dims or {})
    _refuse_unknown("coords", coords or {}, chain.from_iterable(all_dims.values()))
    data = _convert(arviz, groups, {**plate_coords, **(coords or {})}, all_dims)
    for group in groups:
        data[group].attrs.update(_attributes(guide, num_draws))
    return data


def _score(model_trace: Trace, guide_trace: Trace):
    """Yields ``(group, name, value)`` of one draw."""
    for site in _sites(model_trace):
        if _is_likelihood(site):
            yield "log_likelihood", site["name"], _arrange(_log_likelihood(site), site, 0)
        elif not _is_factor(site):
            yield "posterior", site["name"], _value(site)
    log_w = trace_weights(model_trace, guide_trace, particle_dim=None).log_w
    yield "sample_stats", "log_weight", log_w
    yield "sample_stats", "lp", torch.as_tensor(model_trace.log_prob_sum())
    yield "sample_stats", "log_q", torch.as_tensor(guide_trace.log_prob_sum())


def _sites(trace: Trace) -> list[Site]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _is_factor(site: Site) -> bool:
    return site["is_observed"] and bool(site["infer"].get("is_auxiliary"))


def _is_deterministic(site: Site) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _is_all_event(site: Site) -> bool:
    """Whether no dimension is a batch's: the default of :func:`pyro.deterministic`."""
    return _is_deterministic(site) and site["fn"].event_dim == site["value"].dim()


def _is_likelihood(site: Site) -> bool:
    return site["is_observed"] and not _is_factor(site) and not _is_deterministic(site)


def _log_likelihood(site: Site) -> Tensor:
    log_prob, mask = site["unscaled_log_prob"], site["mask"]
    if isinstance(site["fn"], MaskedDistribution):
        mask = site["fn"]._mask if mask is None else mask & site["fn"]._mask
    if mask is None or mask is True:
        return log_prob
    return torch.where(torch.as_tensor(mask, device=log_prob.device), log_prob, math.nan)


def _frames(site: Site) -> list[Any]:
    """The plates that are dimensions of a site's value, outermost first."""
    frames: list[Any] = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    frames = sorted(frames, key=lambda frame: frame.dim)
    if _is_all_event(site):
        # its plates are not told from its event, unless they are all there is
        return frames if site["value"].shape == tuple(frame.size for frame in frames) else []
    return frames


def _arrange(tensor: Tensor, site: Site, event_dim: int) -> Tensor:
    """Keeps of the batch dimensions those of plates: ``(*plates, *event)``."""
    frames = _frames(site)
    split = tensor.dim() - event_dim
    batch, event = tensor.shape[:split], tensor.shape[split:]
    full = [1] * max([len(batch), *(-frame.dim for frame in frames)])
    for frame in frames:
        full[frame.dim] = frame.size
    sizes = torch.broadcast_shapes(batch, torch.Size(full))
    kept = torch.Size(sizes[frame.dim] for frame in frames)
    if math.prod(kept) != math.prod(sizes):
        raise ValueError(
            f"Site '{site['name']}' has batch shape {tuple(sizes)}, but its plates are "
            f"{[frame.name for frame in frames]}. Declare the other dimensions by plates, or as "
            "an event with to_event."
        )
    return tensor.expand(sizes + event).reshape(kept + event)


def _value(site: Site) -> Tensor:
    if _is_all_event(site):
        return site["value"]
    return _arrange(site["value"], site, site["fn"].event_dim)


def _observed(model_trace: Trace) -> dict[str, np.ndarray]:
    return {
        site["name"]: _numpy(_value(site)) for site in _sites(model_trace) if _is_likelihood(site)
    }


def _all_dims(
    model_trace: Trace, guide_trace: Trace, users: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Names of the dimensions of each variable: its plates, then the user's for its event."""
    dims: dict[str, list[str]] = {}
    for site in _sites(model_trace):
        name, plates = site["name"], [frame.name for frame in _frames(site)]
        _refuse_reserved([name, *plates])
        given = list(users.get(name, []))
        dims[name] = given if plates and given[: len(plates)] == plates else plates + given
        _check_dims(name, dims[name], _value(site).dim())
    _refuse_unknown("dims", users, dims)
    weights = trace_weights(model_trace, guide_trace, particle_dim=None)
    return {**dims, "log_weight": list(weights.plates)}


def _check_dims(name: str, dims: list[str], num_dims: int) -> None:
    if len(dims) > num_dims:
        raise ValueError(
            f"'{name}' has {num_dims} dimensions beside chain and draw, but {len(dims)} names: "
            f"{dims}. Its plates stand before the names in dims by themselves."
        )


def _refuse_unknown(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given).difference(known))
    if unknown:
        raise ValueError(f"{argument} names {unknown}, expected some of {sorted(set(known))}.")


def _refuse_reserved(names: Iterable[str]) -> None:
    reserved = {"chain", "draw", "log_weight", "lp", "log_q"}.intersection(names)
    if reserved:
        raise ValueError(
            f"The model calls a site or plate {sorted(reserved)}, which ArviZ's data need for "
            "themselves. Rename it."
        )


def _stack(variables: Mapping[str, list[Tensor]], num_draws: int) -> dict[str, np.ndarray]:
    """Joins the draws of each variable to ``(1 chain, draws, ...)``."""
    for name, values in variables.items():
        if len(values) != num_draws or len({value.shape for value in values}) > 1:
            raise ValueError(
                f"'{name}' occurs in {len(values)} of {num_draws} draws, with shapes "
                f"{sorted({tuple(value.shape) for value in values})}. ArviZ needs each site in "
                "each draw, in one shape."
            )
    return {name: _numpy(torch.stack(values)[None]) for name, values in variables.items()}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _attributes(guide, num_draws: int) -> dict[str, Any]:
    return {
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "method": "variational",
        "guide": getattr(guide, "__qualname__", type(guide).__name__),
        "num_draws": num_draws,
    }


def _convert(arviz, groups: Groups, coords: Mapping, dims: Mapping):
    """ArviZ 0.x takes the groups as keywords, 1.x as one dictionary."""
    used = {dim for names in dims.values() for dim in names}
    coords = {dim: values for dim, values in coords.items() if dim in used}
    if hasattr(arviz, "psislw"):
        return arviz.from_dict(**groups, coords=coords, dims=dict(dims))
    return arviz.from_dict(groups, coords=coords, dims=dict(dims))
