"""Dropout of single elements."""

import torch
from torch import Tensor
from torch.nn.functional import dropout

from pyro_ext.ops.tracing import is_traced

_WORDS = 2**16


def element_dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    r"""Sets elements to zero with a probability, and divides the others by what is left of one.

    As torch's, which takes several times as long on a CPU: here four elements share the bits of a
    random word. Probabilities are then multiples of :math:`2^{-16}`, and elements are divided by
    the very probability that is left, so that the mean is exact.

    Args:
        x: any shape.
        rate: of the zeros, in [0, 1).
        training: whether there are any.

    Example:
        >>> y = element_dropout(torch.ones(10_000), 0.5, training=True)
        >>> y.unique(), bool((y.mean() - 1).abs() < 0.1)
        (tensor([0., 2.]), True)
    """
    dropped = round(rate * _WORDS)
    if not training or dropped in (0, _WORDS) or x.device.type != "cpu" or is_traced():
        return dropout(x, rate, training)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (numbers >= dropped - _WORDS // 2).to(x.dtype)
    return x * kept.mul_(_WORDS / (_WORDS - dropped))
