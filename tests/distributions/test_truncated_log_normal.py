"""Log-normal noise between two limits, and its divergence from the log-uniform prior."""

import math

import pyro.distributions as dist
import pytest
import torch
from mpmath import mp
from scipy import integrate, stats
from torch.distributions import kl_divergence

from pyro_ext.distributions import TruncatedLogNormal, TruncatedLogUniform

DOUBLE = torch.float64
# loc, scale, low, high: the usual start, noise like the prior's, and locations outside
CASES = (
    (0.0, math.exp(-5), -20.0, 0.0),
    (-1.0, 1.5, -20.0, 0.0),
    (-8.0, 30.0, -20.0, 0.0),
    (3.0, 0.2, -20.0, 0.0),
    (-25.0, 0.5, -20.0, 0.0),
    (0.3, 0.7, -2.0, 0.5),
)


def double(number):
    return torch.tensor(number, dtype=DOUBLE)


def laws(case):
    """Ours, and the Normal of the logarithm in another library."""
    loc, scale, low, high = case
    ours = TruncatedLogNormal(double(loc), double(scale), low, high)
    return ours, stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_another_library(case):
    law, twin = laws(case)
    for p in (0.01, 0.5, 0.99):
        y = float(twin.ppf(p))
        x = double(math.exp(y))
        assert float(law.icdf(double(p)).log()) == pytest.approx(y, rel=1e-9, abs=1e-10)
        assert float(law.cdf(x)) == pytest.approx(p, rel=1e-7)
        assert float(law.log_prob(x)) == pytest.approx(float(twin.logpdf(y)) - y, rel=1e-9)


def moment(case, order):
    """Of the noise, around its mode, where the density has its mass."""
    twin = laws(case)[1]
    points = twin.ppf([0.0, 1e-12, 0.5, 1 - 1e-12, 1.0])
    return sum(
        integrate.quad(
            lambda y: math.exp(order * y + twin.logpdf(y)), a, b, epsabs=0, epsrel=1e-11, limit=200
        )[0]
        for a, b in zip(points[:-1], points[1:], strict=True)  # noqa: RUF007
        if b - a > 1e-9
    )


@pytest.mark.parametrize("case", CASES)
def test_moments_are_integrals(case):
    law = laws(case)[0]
    first, second = moment(case, 1), moment(case, 2)
    assert float(law.mean) == pytest.approx(first, rel=1e-9)
    variance = second - first**2
    assert float(law.variance) == pytest.approx(variance, rel=1e-5)
    assert float(law.signal_to_noise) == pytest.approx(first / math.sqrt(variance), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_divergence_is_its_integral(case):
    law, twin = laws(case)
    prior = TruncatedLogUniform(double(case[2]), case[3])
    points = twin.ppf([0.0, 1e-14, 0.5, 1 - 1e-14, 1.0])
    log_prior = -math.log(case[3] - case[2])
    expected = sum(
        integrate.quad(
            lambda y: twin.pdf(y) * (twin.logpdf(y) - log_prior), a, b, epsabs=1e-10, limit=200
        )[0]
        for a, b in zip(points[:-1], points[1:], strict=True)  # noqa: RUF007
        if b - a > 1e-9
    )
    seen = float(kl_divergence(law, prior))
    assert seen == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert seen > 0


def test_divergence_vanishes_only_as_the_noise_becomes_the_prior():
    prior = TruncatedLogUniform(double(-20.0), 0.0)
    scale = torch.logspace(0, 4, 9, dtype=DOUBLE)
    kl = kl_divergence(TruncatedLogNormal(double(-7.0), scale), prior)
    assert bool((kl > -1e-12).all())
    assert bool((kl[:-1].diff() < 0).all())
    assert float(kl[-1]) < 1e-10


def test_divergence_is_infinite_outside_the_prior():
    prior = TruncatedLogUniform(double(-5.0), 0.0)
    kl = kl_divergence(
        TruncatedLogNormal(double(-1.0), 1.0, torch.tensor([-5.0, -6.0]), 0.0), prior
    )
    assert kl.isfinite().tolist() == [True, False]


def test_divergence_from_a_wider_prior():
    law = TruncatedLogNormal(double(-1.0), 0.5, -4.0, -0.5)
    gap = kl_divergence(law, TruncatedLogUniform(-20.0, 0.0)) - kl_divergence(
        law, TruncatedLogUniform(-4.0, -0.5)
    )
    assert float(gap) == pytest.approx(math.log(20 / 3.5))


def test_derivatives():
    loc = torch.tensor([-30.0, -3.0, 0.0, 2.0], dtype=DOUBLE, requires_grad=True)
    scale = torch.tensor([1.0, 2.0, 0.1, 0.3], dtype=DOUBLE, requires_grad=True)
    prior = TruncatedLogUniform(-20.0, 0.0)
    p = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=DOUBLE)

    def statistics(loc, scale):
        law = TruncatedLogNormal(loc, scale)
        return kl_divergence(law, prior), law.icdf(p).log(), law.mean.log(), law.signal_to_noise

    assert torch.autograd.gradcheck(statistics, (loc, scale))


