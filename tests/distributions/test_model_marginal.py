"""Marginals of Pyro programs against closed forms, enumeration and quadrature.

Statistical assertions are z-tests at 5 standard errors: false-alarm probability 6e-7 each.
"""

import copy
import itertools
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.mcmc import MCMC, NUTS
from pyro.nn import PyroModule, PyroParam, pyro_method
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import nn

from pyro_ext.distributions import (
    AuxiliaryLost,
    ModelMarginal,
    SelfNormalizedImportance,
    StochasticDensity,
    TruncatedRejection,
    leave_one_out,
    stop_gradient,
)
from pyro_ext.infer import MultiSampleELBO

WEIGHT = torch.tensor([[0.8, -0.3, 0.5], [0.2, 0.9, -0.6]], dtype=torch.float64)
LOC = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
EXACT = dist.MultivariateNormal(LOC, WEIGHT.T @ WEIGHT + 0.25 * torch.eye(3).double())


def linear_model():
    z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z @ WEIGHT + LOC, 0.5).to_event(1))


def exact_guide(x, shift=0.0, widening=1.0):
    precision = torch.eye(2).double() + WEIGHT @ WEIGHT.T / 0.25
    loc = torch.linalg.solve(precision, (WEIGHT @ (x - LOC).unsqueeze(-1)) / 0.25).squeeze(-1)
    covariance = torch.linalg.inv(precision) * widening
    pyro.sample("z", dist.MultivariateNormal(loc + shift, covariance))


wrong_guide = partial(exact_guide, shift=0.2, widening=1.3)


def assert_mean(samples, expected, dim=0):
    error = samples.std(dim) / samples.shape[dim] ** 0.5
    z = (samples.mean(dim) - expected).abs() / error
    assert (z < 5).all(), f"mean {samples.mean(dim)} +- {error}, expected {expected}"


# Truth.


@pytest.mark.parametrize("lead", [(), (4,), (5, 2)])
def test_with_the_exact_posterior_both_sides_are_exact(lead):
    d = ModelMarginal(linear_model, exact_guide)
    assert (d.batch_shape, d.event_shape, d.has_rsample) == ((), (3,), True)
    x, upper = d.sample_and_log_prob(lead)
    assert x.shape == (*lead, 3)
    torch.testing.assert_close(upper, EXACT.log_prob(x))
    for density in (d, d.tight(3), d.frozen(0)):
        torch.testing.assert_close(density.log_prob(x), EXACT.log_prob(x))
    wide = d.expand((2, *lead))
    torch.testing.assert_close(wide.log_prob(x), EXACT.log_prob(x).expand(2, *lead))


def test_with_a_wrong_guide_the_weights_are_unbiased():
    d = ModelMarginal(linear_model, wrong_guide)
    x = EXACT.sample((4,))
    assert_mean(d.log_prob(x.expand(20_000, 4, 3)).exp(), EXACT.log_prob(x).exp())
    x, upper = d.sample_and_log_prob((20_000,))
    assert_mean((EXACT.log_prob(x) - upper).exp(), 1.0)
    lower = d.log_prob(x)
    assert (lower - EXACT.log_prob(x)).mean() < -0.02 < 0.02 < (upper - EXACT.log_prob(x)).mean()
    tight = d.tight(300).log_prob(x[:50])
    torch.testing.assert_close(tight, EXACT.log_prob(x[:50]), atol=0.15, rtol=0)


def test_draws_follow_the_marginal():
    x = ModelMarginal(linear_model, wrong_guide).sample((20_000,))
    assert_mean(x, LOC)
    centred = x - LOC
    assert_mean(centred.unsqueeze(-1) * centred.unsqueeze(-2), EXACT.covariance_matrix)


PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def mixture(locs):
    """A mixture of three normals; the guide guesses the component."""

    def model():
        z = pyro.sample("z", dist.Categorical(PRIOR))
        pyro.sample("x", dist.Normal(locs[z], 1.0))

    return model


def component_guide(x, slope=1.0):
    places = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    pyro.sample("z", dist.Categorical(logits=slope * x.unsqueeze(-1) * places))


