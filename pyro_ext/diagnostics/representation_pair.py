"""Checks of representations of the same data, and how their rows are split."""

from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def representation(value: Any, name: str) -> Tensor:
    """Returns ``(N, D)`` as it is, in double precision on the CPU.

    Raises:
        ValueError: if it is no matrix, not finite, or constant in a column.
    """
    value = torch.as_tensor(value).detach().cpu()
    if value.dim() != 2 or not value.numel() or value.is_complex():
        raise ValueError(
            f"{name} must be numbers of shape (N, D), one row for each datum, got "
            f"{tuple(value.shape)} of {value.dtype}."
        )
    _refuse(~value.isfinite().all(0), name, "hold NaN or infinite values. Leave out such rows")
    _refuse(_is_constant(value), name, "are constant, so that nothing correlates. Leave them out")
    return value.double()


def _is_constant(value: Tensor) -> Tensor:
    """Whether a column varies by no more than rounding errors."""
    width = value.double().amax(0) - value.double().amin(0)
    eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return width <= 4 * eps * value.double().abs().amax(0)


def _refuse(bad: Tensor, name: str, fault: str) -> None:
    if bad.any():
        raise ValueError(f"Columns {bad.nonzero().flatten().tolist()} of {name} {fault}.")


def split_rows(z: Any, s: Any, fit: tuple[Any, Any] | None) -> tuple[Pair, Pair]:
    """Rows to fit on, and rows to score.

    Without ``fit`` they alternate, so that data sorted by their context are split evenly.

    Raises:
        ValueError: if a part is no representation, or if shapes do not fit.
    """
    scored = _pair(z, s, "z", "s")
    if fit is None:
        return _every_other(scored, 0), _every_other(scored, 1)
    if not isinstance(fit, tuple | list) or len(fit) != 2:
        raise ValueError(f"fit must be two representations (z, s), got {type(fit).__name__}.")
    fitted = _pair(*fit, "fit[0]", "fit[1]")
    for ours, theirs, name in zip(fitted, scored, "zs", strict=True):
        if ours.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"fit must have the columns of what is scored, but {name} has {theirs.shape[1]} "
                f"and its part of fit {ours.shape[1]}."
            )
    return fitted, scored


def _every_other(pair: Pair, start: int) -> Pair:
    z, s = (value[start::2] for value in pair)
    return representation(z, "every other row of z"), representation(s, "every other row of s")


def _pair(z: Any, s: Any, name_z: str, name_s: str) -> Pair:
    z, s = representation(z, name_z), representation(s, name_s)
    if len(z) != len(s):
        raise ValueError(
            f"{name_z} and {name_s} must have one row for each of the same data, got {len(z)} and "
            f"{len(s)} rows."
        )
    if len(z) < 4:
        raise ValueError(f"{name_z} must have at least 4 rows, got {len(z)}.")
    return z, s
