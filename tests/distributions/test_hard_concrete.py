"""The hard concrete distribution, alone and inside Pyro."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch.distributions import kl_divergence

from pyro_ext.distributions import HardConcrete

DOUBLE = torch.float64


def double(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


LOG_ALPHAS = double(-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("prob_zero", (0.9169, 0.5990, 0.3547, 0.1682, 0.0692, 0.0266, 0.0037)),
        ("prob_nonzero", (0.0831, 0.4010, 0.6453, 0.8318, 0.9308, 0.9734, 0.9963)),
        ("mean", (0.0236, 0.1427, 0.2929, 0.5, 0.7071, 0.8573, 0.9764)),
        ("variance", (0.0136, 0.0723, 0.1225, 0.1480, 0.1225, 0.0723, 0.0136)),
        ("median", (0.0, 0.0, 0.1189, 0.5, 0.8811, 1.0, 1.0)),
    ],
)
def test_known_statistics(statistic, expected):
    seen = getattr(HardConcrete(LOG_ALPHAS), statistic)
    torch.testing.assert_close(seen, double(*expected), rtol=0, atol=5.1e-5)


def test_gates_for_test_time():
    law = HardConcrete(LOG_ALPHAS)
    paper = double(0.0, 0.0430, 0.2227, 0.5, 0.7773, 0.9570, 1.0)
    torch.testing.assert_close(law.test_gate(), paper, rtol=0, atol=5.1e-5)
    assert law.test_gate("median").equal(law.median)
    assert law.test_gate("mean").equal(law.mean)
    with pytest.raises(ValueError, match=r"one of \['mean', 'median', 'paper'\], got 'mode'"):
        law.test_gate("mode")


def test_where_the_gates_close():
    closes = HardConcrete(double(-math.log(11)))
    assert closes.test_gate("paper") == pytest.approx(0, abs=1e-15)
    assert float(closes.prob_nonzero) == pytest.approx(0.31, abs=5e-3)
    half = HardConcrete(double(-2 / 3 * math.log(11)))
    assert half.median == pytest.approx(0, abs=1e-15)
    assert float(half.prob_nonzero) == pytest.approx(0.5)


def test_mirror_symmetry():
    """Of the usual stretch: the opposite location gives one minus the gate."""
    law, mirror = HardConcrete(LOG_ALPHAS), HardConcrete(-LOG_ALPHAS)
    for x in (0.0, 0.1, 0.5, 1.0):
        torch.testing.assert_close(law.log_prob(double(x)), mirror.log_prob(double(1 - x)))
    torch.testing.assert_close(law.mean, 1 - mirror.mean)


def test_becomes_bernoulli_at_zero_temperature():
    law, limit = HardConcrete(LOG_ALPHAS, 1e-6), torch.sigmoid(LOG_ALPHAS)
    torch.testing.assert_close(law.prob_one, limit, rtol=0, atol=1e-5)
    torch.testing.assert_close(law.mean, limit, rtol=0, atol=1e-5)
    torch.testing.assert_close(law.variance, limit * (1 - limit), rtol=0, atol=1e-5)


@pytest.mark.parametrize("log_alpha", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_is_finite_at_every_edge(log_alpha, dtype):
    a = torch.tensor(log_alpha, dtype=dtype, requires_grad=True)
    value = torch.tensor([0.0, 1e-12, 1e-30, 1 - 1e-12, 1.0], dtype=dtype, requires_grad=True)
    density = HardConcrete(a).log_prob(value)
    assert density.dtype == dtype
    assert density.isfinite().all()
    for grad in torch.autograd.grad(density.sum(), (a, value)):
        assert grad.isfinite().all()
    exact = HardConcrete(double(log_alpha)).log_prob(value.detach().double())
    torch.testing.assert_close(density.detach().double(), exact, rtol=1e-5, atol=1e-5)


def test_atoms_have_no_slope():
    value = double(0.0, 1.0).requires_grad_()
    (grad,) = torch.autograd.grad(HardConcrete(double(0.3)).log_prob(value).sum(), value)
    assert grad.tolist() == [0, 0]


def test_equal_temperatures_take_the_closed_form(monkeypatch):
    """And a tensor that is not the same object takes quadrature, to the same number."""
    p, q = HardConcrete(LOG_ALPHAS), HardConcrete(double(0.5))
    temperature = torch.tensor(2 / 3, dtype=DOUBLE)
    by_quadrature = kl_divergence(HardConcrete(LOG_ALPHAS, temperature), q)
    monkeypatch.setattr(HardConcrete, "expectation", None)
    torch.testing.assert_close(kl_divergence(p, q), by_quadrature, rtol=1e-11, atol=1e-13)
    shared = HardConcrete(LOG_ALPHAS, temperature).expand([2, 7])
    torch.testing.assert_close(
        kl_divergence(shared, HardConcrete(double(0.5), temperature)),
        by_quadrature.expand(2, 7),
        rtol=1e-11,
        atol=1e-13,
    )
    with pytest.raises(TypeError):
        kl_divergence(p, HardConcrete(double(0.5), 0.5))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0, -1.0, math.nan])
def test_refuses_a_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match="temperature"):
        HardConcrete(torch.zeros(2), temperature)
    with pytest.raises(ValueError, match=r"temperature[\s\S]*0 < value < 1"):
        HardConcrete(torch.zeros(2), torch.tensor([0.5, temperature]))


def test_refuses_other_bad_arguments():
    with pytest.raises(ValueError, match="log_alpha"):
        HardConcrete(torch.tensor(math.nan))
    with pytest.raises(ValueError, match="number or a tensor"):
        HardConcrete("open")


def gates(num=3):
    return pyro.sample("z", HardConcrete(torch.zeros(num)).to_event(1))


def test_trace_sums_the_density():
    trace = poutine.trace(gates).get_trace()
    z = trace.nodes["z"]["value"]
    expected = HardConcrete(torch.zeros(3)).log_prob(z).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_normal_guides_are_refused():
    """Pyro's AutoNormal would fit a law without zeros, silently, were the support an interval."""
    with pytest.raises(NotImplementedError, match="no exact zeros"):
        SVI(gates, AutoNormal(gates), Adam({"lr": 0.1}), Trace_ELBO()).step()


