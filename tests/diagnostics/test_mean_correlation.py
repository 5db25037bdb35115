"""Scores of representations against brute force, SciPy, closed forms and invariances."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cross_decomposition import CCA

from pyro_ext.diagnostics import effective_rank, mean_correlation, pearson, spearman
from pyro_ext.diagnostics.canonical_variates import canonical_variates

N = 600


def sources(dim=4, num=N):
    return torch.distributions.Laplace(0.0, 1.0).sample((num, dim)).double()


def noisy(s, dim=None):
    weights = torch.randn(s.shape[1], dim or s.shape[1]).double()
    return s @ weights + torch.randn(len(s), dim or s.shape[1])


# Correlations.


def test_pearson_against_numpy():
    z, s = noisy(sources(4), 3), sources(5)
    expected = np.corrcoef(z.T, s.T)[:3, 3:]
    np.testing.assert_allclose(pearson(z, s), expected, atol=1e-14)
    assert pearson(z.float(), s.float()).dtype == torch.float32


def test_spearman_against_scipy():
    z, s = noisy(sources(4), 3), sources(5).round()  # with ties
    expected = stats.spearmanr(z, s).statistic[:3, 3:]
    np.testing.assert_allclose(spearman(z, s), expected, atol=1e-12)


# The score.


def test_one_under_permutation_sign_scale_and_shift():
    s = sources()
    order, signs = [2, 0, 3, 1], torch.tensor([1, -1, -1, 1])
    z = 7 - 1e3 * signs * s[:, order]
    result = mean_correlation(z, s)
    assert result.score == pytest.approx(1, abs=1e-12)
    assert result.columns.tolist() == [0, 1, 2, 3]
    assert [order[i] for i in result.rows] == [0, 1, 2, 3]
    assert result.signs.tolist() == (-signs[result.rows]).tolist()


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_symmetric(correlation):
    s = sources()
    z = noisy(s)
    one, two = (mean_correlation(*p, correlation=correlation) for p in ((z, s), (s, z)))
    assert one.score == pytest.approx(two.score, abs=1e-14)
    torch.testing.assert_close(one.correlations, two.correlations.T)


def test_spearman_is_invariant_to_monotone_maps():
    s = sources()
    z = noisy(s)
    bent = torch.stack([z[:, 0].exp(), z[:, 1] ** 3, -z[:, 2].sinh(), z[:, 3].atan()], -1)
    plain, other = (mean_correlation(v, s, correlation=spearman).score for v in (z, bent))
    assert plain == pytest.approx(other, abs=1e-12)
    assert mean_correlation(s.exp(), s, correlation=spearman).score == pytest.approx(1)
    assert mean_correlation(s.exp(), s).score < 0.9


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 5), (5, 3), (4, 4), (6, 6)])
def test_equals_brute_force_over_permutations(rows, columns):
    for _ in range(5):
        s = sources(columns)
        z = noisy(s, rows)
        fit, score = (np.corrcoef(z[i::2].T, s[i::2].T)[:rows, rows:] for i in (0, 1))
        wide = columns >= rows
        matchings = itertools.permutations(range(max(rows, columns)), min(rows, columns))
        pairs = [
            [(i, j) if wide else (j, i) for i, j in enumerate(matching)] for matching in matchings
        ]
        best = max(pairs, key=lambda p: sum(abs(fit[i, j]) for i, j in p))
        expected = np.mean([abs(score[i, j]) for i, j in best])
        result = mean_correlation(z, s)
        assert result.score == pytest.approx(expected, abs=1e-12)
        assert sorted(zip(result.rows.tolist(), result.columns.tolist(), strict=True)) == sorted(
            best
        )
        np.testing.assert_allclose(result.correlations, score, atol=1e-12)
        assert result.values.mean().item() == result.score
        assert result.num_rows == N // 2


def test_matching_is_fitted_on_other_rows():
    s = sources(2)
    swapped = s.flip(-1)
    result = mean_correlation(s, s, fit=(swapped, s))  # the matching of another data set
    assert result.rows.tolist() == [1, 0]
    assert result.score < 0.3
    assert result.num_rows == N
    assert mean_correlation(s, s, fit=(s[:50], s[:50])).score == pytest.approx(1)


def test_sorted_rows_are_split_evenly():
    # the second coordinate varies in the second half of the rows alone
    s = sources(2)
    s[: N // 2, 1] *= 1e-3
    assert mean_correlation(s.flip(-1), s).score == pytest.approx(1)


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_weak_is_one_under_any_invertible_map(dim):
    s = sources(dim, 1000)
    matrix = torch.randn(dim, dim).double() * torch.logspace(-3, 3, dim).double()
    assert mean_correlation(s @ matrix + 5, s, weak=True).score == pytest.approx(1, abs=1e-6)


def test_weak_against_the_singular_values_of_whitened_data():
    s = sources(5, 4000)
    z = noisy(s)
    fit, score = ((z[i::2], s[i::2]) for i in (0, 1))
    white, roots = [], []
    for value in fit:
        roots.append(torch.linalg.cholesky(torch.linalg.inv(value.T.cov())))
        white.append((value - value.mean(0)) @ roots[-1])
    u, _, v = torch.linalg.svd(white[0].T @ white[1])
    held_out = [(b @ r) @ d for b, r, d in zip(score, roots, (u, v.T), strict=True)]
    expected = np.diagonal(np.corrcoef(held_out[0].T, held_out[1].T)[:5, 5:])
    result = mean_correlation(z, s, weak=True)
    np.testing.assert_allclose(np.sort(result.values), np.sort(expected), atol=1e-4)
    assert repr(result).startswith("weak MCC")


def test_weak_of_unequal_widths():
    s = sources(5, 2000)
    assert mean_correlation(s @ torch.randn(5, 2).double(), s, weak=True).score > 0.999999
    wide = torch.cat([s, sources(3, 2000)], -1) @ torch.randn(8, 8).double()
    assert mean_correlation(wide, s, weak=True).score > 0.999999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weak_counts_the_directions_a_collapsed_representation_lacks(dtype):
    copies = (sources(1, 1000) * torch.tensor([1.0, -2.1, 0.7, 3.3])).to(dtype)
    assert mean_correlation(copies, 2 - copies).score == pytest.approx(1)
    result = mean_correlation(copies, 2 - copies, weak=True)
    assert result.score == pytest.approx(1 / 4)
    np.testing.assert_allclose(result.values, [1, 0, 0, 0], atol=1e-12)


def test_chance_level():
    """Independent coordinates score sqrt(2 / (pi n)); z-tests, false alarm below 1e-5."""
    num, dim = 400, 4
    for weak in (False, True):
        scores = torch.tensor(
            [
                mean_correlation(sources(dim, num), sources(dim, num), weak=weak).score
                for _ in range(200)
            ]
        )
        expected = math.sqrt(2 / (math.pi * num / 2))
        z = (scores.mean() - expected) / (scores.std() / math.sqrt(len(scores)))
        # the 1 / n correction of the expectation is a hundredth of its standard error
        assert abs(z) < 5


@pytest.mark.parametrize(("dim", "floor"), [(2, 0.90), (3, 0.83), (5, 0.73), (10, 0.59)])
def test_floor_of_random_rotations(dim, floor):
    """The numbers of the docstring; false alarm below 1e-5."""
    scores = []
    for _ in range(200):
        s = torch.randn(2000, dim)
        scores.append(mean_correlation(s @ torch.linalg.qr(torch.randn(dim, dim))[0], s).score)
    error = np.std(scores) / math.sqrt(len(scores))
    assert abs(np.mean(scores) - floor) < 4.5 * error + 0.005 + 0.01  # rounding, finite samples


def test_a_correlation_of_ones_own():
    s = sources(2)
    result = mean_correlation(s.flip(-1), s, correlation=lambda z, s: pearson(z.abs(), s.abs()))
    assert result.score == pytest.approx(1)
    with pytest.raises(ValueError, match=r"correlation must return finite numbers of shape \(2, 2"):
        mean_correlation(s, s, correlation=lambda z, s: np.corrcoef(z.T, s.T))
    with pytest.raises(ValueError, match="NaN or infinite"):
        mean_correlation(s, s, correlation=lambda z, s: pearson(z, s) / 0)


def test_numpy_integers_and_single_precision_are_accepted():
    s = sources(3).float().requires_grad_()
    assert mean_correlation(s.detach().numpy(), s).score == pytest.approx(1)
    assert mean_correlation((s * 100).long(), s).score > 0.99


# Bad input.


def with_entry(value, row=3):
    s = sources(3)
    s[row, 1] = value
    return s


@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize(
    ("z", "s", "message"),
    [
        (with_entry(math.nan), sources(3), r"Columns \[1\] of z hold NaN"),
        (sources(3), with_entry(math.inf), r"Columns \[1\] of s hold NaN"),
        (sources(3) * torch.tensor([1.0, 0.0, 0.0]), sources(3), r"\[1, 2\] of z are constant"),
        (sources(3).float() * 1e-9 + 1, sources(3), "are constant"),
        (sources(3), sources(3, N - 1), "got 600 and 599 rows"),
        (sources(3)[:, 0], sources(3), r"shape \(N, D\)"),
        (sources(3)[:0], sources(3), r"shape \(N, D\)"),
        (sources(3)[:3], sources(3)[:3], "at least 4 rows"),
    ],
)
def test_bad_representations_are_refused(z, s, message, weak):
    with pytest.raises(ValueError, match=message):
        mean_correlation(z, s, weak=weak)


def test_columns_constant_in_one_half_are_refused():
    s = sources(2)
    s[::2, 1] = 3.0
    with pytest.raises(ValueError, match=r"\[1\] of every other row of z are constant"):
        mean_correlation(s, sources(2))


def test_bad_rows_for_fitting_are_refused():
    s = sources(3)
    with pytest.raises(ValueError, match=r"columns of what is scored, but z has 3 and .* 2"):
        mean_correlation(s, s, fit=(s[:, :2], s))
    with pytest.raises(ValueError, match=r"of fit\[1\] hold NaN"):
        mean_correlation(s, s, fit=(s, with_entry(math.nan)))


def test_canonical_correlations_need_more_rows_than_columns():
    s = sources(10, 40)
    assert mean_correlation(s, sources(10, 40)).score < 1
    with pytest.raises(ValueError, match=r"more rows to fit on than the 20 columns .* got 20"):
        mean_correlation(s, sources(10, 40), weak=True)


# Effective rank.


def test_effective_rank_of_uncorrelated_columns_and_of_copies():
    q = torch.linalg.qr(torch.cat([torch.ones(100, 1), torch.randn(100, 6)], -1).double())[0]
    z = q[:, 1:]  # centred and orthogonal
    assert effective_rank(z) == pytest.approx(6)
    assert effective_rank(1e3 - z * torch.logspace(-4, 4, 6)) == pytest.approx(6)
    assert effective_rank(z[:, [0, 1, 0, 1, 0, 1]]) == pytest.approx(2)
    assert effective_rank(z[:, :1].float() * torch.tensor([1.0, -3.0])) == pytest.approx(
        1, abs=1e-5
    )


def test_effective_rank_by_hand():
    q = torch.linalg.qr(torch.cat([torch.ones(100, 1), torch.randn(100, 2)], -1).double())[0]
    z = torch.stack([q[:, 1], 0.6 * q[:, 1] + 0.8 * q[:, 2]], -1)  # they correlate by .6
    p = np.array([0.8, 0.2])
    assert effective_rank(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    with pytest.raises(ValueError, match="are constant"):
        effective_rank(torch.ones(5, 2))


def test_canonical_variates_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    s = z[:, :3].tanh() @ torch.randn(3, 3, generator=generator, dtype=torch.float64) + noise
    ours = canonical_variates((z, s))((z, s))
    theirs = CCA(3, max_iter=20_000, tol=1e-12).fit(z, s).transform(z, s)
    for one, other in zip(ours, theirs, strict=True):
        found = np.corrcoef(one.T, other.T)[:3, 3:]
        np.testing.assert_allclose(abs(np.diag(found)), 1, atol=1e-6)
    pairs = np.corrcoef(ours[0].T, ours[1].T)[:3, 3:]
    np.testing.assert_allclose(pairs - np.diag(np.diag(pairs)), 0, atol=1e-9)


def test_many_columns_take_no_iterations():
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(500, 64, generator=generator)
    score = mean_correlation(z @ torch.randn(64, 64, generator=generator), z, weak=True).score
    assert score == pytest.approx(1, abs=1e-4)


def test_constant_columns_have_no_correlation_in_any_precision():
    for dtype in (torch.float32, torch.float64):
        z = torch.stack([torch.full((10,), 0.1), torch.arange(10.0)], -1).to(dtype)
        found = pearson(z, z)
        assert found[0].isnan().all()
        assert found[1, 1] == pytest.approx(1)
    assert pearson(torch.arange(4).unsqueeze(-1), torch.arange(4).unsqueeze(-1)).item() == 1


def test_arguments_of_the_wrong_kind():
    s = sources()
    with pytest.raises(ValueError, match="correlation must be a function"):
        mean_correlation(s, s, correlation="spearman")
    with pytest.raises(ValueError, match="fit must be two representations"):
        mean_correlation(s, s, fit=s)