def mixture_log_prob(x, locs):
    return (PRIOR.log() + dist.Normal(locs, 1.0).log_prob(x.unsqueeze(-1))).logsumexp(-1)


def test_a_discrete_latent_is_enumerated():
    locs = torch.tensor([-2.0, 0.5, 1.5], dtype=torch.float64)
    d = ModelMarginal(mixture(locs), component_guide)
    assert not d.has_rsample
    assert d.is_partly_pathwise
    x = torch.tensor([-2.0, 0.0, 0.7, 3.0], dtype=torch.float64)
    assert_mean(d.log_prob(x.expand(20_000, 4)).exp(), mixture_log_prob(x, locs).exp())
    x, upper = d.sample_and_log_prob((20_000,))
    assert_mean((mixture_log_prob(x, locs) - upper).exp(), 1.0)


@pytest.mark.parametrize("pathwise", [True, False])
def test_draws_have_the_path_and_the_score_of_the_rest(pathwise):
    """The gradient of E[sin x], x from the mixture with learned weights and places."""
    logits = PRIOR.log().clone().requires_grad_()
    locs = torch.tensor([-2.0, 0.5, 1.5], dtype=torch.float64, requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("x", dist.Normal(locs[z], 1.0))

    mean = (logits.softmax(-1) * locs.sin()).sum() * torch.tensor(-0.5).exp()
    expected = torch.cat(torch.autograd.grad(mean, [logits, locs]))
    d, found = ModelMarginal(model, component_guide), []
    for _ in range(200):
        x = d((100,)) if pathwise else d.sample((100,))
        score = d.score_parts(x).score_function
        surrogate = (x.sin() * pathwise + x.sin().detach() * score).mean()
        found.append(torch.cat(torch.autograd.grad(surrogate, [logits, locs])))
    assert_mean(torch.stack(found), expected)


@pytest.mark.parametrize("num", [1, 3])
def test_a_guide_with_bits_has_an_unbiased_gradient(num):
    """Against the enumerated mean of the bound; without its score function it would be biased."""
    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    slope = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    locs = torch.tensor([-2.0, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    places = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    log_q = (slope * x.unsqueeze(-1) * places).log_softmax(-1)
    log_w = PRIOR.log() + dist.Normal(locs, 1.0).log_prob(x.unsqueeze(-1)) - log_q
    truth = 0.0
    for rows in itertools.product(range(3), repeat=num):
        bound = log_w[:, list(rows)].logsumexp(-1) - torch.tensor(float(num)).log()
        truth = truth + log_q[:, list(rows)].sum(-1).exp() * bound
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(truth.sum(), [slope, locs])])
    d = ModelMarginal(mixture(locs), partial(component_guide, slope=slope)).tight(num)
    found = []
    for _ in range(200):
        objective = d.log_prob(x.expand(100, 2)).mean(0).sum()
        gradient = torch.autograd.grad(objective, [slope, locs])
        found.append(torch.cat([g.reshape(-1) for g in gradient]))
    assert_mean(torch.stack(found), expected)


def test_a_prior_inside_may_be_stochastic_itself():
    """z ~ SNIS with two candidates, whose density is known by quadrature."""
    grid = torch.linspace(-8, 8, 801, dtype=torch.float64)
    step = grid[1] - grid[0]

    def energy(z):
        return -2 * torch.sin(2 * z)

    def model():
        base = dist.Normal(torch.zeros(()).double(), 1.0)
        z = pyro.sample("z", SelfNormalizedImportance(base, energy, 2, share_proposals=False))
        pyro.sample("x", dist.Normal(z, 1.0))

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.9))

    pi, w = dist.Normal(0.0, 1.0).log_prob(grid).exp(), (-energy(grid)).exp()
    prior = 2 * pi * w * (pi / (w[:, None] + w)).sum(-1) * step

    def marginal(x):
        return (prior * dist.Normal(grid, 1.0).log_prob(x.unsqueeze(-1)).exp()).sum(-1) * step

    d = ModelMarginal(model, guide)
    x = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
    assert_mean(d.log_prob(x.expand(20_000, 3)).exp(), marginal(x))
    x, upper = d.sample_and_log_prob((20_000,))
    assert_mean(marginal(x) * (-upper).exp(), 1.0)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("num", [1, 4])