def test_hamiltonian_samplers_are_refused():
    with pytest.raises(NotImplementedError, match="no exact zeros"):
        MCMC(NUTS(gates), num_samples=1, warmup_steps=1, disable_progbar=True).run()


EXACT = (0.1626, 0.4221, -0.3095)
PATHWISE = (0.1367, 0.3011, -0.2440)


def divergence_gradients(elbo, num):
    """Gradients of a loss that is the divergence of three gates from closed-form priors."""
    start = torch.tensor([0.5, 1.5, -1.0], dtype=DOUBLE)
    leaf = start.expand(num, 3).clone().requires_grad_()

    def model():
        prior = HardConcrete(torch.zeros(num, 3, dtype=DOUBLE))
        pyro.sample("z", prior.to_event(2))

    def guide():
        pyro.sample("z", HardConcrete(leaf).to_event(2))

    (grad,) = torch.autograd.grad(elbo.differentiable_loss(model, guide), leaf)
    return grad


def test_an_analytic_divergence_has_the_right_gradient():
    grad = divergence_gradients(TraceMeanField_ELBO(), 1)[0]
    torch.testing.assert_close(grad, double(*EXACT), rtol=0, atol=5.1e-5)


def test_a_divergence_from_draws_has_a_wrong_gradient():
    """Why these sites need an analytic divergence: the integrand jumps at the atoms.

    The mean of the pathwise gradients is the wrong number that theory gives, within five standard
    errors and its rounding (false-alarm probability 2e-6), and 20 standard errors from the truth.
    """
    grads = divergence_gradients(Trace_ELBO(), 400_000)
    error = grads.std(0) / len(grads) ** 0.5
    assert bool(((grads.mean(0) - double(*PATHWISE)).abs() < 5 * error + 5.1e-5).all())
    assert bool(((grads.mean(0) - double(*EXACT)).abs() > 20 * error).all())


@pytest.mark.gpu
def test_on_a_gpu():
    law = HardConcrete(torch.linspace(-5, 5, 1000, device="cuda").requires_grad_())
    z = law.rsample((100,))
    kl = kl_divergence(law, HardConcrete(torch.zeros(1000, device="cuda")))
    loss = (law.log_prob(z).sum() + kl.sum()) + law.mean.sum() + law.variance.sum()
    (grad,) = torch.autograd.grad(loss, law.log_alpha)
    assert z.is_cuda
    assert grad.isfinite().all()
    share = (z == 0).double().mean(0).cpu()
    p = law.prob_zero.detach().double().cpu()
    assert bool(((share - p).abs() < 6 * (p * (1 - p) / 100).sqrt() + 0.06).all())


def test_works_in_a_plate_with_particles():
    def model():
        with pyro.plate("units", 4):
            pyro.sample("z", HardConcrete(torch.zeros(4)))

    def guide():
        a = pyro.param("a", torch.ones(4))
        with pyro.plate("units", 4):
            pyro.sample("z", HardConcrete(a))

    elbo = TraceMeanField_ELBO(num_particles=5, vectorize_particles=True)
    loss = elbo.loss(model, guide)
    expected = 4 * float(kl_divergence(HardConcrete(1.0), HardConcrete(0.0)))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert isinstance(HardConcrete(torch.zeros(4)).to_event(1), dist.Independent)
