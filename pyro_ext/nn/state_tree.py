"""Nested states of modules, optimisers and generators as named tensors and JSON."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))


def to_json(tree: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """What JSON can hold of a tree; its tensors go to ``tensors``, under names below ``name``.

    Args:
        tree: dictionaries, lists and tuples of tensors, arrays, dtypes, numbers, strings and None.
        tensors: is added to.
        name: of the tree.

    Raises:
        ValueError: if there is anything else in it.
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach()
        return {"tensor": name}
    if isinstance(tree, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(tree))
        return {"array": name}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree).removeprefix("torch.")}
    if isinstance(tree, dict):
        items = enumerate(tree.items())
        pairs = [[_key(k, name), to_json(v, tensors, f"{name}/{i}")] for i, (k, v) in items]
        return {"dict": pairs}
    if isinstance(tree, list | tuple):
        values = [to_json(v, tensors, f"{name}/{i}") for i, v in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": values}
    if not isinstance(tree, PLAIN):
        raise ValueError(
            f"{name} holds {type(tree).__name__}, but a checkpoint has tensors, numbers and "
            "strings only, so that nothing is executed when it is loaded."
        )
    return tree


def of_json(made: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree that :func:`to_json` was given.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(made, PLAIN):
        return made
    if not (isinstance(made, dict) and len(made) == 1):
        raise ValueError(f"A checkpoint has no {made!r}.")
    ((kind, value),) = made.items()
    match kind:
        case "tensor":
            return _tensor(value, tensors)
        case "array":
            return _tensor(value, tensors).numpy()
        case "dtype":
            return _dtype(value)
        case "dict":
            return {key: of_json(each, tensors) for key, each in value}
        case "list":
            return [of_json(each, tensors) for each in value]
        case "tuple":
            return tuple(of_json(each, tensors) for each in value)
    raise ValueError(f"A checkpoint has no {kind!r}.")


def _key(key: Any, name: str) -> Any:
    if not isinstance(key, str | int):
        raise ValueError(f"{name} has the key {key!r}, expected strings and integers.")
    return key


def _tensor(name: Any, tensors: dict[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise ValueError(f"The checkpoint names a tensor {name!r} which it does not hold.")
    return tensors[name]


def _dtype(name: Any) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"A checkpoint has dtypes of torch, got {name!r}.")
    return dtype
