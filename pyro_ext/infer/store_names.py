"""Names in Pyro's parameter store that several networks could have."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

Claim = tuple[str, nn.Parameter, Any]  # name in the store, parameter, constraint

USED = 2  # how often the data of a used parameter were written; torch.load writes them once


def claim_names(module: PyroModule, args: Any = ()) -> None:
    """Makes the parameters of a running module those of the store, under their names.

    Pyro's modules take over, without a word, what the store holds under a name of theirs. That is
    right for what was loaded from a file, which is copied. It is wrong for the parameters of
    another network that ran since, which is refused, unless their values are the same. Outside of
    the store, under ``module_local_params``, there is nothing to do.

    Args:
        module: whose call has begun.
        args: of a hook before calls; ignored.

    Raises:
        ValueError: if another network has a name.
    """
    if not pyro.settings.get("module_local_params"):
        parts = (part for part in module.modules() if isinstance(part, PyroModule))
        with module._pyro_context:
            _claim([claim for part in parts for claim in (*_own(part), *_plain(part))])


def claim_loaded(module: PyroModule) -> None:
    """The same before its parameters are read, for a module whose calls claim them.

    Where a call would be refused, it keeps its own parameters.
    """
    if claim_names in module._forward_pre_hooks.values():
        with suppress(ValueError):
            claim_names(module)


def plain_child(module: PyroModule, key: str) -> nn.Module:
    """A child that is none of Pyro's modules, the same done for its parameters.

    Unlike an attribute of Pyro's modules, it does not warn of frozen parameters.
    """
    if pyro.settings.get("module_local_params"):
        return getattr(module, key)
    claims = list(_plain(module))
    _claim(claims)
    for name, parameter, _ in claims:
        pyro.param(name, parameter)
    return module._modules[key]  # type: ignore[return-value]


def _claim(claims: list[Claim]) -> None:
    store = pyro.get_param_store()
    held = dict(store.named_parameters())
    for name, ours, _ in claims:
        _refuse_other(name, ours, held.get(name, ours))
    for name, ours, constraint in claims:
        if held.get(name) is not ours:
            _write(ours, held.get(name, ours))
            store.set_state({"params": {name: ours}, "constraints": {name: constraint}})
        while ours._version < USED:
            _write(ours, ours)


def _own(part: PyroModule) -> Iterator[Claim]:
    for key, parameter in part._parameters.items():
        name = key.removesuffix("_unconstrained")
        constraint, _ = part._pyro_params.get(name, (constraints.real, None))
        if parameter is not None:
            yield part._pyro_get_fullname(name), parameter, constraint


def _plain(part: PyroModule) -> Iterator[Claim]:
    for key, child in part._modules.items():
        if child is not None and not isinstance(child, PyroModule):
            prefix = part._pyro_get_fullname(key)
            for name, parameter in child.named_parameters():
                if parameter.requires_grad:
                    full_name = param_with_module_name(prefix, name)
                    yield full_name, parameter, constraints.real


def _refuse_other(name: str, ours: Tensor, theirs: Tensor) -> None:
    if theirs is ours:
        return
    is_alike = theirs.shape == ours.shape
    is_used = isinstance(theirs, nn.Parameter) and theirs._version >= USED
    if is_alike and not (is_used and not torch.equal(theirs.to(ours), ours)):
        return
    raise ValueError(
        f"Pyro's parameter store holds '{name}' of another network, of shape "
        f"{tuple(theirs.shape)}; that of this one has shape {tuple(ours.shape)}. Give each network "
        "a name of its own, bayesianize(..., name='first'); or call pyro.clear_param_store() "
        "before going on with this one, which keeps its own parameters; or run all of them under "
        "pyro.settings.context(module_local_params=True), without the store."
    )


@torch.no_grad()
def _write(ours: Tensor, values: Tensor) -> None:
    ours.copy_(values)