@pytest.mark.parametrize("case", [*CASES, (40.0, 0.2, -20.0, 0.0), (0.0, 1e-4, -20.0, 0.0)])
def test_single_precision_keeps_up(case):
    loc, scale, low, high = case
    a = torch.tensor(loc, requires_grad=True)
    s = torch.tensor(scale, requires_grad=True)
    law = TruncatedLogNormal(a, s, low, high)
    exact = TruncatedLogNormal(double(loc), double(scale), low, high)
    prior = TruncatedLogUniform(low, high)
    draws = law.rsample((1000,))
    kl = kl_divergence(law, prior)
    assert law.support.check(draws).all()
    for grad in torch.autograd.grad(draws.sum() + kl + law.mean + law.signal_to_noise, (a, s)):
        assert grad.isfinite().all()
    p = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(
        law.icdf(p).detach().double(), exact.icdf(p.double()), rtol=3e-5, atol=0
    )
    torch.testing.assert_close(
        kl.detach().double(), kl_divergence(exact, prior).double(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(law.mean.detach().double(), exact.mean, rtol=1e-5, atol=0)


FAR = (  # loc, scale, low, high; up to 800000 scales outside of the limits
    (0.5, 1e-4, -20.0, 0.0),
    (5.0, 1e-4, -20.0, 0.0),
    (5.0, 0.01, -20.0, 0.0),
    (-100.0, 1e-4, -20.0, 0.0),
    (-10.0, 1e-4, -1.0, 0.0),
    (-25.0, 0.1, -20.0, 0.0),
    (100.0, 2.0, -20.0, 0.0),
    (1000.0, 10.0, -20.0, 0.0),
)


def exact(loc, scale, low, high):
    """Divergence, mean, variance and signal to noise, with 60 digits."""
    mp.dps = 60
    mu, s, a, b = mp.mpf(loc), mp.mpf(scale), mp.mpf(low), mp.mpf(high)

    def mass(k):
        x, y = ((limit - mu) / s - k * s for limit in (a, b))
        x, y = (x, y) if x > 0 else (-y, -x)
        return (mp.erfc(x / mp.sqrt(2)) - mp.erfc(y / mp.sqrt(2))) / 2

    def moment(k):
        return mp.exp(k * mu + k * k * s * s / 2) * mass(k) / mass(0)

    x, y = (a - mu) / s, (b - mu) / s
    share = (x * mp.npdf(x) - y * mp.npdf(y)) / (2 * mass(0))
    kl = mp.log((b - a) / (s * mass(0))) - mp.log(2 * mp.pi * mp.e) / 2 - share
    variance = moment(2) - moment(1) ** 2
    return kl, moment(1), variance, moment(1) / mp.sqrt(variance)


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_outside_of_its_limits(case, dtype):
    loc, scale = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in case[:2])
    law = TruncatedLogNormal(loc, scale, *case[2:])
    kl = kl_divergence(law, TruncatedLogUniform(*case[2:]))
    seen = (kl, law.mean, law.variance, law.signal_to_noise)
    tolerance = 1e-9 if dtype is DOUBLE else 2e-6
    for ours, theirs in zip(seen, exact(loc.item(), scale.item(), *case[2:]), strict=True):
        assert ours.item() == pytest.approx(float(theirs), rel=tolerance, abs=0.0)
    for grad in torch.autograd.grad(sum(seen), (loc, scale)):
        assert grad.isfinite()


def test_the_two_regimes_meet():
    # to rounding of the nearer one, whose terms are a thousand times the result
    loc = torch.tensor([3.99, 4.01], dtype=DOUBLE, requires_grad=True)
    law = TruncatedLogNormal(loc, 0.1)
    for value in (kl_divergence(law, TruncatedLogUniform(-20.0, 0.0)), law.signal_to_noise.log()):
        (slope,) = torch.autograd.grad(value.sum(), loc)
        assert float(value.detach().diff()) == pytest.approx(float(slope.mean()) * 0.02, rel=3e-5)
        assert float(slope[0]) == pytest.approx(float(slope[1]), rel=1e-2)


def test_is_a_log_normal_if_the_limits_are_far():
    law = TruncatedLogNormal(double(0.2), 0.3, -50.0, 50.0)
    twin = dist.LogNormal(double(0.2), 0.3)
    x = torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE)
    torch.testing.assert_close(law.log_prob(x), twin.log_prob(x))
    torch.testing.assert_close(law.mean, twin.mean)
    torch.testing.assert_close(law.variance, twin.variance)


def test_refuses_bad_input():
    with pytest.raises(ValueError, match="low must be less than high"):
        TruncatedLogNormal(0.0, 1.0, 0.0, -20.0)
    with pytest.raises(ValueError, match="scale"):
        TruncatedLogNormal(0.0, -1.0)
    with pytest.raises(ValueError, match="support"):
        TruncatedLogNormal(0.0, 1.0).log_prob(torch.tensor(1.5))


@pytest.mark.gpu
def test_on_a_gpu():
    loc = torch.linspace(-25, 5, 100, device="cuda", requires_grad=True)
    law = TruncatedLogNormal(loc, 0.5)
    draws = law.rsample((1000,))
    kl = kl_divergence(law, TruncatedLogUniform(-20.0, 0.0))
    (draws.mean() + kl.sum() + law.mean.sum()).backward()
    assert draws.is_cuda
    assert loc.grad.isfinite().all()