def test_a_guide_inside_may_be_stochastic_too(batch, num):
    """The weights are those of one candidate more, and so their means are the density."""

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(batch).double(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))

    def guide(x):
        base = dist.Normal(x / 2, 1.0)
        pyro.sample("z", SelfNormalizedImportance(base, lambda z: z**2 / 9, 3))

    d = ModelMarginal(model, guide).tight(num)
    exact = dist.Normal(torch.zeros(()).double(), 2**0.5)
    x, upper = d.sample_and_log_prob((20_000,))
    assert upper.shape == x.shape == (20_000, *batch)
    assert_mean(exact.log_prob(x).exp() * (-upper).exp(), 1.0)
    masked = d.mask(torch.tensor(True))
    assert masked.score_parts(masked()).log_prob.shape == batch
    lower = d.log_prob(x)
    assert_mean((lower - exact.log_prob(x)).exp(), 1.0)
    assert lower.mean() < exact.log_prob(x).mean() < upper.mean()


def test_plates_of_the_model_are_its_batch():
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def model():
        with pyro.plate("components", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, scale))

    def guide(x):
        with pyro.plate("components", 3):
            precision = 1 + scale**-2
            pyro.sample("z", dist.Normal(x / scale**2 / precision, precision**-0.5))

    exact = dist.Normal(torch.zeros(3).double(), (1 + scale**2).sqrt())
    d = ModelMarginal(model, guide)
    assert (d.batch_shape, d.event_shape) == ((3,), ())
    for density in (d, d.expand((4, 3))):
        x, upper = density.sample_and_log_prob((2,))
        assert x.shape == (2, *density.batch_shape)
        torch.testing.assert_close(upper, exact.log_prob(x))
        torch.testing.assert_close(density.log_prob(x), exact.log_prob(x))
    torch.testing.assert_close(
        d.log_prob(torch.tensor(0.5).double()), exact.log_prob(torch.tensor(0.5).double())
    )


def test_a_program_without_latents_is_its_distribution():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    d = ModelMarginal(model, lambda x: None)
    x, upper = d.sample_and_log_prob((3,))
    expected = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(x)
    for seen in (upper, d.log_prob(x), d.tight(4).log_prob(x)):
        torch.testing.assert_close(seen, expected)


# Within Pyro: the outer program has sites and plates of the same names.


def scalar_model():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    x = pyro.sample("x", dist.Normal(z, 1.0))
    pyro.deterministic("twice", 2 * x)


def scalar_guide(x):
    pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def scalar():
    return ModelMarginal(scalar_model, scalar_guide)


SCALAR = dist.Normal(0.0, 2**0.5)


def outer_model(data):
    with pyro.plate("data", len(data)):
        x = pyro.sample("x", scalar())
        pyro.sample("y", dist.Normal(x, 1.0), obs=data)


def outer_guide(data):
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(data * 2 / 3, (2 / 3) ** 0.5))  # the exact posterior


HANDLERS = {
    "none": lambda f: f,
    "scale": lambda f: poutine.scale(f, scale=3.0),
    "mask": lambda f: poutine.mask(f, mask=torch.tensor([True, False, True])),
    "condition z": lambda f: poutine.condition(f, {"z": torch.tensor(7.0)}),
    "block z": lambda f: poutine.block(f, hide=["z"]),
    "do z": lambda f: poutine.do(f, {"z": torch.tensor(7.0)}),
    "replay": lambda f: poutine.replay(f, trace=foreign_trace()),
    "uncondition": lambda f: poutine.uncondition(f),
    "broadcast": lambda f: poutine.broadcast(f),
    "config": lambda f: poutine.infer_config(f, config_fn=lambda site: {"enumerate": "parallel"}),
}


