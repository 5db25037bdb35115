"""Canonical correlation analysis."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext.diagnostics.representation_pair import Pair

_RANK_TOL = 1e-6


def canonical_variates(fit: Pair) -> Callable[[Pair], Pair]:
    r"""Linear maps of two representations, after which matching columns correlate most.

    Of whitened representations these are the singular vectors of the matrix of their correlations,
    without any iteration.

    There are as many columns as the smaller numerical rank. Directions of standardised columns
    a million times smaller than the largest are rounding errors of single precision, and no part
    of a representation.

    Args:
        fit: both representations, ``(N, D)`` and ``(N, E)``.

    Returns:
        A function that maps others like them.

    Raises:
        ValueError: if there are not more rows than columns of both together: some correlations
            would be one whatever the data.
    """
    num_rows, num_columns = len(fit[0]), sum(value.shape[1] for value in fit)
    if num_rows <= num_columns:
        raise ValueError(
            f"Canonical correlations need more rows to fit on than the {num_columns} columns of "
            f"both representations together, got {num_rows}: they would be one whatever the data."
        )
    whiteners = [_whitener(value) for value in fit]
    white = [whiten(value) for whiten, value in zip(whiteners, fit, strict=True)]
    left, _, right = torch.linalg.svd(white[0].mT @ white[1], full_matrices=False)
    turns = left, right.mT

    def transform(pair: Pair) -> Pair:
        z, s = (w(v) @ turn for w, v, turn in zip(whiteners, pair, turns, strict=True))
        return z, s

    return transform


def _whitener(value: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear map to uncorrelated columns, one for each direction."""
    loc, scale = value.mean(0), value.std(0)
    _, sizes, directions = torch.linalg.svd((value - loc) / scale, full_matrices=False)
    kept = sizes > _RANK_TOL * sizes[0]
    matrix = directions[kept].T / sizes[kept] * len(value) ** 0.5
    return lambda new: (new - loc) / scale @ matrix
