"""Lengths of the slices of a tensor."""

import torch
from torch import Tensor


def lengths(v: Tensor, axis: int) -> Tensor:
    r"""Euclidean lengths :math:`\lVert v_k \rVert` of the slices along an axis.

    Example:
        >>> lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 0)
        tensor([5., 0.])
    """
    return v.movedim(axis, 0).flatten(1).square().sum(1).sqrt()


def scaled_to(v: Tensor, g: Tensor, axis: int) -> Tensor:
    r"""Gives the slices along an axis these lengths, and leaves slices of zeros at zero.

    .. math:: g_k v_k / \lVert v_k \rVert

    Args:
        v: the slices.
        g: their lengths, a vector.
        axis: of the slices.

    Returns:
        As ``v``, with finite gradients, which are zero where a slice is zero.

    Example:
        >>> scaled_to(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([10.0, 1.0]), 0)
        tensor([[6., 8.],
                [0., 0.]])
    """
    others = [k for k in range(v.dim()) if k != axis % v.dim()]
    squares = v.square().sum(others)
    factors = torch.where(squares > 0, g * torch.where(squares > 0, squares, 1.0).rsqrt(), 0.0)
    return v * factors.reshape([1 if k in others else -1 for k in range(v.dim())])
