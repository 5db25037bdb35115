"""The logarithm of a complementary probability."""

import math

import torch
from torch import Tensor


def log1mexp(x: Tensor) -> Tensor:
    r"""Computes :math:`\log(1 - e^x)`, precise at both ends.

    Its gradient is finite below zero. At zero the value is minus infinity.

    Args:
        x: :math:`x \le 0`, a log probability.

    Shape:
        Any, kept.

    Example:
        >>> log1mexp(torch.tensor([-1e-10, -1.0, -50.0]))
        tensor([-2.3026e+01, -4.5868e-01, -1.9287e-22])
    """
    near = x > -math.log(2)
    close = torch.expm1(x.masked_fill(~near, -1.0)).neg().log()
    far = torch.log1p(-x.masked_fill(near, -1.0).exp())
    return torch.where(near, close, far)
