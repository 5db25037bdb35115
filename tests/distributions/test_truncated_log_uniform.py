"""The log-uniform prior between two limits."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from pyro_ext.distributions import TruncatedLogUniform

DOUBLE = torch.float64


def double(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


LIMITS = ((-20.0, 0.0), (-2.0, 0.5), (1.0, 1.5))


@pytest.mark.parametrize(("low", "high"), LIMITS)
def test_agrees_with_another_library(low, high):
    law = TruncatedLogUniform(double(low), high)
    twin = stats.loguniform(math.exp(low), math.exp(high))
    for p in (0.01, 0.3, 0.99):
        x = float(twin.ppf(p))
        assert float(law.icdf(double(p))) == pytest.approx(x, rel=1e-12)
        assert float(law.cdf(double(x))) == pytest.approx(p, rel=1e-10)
        assert float(law.log_prob(double(x))) == pytest.approx(float(twin.logpdf(x)), rel=1e-10)
    assert float(law.mean) == pytest.approx(twin.mean(), rel=1e-9)
    assert float(law.variance) == pytest.approx(twin.var(), rel=1e-7)
    assert float(law.entropy()) == pytest.approx(float(twin.entropy()), rel=1e-9)


def test_has_no_mass_outside_its_limits():
    law = TruncatedLogUniform(double(-2.0), 0.5)
    assert law.cdf(double(1e-9, 9.0)).tolist() == [0, 1]


def test_divergence_of_a_narrower_one_is_the_log_ratio_of_widths():
    prior = TruncatedLogUniform(double(-20.0), 0.0)
    narrow = TruncatedLogUniform(double(-20.0, -3.0, -21.0), double(0.0, -1.0, 0.0))
    expected = double(0.0, math.log(10), math.inf)
    torch.testing.assert_close(kl_divergence(narrow, prior), expected)


def test_draws_stay_inside_in_single_precision():
    law = TruncatedLogUniform(torch.tensor([-20.0, 0.1]), torch.tensor([0.0, 0.1 + 1e-6]))
    draws = law.sample((100_000,))
    assert law.support.check(draws).all()


def test_refuses_limits_out_of_order():
    for low, high in ((0.0, -20.0), (1.0, 1.0), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="low"):
            TruncatedLogUniform(low, high)
        with pytest.raises(ValueError, match="low"):
            TruncatedLogUniform(torch.tensor([-1.0, low]), torch.tensor([0.0, high]))
    with pytest.raises(ValueError, match="support"):
        TruncatedLogUniform(-1.0, 0.0).log_prob(torch.tensor(2.0))


@pytest.mark.gpu
def test_on_a_gpu():
    law = TruncatedLogUniform(torch.full((3,), -20.0, device="cuda"), 0.0)
    assert law.log_prob(law.sample((10,))).is_cuda
