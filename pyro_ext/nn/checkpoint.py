"""Networks on disk: how they were built, and their parameters."""

import inspect
import json
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def save_checkpoint(module: nn.Module, path: str | PathLike) -> None:
    """Writes a network's configuration and parameters to a safetensors file.

    Args:
        module: with an attribute ``config``, the arguments that it was built with.
        path: of the file.

    Raises:
        ValueError: if the module has no configuration.

    Example:
        >>> import tempfile
        >>> from pyro_ext.nn import GlowNet
        >>> net = GlowNet((1, 8, 8), depth=1, levels=1, width=8)
        >>> with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        ...     save_checkpoint(net, file.name)
        ...     again = load_checkpoint(GlowNet, file.name)
        >>> again.config == net.config
        True
    """
    from safetensors.torch import save_file

    config = getattr(module, "config", None)
    if config is None:
        raise ValueError(f"{type(module).__name__} has no config to be built from again.")
    text = json.dumps({name: _to_json(value) for name, value in config.items()}, default=int)
    tensors = {name: x.detach().contiguous() for name, x in module.state_dict().items()}
    save_file(tensors, path, {"class": type(module).__name__, "config": text})


def load_checkpoint(kind: type[Module], path: str | PathLike) -> Module:
    """Builds a network as a file says, with the parameters in it, in their dtype, on the CPU.

    Nothing in the file is executed.

    Args:
        kind: the class of the network.
        path: of the file.

    Raises:
        ValueError: if the file is no checkpoint, or of another class, or its arguments are not
            those that this version of the class takes.
    """
    metadata, tensors = _read(path)
    config = _check(kind, metadata, path)
    with torch.random.fork_rng(devices=[]):  # what parameters start from is not kept
        module = kind(**config)
    dtypes = {x.dtype for x in tensors.values() if x.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtype=dtypes.pop())
    module.load_state_dict(tensors)
    return module


def _read(path: Any) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}.") from error


def _check(kind: type, metadata: dict[str, str], path: Any) -> dict[str, Any]:
    if metadata.get("class") != kind.__name__ or "config" not in metadata:
        found = metadata.get("class", "no pyro_ext network")
        raise ValueError(f"{path} holds {found}, expected {kind.__name__}.")
    config = {name: _of_json(value) for name, value in json.loads(metadata["config"]).items()}
    try:
        inspect.signature(kind).bind(**config)
    except TypeError as error:
        raise ValueError(
            f"{path} was not written with the arguments of this {kind.__name__}: {error}. "
            "Load it with the version of pyro_ext that wrote it."
        ) from error
    return config


def _to_json(value: Any) -> Any:
    return {"dtype": str(value).removeprefix("torch.")} if isinstance(value, torch.dtype) else value


def _of_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    dtype = getattr(torch, value.get("dtype", ""), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"A checkpoint has dtypes besides numbers and strings, got {value}.")
    return dtype
