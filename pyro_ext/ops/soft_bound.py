"""Numbers kept within bounds, smoothly."""

import torch
from torch import Tensor


def soft_bound(x: Tensor, bound: float | None) -> Tensor:
    r"""Computes :math:`c \tanh(x / c)`, within :math:`(-c, c)` and almost the identity near zero.

    Args:
        x: of any shape.
        bound: :math:`c > 0`; None leaves ``x`` as it is.

    Example:
        >>> soft_bound(torch.tensor([0.01, 100.0]), 4.0)
        tensor([0.0100, 4.0000])
    """
    return x if bound is None else bound * torch.tanh(x / bound)
