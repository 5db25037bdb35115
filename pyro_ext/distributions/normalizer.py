"""A normaliser that is given: checks, and when its gradient would be missed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def as_normalizer(
    value: Any, batch_shape: torch.Size, validate: bool | None
) -> Tensor | float | None:
    """Returns a constant in (0, 1] that broadcasts to the batch shape.

    Raises:
        ValueError: if it is learned, out of range or of another shape.
    """
    if value is None:
        return None
    if isinstance(value, nn.Module | nn.Parameter) or getattr(value, "requires_grad", False):
        raise ValueError(
            f"The normalizer must be a constant, got {value!r}: a learned normaliser is not the "
            "normaliser. Use LearnedAcceptReject to learn one; detach() it if its value is exact."
        )
    value = _as_number(value, "normalizer", batch_shape)
    if (validate or not isinstance(value, Tensor)) and not _is_probability(value):
        raise ValueError(
            "The normalizer is the mean acceptance probability of the proposals, in (0, 1], "
            f"got {value}. estimate_normalizer(num) estimates it."
        )
    return value


def as_reverse_logit(value: Any, batch_shape: torch.Size) -> Tensor | float | None:
    """Returns a logit that broadcasts to the batch shape.

    Raises:
        ValueError: if it does not.
    """
    return None if value is None else _as_number(value, "reverse_logit", batch_shape)


def refuse_training(functions: list[Callable[[Tensor], Tensor]], value: Tensor) -> None:
    """Refuses gradients with respect to anything but the value, given that there are some.

    Raises:
        ValueError: if one of the functions of the value has trainable parameters.
    """
    if not value.requires_grad or any(f(value.detach()).requires_grad for f in functions):
        raise ValueError(
            "A given normalizer is a constant, but it depends on the trainable parameters of the "
            "logit or the proposal, so their gradient would be wrong. Evaluate under "
            "torch.no_grad(), or call requires_grad_(False) on them to have the value's gradient "
            "only. To train, leave the normalizer out of TruncatedRejection, or call train() on "
            "that of LearnedAcceptReject."
        )


def _as_number(value: Any, name: str, batch_shape: torch.Size) -> Tensor | float:
    if not isinstance(value, Tensor):
        try:
            return float("a number" if isinstance(value, bool) else value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} must be a number or a tensor, such as the value of an estimate, got "
                f"{value!r}."
            ) from error
    try:
        fits = torch.broadcast_shapes(value.shape, batch_shape) == batch_shape
    except RuntimeError:
        fits = False
    if not fits or not value.is_floating_point():
        raise ValueError(
            f"{name} must be of floating-point numbers and broadcast to the batch shape "
            f"{tuple(batch_shape)}, got {value.dtype} of shape {tuple(value.shape)}."
        )
    return value


def _is_probability(value: Tensor | float) -> bool:
    if isinstance(value, Tensor):
        return bool(((value > 0) & (value <= 1)).all())
    return 0 < value <= 1
