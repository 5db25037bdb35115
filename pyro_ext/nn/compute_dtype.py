"""Dtypes that networks compute in."""

from typing import Any

import torch


def check_dtype(dtype: Any) -> None:
    """Refuses what is no real dtype, nor None.

    Raises:
        ValueError: if it is neither.
    """
    is_real = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype is not None and not is_real:
        raise ValueError(f"compute_dtype is a real torch.dtype or None, got {dtype!r}.")


def check_half(dtype: Any) -> None:
    """Refuses what autocast cannot compute in: all but half precisions and None.

    Raises:
        ValueError: if it cannot.
    """
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ValueError(
            f"compute_dtype is torch.bfloat16, torch.float16 or None, got {dtype!r}: the "
            "parameters' dtype is what all else is computed in."
        )
