"""What the report says of seeds that agree, that agree up to a linear map, and that collapsed."""

import math

import pytest
import torch
from sklearn.linear_model import LinearRegression

from pyro_ext.diagnostics import effective_rank, mean_correlation, reproducibility

N, D = 2000, 8


def truth(dim=D):
    return torch.distributions.Laplace(0.0, 1.0).sample((N, dim)).double()


def collapsed(s, noise=0.02):
    """All coordinates copies of one number, each with a little noise of its own."""
    return s[:, :1] * (1 + torch.rand(D)) + noise * torch.randn(N, D).double()


def off_diagonal(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def test_seeds_that_agree():
    s = truth()
    report = reproducibility([s, 1 - 3 * s.flip(-1), s[:, torch.randperm(D)]])
    for score in (report.strong, report.mean_cca, report.r2):
        torch.testing.assert_close(score, torch.ones_like(score), atol=1e-6, rtol=0)
    assert (report.effective_rank > 0.98 * D).all()
    assert not report.is_collapsed.any()
    assert "COLLAPSED" not in str(report)


def test_seeds_that_agree_up_to_a_linear_map():
    s = truth()
    report = reproducibility([s @ torch.linalg.qr(torch.randn(D, D).double())[0] for _ in range(3)])
    assert off_diagonal(report.strong).max() < 0.85
    assert off_diagonal(report.mean_cca).min() > 0.999999
    assert off_diagonal(report.r2).min() > 0.999999


def test_collapsed_seeds_do_not_fool_the_report():
    s = truth()
    report = reproducibility([collapsed(s) for _ in range(3)])
    assert off_diagonal(report.strong).min() > 0.99  # so far they look as good as can be
    assert off_diagonal(report.r2).min() > 0.99
    assert off_diagonal(report.mean_cca).max() < 0.25  # 1 / 8 and the noise
    assert report.effective_rank.max() < 1.1
    assert report.is_collapsed.all()
    assert "COLLAPSED: [0, 1, 2]" in str(report)
    assert "no evidence" in str(report)


def test_exact_copies_do_not_fool_it_either():
    s = truth()
    for dtype in (torch.float32, torch.float64):
        report = reproducibility([collapsed(s, 0.0).to(dtype), collapsed(s, 0.0).to(dtype)])
        assert off_diagonal(report.mean_cca).max() < 0.2
        assert report.effective_rank.max() < 1.001


def test_one_collapsed_seed_is_named():
    s = truth()
    report = reproducibility([s, collapsed(s), 2 * s])
    assert report.is_collapsed.tolist() == [False, True, False]
    assert "COLLAPSED: [1]" in str(report)
    assert report.r2[0, 1] > 0.99
    assert report.r2[1, 0] < 0.2


def test_unrelated_seeds():
    report = reproducibility([truth(), truth()])
    assert off_diagonal(report.strong).max() < 0.1
    assert off_diagonal(report.mean_cca).max() < 0.1
    assert off_diagonal(report.r2).max() < 0.01


def test_entries_against_their_definitions():
    s = truth()
    seeds = [s + 0.5 * torch.randn(N, D), s[:, :5] @ torch.randn(5, 5).double(), s.tanh()]
    fit = [z[:800] for z in seeds]
    held = [z[800:] for z in seeds]
    report = reproducibility(held, fit=fit)
    assert torch.equal(report.strong, report.strong.T)
    assert torch.equal(report.mean_cca, report.mean_cca.T)
    assert report.num_columns.tolist() == [8, 5, 8]
    for i in range(3):
        assert report.effective_rank[i].item() == pytest.approx(effective_rank(held[i]))
        for j in range(3):
            if i == j:
                assert report.strong[i, j] == report.mean_cca[i, j] == report.r2[i, j] == 1
                continue
            pair = {"fit": (fit[i], fit[j])}
            strong = mean_correlation(held[i], held[j], **pair).score
            cca = mean_correlation(held[i], held[j], weak=True, **pair).score
            line = LinearRegression().fit(fit[i].numpy(), fit[j].numpy())
            r2 = line.score(held[i].numpy(), held[j].numpy())
            assert report.strong[i, j].item() == pytest.approx(strong, abs=1e-9)
            assert report.mean_cca[i, j].item() == pytest.approx(cca, abs=1e-4)
            assert report.r2[i, j].item() == pytest.approx(r2, abs=1e-9)


def test_the_table_shows_means_and_extremes():
    s = truth()
    report = reproducibility([s, s + torch.randn(N, D), s[:, :5]])
    lines = str(report).splitlines()
    assert lines[0] == "3 representations"
    scores = off_diagonal(report.strong)
    expected = [scores.mean(), scores.min(), scores.max()]
    assert lines[2].split()[-3:] == [f"{value:.4f}" for value in expected]
    assert lines[5].endswith("of 5 to 8")
    assert repr(report) == str(report)


def test_bad_input_is_refused():
    s = truth()
    with pytest.raises(ValueError, match="at least two representations, got 1"):
        reproducibility([s])
    with pytest.raises(ValueError, match="fit must have one part for each of 2, got 1"):
        reproducibility([s, s], fit=[s])
    with pytest.raises(ValueError, match="got 1999 and 2000 rows"):
        reproducibility([s, s[:-1]])
    with pytest.raises(ValueError, match=r"of representations\[1\] hold NaN"):
        reproducibility([s, s * math.nan])
    with pytest.raises(ValueError, match="Canonical correlations need more rows"):
        reproducibility([s[:30], s[:30]])
