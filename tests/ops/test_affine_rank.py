"""The rank of differences between points."""

import numpy as np
import pytest
import torch

from pyro_ext.ops.affine_rank import affine_rank

DOUBLE = torch.float64


@pytest.mark.parametrize(("num", "size"), [(2, 4), (5, 4), (4, 4), (30, 4), (30, 1)])
def test_rank_is_that_of_differences_to_any_point(num, size):
    points = torch.randn(num, size, dtype=DOUBLE)
    for origin in (0, num // 2):
        expected = np.linalg.matrix_rank((points - points[origin]).numpy())
        assert affine_rank(points).rank == expected == min(num - 1, size)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_dependent_columns_do_not_count(dtype):
    points = torch.randn(40, 3, dtype=dtype)
    mixed = torch.cat([points, points @ torch.randn(3, 2, dtype=dtype) + 7.0], 1)
    seen = affine_rank(mixed)
    assert seen.rank == 3
    assert seen.condition_number == float("inf")


def test_scales_and_shifts_of_columns_do_not_matter():
    points = torch.randn(40, 3, dtype=DOUBLE)
    scaled = points * torch.tensor([1e-9, 1.0, 1e7]) + torch.tensor([0.0, 3.0, -5.0])
    assert affine_rank(scaled).rank == 3
    exact = np.linalg.cond(np.corrcoef(points.numpy(), rowvar=False)) ** 0.5
    for x in (points, scaled):
        assert affine_rank(x).condition_number == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_rounding_errors_are_no_direction(dtype):
    """A column of one number in different roundings is constant."""
    noise = 1 + 4 * torch.finfo(dtype).eps * torch.randn(50, dtype=dtype)
    seen = affine_rank(torch.stack([noise, torch.randn(50, dtype=dtype)], 1))
    assert seen.rank == 1
    assert (seen.spread > 0).tolist() == [False, True]
    assert affine_rank(torch.full((5, 2), 0.1, dtype=dtype)).rank == 0


def test_one_point_has_no_direction():
    assert affine_rank(torch.randn(1, 3)).rank == 0
