"""What all laws on the unit interval with atoms at its ends have in common."""

import math

import pytest
import torch
from scipy import integrate
from torch.distributions import biject_to, kl_divergence, transform_to

from pyro_ext.distributions import HardConcrete, HardKumaraswamy, Rectified
from pyro_ext.distributions.constraints import open_unit_interval, unit_interval_with_atoms

DOUBLE = torch.float64


def double(number):
    return torch.tensor(number, dtype=DOUBLE)


def laws():
    for log_alpha, temperature, stretch in (
        (-3.0, 2 / 3, (-0.1, 1.1)),
        (0.4, 0.3, (-0.5, 1.02)),
        (5.0, 0.9, (-0.1, 1.1)),
    ):
        yield HardConcrete(double(log_alpha), temperature, stretch)
    for a, b, stretch in (
        (0.5, 0.5, (-0.1, 1.1)),
        (3.0, 0.7, (-0.3, 1.02)),
        (0.2, 9.0, (-0.1, 2.0)),
    ):
        yield HardKumaraswamy(double(a), double(b), stretch)


LAWS = list(laws())


def mean_of(law, function):
    """By adaptive quadrature from ``log_prob`` alone."""
    ends = sum(float(law.log_prob(double(x)).exp()) * function(x) for x in (0.0, 1.0))
    inside = integrate.quad(
        lambda x: float(law.log_prob(double(x)).exp()) * function(x), 0, 1, epsabs=1e-13, limit=200
    )
    return ends + inside[0]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_total_mass_is_one(law):
    assert mean_of(law, lambda _: 1.0) == pytest.approx(1.0, abs=4e-13)
    assert float(law.expectation(torch.ones_like)) == pytest.approx(1.0, abs=4e-13)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_moments_are_integrals(law):
    mean, square = mean_of(law, lambda x: x), mean_of(law, lambda x: x * x)
    assert float(law.mean) == pytest.approx(mean, abs=1e-12)
    assert float(law.variance) == pytest.approx(square - mean**2, abs=1e-12)
    entropy = mean_of(law, lambda x: -float(law.log_prob(double(x))))
    assert float(law.entropy()) == pytest.approx(entropy, abs=1e-10)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_distribution_function_is_the_integral_of_the_density(law):
    zero = float(law.log_prob(double(0.0)).exp())
    for x in (1e-3, 0.3, 0.99):
        mass = integrate.quad(lambda t: float(law.log_prob(double(t)).exp()), 0, x, epsabs=1e-13)
        assert float(law.cdf(double(x))) == pytest.approx(zero + mass[0], abs=1e-11)
    ends = law.cdf(torch.tensor([-math.inf, -0.01, 0.0, 1.0, 3.0], dtype=DOUBLE)).tolist()
    assert ends == pytest.approx([0, 0, zero, 1, 1], abs=1e-14)
    assert float(law.prob_zero) == pytest.approx(zero, rel=1e-12)
    assert float(law.prob_nonzero) == pytest.approx(1 - zero, rel=1e-12)
    assert float(law.prob_one) == pytest.approx(float(law.log_prob(double(1.0)).exp()), rel=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_quantiles_invert_the_distribution_function(law):
    p = torch.linspace(0, 1, 101, dtype=DOUBLE)
    x = law.icdf(p)
    zero, below_one = law.prob_zero, 1 - law.prob_one
    assert bool((x[p < zero] == 0).all())
    assert bool((x[p > below_one] == 1).all())
    inside = (p > zero) & (p < below_one)
    torch.testing.assert_close(law.cdf(x[inside]), p[inside])
    assert law.median == law.icdf(double(0.5))


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_draws_follow_the_distribution_function(law):
    """Dvoretzky, Kiefer and Wolfowitz; false-alarm probability 1e-7 for each law."""
    num = 200_000
    draws = law.sample((num,)).sort().values
    grid = torch.cat([torch.linspace(0, 1, 400, dtype=DOUBLE), double([0.0, 1.0])])
    seen = torch.searchsorted(draws, grid, right=True).double() / num
    assert float((seen - law.cdf(grid)).abs().max()) < math.sqrt(math.log(2e7) / (2 * num))


@pytest.mark.parametrize("law", LAWS[:4], ids=repr)
def test_pathwise_gradient_is_that_of_the_mean(law):
    """For a continuous function; five standard errors, false-alarm probability 6e-7."""

    def function(z):
        return (3 * z).sin() + z.square()

    name = next(iter(law.arg_constraints))
    leaf = getattr(law, name).clone().requires_grad_()
    moved = law.expand(torch.Size([]))
    setattr(moved, name, leaf)
    (exact,) = torch.autograd.grad(moved.expectation(function), leaf)
    spread = leaf.detach().expand(100_000).clone().requires_grad_()
    wide = law.expand(torch.Size([100_000]))
    setattr(wide, name, spread)
    (grads,) = torch.autograd.grad(function(wide.rsample()).sum(), spread)
    error = float(grads.std()) / len(grads) ** 0.5
    assert abs(float(grads.mean() - exact)) < 5 * error


def test_any_two_laws_have_a_divergence():
    for p in LAWS:
        for q in LAWS:
            expected = mean_of(p, lambda x: float(p.log_prob(double(x)) - q.log_prob(double(x))))
            assert float(kl_divergence(p, q)) == pytest.approx(expected, abs=1e-9)


def test_divergence_of_events_sums():
    p = HardConcrete(torch.randn(3, 2, dtype=DOUBLE))
    q = HardKumaraswamy(double(0.5), double(0.5)).expand([3, 2])
    summed = kl_divergence(p.to_event(1), q.to_event(1))
    torch.testing.assert_close(summed, kl_divergence(p, q).sum(-1))


def test_expansion_keeps_the_law():
    law = HardConcrete(torch.zeros(2), 0.5, (-0.2, 1.3))
    wide = law.expand([4, 2])
    assert type(wide) is HardConcrete
    assert wide.stretch == law.stretch
    assert wide.prob_zero.shape == wide.mean.shape == wide.variance.shape == (4, 2)
    torch.testing.assert_close(wide.variance[1], law.variance)


def test_support_has_no_way_to_the_real_line():
    for registry in (biject_to, transform_to):
        for support in (HardConcrete.support, HardConcrete(torch.zeros(2)).to_event(1).support):
            with pytest.raises(NotImplementedError, match="no exact zeros"):
                registry(support)
    assert unit_interval_with_atoms.check(torch.tensor([0.0, 0.5, 1.0])).all()
    assert not unit_interval_with_atoms.check(torch.tensor([-1e-6, 1.1, math.nan])).any()
    assert open_unit_interval.check(torch.tensor([0.0, 0.5, 1.0])).tolist() == [False, True, False]
    assert "Atoms" in repr(unit_interval_with_atoms)
    assert "0 < value < 1" in repr(open_unit_interval)


@pytest.mark.parametrize("stretch", [(0.0, 1.1), (-0.1, 0.9), (-0.1,), 1.1, None])
def test_refuses_a_stretch_out_of_range(stretch):
    with pytest.raises(ValueError, match="stretch"):
        HardConcrete(torch.zeros(()), stretch=stretch)


def test_refuses_an_unknown_gate():
    law = HardKumaraswamy(torch.tensor(0.5), torch.tensor(0.5))
    assert law.test_gate() == law.median
    assert law.test_gate("mean") == law.mean
    with pytest.raises(ValueError, match=r"one of \['mean', 'median'\], got 'paper'"):
        law.test_gate("paper")


def test_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Rectified(torch.Size())