def foreign_trace():
    def foreign():
        pyro.sample("z", dist.Normal(torch.full((9,), 7.0), 1.0))

    return poutine.trace(foreign).get_trace()


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_handlers_outside_do_not_see_the_program(handler):
    data = torch.zeros(3)
    trace = poutine.trace(handler(outer_model)).get_trace(data)
    assert {"x", "y"} <= set(trace.nodes)
    assert "z" not in trace.nodes
    assert "twice" not in trace.nodes
    site = trace.nodes["x"]
    assert site["value"].shape == (3,)
    assert site["value"].abs().max() < 7  # z was not set to it; probability 7e-7 each
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), SCALAR.log_prob(site["value"]))


def test_plates_and_stack_are_left_as_they_were():
    def inner():
        with pyro.plate("data", 3, dim=-1):  # the name and the place of the outer one
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0))

    def inner_guide(x):
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    def outer():
        with pyro.plate("data", 3, dim=-1):
            before = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
            pyro.sample("x", ModelMarginal(inner, inner_guide))
            assert (list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)) == before

    trace = poutine.trace(outer).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["value"].shape == (3,)


def test_an_error_inside_leaves_the_stack_as_it_was():
    def broken():
        with pyro.plate("inner", 2):
            raise KeyError("out of luck")

    with poutine.trace(), pyro.plate("data", 3):
        before = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
        with pytest.raises(KeyError, match="out of luck"):
            ModelMarginal(broken, scalar_guide)
        assert (list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)) == before


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceGraph_ELBO(),
        MultiSampleELBO(4),
    ],
    ids=["trace", "vectorised", "graph", "multi_sample"],
)
def test_as_a_prior_every_objective_gives_the_evidence(elbo):
    data = torch.tensor([0.5, -1.0, 2.0])
    evidence = dist.Normal(0.0, 3**0.5).log_prob(data).sum()
    with torch.no_grad():
        assert -elbo.loss(outer_model, outer_guide, data) == pytest.approx(
            evidence.item(), abs=1e-4
        )


def test_as_a_guide_it_is_scored_from_above():
    """The marginal itself as guide of the same marginal as model: -KL = 0, exactly."""
    data = torch.zeros(4)

    def model(data):
        with pyro.plate("data", len(data)):
            pyro.sample("x", SCALAR)

    def guide(data):
        with pyro.plate("data", len(data)):
            pyro.sample("x", scalar())

    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True)):
        assert elbo.loss(model, guide, data) == pytest.approx(0, abs=1e-5)
    x = scalar()()
    with pytest.raises(AuxiliaryLost):
        scalar().score_parts(x)


def test_subsampled_plates_scale_the_site_and_not_the_parameters_inside():
    def inner():
        loc = pyro.param("loc", torch.zeros(4), event_dim=0)
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1))

    def inner_guide(x):
        loc = pyro.param("loc", torch.zeros(4), event_dim=0)
        pyro.sample("z", dist.Normal((x - loc) / 2, 0.5**0.5).to_event(1))

    def outer(data):
        with pyro.plate("data", 4, subsample=torch.tensor([1, 3])):
            pyro.sample("x", ModelMarginal(inner, inner_guide), obs=data)

    data = torch.randn(2, 4)
    trace = poutine.trace(outer).get_trace(data)
    trace.compute_log_prob()
    expected = 2 * SCALAR.log_prob(data).sum(-1)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"].detach(), expected)


def test_predictive_draws_it():
    def generative():
        with pyro.plate("data", 3):
            pyro.sample("x", scalar())

    for parallel in (True, False):
        samples = Predictive(generative, num_samples=4, parallel=parallel)()
        assert samples["x"].shape == (4, 3)
        assert "z" not in samples
        assert samples["x"].unique().numel() == 12


def test_mcmc_runs_on_the_frozen_density():
    def model():
        pyro.sample("x", scalar().tight(5).frozen(0))

    mcmc = MCMC(NUTS(model), num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].isfinite().all()


# Parameters of every kind are trained from outside.


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, z):
        return self.linear(z)


