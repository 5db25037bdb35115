"""The hard concrete law of a gate, and its divergences."""

import math

import pytest
import torch
from scipy import integrate, stats
from scipy.special import expit, log_expit

from pyro_ext.ops.hard_concrete import (
    check_stretch,
    check_temperature,
    gate,
    logistic_noise,
    mean_gate,
    median_gate,
    paper_gate,
    prob_nonzero,
    prob_one,
    prob_zero,
)
from pyro_ext.ops.hard_concrete_kl import coth_excess, hard_concrete_kl, logistic_kl
from pyro_ext.ops.quadrature import gauss_legendre, stretched_nodes

USUAL = (2 / 3, -0.1, 1.1)
OTHER = (0.4, -0.3, 1.05)
LOG_ALPHAS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
DOUBLE = torch.float64


def double(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


def cdf(x, log_alpha, temperature, low, high):
    """Of the unclipped gate, written independently."""
    return expit(temperature * math.log((x - low) / (high - x)) - log_alpha)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (prob_zero, (0.9169, 0.5990, 0.3547, 0.1682, 0.0692, 0.0266, 0.0037)),
        (prob_nonzero, (0.0831, 0.4010, 0.6453, 0.8318, 0.9308, 0.9734, 0.9963)),
        (prob_one, (0.0037, 0.0266, 0.0692, 0.1682, 0.3547, 0.5990, 0.9169)),
        (mean_gate, (0.0236, 0.1427, 0.2929, 0.5, 0.7071, 0.8573, 0.9764)),
        (median_gate, (0.0, 0.0, 0.1189, 0.5, 0.8811, 1.0, 1.0)),
        (paper_gate, (0.0, 0.0430, 0.2227, 0.5, 0.7773, 0.9570, 1.0)),
    ],
)
def test_known_values(function, expected):
    seen = function(double(*LOG_ALPHAS), *USUAL)
    torch.testing.assert_close(seen, double(*expected), rtol=0, atol=5.1e-5)


@pytest.mark.parametrize("law", [USUAL, OTHER, (0.1, -0.01, 1.5), (0.95, -1.0, 2.0)])
def test_mean_is_the_integral_of_the_survival_function(law):
    for log_alpha in (-30.0, -3.0, 0.2, 5.0):
        expected = integrate.quad(
            lambda x, a=log_alpha: expit(a - law[0] * math.log((x - law[1]) / (law[2] - x))),
            0,
            1,
            epsabs=0,
            epsrel=1e-13,
        )[0]
        seen = float(mean_gate(double(log_alpha), *law))
        assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("law", [USUAL, OTHER])
def test_atoms_are_the_clipped_mass(law):
    for log_alpha in LOG_ALPHAS:
        a = double(log_alpha)
        assert float(prob_zero(a, *law)) == pytest.approx(cdf(0.0, log_alpha, *law), rel=1e-12)
        assert float(prob_one(a, *law)) == pytest.approx(1 - cdf(1.0, log_alpha, *law), rel=1e-9)


@pytest.mark.parametrize("function", [prob_zero, prob_one, prob_nonzero, mean_gate])
@pytest.mark.parametrize("log_alpha", [-50.0, -20.0, 20.0, 50.0])
def test_single_precision_keeps_small_probabilities(function, log_alpha):
    a = torch.tensor(log_alpha, requires_grad=True)
    value = function(a, *USUAL)
    (grad,) = torch.autograd.grad(value, a)
    exact = function(double(log_alpha), *USUAL)
    assert float(value.detach()) > 0
    assert float(value.detach()) == pytest.approx(float(exact), rel=1e-4)
    assert grad.isfinite()


def test_temperature_may_be_a_tensor():
    a, temperature = double(*LOG_ALPHAS), double(0.3, 0.6).unsqueeze(-1)
    for function in (prob_zero, prob_one, prob_nonzero, mean_gate, median_gate):
        rows = [function(a, float(t), -0.1, 1.1) for t in temperature]
        torch.testing.assert_close(function(a, temperature, -0.1, 1.1), torch.stack(rows))


