"""The hard Kumaraswamy distribution."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate
from torch.distributions import kl_divergence

from pyro_ext.distributions import HardKumaraswamy, L0Prior

DOUBLE = torch.float64
PAIRS = ((0.5, 0.5), (2.0, 3.0), (0.2, 7.0), (1.0, 1.0))


def double(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_clips_a_stretched_kumaraswamy(a, b):
    """Probabilities by torch's own distribution, of which the transform is monotone."""
    base = dist.Kumaraswamy(double(a), double(b))
    low, high = -0.2, 1.3
    law = HardKumaraswamy(double(a), double(b), (low, high))
    edges = (double(0.0, 1.0) - low) / (high - low)
    below = 1 - (1 - edges**a) ** b
    torch.testing.assert_close(law.prob_zero, below[:1])
    torch.testing.assert_close(law.prob_one, 1 - below[1:])
    z = double(0.1, 0.5, 0.9)
    inside = base.log_prob((z - low) / (high - low)) - torch.tensor(high - low).double().log()
    torch.testing.assert_close(law.log_prob(z), inside, rtol=1e-6, atol=1e-6)


def test_uniform_is_a_special_case():
    law = HardKumaraswamy(double(1.0), double(1.0), (-0.25, 1.25))
    assert float(law.prob_zero) == pytest.approx(1 / 6)
    assert float(law.prob_one) == pytest.approx(1 / 6)
    assert float(law.mean) == pytest.approx(0.5)
    torch.testing.assert_close(law.log_prob(double(0.3)).exp(), double(1 / 1.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_concentrations_stay_finite(dtype):
    grid = torch.tensor([1e-3, 1e-1, 1.0, 30.0, 1000.0], dtype=dtype)
    a = grid.unsqueeze(-1).clone().requires_grad_()
    b = grid.clone().requires_grad_()
    law = HardKumaraswamy(a, b)
    value = torch.tensor([0.0, 1e-12, 0.5, 1 - 1e-7, 1.0], dtype=dtype)[:, None, None]
    density, draws = law.log_prob(value), law.rsample((100,))
    total = density.clamp(min=-1e4).sum() + draws.sum()
    for grad in torch.autograd.grad(total, (a, b)):
        assert grad.isfinite().all()
    assert density.isfinite().all()
    exact = HardKumaraswamy(a.detach().double(), b.detach().double()).log_prob(value.double())
    torch.testing.assert_close(density.detach().double(), exact, rtol=2e-4, atol=2e-4)


def test_rare_zeros_are_counted_in_logarithms():
    """P(0) = b t^a to first order, far below the smallest number of the format."""
    law = HardKumaraswamy(torch.tensor(200.0), torch.tensor(3.0))
    log_zero = law.log_prob(torch.tensor(0.0))
    expected = 200 * torch.tensor(0.1 / 1.2).double().log() + torch.tensor(3.0).double().log()
    torch.testing.assert_close(log_zero.double(), expected, rtol=1e-6, atol=0)


def by_library(a, b, function):
    """A mean by adaptive quadrature between quantiles of the law."""

    def quantile(p):
        return (-math.expm1(math.log1p(-p) / b)) ** (1 / a)

    def density(t):
        rest = (b - 1) * math.log1p(-(t**a)) + (a - 1) * math.log(t)
        return a * b * math.exp(rest) * function(1.2 * t - 0.1)

    low, high = 0.1 / 1.2, 1.1 / 1.2
    inner = [quantile(p) for p in (1e-14, 1e-4, 0.1, 0.5, 0.9, 0.999, 1 - 1e-12)]
    points = [low, *(t for t in inner if low < t < high), high]
    inside = sum(
        integrate.quad(density, x, y, epsabs=0.0, epsrel=1e-12, limit=200)[0]
        for x, y in itertools.pairwise(points)
    )
    zero, one = -math.expm1(b * math.log1p(-(low**a))), math.exp(b * math.log1p(-(high**a)))
    return zero * function(0.0) + one * function(1.0) + inside


@pytest.mark.parametrize(
    ("a", "b"), [*PAIRS, (50.0, 50.0), (50.0, 1e4), (200.0, 1e6), (0.1, 0.1), (3.0, 1000.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_moments_however_narrow(a, b, dtype):
    law = HardKumaraswamy(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))
    mean = by_library(a, b, lambda z: z)
    variance = by_library(a, b, lambda z: (z - mean) ** 2)
    rel = 1e-8 if dtype is DOUBLE else 1e-5
    assert float(law.mean) == pytest.approx(mean, rel=rel)
    assert float(law.variance) == pytest.approx(variance, rel=10 * rel)


def test_divergence_of_narrow_laws():
    p = HardKumaraswamy(double(50.0), double(1e4))
    q = HardKumaraswamy(double(40.0), double(2e3))
    expected = by_library(50.0, 1e4, lambda z: float(p.log_prob(double(z)) - q.log_prob(double(z))))
    assert float(kl_divergence(p, q)) == pytest.approx(expected, rel=1e-6)


def test_gradients_of_moments():
    a, b = (double(*x).requires_grad_() for x in ((0.5, 5.0, 50.0), (0.5, 5.0, 1e3)))

    def statistics(a, b):
        law = HardKumaraswamy(a, b)
        return law.mean, law.variance, law.entropy()

    assert torch.autograd.gradcheck(statistics, (a, b))


def test_divergence_from_the_charge_for_open_gates():
    law = HardKumaraswamy(double(0.5), double(0.5))
    charge = kl_divergence(law, L0Prior(double(3.0)))
    torch.testing.assert_close(charge, 3 * (1 - law.prob_zero))


def test_refuses_bad_concentrations():
    for a, b in ((-1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="concentration"):
            HardKumaraswamy(torch.tensor(a), torch.tensor(b))


@pytest.mark.gpu
def test_on_a_gpu():
    a = torch.tensor([0.3, 1.0, 4.0], device="cuda", requires_grad=True)
    law = HardKumaraswamy(a, 0.7)
    z = law.rsample((1000,))
    (law.log_prob(z).mean() + law.mean.sum()).backward()
    assert z.is_cuda
    assert a.grad.isfinite().all()
