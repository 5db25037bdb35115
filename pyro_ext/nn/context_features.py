"""Labels and vectors that a network is conditioned on."""

import torch
from torch import Tensor

from pyro_ext.ops.tracing import is_traced


def as_features(
    context: Tensor | None, num_classes: int, context_dim: int, like: Tensor
) -> Tensor | None:
    """Makes vectors of a context: one-hot ones of labels, and vectors as they are.

    Args:
        context: labels ``(*batch)``, vectors ``(*batch, context_dim)`` or None.
        num_classes: of the labels; zero if there are none.
        context_dim: of the vectors; zero if there are none.
        like: a parameter of the network, for dtype and device.

    Returns:
        ``(*batch, U)``, or None if there is no context.

    Raises:
        ValueError: if the context is not what the network takes.
    """
    if (context is None) != (not num_classes and not context_dim):
        raise ValueError(_message(num_classes, context_dim, context))
    if context is None:
        return None
    if not isinstance(context, Tensor):
        raise ValueError(f"A context is a tensor, got {context!r}.")
    if context_dim:
        return _check_vectors(context, context_dim, like.dtype)
    check_labels(context, num_classes)
    return torch.eye(num_classes, dtype=like.dtype, device=like.device)[context.long()]


def _check_vectors(context: Tensor, context_dim: int, dtype: torch.dtype) -> Tensor:
    if context.shape[-1:] != (context_dim,):
        raise ValueError(
            f"Contexts have shape (..., {context_dim}), as the network was built; got "
            f"{tuple(context.shape)}."
        )
    return as_dtype(context, dtype)


def as_dtype(context: Tensor, dtype: torch.dtype) -> Tensor:
    """A context in the dtype of a network, from the same one or a less precise one.

    Raises:
        ValueError: if it is of integers, or more precise.

    Example:
        >>> as_dtype(torch.ones(2, dtype=torch.bfloat16), torch.float32)
        tensor([1., 1.])
    """
    is_real = context.is_floating_point()
    if not is_real or torch.promote_types(context.dtype, dtype) != dtype:
        raise ValueError(
            f"Contexts are of {dtype}, as the network's parameters; got {context.dtype}. Convert "
            "one of them."
        )
    return context.to(dtype)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuses what are no labels.

    Raises:
        ValueError: if they are not integers below their number.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"Labels are integers, got {labels.dtype}.")
    if not is_traced() and bool(((labels < 0) | (labels >= num_classes)).any()):
        raise ValueError(f"Labels are integers from 0 to {num_classes - 1}, got {labels}.")


def _message(num_classes: int, context_dim: int, context: Tensor | None) -> str:
    if context is not None:
        return "This network takes no context, as it was built without one."
    what = f"labels below {num_classes}" if num_classes else f"vectors of {context_dim} numbers"
    return f"This network needs a context: {what}."