def test_gate_has_zero_gradient_where_it_is_clipped():
    x = double(-2.0, -1.0, 0.0, 1.0, 2.0).requires_grad_()
    z = gate(x, *USUAL)
    (grad,) = torch.autograd.grad(z.sum(), x)
    assert z[[0, -1]].tolist() == [0, 1]
    s = torch.sigmoid(x.detach() * 1.5)
    inside = (z > 0) & (z < 1)
    torch.testing.assert_close(grad, torch.where(inside, 1.2 * 1.5 * s * (1 - s), 0.0))
    assert inside.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_noise_is_finite_whatever_the_generator_returns(monkeypatch, dtype, end):
    def extreme(tensor, low, high):
        return tensor.fill_(low if end == "lowest" else high - torch.finfo(tensor.dtype).eps)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "uniform_", extreme)
        noise = logistic_noise((3,), torch.zeros((), dtype=dtype))
    assert noise.dtype == dtype
    assert noise.isfinite().all()
    assert bool(((noise < -17) if end == "lowest" else (noise > 17)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_logistic(dtype):
    """By Kolmogorov and Smirnov; false-alarm probability 1e-6."""
    noise = logistic_noise((200, 500), torch.zeros((), dtype=dtype))
    assert stats.kstest(noise.double().flatten().numpy(), "logistic").pvalue > 1e-6


@pytest.mark.parametrize(
    ("log_alpha", "clipped", "logistic"),
    [(-4, 1.8121, 2.6011), (0, 0.04106, 0.04149), (2, 0.32272, 0.36165), (4, 1.03157, 1.71796)],
)
def test_known_divergences(log_alpha, clipped, logistic):
    a, b = double(log_alpha), double(0.5)
    assert float(hard_concrete_kl(a, b, *USUAL)) == pytest.approx(clipped, abs=5.1e-5)
    assert float(logistic_kl(a, b)) == pytest.approx(logistic, abs=5.1e-5)


def divergence_by_quadrature(a, b, temperature, low, high):
    """Both atoms, and the density on the logit scale, where it is a logistic one."""

    def log_density(t, c):
        return log_expit(temperature * t - c) + log_expit(c - temperature * t)

    start, stop = math.log(-low / high), math.log((1 - low) / (high - 1))
    total = 0.0
    for sign, edge in ((1, start), (-1, stop)):
        p, q = (log_expit(sign * (temperature * edge - c)) for c in (a, b))
        total += math.exp(p) * (p - q)
    inside = integrate.quad(
        lambda t: (
            temperature * math.exp(log_density(t, a)) * (log_density(t, a) - log_density(t, b))
        ),
        start,
        stop,
        epsabs=1e-15,
        epsrel=1e-13,
    )
    return total + inside[0]


@pytest.mark.parametrize("law", [USUAL, OTHER])
@pytest.mark.parametrize("a", [-9.0, -1.0, 0.3, 6.0])
@pytest.mark.parametrize("d", [-20.0, -1.0, -0.05, 1e-3, 0.5, 8.0])
def test_divergence_is_its_integral(law, a, d):
    seen = float(hard_concrete_kl(double(a), double(a + d), *law))
    assert seen == pytest.approx(divergence_by_quadrature(a, a + d, *law), rel=1e-9, abs=1e-14)


def test_divergence_is_smooth_where_the_laws_meet():
    """Halving the difference quarters the divergence, down to rounding."""
    d = double(*(2.0**-k for k in range(2, 14)))
    values = hard_concrete_kl(double(0.7), 0.7 + d, *USUAL)
    torch.testing.assert_close(
        values[1:] / values[:-1], torch.full_like(d[1:], 0.25), rtol=0.1, atol=0
    )
    near, a = double(*LOG_ALPHAS) + 0.01, double(*LOG_ALPHAS).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: hard_concrete_kl(a, near, *USUAL), (a,))
    assert torch.autograd.gradgradcheck(lambda a: hard_concrete_kl(a, double(0.5), *USUAL), (a,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_between_equals_is_zero(dtype):
    a = torch.linspace(-50, 50, 41, dtype=dtype).requires_grad_()
    value = hard_concrete_kl(a, a.detach().clone(), *USUAL)
    assert bool((value == 0).all())
    (grad,) = torch.autograd.grad(value.sum(), a)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-6)


def test_divergence_is_finite_and_bounded_in_single_precision():
    grid = torch.linspace(-50, 50, 21)
    a = grid.unsqueeze(-1).clone().requires_grad_()
    value = hard_concrete_kl(a, grid, *USUAL)
    (grad,) = torch.autograd.grad(value.sum(), a)
    exact = hard_concrete_kl(grid.double().unsqueeze(-1), grid.double(), *USUAL)
    assert value.isfinite().all()
    assert grad.isfinite().all()
    assert bool((value > -1e-6).all())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    assert bool((exact <= logistic_kl(grid.double().unsqueeze(-1), grid.double()) + 1e-12).all())


def test_divergence_has_the_mirror_symmetry_of_the_stretch():
    a, b = double(*LOG_ALPHAS), double(0.5)
    mirrored = hard_concrete_kl(-a, -b, *USUAL)
    torch.testing.assert_close(hard_concrete_kl(a, b, *USUAL), mirrored)


def test_coth_excess_is_continuous_where_it_changes_form():
    x = double(0.02 - 1e-12, 0.02 + 1e-12, -3.0)
    seen = coth_excess(x)
    assert float(seen[0]) == pytest.approx(float(seen[1]), rel=1e-9)
    assert float(seen[2]) == pytest.approx(3 / math.tanh(3) - 1, rel=1e-14)
    assert torch.autograd.gradcheck(coth_excess, (double(-1.0, 0.0, 1e-3, 5.0).requires_grad_(),))


def test_quadrature_integrates_polynomials_and_near_singularities():
    x, w = gauss_legendre(-1.0, 2.0, double(0.0))
    assert float((w * x**63).sum()) == pytest.approx((2**64 - 1) / 64, rel=1e-12)
    z, w, logits = stretched_nodes(-1e-3, 1.01, double(0.0))
    expected = integrate.quad(lambda z: math.log(z + 1e-3) * math.cos(z), 0, 1, limit=200)[0]
    assert float((w * (z + 1e-3).log() * z.cos()).sum()) == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(logits, ((z + 1e-3) / (1.01 - z)).log())


@pytest.mark.parametrize("stretch", [(0.0, 1.1), (-0.1, 1.0), (1.1, -0.1), (-math.inf, 1.1)])
def test_refuses_a_stretch_that_makes_no_atoms(stretch):
    with pytest.raises(ValueError, match=r"low < 0 and high > 1"):
        check_stretch(*stretch)


@pytest.mark.parametrize("temperature", [0.0, -0.5, 1.0, 2.0, math.nan])
def test_refuses_a_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match="temperature must lie strictly between 0 and 1"):
        check_temperature(temperature)
