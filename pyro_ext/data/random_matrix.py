"""Random matrices of the published mixtures; all in double precision."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

_DRAWS, _BATCH, _PERCENTILE = 10_000, 1000, 25


def orthogonal(rng: Generator, dim: int) -> NDArray:
    """An orthogonal matrix, uniform under the Haar measure."""
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return q * np.sign(np.diagonal(r))


def well_conditioned(rng: Generator, dim: int) -> NDArray:
    """Uniform entries on [-1, 1], columns of unit length, and a low condition number.

    That is: the first one whose condition number is at most the 25th percentile of 10,000 other
    draws.
    """
    numbers = [np.linalg.cond(next(_unit_columns(rng, dim))) for _ in range(_DRAWS // _BATCH)]
    limit = np.percentile(np.concatenate(numbers), _PERCENTILE)
    for batch in _unit_columns(rng, dim):
        good = np.linalg.cond(batch) <= limit
        if good.any():
            return batch[good.argmax()]
    raise AssertionError("unreachable: the draws have no end")


def _unit_columns(rng: Generator, dim: int) -> Iterator[NDArray]:
    """Batches of matrices, for ever."""
    while True:
        matrix = rng.uniform(-1, 1, (_BATCH, dim, dim))
        yield matrix / np.linalg.norm(matrix, axis=-2, keepdims=True)


def correlation(rng: Generator, dim: int) -> NDArray:
    """A correlation matrix whose eigenvalues are uniform draws, scaled to their mean, one.

    A random rotation of the eigenvalues, to whose diagonal plane rotations then bring ones, one
    after the other (Davies and Higham).
    """
    eigenvalues = rng.random(dim)
    rotation = orthogonal(rng, dim)
    matrix = (rotation * (eigenvalues / eigenvalues.mean())) @ rotation.T
    for i in range(dim - 1):
        j = i + 1 + np.argmax((np.diagonal(matrix)[i + 1 :] - 1) * np.sign(1 - matrix[i, i]))
        turn = _rotation_to_one(matrix, i, int(j))
        matrix = turn.T @ matrix @ turn
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    return matrix


def _rotation_to_one(matrix: NDArray, i: int, j: int) -> NDArray:
    r"""The rotation in a plane after which the i-th diagonal entry is one.

    With cosine :math:`c` and sine :math:`s`, :math:`t = s / c` solves
    :math:`(m_{jj} - 1) t^2 - 2 m_{ij} t + (m_{ii} - 1) = 0`.
    """
    turn = np.eye(len(matrix))
    above, across, below = matrix[i, i] - 1, matrix[i, j], matrix[j, j] - 1
    if above:
        root = np.sqrt(max(across**2 - above * below, 0))
        tangent = above / (across + np.copysign(root, across))
        cosine = 1 / np.hypot(1, tangent)
        turn[[i, j], [i, j]] = cosine
        turn[j, i], turn[i, j] = -cosine * tangent, cosine * tangent
    return turn
