"""The log-likelihood of each datum under draws of a network, for comparisons by ArviZ."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from tqdm import tqdm

from pyro_ext.diagnostics.arviz import library, name_of
from pyro_ext.diagnostics.arviz_groups import convert
from pyro_ext.diagnostics.arviz_sites import (
    frames,
    is_likelihood,
    log_prob,
    refuse_reserved,
    sites,
    value,
)
from pyro_ext.infer.particle_traces import Site
from pyro_ext.ops.backend import import_arviz
from pyro_ext.ops.counts import count
from pyro_ext.poutine.weight_sampling_messenger import weight_sampling


def pointwise_log_likelihood(
    model: Callable, guide: Callable, batches: Iterable[Sequence[Any]], *, num_draws: int = 100
):
    r"""Scores every datum under the same draws of a guide, batch by batch, for ``az.loo``.

    .. math:: \ell_{kn} = \log p(x_n \mid \theta_k), \qquad \theta_k \sim q(\theta)

    Unlike :func:`to_arviz` it keeps no draws of the latent variables, which of a network are many,
    and never more than one batch: groups ``log_likelihood``, in nats, ``observed_data``, and
    ``posterior`` with the ``total_log_likelihood`` of each draw alone, without which ArviZ does not
    work. Run it for several networks on the same batches, then hand the results to ``az.compare``.

    The guide is run once for each draw, on the first batch, and its weights are the same for all
    batches and all data: handlers around it that would draw activations in their place, such as
    :func:`~pyro_ext.poutine.local_reparameterization`, are overruled. Without latent variables, as
    for a network by maximum likelihood, there is only one draw to tell apart.

    Args:
        model: a Pyro model with observed sites in a plate.
        guide: its guide, trained, with global latent variables alone.
        batches: arguments of model and guide, a tuple for each batch; in the same order for
            networks to be compared. An iterable that can be run through again, such as a list.
        num_draws: draws from the guide.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under ArviZ 1.x.

    Raises:
        ValueError: if ``num_draws < 1``, if there are no batches, if a batch is no tuple, if the
            model observes nothing in a plate; if the guide draws within plates of data, or not all
            latent variables of the model; if the model takes random subsamples.
        ImportError: if ArviZ is not installed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)
        >>> def guide(x, y):
        ...     pyro.sample("w", dist.Normal(1.0, 0.1))
        >>> x = torch.randn(10)
        >>> batches = list(zip(x.split(4), (x + 0.1).split(4)))
        >>> data = pointwise_log_likelihood(model, guide, batches, num_draws=50)
        >>> dict(data.log_likelihood.sizes)
        {'chain': 1, 'draw': 50, 'data': 10}
    """
    num_draws, arviz = count(num_draws, "num_draws"), import_arviz()
    batches = _check_batches(batches)
    draws: dict[str, list[np.ndarray]] = defaultdict(list)
    with torch.no_grad():
        for _ in tqdm(range(num_draws), desc="draws for ArviZ", delay=5):
            traces = _run(model, guide, batches)
            for name, values in _likelihoods(traces).items():
                draws[name].append(np.concatenate(values, -1))
        refuse_reserved([*draws, *_dims(traces[0]).values()])
        likelihood = {name: np.stack(values)[None] for name, values in draws.items()}
        total: Any = sum(values.sum(-1) for values in likelihood.values())
        groups = {
            "posterior": {"total_log_likelihood": total},
            "log_likelihood": likelihood,
            "observed_data": _observed(traces),
        }
    dims = {name: [dim] for name, dim in _dims(traces[0]).items()}
    attributes = {**library(), "method": "variational", "num_draws": num_draws}
    return convert(arviz, groups, {}, dims, {**attributes, "guide": name_of(guide)})


def _run(model: Callable, guide: Callable, batches: list[tuple]) -> list[Trace]:
    """One draw of the guide, seen by the model on all batches."""
    with weight_sampling():
        drawn = poutine.trace(guide).get_trace(*batches[0])
        _refuse_local(drawn)
        return [_score(model, drawn, batch) for batch in batches]


def _score(model: Callable, drawn: Trace, batch: tuple) -> Trace:
    trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*batch)
    _refuse_other_draws(trace, drawn)
    trace.compute_log_prob(lambda name, site: site["type"] == "sample" and is_likelihood(site))
    return trace


def _likelihoods(traces: list[Trace]) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for trace in traces:
        for site in _observed_sites(trace):
            found[site["name"]].append(log_prob(site).cpu().numpy())
    return found


def _observed(traces: list[Trace]) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for trace in traces:
        for site in _observed_sites(trace):
            found[site["name"]].append(value(site).cpu().numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


def _observed_sites(trace: Trace) -> list[Site]:
    observed = [site for site in sites(trace) if is_likelihood(site)]
    for site in observed:
        if len(frames(site)) != 1:
            raise ValueError(
                f"Observed site '{site['name']}' lies in plates "
                f"{[frame.name for frame in frames(site)]}, expected one: that of the data."
            )
    if not observed:
        raise ValueError("The model observes nothing: there is no log-likelihood.")
    return observed


def _dims(trace: Trace) -> dict[str, str]:
    return {site["name"]: frames(site)[0].name for site in _observed_sites(trace)}


def _refuse_local(drawn: Trace) -> None:
    local = [site["name"] for site in sites(drawn) if frames(site)]
    if local:
        raise ValueError(
            f"The guide draws {local} within plates: another batch has other ones. Take to_arviz, "
            "which scores all data at once."
        )


def _refuse_other_draws(trace: Trace, drawn: Trace) -> None:
    """Raises if the model drew what another batch, or another draw, would have different."""
    nodes: Any = trace.nodes
    subsamples = [name for name, node in nodes.items() if _is_subsampled(node.get("fn"))]
    if subsamples:
        raise ValueError(
            f"Plates {subsamples} of the model take a random subsample, of other data at each "
            "draw. Give each batch as an argument, and its size, or subsample= alone, to the plate."
        )
    latent = [site["name"] for site in sites(trace) if not site["is_observed"]]
    others = [name for name in latent if name not in drawn]
    if others:
        raise ValueError(
            f"Model sites {others} are neither observed nor in the guide, so that each batch would "
            "have other draws of them, from the prior. Draw them in the guide."
        )


def _is_subsampled(fn: Any) -> bool:
    return isinstance(fn, _Subsample) and fn.subsample_size not in (None, fn.size)


def _check_batches(batches: Iterable[Sequence[Any]]) -> list[tuple]:
    found = list(batches)
    if not found or any(isinstance(batch, Tensor) for batch in found):
        raise ValueError(
            "batches must be a list of tuples, the arguments of model and guide for each batch, "
            f"got {len(found)} of {sorted({type(batch).__name__ for batch in found})}."
        )
    return [tuple(batch) for batch in found]
