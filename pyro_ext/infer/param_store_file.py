"""Pyro's parameter store on disk, without pickles."""

import json
from os import PathLike
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_ext.nn.checkpoint import generators, set_generators
from pyro_ext.nn.state_file import read_file, write_file
from pyro_ext.nn.state_tree import of_json, to_json

SIMPLE = (
    "real",
    "positive",
    "nonnegative",
    "unit_interval",
    "simplex",
    "real_vector",
    "lower_cholesky",
    "unit_lower_cholesky",
    "softplus_positive",
    "softplus_lower_cholesky",
    "corr_cholesky",
    "corr_matrix",
    "positive_definite",
    "positive_semidefinite",
    "symmetric",
    "square",
    "lower_triangular",
    "ordered_vector",
    "positive_ordered_vector",
    "sphere",
)
BOUNDED = {
    "interval": ("lower_bound", "upper_bound"),
    "half_open_interval": ("lower_bound", "upper_bound"),
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
}


def save_param_store(path: str | PathLike, optimizer: Any = None) -> None:
    """Writes Pyro's parameter store to a safetensors file, and the state of an optimiser.

    What ``pyro.get_param_store().save`` does, but loading such a file executes nothing, and an
    interrupted write leaves what was there before. Constraints are stored by name; states of the
    random generators are kept with an optimiser's.

    Args:
        path: of the file.
        optimizer: a ``pyro.optim`` one that has trained these parameters.

    Raises:
        ValueError: if a constraint is not one of Pyro's, or the optimiser holds objects.
        ImportError: if safetensors is not installed.

    Example:
        >>> import tempfile
        >>> with pyro.get_param_store().scope(), tempfile.TemporaryDirectory() as folder:
        ...     _ = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        ...     save_param_store(f"{folder}/store")
        ...     pyro.clear_param_store()
        ...     load_param_store(f"{folder}/store")
        ...     pyro.param("scale").item()
        2.0
    """
    store = pyro.get_param_store()
    state: Any = store.get_state()
    tensors = {f"params/{name}": x.detach() for name, x in state["params"].items()}
    kinds = {name: _to_name(kind, name) for name, kind in state["constraints"].items()}
    metadata = {"class": "ParamStore", "constraints": json.dumps(kinds)}
    if optimizer is not None:
        tree = {"optimizer": optimizer.get_state(), "generators": generators()}
        metadata["training"] = json.dumps(to_json(tree, tensors, "training"))
    write_file(path, tensors, metadata)


def load_param_store(
    path: str | PathLike, optimizer: Any = None, device: torch.device | str = "cpu"
) -> None:
    """Replaces the contents of Pyro's parameter store by those of a file.

    Nothing in the file is executed: unlike ``pyro.get_param_store().load`` it is safe for files
    of others. Parameters that are in the store already are filled in where they are, so that
    modules which own them change too: run model and guide once before, as automatic guides make
    their parameters at the first call, and never look for plain ones in the store.

    Args:
        path: of a file that :func:`save_param_store` wrote.
        optimizer: a new ``pyro.optim`` one of the same kind, to go on with; random generators are
            set to where they were then.
        device: of the parameters.

    Raises:
        ValueError: if the file is of something else, not whole, of a later format, or has no
            optimiser when one is given.
        ImportError: if safetensors is not installed.
    """
    metadata, tensors = read_file(path)
    if metadata.get("class") != "ParamStore":
        found = metadata.get("class", "no parameter store")
        raise ValueError(f"{path} holds {found}, expected a ParamStore of save_param_store.")
    training = _training(metadata, tensors, path) if optimizer is not None else None
    made = json.loads(metadata["constraints"])
    kinds = {name: _of_name(kind, name) for name, kind in made.items()}
    _fill({name: tensors[f"params/{name}"] for name in kinds}, kinds, device)
    if training is not None:
        optimizer.set_state(training["optimizer"])
        set_generators(training["generators"])


def _fill(values: dict[str, Tensor], kinds: dict[str, Any], device: Any) -> None:
    """In place where there is a parameter of this name and shape."""
    store = pyro.get_param_store()
    for name in set(store.keys()).difference(values):
        del store[name]
    old: Any = store.get_state()["params"]
    for name, value in values.items():
        if name in old and old[name].shape == value.shape:
            values[name] = _copied(old[name], value)
        else:
            values[name] = value.to(device).requires_grad_()
    state: Any = {"params": values, "constraints": kinds}
    store.set_state(state)


@torch.no_grad()
def _copied(parameter: Tensor, value: Tensor) -> Tensor:
    return parameter.copy_(value)


def _training(metadata: dict[str, str], tensors: dict[str, Tensor], path: Any) -> Any:
    if "training" not in metadata:
        raise ValueError(f"{path} holds no state of an optimiser. Load it without one.")
    return of_json(json.loads(metadata["training"]), tensors)


def _to_name(constraint: Any, param: str) -> Any:
    """A name, with the numbers that belong to it.

    Raises:
        ValueError: if it is not one of Pyro's.
    """
    for name in SIMPLE:
        if constraint is getattr(constraints, name):
            return [name]
    for name, bounds in BOUNDED.items():
        if type(constraint) is getattr(constraints, name):
            return [name, *(float(getattr(constraint, bound)) for bound in bounds)]
    if type(constraint) is constraints.independent:
        inner = _to_name(constraint.base_constraint, param)
        return ["independent", inner, constraint.reinterpreted_batch_ndims]
    raise ValueError(
        f"Parameter '{param}' has the constraint {constraint}, which is none of Pyro's simple "
        "ones: it cannot be stored by name."
    )


def _of_name(made: Any, param: str) -> Any:
    match made:
        case [str(name)] if name in SIMPLE:
            return getattr(constraints, name)
        case ["independent", inner, int(num)]:
            return constraints.independent(_of_name(inner, param), num)
        case [str(name), *bounds] if len(bounds) == len(BOUNDED.get(name, ())) > 0:
            return getattr(constraints, name)(*map(float, bounds))
    raise ValueError(f"Parameter '{param}' has the unknown constraint {made!r}.")
