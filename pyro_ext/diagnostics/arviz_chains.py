"""Where draws come from: guides, Markov chains, and draws at hand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.nn import PyroModule
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext.diagnostics.arviz_sites import is_latent, sites
from pyro_ext.ops.counts import count

DRAWS = 1000  # of a guide
Inputs = tuple[tuple, dict[str, Any]]  # arguments and keyword arguments of the programs


class GuideChain:
    """Independent draws of a guide."""

    method = "variational"

    diverging = None

    def __init__(self, model: Callable, guide: Callable, inputs: Inputs, num_draws: int | None):
        self.model, self.guide, self.inputs = model, guide, inputs
        self.num_draws = DRAWS if num_draws is None else count(num_draws, "num_draws")

    def scope(self) -> Any:
        """A parameter store in which modules of model and guide find nothing but their own."""
        return own_scope(self.model, self.guide)

    def traces(self, index: int) -> tuple[Trace, Trace | None]:
        """Of model and guide, with log-probabilities."""
        return get_importance_trace("flat", float("inf"), self.model, self.guide, *self.inputs)


class StoredChain:
    """Draws that were made before, ``(num_draws, ...)`` by site."""

    def __init__(
        self,
        model: Callable,
        draws: Mapping[str, Tensor],
        inputs: Inputs,
        num_draws: int | None,
        method: str = "draws",
        diverging: Tensor | None = None,
    ):
        self.model, self.inputs, self.method = model, inputs, method
        args, kwargs = inputs
        trace = poutine.trace(model).get_trace(*args, **kwargs)
        self.latents = [site for site in sites(trace) if is_latent(site)]
        length = _length(draws)
        _check_names(draws, trace, self.latents)
        chosen = torch.linspace(0, length - 1, _thinned(num_draws, length)).round().long()
        self.num_draws = len(chosen)
        self.draws = {name: values[chosen.to(values.device)] for name, values in draws.items()}
        self.diverging = None if diverging is None else diverging[chosen]

    def scope(self) -> Any:
        """A parameter store in which modules of the model find nothing but their own."""
        return own_scope(self.model)

    def traces(self, index: int) -> tuple[Trace, Trace | None]:
        """Of the model at the draw of an index, with log-probabilities; there is no guide."""
        values = {s["name"]: _unpad(self.draws[s["name"]][index], s) for s in self.latents}
        args, kwargs = self.inputs
        program = poutine.replay(self.model, trace=replayed(values))
        trace = poutine.trace(program).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return trace, None


def chains_of(
    model: Any, posterior: Any, inputs: Inputs, num_draws: int | None
) -> list[GuideChain | StoredChain]:
    """One chain for each guide, dictionary of draws, or Markov chain.

    Raises:
        ValueError: if the posterior is none of these, or models are not as many.
    """
    if hasattr(posterior, "get_samples"):
        return _markov_chains(model, posterior, inputs, num_draws)
    is_many = isinstance(posterior, list | tuple)
    several = list(posterior) if is_many else [posterior]
    models = list(model) if isinstance(model, list | tuple) else [model] * len(several)
    if len(models) != len(several) or not several:
        raise ValueError(
            f"There are {len(models)} models for {len(several)} posteriors. Give one model for "
            "all, or one for each."
        )
    return [_chain(*pair, inputs, num_draws) for pair in zip(models, several, strict=True)]


def _chain(
    model: Callable, posterior: Any, inputs: Inputs, num_draws: int | None
) -> GuideChain | StoredChain:
    if isinstance(posterior, Mapping):
        return StoredChain(model, posterior, inputs, num_draws)
    if callable(posterior):
        return GuideChain(model, posterior, inputs, num_draws)
    raise ValueError(
        "The posterior is a guide, a pyro.infer.MCMC that has run, a dictionary of draws "
        f"(num_draws, ...), or a list of these as chains; got {type(posterior).__name__}."
    )


def _markov_chains(model: Callable, mcmc: Any, inputs: Inputs, num_draws: int | None) -> list[Any]:
    samples = mcmc.get_samples(group_by_chain=True)
    num_chains, length = next(iter(samples.values())).shape[:2]
    found = mcmc.diagnostics().get("divergences", {})
    chains = []
    for c in range(num_chains):
        diverging = torch.zeros(length, dtype=torch.bool)
        diverging[torch.as_tensor(found.get(f"chain {c}", []), dtype=torch.long)] = True
        draws = {name: values[c] for name, values in samples.items()}
        chains.append(StoredChain(model, draws, inputs, num_draws, "mcmc", diverging))
    return chains


def own_scope(*programs: Any) -> Any:
    """A scope of Pyro's parameter store without the names of modules behind programs.

    Modules of one class have parameters of the same names. In one store the second of them would
    find the values of the first, and take them for its own.
    """
    store = pyro.get_param_store()
    state: Any = store.get_state()
    own = {name for program in programs for name in _param_names(program)}
    kept = {
        kind: {name: x for name, x in values.items() if name not in own}
        for kind, values in state.items()
    }
    return store.scope(cast(Any, kept))


def _param_names(program: Any) -> Iterator[str]:
    """What Pyro calls the parameters of a module, or of that whose method it is."""
    module = getattr(program, "__self__", program)
    if isinstance(module, PyroModule):
        prefix = module.__dict__["_pyro_name"]
        for name, _ in module.named_parameters():
            bare = name.removesuffix("_unconstrained")
            yield f"{prefix}.{bare}" if prefix else bare


def latents_of(trace: Trace) -> Trace:
    """The latent sites of a model's trace, for ``pyro.poutine.replay``."""
    return replayed({site["name"]: site["value"] for site in sites(trace) if is_latent(site)})


def replayed(values: Mapping[str, Tensor]) -> Trace:
    """A trace with what ``pyro.poutine.replay`` reads of latent sites."""
    trace = Trace()
    for name, value in values.items():
        fixed = {"name": name, "type": "sample", "is_observed": False, "infer": {}}
        trace.add_node(name, value=value, **fixed)
    return trace


def _length(draws: Mapping[str, Tensor]) -> int:
    wrong = {name: type(x).__name__ for name, x in draws.items() if not isinstance(x, Tensor)}
    if wrong or not draws:
        raise ValueError(f"Draws are a tensor (num_draws, ...) for each latent site, got {wrong}.")
    lengths = {name: len(values) for name, values in draws.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Sites have different numbers of draws: {lengths}.")
    return next(iter(lengths.values()))


def _thinned(num_draws: int | None, length: int) -> int:
    if num_draws is not None and count(num_draws, "num_draws") > length:
        raise ValueError(f"There are {length} draws in a chain, of which {num_draws} are asked.")
    return length if num_draws is None else num_draws


def _check_names(draws: Mapping[str, Tensor], trace: Trace, latents: Sequence[Any]) -> None:
    missing = sorted({site["name"] for site in latents}.difference(draws))
    unknown = sorted(set(draws).difference(trace.nodes))
    if missing or unknown:
        raise ValueError(
            f"Draws lack the sites {missing} of the model, and have {unknown} which it lacks."
        )


def _unpad(value: Tensor, site: Any) -> Tensor:
    """Without the ones that ``Predictive`` puts before plates."""
    shape = site["value"].shape
    while value.dim() > len(shape) and value.shape[0] == 1:
        value = value[0]
    if value.shape != shape:
        raise ValueError(
            f"Draws of '{site['name']}' have shape {tuple(value.shape)}, but the model's "
            f"{tuple(shape)}."
        )
    return value
