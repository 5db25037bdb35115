"""A model and its posterior as ArviZ data."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from pyro_ext.diagnostics.arviz_chains import Inputs, chains_of, latents_of
from pyro_ext.diagnostics.arviz_groups import Groups, array, convert
from pyro_ext.diagnostics.arviz_resampling import resampled
from pyro_ext.diagnostics.arviz_sites import (
    is_factor,
    is_latent,
    is_likelihood,
    log_prob,
    names_of_dims,
    refuse_unknown,
    sites,
    value,
)
from pyro_ext.infer.particle_traces import trace_weights
from pyro_ext.ops.backend import import_arviz
from pyro_ext.ops.counts import count
from pyro_ext.ops.pareto_smoothing import pareto_k
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

Draw = Iterator[tuple[str, str, Tensor]]  # group, variable and value


def to_arviz(
    model: Callable | Sequence[Callable],
    posterior: Any,
    *args,
    num_draws: int | None = None,
    num_prior_draws: int = 0,
    predictive: bool = True,
    resample: str | None = None,
    constant_data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs,
):
    r"""Draws from a posterior, scores and predicts by the draws, and hands all of it to ArviZ.

    The posterior is a trained guide, a :class:`pyro.infer.MCMC` that has run, a dictionary of
    draws ``(num_draws, ...)`` by site, or a list of these. The entries of a list are chains:
    independent restarts of SVI, by which r-hat tells whether they agree. Modules of one class,
    whose parameters have the same names, are kept apart; functions with a ``pyro.param`` of one
    name cannot be. Draws of one guide are independent and form one chain, of which
    ``az.summary(..., kind="stats")`` says all there is.

    Groups, all from the same runs of guide and model on one subsample of the data:

    - ``posterior``: latent sites and deterministics of the model, constrained; the guide's
      auxiliary sites are left out.
    - ``posterior_predictive``: the observed sites drawn anew, given each draw.
    - ``log_likelihood``: :math:`\log p(x_n \mid z)` in nats of each observed site (factors and
      deterministics are none), unscaled, for ``az.loo``; NaN where :func:`pyro.poutine.mask`
      leaves a datum out.
    - ``log_prior``: the same of the latent sites.
    - ``sample_stats``: ``lp``, the log joint density, summed over all sites with their scales; of
      a guide, ``log_q``, its own, and ``log_weight``, :math:`\log p(x_n, z_n) - \log q(z_n)`
      over the plates common to all sites; of a Markov chain, ``diverging``.
    - ``prior`` and ``prior_predictive``, if asked for; ``observed_data``; ``constant_data``.

    Plates become named dimensions, with the indices of their subsample as coordinates. Attributes
    tell versions, the method, the mean of ``lp - log_q`` as ``elbo``, and the largest
    :func:`pareto_k` of ``log_weight``.

    Args:
        model: a Pyro model, or a list of one for each chain, where it was trained too.
        posterior: as above.
        *args: arguments of model and guide.
        num_draws: draws of each chain: 1,000 of a guide if not given, else as many as there are,
            evenly thinned.
        num_prior_draws: draws of the prior and of its predictions.
        predictive: whether to predict, which takes one more run of the model for each draw.
        resample: ``"psis"`` draws again from a guide's draws, by Pareto-smoothed weights: closer
            to the posterior where the guide is wrong but broad enough. Weights of data that are
            independent resample each datum by itself. None shows the guide as it is.
        constant_data: arrays that are no random variables, such as contexts.
        coords: coordinates by dimension, beside those of the plates or in their place.
        dims: names for the event dimensions of a site, by site; its plates stand before them. Of
            constant data all dimensions.
        **kwargs: keyword arguments of model and guide.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under ArviZ 1.x.

    Raises:
        ValueError: if the posterior is none of these, a number of draws is out of its range, a
            site is not drawn each time, a name is one of ArviZ's or ours, weights are to be
            resampled of what is no guide, or as :class:`~pyro_ext.infer.MultiSampleELBO` does.
        ImportError: if ArviZ is not installed.

    References:
        Vehtari et al., *Pareto Smoothed Importance Sampling*, arXiv 1507.02646.

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
        >>> dict(to_arviz(model, [guide, guide], torch.zeros(2), num_draws=9).posterior.sizes)
        {'chain': 2, 'draw': 9, 'data': 2}
    """
    arviz = import_arviz()
    inputs = args, kwargs
    chains = chains_of(model, posterior, inputs, num_draws)
    _check_resample(resample, chains)
    prior_draws = count(num_prior_draws, "num_prior_draws", 0)
    with torch.no_grad(), SharedSubsampleMessenger() as subsamples:
        apart = isinstance(posterior, list | tuple)
        drawn = [_draw_chain(one, predictive, apart) for one in chains]
        with _scope(chains[0], apart):
            runs = (_prior(chains[0].model, inputs) for _ in range(prior_draws))
            prior = _collect(runs, prior_draws)
    trace, plates = drawn[0][1:]
    groups = {**_join([one[0] for one in drawn]), **_join([prior])}
    all_dims = {**names_of_dims(trace, dims or {}), "log_weight": list(plates)}
    attributes = _attributes(groups, chains, resample)
    if resample is not None:
        posterior_groups = {g: v for g, v in groups.items() if not g.startswith("prior")}
        groups = {**groups, **resampled(posterior_groups, plates, all_dims)}
    groups["observed_data"] = _observed(trace)
    if constant_data:
        groups["constant_data"] = {name: array(x) for name, x in constant_data.items()}
        all_dims |= {name: list((dims or {}).get(name, [])) for name in constant_data}
    refuse_unknown("dims", dims or {}, all_dims)
    refuse_unknown("coords", coords or {}, chain.from_iterable(all_dims.values()))
    known = {name: array(index) for name, index in subsamples.subsamples.items()}
    return convert(arviz, groups, {**known, **(coords or {})}, all_dims, attributes)


def _draw_chain(one: Any, predictive: bool, apart: bool) -> tuple[Groups, Trace, tuple[str, ...]]:
    """The groups of a chain, ``(draws, ...)``; its last trace, and the plates of its weights.

    Several chains are kept ``apart``, each in a parameter store of its own.
    """
    with _scope(one, apart):
        return _draw(one, predictive)


def _scope(one: Any, apart: bool) -> Any:
    return one.scope() if apart else nullcontext()


def _draw(one: Any, predictive: bool) -> tuple[Groups, Trace, tuple[str, ...]]:
    given: list[Trace] = []
    last: tuple[Trace, Trace | None]

    def draws() -> Iterator[Draw]:
        nonlocal last
        for index in _bar(range(one.num_draws), "draws for ArviZ"):
            last = one.traces(index)
            given.append(latents_of(last[0]))
            yield _score(*last)

    groups = _collect(draws(), one.num_draws)
    if predictive:  # afterwards, so that draws are the same ones without
        runs = (_predict(one.model, trace, one.inputs) for trace in _bar(given, "predictions"))
        groups |= _collect(runs, one.num_draws)
    if one.diverging is not None:
        groups["sample_stats"]["diverging"] = one.diverging.numpy()
    model_trace, guide_trace = last
    if guide_trace is None:
        return groups, model_trace, ()
    return groups, model_trace, trace_weights(model_trace, guide_trace, None).plates


def _score(model_trace: Trace, guide_trace: Trace | None) -> Draw:
    """What one draw has in each group."""
    for site in sites(model_trace):
        if is_likelihood(site):
            yield "log_likelihood", site["name"], log_prob(site)
        elif not is_factor(site):
            yield "posterior", site["name"], value(site)
        if is_latent(site):
            yield "log_prior", site["name"], log_prob(site)
    yield "sample_stats", "lp", torch.as_tensor(model_trace.log_prob_sum())
    if guide_trace is not None:
        log_w = trace_weights(model_trace, guide_trace, particle_dim=None).log_w
        yield "sample_stats", "log_weight", log_w
        yield "sample_stats", "log_q", torch.as_tensor(guide_trace.log_prob_sum())


def _predict(model: Callable, given: Trace, inputs: Inputs) -> Draw:
    """The data drawn anew, with given latent sites."""
    program = poutine.replay(poutine.uncondition(model), trace=given)
    for site in sites(_run(program, inputs)):
        if is_likelihood(site):
            yield "posterior_predictive", site["name"], value(site)


def _prior(model: Callable, inputs: Inputs) -> Draw:
    """A draw of the model without data."""
    for site in sites(_run(poutine.uncondition(model), inputs)):
        if is_likelihood(site):
            yield "prior_predictive", site["name"], value(site)
        elif not is_factor(site):
            yield "prior", site["name"], value(site)


def _run(program: Callable, inputs: Inputs) -> Trace:
    return poutine.trace(program).get_trace(*inputs[0], **inputs[1])


def _bar(items: Any, name: str) -> Any:
    return tqdm(items, desc=name, delay=5)


def _collect(draws: Any, num_draws: int) -> Groups:
    """Joins the draws of each variable to ``(draws, ...)``."""
    found: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for group, name, drawn in chain.from_iterable(draws):
        found[group][name].append(drawn)
    return {
        group: {name: _stack(name, values, num_draws) for name, values in variables.items()}
        for group, variables in found.items()
    }


def _stack(name: str, values: list[Tensor], num_draws: int) -> np.ndarray:
    if len(values) != num_draws or len({x.shape for x in values}) > 1:
        raise ValueError(
            f"'{name}' occurs in {len(values)} of {num_draws} draws, with shapes "
            f"{sorted({tuple(x.shape) for x in values})}. ArviZ needs each site in each draw, in "
            "one shape."
        )
    return array(torch.stack(values))


def _join(chains: list[Groups]) -> Groups:
    """Joins chains to ``(chains, draws, ...)``."""
    for one in chains[1:]:
        kinds = [{g: sorted(v) for g, v in each.items()} for each in (chains[0], one)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"Chains differ in their variables: {kinds[0]} and {kinds[1]}.")
    return {
        group: {name: np.stack([one[group][name] for one in chains]) for name in variables}
        for group, variables in chains[0].items()
    }


def _observed(trace: Trace) -> dict[str, np.ndarray]:
    return {site["name"]: array(value(site)) for site in sites(trace) if is_likelihood(site)}


def _check_resample(resample: str | None, chains: list[Any]) -> None:
    if resample not in (None, "psis"):
        raise ValueError(f'resample is None or "psis", got {resample!r}.')
    if resample and any(one.method != "variational" for one in chains):
        raise ValueError("Only draws of a guide have weights to be resampled by.")


def _attributes(groups: Groups, chains: list[Any], resample: str | None) -> dict[str, Any]:
    stats, first = groups["sample_stats"], chains[0]
    found = {**library(), "method": first.method, "num_draws": first.num_draws}
    if first.method == "variational":
        found["guide"] = name_of(first.guide)
        found["elbo"] = float((stats["lp"] - stats["log_q"]).mean())
        found["resample"] = resample or "none"
        if first.num_draws >= 25:
            found["pareto_k"] = _worst(torch.as_tensor(stats["log_weight"]))
    return found


def _worst(log_w: Tensor) -> float:
    """The largest shape of tails over chains and data; -inf where all weights are equal."""
    return max(float(pareto_k(each).max()) for each in log_w)


def library() -> dict[str, str]:
    """Attributes that say what made the data."""
    return {
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "pyro_ext_version": version("pyro-ext"),
    }


def name_of(guide: Any) -> str:
    """The name of a guide's function or class."""
    return getattr(guide, "__qualname__", type(guide).__name__)