class Program(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.zeros(2))
        self.decoder = PyroModule[nn.Linear](1, 2)
        self.encoder = PyroModule[nn.Linear](2, 1)

    @pyro_method
    def model(self):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(self.decoder(z) + self.loc, 1.0).to_event(1))

    @pyro_method
    def guide(self, x):
        pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def store_program():
    decoder, encoder = Decoder(), nn.Linear(2, 1)

    def model():
        loc = pyro.param("loc", torch.zeros(2))
        net = pyro.module("decoder", decoder)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(net(z) + loc, 1.0).to_event(1))

    def guide(x):
        net = pyro.module("encoder", encoder)
        pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


def module_program():
    program = Program()
    return program.model, program.guide


@pytest.mark.parametrize("make", [store_program, module_program])
@pytest.mark.parametrize("where", ["likelihood", "guide"])
def test_svi_trains_the_parameters_inside(make, where):
    program, data = make(), torch.tensor([2.0, -1.0]).expand(20, 2)

    def likelihood():
        with pyro.plate("data", 20):
            pyro.sample("x", ModelMarginal(*program), obs=data)

    def target():
        with pyro.plate("data", 20):
            pyro.sample("x", dist.Normal(data, 2.0).to_event(1))

    def guide():
        with pyro.plate("data", 20):
            pyro.sample("x", ModelMarginal(*program))

    pair = (likelihood, lambda: None) if where == "likelihood" else (target, guide)
    svi = SVI(*pair, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step()
    names = set(pyro.get_param_store().keys())
    assert len(names) == 5  # loc, and weight and bias of both networks
    before = {name: pyro.param(name).detach().clone() for name in names}
    losses = [svi.step() for _ in range(150)]
    assert all(not torch.equal(before[name], pyro.param(name)) for name in names)
    assert sum(losses[-20:]) < sum(losses[:20])


# A discrete autoencoder as the proposal of SNIS.


TARGET = torch.tensor([0.45, 0.05, 0.05, 0.45], dtype=torch.float64)  # of 00, 01, 10, 11
CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
NUM_PROPOSALS = 3


class BinaryAutoencoder(nn.Module):
    """A normal z and two bits x."""

    def __init__(self):
        super().__init__()
        self.loc, self.slope, self.gain = (
            nn.Parameter(torch.tensor(v, dtype=torch.float64))
            for v in ([0.8, -0.3], [0.4, 0.2], [0.1, 0.3])
        )

    def model(self):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=self.loc + self.slope * z).to_event(1))

    def guide(self, x):
        loc = (self.gain * (2 * x - 1)).sum(-1, keepdim=True)
        pyro.sample("z", dist.Normal(loc, 0.8).to_event(1))

    def log_marginal(self):
        """log p(x) of the four corners, by quadrature over z."""
        grid = torch.linspace(-8, 8, 401, dtype=torch.float64).unsqueeze(-1)
        x = dist.Bernoulli(logits=self.loc + self.slope * grid).to_event(1)
        log_joint = x.log_prob(CORNERS[:, None]) + dist.Normal(0.0, 1.0).log_prob(grid).squeeze(-1)
        return log_joint.logsumexp(-1) + torch.tensor(16 / 400).log()


def log_snis(log_pi, log_w):
    """log density of SNIS on the four corners, and the mean of its bound, by enumeration."""
    density = bound = 0.0
    for others in itertools.product(range(4), repeat=NUM_PROPOSALS - 1):
        log_p = log_pi[list(others)].sum()
        log_total = torch.logaddexp(log_w, log_w[list(others)].logsumexp(0))
        ratio = log_w - log_total + torch.tensor(float(NUM_PROPOSALS)).log()
        density, bound = density + (log_p + ratio).exp(), bound + log_p.exp() * ratio
    return log_pi + density.log(), bound


def energy_of(table):
    return lambda x: table[(2 * x[..., 0] + x[..., 1]).long()]


def autoencoder_snis(gradient, share=True):
    program = BinaryAutoencoder()
    table = torch.tensor([0.3, -0.5, 0.8, -0.2], dtype=torch.float64, requires_grad=True)
    proposal = ModelMarginal(program.model, program.guide)
    return (
        program,
        table,
        SelfNormalizedImportance(
            proposal, energy_of(table), NUM_PROPOSALS, share, proposal_gradient=gradient
        ),
    )


