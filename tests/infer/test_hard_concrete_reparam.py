"""Hard concrete sites as clipped logistic ones."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value

from pyro_ext.distributions import HardConcrete
from pyro_ext.infer import HardConcreteReparam
from pyro_ext.ops.hard_concrete_kl import logistic_kl

CONFIG = {"z": HardConcreteReparam()}
AUXILIARY = {"is_auxiliary": True}
DOUBLE = torch.float64


def double(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


def reparam(fn):
    return poutine.reparam(fn, CONFIG)


def gates():
    return pyro.sample("z", HardConcrete(double(-1.0, 0.0, 2.0)).to_event(1))


def test_sites():
    trace = poutine.trace(reparam(gates)).get_trace()
    logit, z = trace.nodes["z_logit"], trace.nodes["z"]
    assert not logit["is_observed"]
    assert logit["fn"].event_shape == (3,)
    assert logit["fn"].support.base_constraint is dist.Logistic.support
    assert z["is_observed"]
    low, high = -0.1, 1.1
    expected = (low + (high - low) * torch.sigmoid(logit["value"])).clamp(0, 1)
    torch.testing.assert_close(z["value"], expected)
    torch.testing.assert_close(
        trace.log_prob_sum(), logit["fn"].log_prob(logit["value"]), check_dtype=False
    )


def test_draws_keep_their_law():
    """Frequencies of both atoms within five standard errors; false-alarm probability 4e-6."""

    def wide():
        with pyro.plate("draws", 100_000):
            return gates()

    z = reparam(wide)()
    law = HardConcrete(double(-1.0, 0.0, 2.0))
    for atom, p in ((0.0, law.prob_zero), (1.0, law.prob_one)):
        share = (z == atom).double().mean(0)
        assert bool(((share - p).abs() < 5 * (p * (1 - p) / 100_000).sqrt()).all())
    error = (law.variance / 100_000).sqrt()
    assert bool(((z.mean(0) - law.mean).abs() < 5 * error).all())


def elbo_gradients(num, temperature=2 / 3):
    leaf = double(0.5, 1.5, -1.0).expand(num, 3).clone().requires_grad_()

    def model():
        pyro.sample("z", HardConcrete(torch.zeros(num, 3, dtype=DOUBLE)).to_event(2))

    def guide():
        pyro.sample("z", HardConcrete(leaf, temperature).to_event(2), infer=AUXILIARY)

    loss = Trace_ELBO().differentiable_loss(reparam(model), reparam(guide))
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad


def test_draws_give_the_right_gradient():
    """That of the logistic divergence; five standard errors, false-alarm probability 2e-6."""
    grads = elbo_gradients(200_000)
    leaf = double(0.5, 1.5, -1.0).requires_grad_()
    (exact,) = torch.autograd.grad(logistic_kl(leaf, double(0.0)).sum(), leaf)
    error = grads.std(0) / len(grads) ** 0.5
    assert bool(((grads.mean(0) - exact).abs() < 5 * error).all())


def test_temperatures_of_model_and_guide_may_differ():
    """The bound stays one: its gradient is that of a divergence by quadrature; as above."""
    grads = elbo_gradients(200_000, 0.4)
    leaf = double(0.5, 1.5, -1.0).requires_grad_()
    t = torch.linspace(-80, 80, 40_001, dtype=DOUBLE).unsqueeze(-1)
    q = dist.Logistic(leaf / 0.4, 1 / 0.4)
    log_q, log_p = q.log_prob(t), dist.Logistic(double(0.0), 1.5).log_prob(t)
    divergence = torch.trapezoid(log_q.exp() * (log_q - log_p), t, dim=0).sum()
    (exact,) = torch.autograd.grad(divergence, leaf)
    error = grads.std(0) / len(grads) ** 0.5
    assert bool(((grads.mean(0) - exact).abs() < 5 * error).all())


def regression(y):
    z = pyro.sample("z", HardConcrete(double(0.0)))
    pyro.sample("y", dist.Normal(z, double(0.3)), obs=y)


def posterior_of_zero(y):
    """P(z = 0 | y) by quadrature."""
    prior = HardConcrete(double(0.0))
    likelihood = dist.Normal(y, double(0.3))
    evidence = prior.expectation(lambda z: likelihood.log_prob(z).exp())
    return float(prior.prob_zero * likelihood.log_prob(double(0.0)).exp() / evidence)


def test_nuts_finds_the_atom():
    """Batch means of 20 clusters; 6.6 standard errors are 3e-6 of Student's distribution."""
    y = double(0.1)
    kernel = NUTS(reparam(regression))
    mcmc = MCMC(kernel, num_samples=1000, warmup_steps=100, disable_progbar=True)
    mcmc.run(y)
    logit = mcmc.get_samples()["z_logit"]
    zero = (logit <= torch.tensor(0.1 / 1.1).log()).double().reshape(20, -1).mean(1)
    error = zero.std() / 20**0.5
    assert abs(float(zero.mean()) - posterior_of_zero(y)) < 6.6 * float(error)
    assert float(zero.mean()) > 0.1


def test_automatic_guides_apply():
    model = reparam(regression)
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"z": double(0.5)}))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(50):
        svi.step(double(-1.0))
    with torch.no_grad():
        draws = poutine.condition(model, guide(double(-1.0)))
        z = poutine.trace(draws).get_trace(double(-1.0)).nodes["z"]["value"]
    assert float(z) == 0  # as the datum wants


def test_starts_from_the_gate_that_is_given():
    model = reparam(gates)
    start = double(0.0, 0.25, 1.0)
    with pyro.infer.autoguide.initialization.InitMessenger(init_to_value(values={"z": start})):
        trace = poutine.trace(model).get_trace()
    torch.testing.assert_close(trace.nodes["z"]["value"], start, rtol=0, atol=1e-15)
    assert not trace.nodes["z_logit"]["is_observed"]


def test_mean_field_objectives_use_the_logistic_density():
    def guide():
        pyro.sample("z", HardConcrete(double(1.0, 1.0, 1.0)).to_event(1), infer=AUXILIARY)

    losses = [TraceMeanField_ELBO().loss(reparam(gates), reparam(guide)) for _ in range(3)]
    assert len(set(losses)) == 3


def test_refuses_what_it_cannot_do():
    def observed():
        pyro.sample("z", HardConcrete(double(0.0)), obs=double(0.0))

    def normal():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match="Site 'z' is observed"):
        reparam(observed)()
    with pytest.raises(ValueError, match=r"Site 'z' is a Normal, but HardConcreteReparam needs"):
        reparam(normal)()
