"""A model and its guide as ArviZ data."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from pyro_ext.infer.particle_traces import Site, trace_weights
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

Groups = dict[str, dict[str, Any]]


def to_arviz(
    model,
    guide,
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
      deterministics are none), unscaled, for ``az.loo``.
    - ``sample_stats``: ``log_weight``, :math:`\log p(x_n, z_n) - \log q(z_n)` over the plates
      common to all sites; ``lp`` and ``log_q``, the two terms summed over all sites with
      their scales.
    - ``observed_data``.

    Plates become named dimensions, with the indices of their subsample as coordinates. The draws
    are not reweighted: what ArviZ shows is the guide.

    Args:
        model: a Pyro model.
        guide: its guide, trained.
        *args: arguments of model and guide.
        num_draws: draws from the guide; they form one chain.
        coords: coordinates to add to those of the plates, by dimension.
        dims: names for the dimensions of a site, by site; those of plates come first.
        **kwargs: keyword arguments of model and guide.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under ArviZ 1.x.

    Raises:
        ValueError: if ``num_draws < 1``, or as :class:`~pyro_ext.infer.MultiSampleELBO` does.
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
    if num_draws < 1:
        raise ValueError(f"to_arviz needs num_draws >= 1, got {num_draws}.")
    arviz = _import_arviz()
    draws: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    with torch.no_grad(), SharedSubsampleMessenger() as subsamples:
        for _ in tqdm(range(num_draws), desc="draws for ArviZ", delay=5):
            traces = get_importance_trace("flat", float("inf"), model, guide, args, kwargs)
            for group, name, value in _score(*traces):
                draws[group][name].append(value)
    groups = {group: _stack(variables) for group, variables in draws.items()}
    groups["observed_data"] = _observed(traces[0])
    plate_coords = {name: _numpy(index) for name, index in subsamples.subsamples.items()}
    all_dims = {**_plate_dims(*traces), **(dims or {})}
    data = _convert(arviz, groups, {**plate_coords, **(coords or {})}, all_dims)
    data["posterior"].attrs.update(_attributes(guide, num_draws))
    return data


def _score(model_trace: Trace, guide_trace: Trace):
    """Yields ``(group, name, value)`` of one draw."""
    for site in _sites(model_trace):
        if _is_likelihood(site):
            log_prob = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])
            yield "log_likelihood", site["name"], _arrange(log_prob, site, 0)
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


def _is_likelihood(site: Site) -> bool:
    return site["is_observed"] and not _is_factor(site) and not site["infer"].get("_deterministic")


def _dims(site: Site) -> list[int]:
    return sorted(frame.dim for frame in site["cond_indep_stack"] if frame.vectorized)


def _arrange(tensor: Tensor, site: Site, event_dim: int) -> Tensor:
    """Drops batch dimensions that are no plate's: ``(*plates, *event)``."""
    batch, event = (
        tensor.shape[: tensor.dim() - event_dim],
        tensor.shape[tensor.dim() - event_dim :],
    )
    plates = tuple(batch[dim] for dim in _dims(site) if -dim <= len(batch))
    return tensor.reshape(plates + event)


def _value(site: Site) -> Tensor:
    return _arrange(site["value"], site, site["fn"].event_dim)


def _observed(model_trace: Trace) -> dict[str, np.ndarray]:
    return {
        site["name"]: _numpy(_value(site)) for site in _sites(model_trace) if _is_likelihood(site)
    }


def _plate_dims(model_trace: Trace, guide_trace: Trace) -> dict[str, list[str]]:
    """The plates of each variable, outermost first."""
    dims = {
        site["name"]: [name for _, name in sorted(_plate_names(site))]
        for site in _sites(model_trace)
    }
    log_weight = list(trace_weights(model_trace, guide_trace, particle_dim=None).plates)
    return {**dims, "log_weight": log_weight}


def _plate_names(site: Site) -> list[tuple[int, str]]:
    return [(frame.dim, frame.name) for frame in site["cond_indep_stack"] if frame.vectorized]


def _stack(variables: Mapping[str, list[Tensor]]) -> dict[str, np.ndarray]:
    """Joins the draws of each variable to ``(1 chain, draws, ...)``."""
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


def _import_arviz():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 once a day
            import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install 'pyro-ext[arviz]'.") from error
    return arviz


def _convert(arviz, groups: Groups, coords: Mapping, dims: Mapping):
    """ArviZ 0.x takes the groups as keywords, 1.x as one dictionary."""
    used = {dim for names in dims.values() for dim in names}
    coords = {dim: values for dim, values in coords.items() if dim in used}
    if hasattr(arviz, "psislw"):
        return arviz.from_dict(**groups, coords=coords, dims=dict(dims))
    return arviz.from_dict(groups, coords=coords, dims=dict(dims))
