"""The divergence of Normal weights from the log-uniform prior, exact and approximate."""

import math

import mpmath
import pytest
import torch
from scipy import integrate
from scipy.special import dawsn

from pyro_ext.ops import kingma_kl, log_uniform_kl, molchanov_kl
from pyro_ext.ops.log_uniform_kl import LOG_SCALE, normal_log_uniform_kl
from pyro_ext.testing.case import isolated

DOUBLE = torch.float64
GRID = torch.linspace(-14, 14, 57, dtype=DOUBLE)


def by_hypergeometric(log_alpha):
    with mpmath.workdps(30):
        u = mpmath.exp(-mpmath.mpf(log_alpha)) / 2
        return float(u * mpmath.hyp2f2(1, 1, mpmath.mpf("1.5"), 2, -u))


def by_quadrature(log_alpha):
    u = math.exp(-log_alpha) / 2
    return integrate.quad(
        lambda t: -math.expm1(-u * (1 - t * t)) / (1 - t * t), 0, 1, epsabs=1e-14, limit=200
    )[0]


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.01, 2.932689),
        (0.1, 1.724138),
        (0.5, 0.739442),
        (1, 0.426686),
        (2, 0.230484),
        (20, 0.024793),
    ],
)
def test_known_values(alpha, expected):
    log_alpha = torch.tensor(alpha, dtype=DOUBLE).log()
    assert float(log_uniform_kl(log_alpha)) == pytest.approx(expected, abs=5.1e-7)
    ratio = torch.tensor([-1.0, 1.0], dtype=DOUBLE) / alpha**0.5
    assert normal_log_uniform_kl(ratio).tolist() == pytest.approx([expected] * 2, abs=5.1e-7)


def test_exact_by_a_hypergeometric_function_and_by_quadrature():
    for log_alpha in GRID[16:].tolist():  # mpmath sums alternating series for u <= 700
        seen = float(log_uniform_kl(torch.tensor(log_alpha, dtype=DOUBLE)))
        assert seen == pytest.approx(by_hypergeometric(log_alpha), rel=2e-13)
        assert seen == pytest.approx(by_quadrature(log_alpha), rel=1e-9)


@pytest.mark.parametrize("log_alpha", [-700.0, -50.0, -14.0, -9.0])
def test_little_noise_costs_half_its_negative_logarithm(log_alpha):
    """The asymptotic series, whose next term is below 1e-16 where it is left out."""
    u = math.exp(-log_alpha) / 2
    expected = (math.log(4) + 0.5772156649015329 - log_alpha - math.log(2)) / 2
    expected -= (1 + (3 / 4 + 5 / 4 / u) / u) / (4 * u)
    seen = float(log_uniform_kl(torch.tensor(log_alpha, dtype=DOUBLE)))
    assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_much_noise_costs_nothing(dtype):
    log_alpha = torch.tensor([30.0, 50.0, 80.0], dtype=dtype, requires_grad=True)
    value = log_uniform_kl(log_alpha)
    (grad,) = torch.autograd.grad(value.sum(), log_alpha)
    expected = (-log_alpha.detach()).exp() / 2
    torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, -expected, rtol=1e-5, atol=0)


def test_gradient_is_dawsons_function():
    log_alpha = GRID.clone().requires_grad_()
    (grad,) = torch.autograd.grad(log_uniform_kl(log_alpha).sum(), log_alpha)
    x = (torch.exp(-GRID) / 2).sqrt().numpy()
    torch.testing.assert_close(grad, -torch.as_tensor(x * dawsn(x)), rtol=1e-11, atol=0)


def test_gradient_in_single_precision():
    log_alpha = GRID.float().requires_grad_()
    value = log_uniform_kl(log_alpha)
    (grad,) = torch.autograd.grad(value.sum(), log_alpha)
    x = (torch.exp(-GRID) / 2).sqrt().numpy()
    torch.testing.assert_close(grad.double(), -torch.as_tensor(x * dawsn(x)), rtol=3e-6, atol=0)
    torch.testing.assert_close(value.double(), log_uniform_kl(GRID), rtol=3e-6, atol=0)


def test_first_and_second_derivatives():
    log_alpha = GRID[::4].clone().requires_grad_()
    assert torch.autograd.gradcheck(log_uniform_kl, (log_alpha,))
    assert torch.autograd.gradgradcheck(log_uniform_kl, (log_alpha,))
    ratio = torch.tensor([-30.0, -2.0, -0.5, 0.7, 1.0, 9.0], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(normal_log_uniform_kl, (ratio,))
    assert torch.autograd.gradgradcheck(normal_log_uniform_kl, (ratio,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratio_is_smooth_through_zero_and_finite_far_out(dtype):
    ratio = torch.tensor([-1e-20, 0.0, 1e-4, 1e10, 1e25], dtype=dtype, requires_grad=True)
    value = normal_log_uniform_kl(ratio)
    (grad,) = torch.autograd.grad(value.sum(), ratio)
    assert value[1] == 0
    assert value.isfinite().all()
    expected = torch.tensor([-1e-20, 0.0, 1e-4, 1e-10, 1e-25], dtype=dtype)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_transforms_and_compiler():
    grad = torch.func.vmap(torch.func.grad(log_uniform_kl))(GRID)
    log_alpha = GRID.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_uniform_kl(log_alpha).sum(), log_alpha)
    torch.testing.assert_close(grad, expected)
    with isolated():
        compiled = torch.compile(log_uniform_kl, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(GRID), log_uniform_kl(GRID))


def test_constant_is_the_least_divergence():
    """E[log q + log|w|] of a centred Normal."""
    inner = integrate.quad(
        lambda x: 2 * math.exp(-x * x / 2) / math.sqrt(2 * math.pi) * math.log(x), 0, 40
    )[0]
    entropy = math.log(2 * math.pi * math.e) / 2
    assert pytest.approx(inner - entropy, abs=1e-9) == LOG_SCALE


def test_sigmoid_approximation_is_as_good_as_published():
    log_alpha = torch.linspace(-10, 10, 4001, dtype=DOUBLE)
    error = (molchanov_kl(log_alpha) - log_uniform_kl(log_alpha)).abs().max()
    assert 0.009 < float(error) <= 0.0094
    at = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)
    slopes = [torch.autograd.grad(f(at), at)[0] for f in (molchanov_kl, log_uniform_kl)]
    assert abs(float(slopes[0] / slopes[1]) - 1) == pytest.approx(0.037, abs=5e-3)


def test_cubic_approximation_is_as_good_as_published():
    alpha = torch.linspace(1e-4, 1, 4001, dtype=DOUBLE)
    gap = log_uniform_kl(alpha.log()) - kingma_kl(alpha)
    assert float(gap.max() - gap.min()) <= 0.041
    assert float((gap.max() + gap.min()) / 2) == pytest.approx(0.655, abs=2e-3)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.0001, 5.0, math.nan])
def test_cubic_approximation_refuses_its_wrong_side(alpha):
    with pytest.raises(ValueError, match=r"fitted for 0 < alpha <= 1"):
        kingma_kl(torch.tensor([0.5, alpha]))


@pytest.mark.gpu
def test_on_a_gpu():
    log_alpha = GRID.float().cuda().requires_grad_()
    value = log_uniform_kl(log_alpha)
    value.sum().backward()
    torch.testing.assert_close(
        value.detach().cpu(), log_uniform_kl(GRID.float()), rtol=1e-5, atol=0
    )
    assert log_alpha.grad.isfinite().all()
