"""Modules and their training on disk."""

import inspect
import json
from os import PathLike
from typing import Any, TypeVar

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn

from pyro_ext.nn.state_file import read_file, write_file
from pyro_ext.nn.state_tree import of_json, to_json

Module = TypeVar("Module", bound=nn.Module)


def save_checkpoint(module: nn.Module, path: str | PathLike, **training: Any) -> None:
    """Writes a module's parameters to a safetensors file, and how training goes on from there.

    Parameters and buffers have the names of ``module.state_dict()``. A module with an attribute
    ``config``, the arguments that it was built with, can be built anew from the file alone.

    The file is written beside its place and then moved there: an interrupted write leaves what was
    there before. It holds tensors, numbers and strings, and nothing that could be executed.

    Args:
        module: of any class.
        path: of the file.
        **training: optimisers, schedulers, scalers, or whatever has a ``state_dict``, by names of
            one's own; if there are any, the states of the random generators are kept too.

    Raises:
        ValueError: if a state holds objects.
        ImportError: if safetensors is not installed.

    Example:
        >>> import tempfile
        >>> from pyro_ext.nn import GlowNet
        >>> net = GlowNet((1, 8, 8), depth=1, levels=1, width=8)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(net, f"{folder}/net.safetensors", optimizer=optimizer)
        ...     again = load_checkpoint(GlowNet, f"{folder}/net.safetensors")
        ...     _ = load_checkpoint(net, f"{folder}/net.safetensors", optimizer=optimizer)
        >>> again.config == net.config
        True
    """
    tensors = _tensors(module)
    metadata = {"class": type(module).__name__}
    config: Any = getattr(module, "config", None)
    if config is not None:
        metadata["config"] = json.dumps({k: to_json(v, {}, k) for k, v in config.items()})
    if training:
        states = {name: state_of(name, owner) for name, owner in training.items()}
        tree = {"states": states, "generators": generators()}
        metadata["training"] = json.dumps(to_json(tree, tensors, "training"))
    write_file(path, tensors, metadata)


def load_checkpoint(kind: type[Module] | Module, path: str | PathLike, **training: Any) -> Module:
    """Builds a module as a file says, or fills one in.

    Nothing in the file is executed; the class is the caller's choice, not the file's.

    Args:
        kind: a class whose modules have a ``config``: a new one is built, with the dtype of the
            file, on the CPU. Or a module, of any class, whose parameters and buffers the file's
            are copied to, on their device.
        path: of the file.
        **training: what was saved under these names, to go on from: it is filled in, and random
            generators are set to where they were.

    Returns:
        The module.

    Raises:
        ValueError: if the file is no checkpoint or is not whole, is of another class or format, its
            arguments are not those of this class, its tensors are not those of the module, or
            no such training is in it.
        ImportError: if safetensors is not installed.
    """
    metadata, tensors = read_file(path)
    tree = _training(metadata, tensors, path, training)
    own = {name: x for name, x in tensors.items() if not name.startswith("training/")}
    name = kind.__name__ if isinstance(kind, type) else type(kind).__name__
    if metadata.get("class") != name:
        found = metadata.get("class", "no pyro_ext module")
        raise ValueError(f"{path} holds {found}, expected {name}.")
    module = _build(kind, metadata, own, path) if isinstance(kind, type) else kind
    _fill(module, own, path)
    if training:
        for key, owner in training.items():
            owner.load_state_dict(tree["states"][key])
        set_generators(tree["generators"])
    return module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    found = module.state_dict()
    others = [name for name, x in found.items() if not isinstance(x, Tensor)]
    if others:
        raise ValueError(f"The module's state holds {others}, which are no tensors.")
    return dict(found)


def state_of(name: str, owner: Any) -> Any:
    """The state of what has one.

    Raises:
        ValueError: if it has none.
    """
    if not hasattr(owner, "state_dict"):
        raise ValueError(f"{name} is {type(owner).__name__}, which has no state_dict to be saved.")
    return owner.state_dict()


def generators() -> dict[str, Any]:
    """States of the generators of torch, NumPy and Python."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {**get_rng_state(), "cuda": cuda}


def set_generators(states: dict[str, Any]) -> None:
    """Sets generators to where they were, those of CUDA if there are as many devices."""
    states = dict(states)
    cuda = states.pop("cuda")
    set_rng_state(states)
    if len(cuda) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(cuda)


def _build(kind: type[Module], metadata: dict[str, str], tensors: Any, path: Any) -> Module:
    """A module of the file's arguments and dtype."""
    if "config" not in metadata:
        raise ValueError(
            f"{path} does not say how its {kind.__name__} was built. Build one, and pass it in "
            "place of the class."
        )
    made = json.loads(metadata["config"])
    config = {name: _of_config(value) for name, value in made.items()}
    try:
        inspect.signature(kind).bind(**config)
    except TypeError as error:
        raise ValueError(
            f"{path} was not written with the arguments of this {kind.__name__}: {error}. "
            "Load it with the version of pyro_ext that wrote it."
        ) from error
    with torch.random.fork_rng(devices=[]):  # what parameters start from is not kept
        module = kind(**config)
    dtypes = {x.dtype for x in tensors.values() if x.is_floating_point()}
    return module.to(dtype=dtypes.pop()) if len(dtypes) == 1 else module


def _of_config(value: Any) -> Any:
    """Lists of numbers are plain lists in files of earlier versions."""
    return value if isinstance(value, list) else of_json(value, {})


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Any) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this {type(module).__name__}: {error}") from error


def _training(metadata: dict[str, str], tensors: Any, path: Any, wanted: dict[str, Any]) -> Any:
    if not wanted:
        return None
    tree = of_json(json.loads(metadata.get("training", "null")), tensors) or {"states": {}}
    missing = sorted(set(wanted).difference(tree["states"]))
    if missing:
        raise ValueError(f"{path} holds training of {sorted(tree['states'])}, not of {missing}.")
    return tree