def test_the_gradient_of_an_autoencoder_as_proposal_is_unbiased():
    """Against quadrature over z and enumeration of x; the encoder follows its own bound."""
    program, table, d = autoencoder_snis(leave_one_out, share=False)
    log_pi = program.log_marginal()
    _, bound = log_snis(log_pi, -table)
    leaves = [program.loc, program.slope, table]
    noise = torch.linspace(-8, 8, 401, dtype=torch.float64)
    z = (program.gain * (2 * CORNERS - 1)).sum(-1, keepdim=True) + 0.8 * noise  # (4, 401)
    x = dist.Bernoulli(logits=program.loc + program.slope * z.unsqueeze(-1)).to_event(1)
    log_q = dist.Normal(0.0, 1.0).log_prob(noise)
    log_w = x.log_prob(CORNERS[:, None]) + dist.Normal(0.0, 1.0).log_prob(z) - log_q
    log_w = log_w + torch.tensor(0.8).log()
    lower = (log_q.exp() * log_w).sum(-1) * 16 / 400
    assert (lower < log_pi).all()
    objective = (TARGET * (lower + bound)).sum()
    leaves = [*leaves, program.gain]
    expected = torch.cat(torch.autograd.grad(objective, leaves))
    found = []
    for _ in range(300):
        objective = (TARGET * d.log_prob(CORNERS.expand(30, 4, 2)).mean(0)).sum()
        found.append(torch.cat(torch.autograd.grad(objective, leaves)))
    assert_mean(torch.stack(found), expected)


@pytest.mark.parametrize("gradient", [leave_one_out, stop_gradient], ids=lambda g: g.__name__)
def test_an_autoencoder_as_proposal_is_trained(gradient):
    program, table, d = autoencoder_snis(gradient)
    optimizer = torch.optim.Adam([*program.parameters(), table], lr=0.05)

    def divergence():
        with torch.no_grad():
            log_p, _ = log_snis(program.log_marginal(), -table)
            assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
            return (TARGET * (TARGET.log() - log_p)).sum().item()

    first = divergence()
    data = CORNERS[torch.multinomial(TARGET, 20_000, replacement=True)].reshape(200, 100, 2)
    for x in data:
        optimizer.zero_grad()
        (-d.log_prob(x).mean()).backward()
        optimizer.step()
    assert first > 0.3
    assert divergence() < 0.03


# Behaviour and bad input.


def test_it_is_a_stochastic_density_and_says_so():
    assert issubclass(ModelMarginal, StochasticDensity)
    assert ModelMarginal.__doc__.startswith("Stochastic:")
    d = scalar()
    assert repr(d.tight(5).frozen(2)).endswith("site='x').tight(5).frozen(2)")
    assert d.draw_size == 2
    assert d.expand((7,)).draw_size == 14
    assert copy.deepcopy(d).log_prob(torch.tensor(0.3)).isfinite()


def test_a_tight_guide_whose_guide_draws_bits_is_refused():
    slope = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    locs = torch.tensor([-2.0, 0.5, 1.5], dtype=torch.float64)
    d = ModelMarginal(mixture(locs), partial(component_guide, slope=slope)).tight(3)
    with pytest.raises(NotImplementedError, match="draws latents that are not"):
        d.score_parts(d.sample())
    with torch.no_grad():
        assert d.score_parts(d.sample()).log_prob.isfinite()


def no_site():
    pyro.sample("w", dist.Normal(0.0, 1.0))


def shared_latent():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + torch.zeros(3), 1.0))


def plated_latent():
    with pyro.plate("parts", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.sum(-1), 1.0))


def observing():
    pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def factoring():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("f", -z.square())
    pyro.sample("x", dist.Normal(z, 1.0))


def scaling():
    with poutine.scale(scale=2.0):
        pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def masking():
    with poutine.mask(mask=False):
        pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def subsampling():
    with pyro.plate("data", 10, subsample_size=2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))


