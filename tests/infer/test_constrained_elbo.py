"""Constraints: the Lagrangian's arithmetic, and that targets are met."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyro_ext.distributions import HardConcrete, L0Prior
from pyro_ext.infer.bayesianize import bayesianize
from pyro_ext.infer.constrained_elbo import ConstrainedELBO
from pyro_ext.infer.mean_field_elbo import MeanFieldELBO
from pyro_ext.models import ExpectedFlops, prune
from pyro_ext.nn import L0Gate, L0Linear
from pyro_ext.poutine import local_reparameterization


def quadratic(parameter):
    """A model whose loss is (a - 3)^2 / 2."""

    def model():
        pyro.factor("fit", -((parameter - 3) ** 2) / 2)

    return model, lambda: None


def test_the_lagrangian_and_the_step_of_its_multiplier():
    a = torch.tensor(2.0, requires_grad=True)
    model, guide = quadratic(a)
    elbo = ConstrainedELBO(Trace_ELBO(), {"a": 1.0}, {"a": lambda: a**2}, rate=0.1, scale=2.0)
    assert elbo.loss(model, guide) == pytest.approx(0.5)
    assert elbo.multipliers["a"] == 0  # no gradients, no step
    # the excess is 3, the multiplier 0.1 * 2 * 3, the loss 1/2 + 0.6 * 3
    assert elbo.loss_and_grads(model, guide) == pytest.approx(0.5 + 0.6 * 3)
    assert elbo.multipliers["a"].item() == pytest.approx(0.6)
    assert elbo.measured["a"].item() == pytest.approx(4.0)
    assert a.grad.item() == pytest.approx((2 - 3) + 0.6 * 2 * 2)
    elbo.differentiable_loss(model, guide)
    assert elbo.multipliers["a"].item() == pytest.approx(1.2)
    assert elbo.loss(model, guide) == pytest.approx(0.5 + 1.2 * 3)


@pytest.mark.parametrize(("restart", "expected"), [(True, 0.0), (False, 1.0 - 0.1 * 0.75)])
def test_multipliers_start_again_where_the_constraint_holds(restart, expected):
    a = torch.tensor(0.5, requires_grad=True)
    model, guide = quadratic(a)
    measures = {"a": lambda: a**2}
    elbo = ConstrainedELBO(Trace_ELBO(), {"a": 1.0}, measures, rate=0.1, scale=1.0, restart=restart)
    elbo.multipliers["a"] = torch.tensor(1.0)
    elbo.loss_and_grads(model, guide)
    assert elbo.multipliers["a"].item() == pytest.approx(expected)


def test_the_scale_is_the_magnitude_of_the_first_loss():
    a = torch.tensor(13.0, requires_grad=True)
    model, guide = quadratic(a)
    elbo = ConstrainedELBO(Trace_ELBO(), {"a": 12.0}, {"a": lambda: a.clone()}, rate=0.01)
    elbo.loss_and_grads(model, guide)
    assert elbo.multipliers["a"].item() == pytest.approx(0.01 * 50)


def test_a_first_loss_without_magnitude_is_refused():
    a = torch.tensor(2.0, requires_grad=True)
    elbo = ConstrainedELBO(Trace_ELBO(), {"a": 1.0}, {"a": lambda: a**2})
    model = partial(pyro.factor, "fit", torch.tensor(float("inf")))
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="Give scale="):
        elbo.loss_and_grads(model, lambda: None)


def test_a_first_loss_of_zero_is_no_scale():
    a = torch.tensor(3.0, requires_grad=True)
    model, guide = quadratic(a)
    elbo = ConstrainedELBO(Trace_ELBO(), {"a": 1.0}, {"a": lambda: a**2}, rate=0.01)
    elbo.loss_and_grads(model, guide)
    with torch.no_grad():
        a.fill_(13.0)
    elbo.loss_and_grads(model, guide)
    assert elbo.multipliers["a"].item() == pytest.approx(0.01 * 50 * 168)


@pytest.mark.parametrize(("restart", "tolerance"), [(False, 1e-3), (True, 0.3)])
def test_the_constrained_optimum(restart, tolerance):
    # minimise (a - 3)^2 / 2 with a^2 <= 1: a = 1, multiplier 1; restarts go round it
    a = torch.tensor(2.0, requires_grad=True)
    model, guide = quadratic(a)
    elbo = ConstrainedELBO(
        Trace_ELBO(), {"a": 1.0}, {"a": lambda: a**2}, rate=0.05, scale=1.0, restart=restart
    )
    optimizer = torch.optim.SGD([a], lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        elbo.loss_and_grads(model, guide)
        optimizer.step()
    assert a.item() == pytest.approx(1.0, abs=tolerance)
    if not restart:
        assert elbo.multipliers["a"].item() == pytest.approx(1.0, abs=1e-2)


def test_constraints_that_hold_cost_nothing():
    a = torch.tensor(3.0, requires_grad=True)
    model, guide = quadratic(a)
    elbo = ConstrainedELBO(Trace_ELBO(), {"a": 10.0}, {"a": lambda: a**2})
    elbo.loss_and_grads(model, guide)
    assert a.grad == 0


# Sparsity.

NUM, DIM = 500, 60


def data():
    """A fifth of the inputs matters, each a little less than the one before."""
    x = torch.randn(NUM, DIM)
    y = x[:, :12] @ torch.linspace(1.0, 0.4, 12) + torch.randn(NUM)
    return x, y


def train(model, guide, elbo, steps, args, rate=0.02):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), elbo)
    return [svi.step(*args) for _ in range(steps)]


@pytest.mark.parametrize(("target", "rate"), [(0.5, 0.01), (0.2, 0.01), (0.1, 0.1)])
def test_a_target_sparsity_of_a_layer_is_met(target, rate):
    # below a fifth it must close inputs that matter, which takes larger multipliers
    x, y = data()
    layer = L0Linear(DIM, 1, droprate=0.2)

    def model(x, y):
        pyro.module("layer", layer)
        with pyro.plate("data", NUM):
            pyro.sample("y", dist.Normal(layer(x).squeeze(-1), 1.0), obs=y)

    elbo = ConstrainedELBO(
        Trace_ELBO(),
        {"open": target},
        {"open": lambda: layer.gate.prob_nonzero().mean()},
        rate=rate,
    )
    train(model, lambda x, y: None, elbo, 1500, (x, y))
    assert layer.gate.prob_nonzero().mean().item() == pytest.approx(target, abs=0.01)
    if target == 0.2:  # those that matter are those that stay
        assert (layer.gate.test_gate() > 0).nonzero().flatten().tolist() == list(range(12))


def test_a_target_sparsity_of_a_site_is_met():
    x, y = data()
    weight = torch.zeros(DIM, requires_grad=True)

    def model(x, y):
        z = pyro.sample("z", L0Prior(0.0).expand([DIM]).to_event(1))
        w = pyro.param("w", weight)
        with pyro.plate("data", NUM):
            pyro.sample("y", dist.Normal(x @ (z * w), 1.0), obs=y)

    def guide(x, y):
        log_alpha = pyro.param("log_alpha", torch.full((DIM,), 1.4))
        pyro.sample("z", HardConcrete(log_alpha).to_event(1))

    elbo = ConstrainedELBO(MeanFieldELBO(), {"z": 0.2})
    train(model, guide, elbo, 1500, (x, y))
    law = HardConcrete(pyro.param("log_alpha"))
    assert law.prob_nonzero.mean().item() == pytest.approx(0.2, abs=0.01)
    assert elbo.measured["z"].item() == pytest.approx(0.2, abs=0.01)


def test_a_target_of_flops_is_met_and_is_that_of_the_pruned_network():
    x, y = data()
    network = nn.Sequential(
        L0Linear(DIM, 40, droprate=0.2), nn.ReLU(), L0Linear(40, 1, droprate=0.2)
    )
    flops = ExpectedFlops(network, x[:1])

    def model(x, y):
        pyro.module("network", network)
        with pyro.plate("data", NUM):
            pyro.sample("y", dist.Normal(network(x).squeeze(-1), 1.0), obs=y)

    elbo = ConstrainedELBO(Trace_ELBO(), {"flops": 0.1}, {"flops": flops.fraction})
    train(model, lambda x, y: None, elbo, 1000, (x, y))
    assert flops.fraction().item() == pytest.approx(0.1, abs=0.01)
    _, report = prune(network, x[:1], timed=False)  # by whole units, 1/40 each
    assert report.flops[1] / report.flops[0] == pytest.approx(0.1, abs=0.03)


def test_targets_of_a_bayesian_network_on_batches():
    x, y = data()
    network = nn.Sequential(L0Linear(DIM, 20, droprate=0.2), nn.Tanh(), L0Linear(20, 1))
    model = bayesianize(network, likelihood=lambda m: dist.Normal(m.squeeze(-1), 1.0), size=NUM)
    measures = {n: _open_fraction(model.module[n].gate) for n in (0, 2)}
    elbo = ConstrainedELBO(MeanFieldELBO(), {0: 0.2, 2: 0.3}, measures, rate=0.02)
    svi = SVI(model, model.guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    with local_reparameterization():
        for _ in range(600):
            index = torch.randperm(NUM)[:50]
            svi.step(x[index], y[index])
    assert model.module[0].gate.prob_nonzero().mean().item() == pytest.approx(0.2, abs=0.03)
    assert model.module[2].gate.prob_nonzero().mean().item() < 0.33
    assert network[0].gate.prob_nonzero().mean() > 0.9


def _open_fraction(gate):
    return lambda: gate.prob_nonzero().mean()


def test_elbo_modules_and_states():
    x, y = data()
    layer = L0Linear(DIM, 1)

    def model(x, y):
        pyro.module("layer", layer)
        with pyro.plate("data", NUM):
            pyro.sample("y", dist.Normal(layer(x).squeeze(-1), 1.0), obs=y)

    measures = {"open": lambda: layer.gate.prob_nonzero().mean()}
    elbo = ConstrainedELBO(Trace_ELBO(), {"open": 0.1}, measures)
    elbo(model, lambda x, y: None)(x, y).backward()
    assert layer.gate.log_alpha.grad.any()
    other = ConstrainedELBO(Trace_ELBO(), {"open": 0.1}, measures)
    other.load_state_dict(elbo.state_dict())
    assert other.multipliers == elbo.multipliers
    with pytest.raises(ValueError, match=r"multipliers of \['open'\], expected those of \['z'\]"):
        ConstrainedELBO(Trace_ELBO(), {"z": 0.1}).load_state_dict(elbo.state_dict())


def test_vectorised_particles():
    def model():
        pyro.sample("z", L0Prior(0.0).expand([4]).to_event(1))

    def guide():
        pyro.sample("z", HardConcrete(log_alpha).to_event(1))

    log_alpha = torch.randn(4, requires_grad=True)
    inner = MeanFieldELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=0)
    elbo = ConstrainedELBO(inner, {"z": 0.3}, scale=1.0)
    elbo.loss_and_grads(model, guide)
    expected = HardConcrete(log_alpha).prob_nonzero.mean()
    torch.testing.assert_close(elbo.measured["z"], expected.detach())


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elbo": Trace_ELBO}, "elbo must be an objective with a differentiable_loss"),
        ({"target": {}}, "target is empty"),
        ({"target": {"z": 1.0}}, r"target\['z'\] must lie in \(0, 1\), got 1.0"),
        ({"target": {"z": 0.0}}, r"must lie in \(0, 1\), got 0.0"),
        ({"target": {"z": float("nan")}}, "got nan"),
        ({"measures": {"y": lambda: None}}, r"measures names \['y'\], which have no target"),
        ({"rate": 0.0}, "rate must be a finite positive number"),
        ({"scale": -1.0}, "scale must be a finite positive number"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConstrainedELBO(**{"elbo": Trace_ELBO(), "target": {"z": 0.1}, **options})


def test_sites_without_sparsity_are_refused():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="the guide draws at no such site"):
        ConstrainedELBO(Trace_ELBO(), {"y": 0.1}).loss(model, model)
    with pytest.raises(ValueError, match="'z' draws from Normal, which has no prob_nonzero"):
        ConstrainedELBO(Trace_ELBO(), {"z": 0.1}).loss(model, model)
    with pytest.raises(ValueError, match=r"measure of 'z' must be a scalar tensor, got \(3,\)"):
        ConstrainedELBO(Trace_ELBO(), {"z": 0.1}, {"z": lambda: torch.zeros(3)}).loss(model, model)


@pytest.mark.gpu
def test_multipliers_on_a_gpu():
    gate = L0Gate(5).cuda()

    def model():
        pyro.factor("fit", gate(torch.ones(5, device="cuda")).sum())

    elbo = ConstrainedELBO(
        Trace_ELBO(), {"open": 0.1}, {"open": lambda: gate.prob_nonzero().mean()}
    )
    elbo.loss_and_grads(model, lambda: None)
    assert elbo.multipliers["open"].is_cuda


def test_evaluates_objectives_that_have_another_path_for_it():
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(m * k, 1.0), obs=torch.ones(5))

    def guide():
        pyro.sample("m", dist.Delta(pyro.param("point", torch.tensor(0.5))))

    plain = TraceEnum_ELBO(max_plate_nesting=1)
    measures = {"m": lambda: pyro.param("point").sigmoid()}
    elbo = ConstrainedELBO(plain, {"m": 0.5}, measures, scale=1.0, rate=0.1)
    elbo.loss_and_grads(model, guide)
    expected = plain.loss(model, guide)
    excess = elbo.measured["m"] - 0.5
    expected += float(elbo.multipliers["m"] * excess)
    assert elbo.loss(model, guide) == pytest.approx(expected)
    assert elbo.multipliers["m"] > 0


def test_refuses_what_it_cannot_constrain():
    with pytest.raises(ValueError, match="JitTrace_ELBO is compiled"):
        ConstrainedELBO(JitTrace_ELBO(), {"z": 0.4})
    with pytest.raises(ValueError, match="target must be numbers by name"):
        ConstrainedELBO(Trace_ELBO(), 0.5)
    elbo = ConstrainedELBO(Trace_ELBO(), {"z": 0.4})
    for state in ({}, {"multipliers": {"z": torch.zeros(())}}):
        with pytest.raises(ValueError, match=r"expected those of \['z'\], and their scale"):
            elbo.load_state_dict(state)
