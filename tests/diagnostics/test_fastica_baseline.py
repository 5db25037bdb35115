"""What FastICA solves, what it does not, and that it says so."""

import math
import sys

import pytest
import torch
from sklearn.decomposition import FastICA

from pyro_ext.data.simulate import imca, tcl
from pyro_ext.diagnostics import fastica_baseline, mean_correlation


def laplace(num=4000, dim=4):
    return torch.distributions.Laplace(0.0, 1.0).sample((num, dim)).double()


def test_solves_a_linear_mixture():
    s = laplace()
    baseline = fastica_baseline(s @ torch.randn(4, 4).double() + 2, s)
    assert baseline.converged
    assert 1 < baseline.num_iterations < 1000
    assert baseline.score > 0.99
    assert repr(baseline).startswith(f"FastICA: strong MCC {baseline.score:.4f}")
    assert "converged in" in repr(baseline)


def test_takes_as_many_components_as_sources():
    s = laplace(dim=2)
    x = s @ torch.randn(2, 6).double() + 1e-3 * torch.randn(4000, 6)
    assert fastica_baseline(x, s).score > 0.99
    assert fastica_baseline(x[:, :1], s).correlation.values.shape == (1,)


def test_fits_on_the_rows_it_is_given():
    s = laplace()
    x = s @ torch.randn(4, 4).double()
    ica = FastICA(4, whiten="unit-variance", max_iter=1000, random_state=3).fit(x[:2500].numpy())
    parts = (torch.from_numpy(ica.transform(v.numpy())) for v in (x[2500:], x[:2500]))
    test, train = parts
    expected = mean_correlation(test, s[2500:], fit=(train, s[:2500]))
    baseline = fastica_baseline(x[2500:], s[2500:], fit=(x[:2500], s[:2500]), seed=3)
    assert baseline.score == pytest.approx(expected.score, abs=1e-6)


def test_what_does_not_converge_is_reported():
    x = laplace() @ torch.randn(4, 4).double()
    with pytest.warns(RuntimeWarning, match="did not converge in 2 iterations"):
        baseline = fastica_baseline(x, laplace(), max_iter=2)
    assert not baseline.converged
    assert "DID NOT CONVERGE in 2 iterations" in repr(baseline)


@pytest.mark.parametrize("make", [tcl, imca])
def test_reaches_what_is_known_of_the_published_mixtures(make):
    # .90 and .82 to .90 with two layers by other hands, of other draws
    problem = make()
    x, s, _ = problem.sample(500)
    assert 0.75 < fastica_baseline(x, s).score < 0.97
    assert fastica_baseline(problem.unmix(x), s).score > 0.85  # sources that depend, in imca


def test_bad_input_is_refused():
    s = laplace(20, 3)
    with pytest.raises(ValueError, match="max_iter must be an integer >= 1"):
        fastica_baseline(s, s, max_iter=0)
    with pytest.raises(ValueError, match="seed must be an integer >= 0"):
        fastica_baseline(s, s, seed=-1)
    with pytest.raises(ValueError, match="more rows to fit on than the 10 columns of x, got 10"):
        fastica_baseline(laplace(20, 10), s)
    with pytest.raises(ValueError, match="hold NaN"):
        fastica_baseline(s * math.nan, s)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ImportError, match="pip install"):
        fastica_baseline(laplace(), laplace())


def test_the_matching_is_fitted_on_other_rows():
    """Rows to be scored have their sources exchanged: matched on the others, all is missed."""
    s = laplace()
    x = s @ torch.randn(4, 4).double()
    shuffled = s[2500:, [1, 0, 3, 2]]
    baseline = fastica_baseline(x[2500:], shuffled, fit=(x[:2500], s[:2500]))
    assert baseline.score < 0.3
