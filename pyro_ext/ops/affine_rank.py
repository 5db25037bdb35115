"""How many directions points differ in."""

from typing import NamedTuple

import torch
from torch import Tensor

NOISE = 1e3  # rounding errors, within which a column is constant


class AffineRank(NamedTuple):
    """Of points, after each column was centred and scaled."""

    rank: int
    condition_number: float  # largest over smallest singular value; infinite if rank is lacking
    spread: Tensor  # (D,): standard deviation of each column; zero if it is constant to rounding


def affine_rank(points: Tensor, tolerance: float = 1e-5) -> AffineRank:
    r"""The numerical rank of differences between points.

    .. math::

        \operatorname{rank} (x_1 - x_0, \dots, x_{N-1} - x_0)

    which does not depend on the choice of :math:`x_0`. The mean takes its place, columns are scaled
    to unit length, and singular values count if they exceed a fraction of the largest, and what
    rounding in the dtype of the points can make of them. A column that is constant up to rounding
    counts as constant.

    Args:
        points: ``(N, D)``.
        tolerance: that fraction.

    Raises:
        ValueError: if it is not in [0, 1).

    Example:
        >>> affine_rank(torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])).rank
        1
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}.")
    centred, spread = _centre(points)
    values = torch.linalg.svdvals(centred)
    tolerance = max(tolerance, _rounding(points, spread))
    return AffineRank(*_count(values, points.shape[1], tolerance), spread)


def _centre(points: Tensor) -> tuple[Tensor, Tensor]:
    """Centred columns of length one or zero, in double precision, and their spread before."""
    noise = NOISE * torch.finfo(points.dtype).eps * points.double().abs().amax(0)
    centred = points.double() - points.double().mean(0)
    spread = centred.square().mean(0).sqrt()
    spread = torch.where(spread > noise, spread, 0.0)
    scale = torch.where(spread > 0, spread * len(points) ** 0.5, torch.inf)
    return centred / scale, spread


def _rounding(points: Tensor, spread: Tensor) -> float:
    """Rounding errors of columns scaled by their spread."""
    varied = spread > 0
    errors = points.double().abs().amax(0)[varied] / spread[varied]
    return 2 * torch.finfo(points.dtype).eps * max(errors.tolist(), default=0.0)


def _count(values: Tensor, size: int, tolerance: float) -> tuple[int, float]:
    """Singular values that count, and the condition number."""
    rank = int((values > tolerance * values.max()).sum()) if values.numel() else 0
    ratio = float(values[0] / values[-1]) if rank == size else float("inf")
    return rank, ratio
