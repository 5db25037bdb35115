"""Rounded logistic laws against scipy, sums, and float64."""

import pytest
import torch
from scipy.stats import logistic

from pyro_ext.ops.discretized_logistic import discretized_logistic_log_prob, round_logistic


@pytest.mark.parametrize("levels", [2, 3, 17, 256, 1024, 65536])
def test_probabilities_sum_to_one_at_any_scale(levels):
    x = torch.arange(levels)
    for log_scale in torch.linspace(-12, 12, 25).double():
        for place in (-0.3, 0.0, 0.5, 1.3):
            loc, scale = torch.tensor(place * levels).double(), log_scale.exp()
            exact = discretized_logistic_log_prob(x, loc, scale, levels)
            seen = discretized_logistic_log_prob(x, loc.float(), scale.float(), levels)
            assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
            assert seen.exp().sum().item() == pytest.approx(1, abs=1e-5)
            assert torch.allclose(seen.double(), exact, rtol=1e-5, atol=1e-3)


def test_cells_are_differences_of_the_distribution_function():
    x, loc, scale = torch.arange(10).double(), 3.3, 1.7
    edges = [-float("inf"), *(k + 0.5 for k in range(9)), float("inf")]
    expected = torch.tensor(logistic.cdf(edges, loc, scale)).diff().log()
    loc, scale = torch.tensor(loc).double(), torch.tensor(scale).double()
    assert torch.allclose(discretized_logistic_log_prob(x, loc, scale, 10), expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e3, 1e9])
def test_gradients_are_finite_everywhere(scale):
    loc = torch.tensor(3.0, requires_grad=True)
    scale = torch.tensor(scale, requires_grad=True)
    for value in (0, 3, 200, 255):
        log_prob = discretized_logistic_log_prob(torch.tensor(value), loc, scale, 256)
        for gradient in torch.autograd.grad(log_prob, [loc, scale]):
            assert gradient.isfinite()


def test_rounding_is_the_quantile():
    """Probabilities of integers are lengths of their intervals of uniform numbers."""
    uniform = (torch.arange(100_000).double() + 0.5) / 100_000
    loc, scale = torch.tensor(3.3).double(), torch.tensor(1.7).double()
    x = round_logistic(uniform, loc, scale, 10)
    seen = torch.bincount(x.long(), minlength=10) / 100_000
    expected = discretized_logistic_log_prob(torch.arange(10), loc, scale, 10).exp()
    assert torch.allclose(seen.double(), expected, atol=2e-5)