def fixed_size():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z.reshape(1), 1.0).to_event(1))


BAD = {
    "missing site": (no_site, "has no sample site 'x', only"),
    "shared latent": (shared_latent, "do not share latents"),
    "plates of a latent": (plated_latent, "do not share latents"),
    "observed": (observing, "observes its site 'z'"),
    "factor": (factoring, "observes its site 'f'"),
    "scaled": (scaling, "scaled or masked"),
    "masked": (masking, "scaled or masked"),
    "subsampled": (subsampling, "scaled or masked"),
}


@pytest.mark.parametrize(("model", "message"), BAD.values(), ids=BAD)
def test_models_that_have_no_marginal(model, message):
    with pytest.raises(ValueError, match=message):
        ModelMarginal(model, scalar_guide)


def test_guides_that_do_not_fit():
    for guide in (lambda x: None, no_site):
        with pytest.raises((ValueError, TypeError)):
            ModelMarginal(scalar_model, guide)
    with pytest.raises(ValueError, match="must be the same"):
        ModelMarginal(scalar_model, lambda x: None)

    def wide(x):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"shapes \{'z': \(2,\)\}"):
        ModelMarginal(scalar_model, wide)


def test_sites_that_change():
    names = iter(["z", "z", "w"])

    def guide(x):
        pyro.sample(next(names), dist.Normal(x / 2, 1.0))

    d = ModelMarginal(scalar_model, guide)
    d.log_prob(torch.tensor(0.0))
    with pytest.raises(ValueError, match="Site 'z' has no value"):
        d.log_prob(torch.tensor(0.0))


def test_programs_of_a_fixed_size():
    d = ModelMarginal(fixed_size, lambda x: pyro.sample("z", dist.Normal(x.sum(-1), 1.0)))
    with pytest.raises((ValueError, RuntimeError), match=r"expand|reshape|shape"):
        d.sample((4,))


def test_arguments_of_the_wrong_kind():
    with pytest.raises(ValueError, match="The guide of a ModelMarginal is a callable"):
        ModelMarginal(scalar_model, None)
    with pytest.raises(ValueError, match="The model of a ModelMarginal is a callable"):
        ModelMarginal(Decoder, scalar_guide)


def test_value_outside_the_support():
    program = BinaryAutoencoder()
    with pytest.raises(ValueError, match="support"):
        ModelMarginal(program.model, program.guide).log_prob(torch.tensor([0.5, 1.0]).double())


@pytest.mark.gpu
def test_on_a_gpu_it_stays_there():
    loc = torch.zeros(2, device="cuda", requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1))

    def guide(x):
        pyro.sample("z", dist.Normal((x - loc) / 2, 0.5**0.5).to_event(1))

    d = ModelMarginal(model, guide, validate_args=False)
    x, upper = d.sample_and_log_prob((5,))
    assert x.device == upper.device == d.log_prob(x).device == loc.device
    d.log_prob(x).sum().backward()
    assert loc.grad.isfinite().all()


@pytest.mark.parametrize(
    "reshape",
    [
        lambda p: SelfNormalizedImportance(p, torch.zeros_like, 1),
        lambda p: SelfNormalizedImportance(p, torch.zeros_like, 4),
        lambda p: TruncatedRejection(p, torch.zeros_like, 4),
        lambda p: TruncatedRejection(p, torch.zeros_like, 4, normalizer=0.5),
    ],
    ids=["snis of one", "snis", "trs", "trs with a normalizer"],
)
def test_tight_tightens_the_proposal_too(reshape):
    # a constant energy changes nothing, so that the proposal's density is left
    x = torch.full((100,), 1.5, dtype=torch.float64)
    d = reshape(ModelMarginal(scalar_model, lambda x: pyro.sample("z", dist.Normal(0 * x, 1.0))))
    assert d.density_kind == "lower"
    tight = d.tight(2000).log_prob(x)
    assert tight.mean().item() == pytest.approx(SCALAR.log_prob(x[0]).item(), abs=0.05)
    assert d.log_prob(x).mean() < tight.mean() - 0.2
