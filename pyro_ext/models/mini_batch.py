"""Mini-batches of vectors: the plate around them, and side information beside them."""

from typing import Any

import pyro
import torch
from torch import Tensor


def data_plate(x: Tensor | None, size: int | None, input_dim: int) -> Any:
    """The plate of a mini-batch that stands for ``size`` data, or of ``size`` data to draw.

    Raises:
        ValueError: if ``x`` is not floating-point of shape ``(batch, input_dim)``, or if it is
            larger than ``size``.
    """
    if x is None:
        return pyro.plate("data", 1 if size is None else size)
    if x.dim() != 2 or x.shape[-1] != input_dim:
        raise ValueError(
            f"The model expects data of shape (batch, {input_dim}), got {tuple(x.shape)}. "
            "Flatten images, x.flatten(1)."
        )
    if not x.is_floating_point():
        raise ValueError(f"The model expects floating-point data, got {x.dtype}.")
    if not len(x):
        raise ValueError("The mini-batch is empty.")
    if size is None or size == len(x):
        return pyro.plate("data", len(x))
    if size < len(x):
        raise ValueError(f"A mini-batch of {len(x)} cannot stand for size={size} data.")
    return pyro.plate("data", size, subsample=torch.arange(len(x), device=x.device))


def beside(x: Tensor, context: Tensor | None, context_dim: int) -> Tensor:
    """Concatenates vectors and their context, over any dimensions to the left of either.

    Raises:
        ValueError: if the context is not floating-point of ``context_dim`` columns, or is given
            although there is none.
    """
    if context is None and context_dim == 0:
        return x
    if context is None or context_dim == 0 or context.shape[-1:] != (context_dim,):
        got = "none" if context is None else f"one of shape {tuple(context.shape)}"
        raise ValueError(
            f"The model has context_dim={context_dim}, but the context is {got}. Give "
            "(batch, context_dim) numbers exactly if context_dim > 0."
        )
    if not context.is_floating_point():
        raise ValueError(
            f"The model expects a floating-point context, got {context.dtype}. Labels become one "
            "by torch.nn.functional.one_hot(labels, context_dim).float()."
        )
    shape = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return torch.cat([x.expand(*shape, -1), context.expand(*shape, -1)], -1)
