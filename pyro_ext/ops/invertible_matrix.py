"""Square matrices that are cheap to invert, and the tensors that they are made of."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class MatrixForm(NamedTuple):
    """How matrices ``(..., C, C)`` are made of parameters of the same shape."""

    start: Callable[[Tensor], Tensor]  # parameters that start from a rotation (C, C)
    compose: Callable[[Tensor], Tensor]  # the matrices
    log_abs_det: Callable[[Tensor], Tensor]  # (...)
    invert: Callable[[Tensor], Tensor]  # the inverse matrices, by way of float64


def rotation(size: int) -> Tensor:
    """Draws an orthogonal matrix ``(size, size)`` from the Haar measure, in float64."""
    return torch.nn.init.orthogonal_(torch.empty(size, size, dtype=torch.float64))


def pack_factors(matrix: Tensor) -> Tensor:
    r"""Packs the triangular factors of a matrix whose rows may be permuted and flipped.

    With :math:`W = P L U` and :math:`S = \operatorname{sign}(\operatorname{diag} U)`, the matrix
    :math:`S P^\top W = (S L S)(S U)` has a unit lower and an upper factor of positive diagonal, so
    that neither permutation nor signs need to be kept. It is a rotation if :math:`W` is one.

    Returns:
        ``(..., C, C)``: the lower factor below the diagonal, the upper factor above it, and the
        logarithm of the upper factor's diagonal on it.
    """
    _, lower, upper = torch.linalg.lu(matrix)
    diagonal = upper.diagonal(dim1=-2, dim2=-1)
    signs = diagonal.sign()
    lower = signs.unsqueeze(-1) * lower * signs.unsqueeze(-2)
    upper = signs.unsqueeze(-1) * upper
    return lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag_embed()


def compose_factors(packed: Tensor) -> Tensor:
    """The product of the two packed factors."""
    lower, upper = _unpack(packed)
    return lower @ upper


def log_diagonal(packed: Tensor) -> Tensor:
    """The logarithm of the determinant, ``(...)``, a sum of the packed diagonal."""
    return packed.diagonal(dim1=-2, dim2=-1).sum(-1)


def invert_factors(packed: Tensor) -> Tensor:
    """The inverse of the product, by two triangular solutions."""
    lower, upper = _unpack(packed.double())
    eye = torch.eye(packed.shape[-1], dtype=torch.float64, device=packed.device)
    below = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    return torch.linalg.solve_triangular(upper, below, upper=True).to(packed.dtype)


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    eye = torch.eye(packed.shape[-1], dtype=packed.dtype, device=packed.device)
    diagonal = packed.diagonal(dim1=-2, dim2=-1).exp()
    return packed.tril(-1) + eye, packed.triu(1) + diagonal.diag_embed()


def _same(matrix: Tensor) -> Tensor:
    return matrix


def _log_abs_det(matrix: Tensor) -> Tensor:
    return torch.linalg.slogdet(matrix.double()).logabsdet.to(matrix.dtype)


def _invert(matrix: Tensor) -> Tensor:
    return torch.linalg.inv(matrix.double()).to(matrix.dtype)


LU = MatrixForm(pack_factors, compose_factors, log_diagonal, invert_factors)
PLAIN = MatrixForm(_same, _same, _log_abs_det, _invert)
