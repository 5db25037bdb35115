"""Hamiltonian guides: the textbook bound of the same draws, gradients by hand, known evidence.

Statistical assertions use 5 standard errors, a false-alarm probability of 6e-7 each.
"""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from objectives import enum, multi_sample
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from pyro_ext.distributions import AuxiliaryLost
from pyro_ext.infer import AutoHamiltonian, MultiSampleELBO

ZERO = torch.zeros((), dtype=torch.float64)
DATA = torch.tensor([0.3, 1.7], dtype=torch.float64)


class Plated:
    """A positive scale, a location for each of two data, and a parameter."""

    def __init__(self):
        self.shift = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def __call__(self):
        scale = pyro.sample("scale", dist.LogNormal(ZERO, 0.5))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=DATA)

    def log_joint(self, u):
        log_scale, z = u[..., 0], u[..., 1:]
        local = Normal(self.shift, 1.0).log_prob(z)
        local = local + Normal(z, log_scale.exp().unsqueeze(-1)).log_prob(DATA)
        return Normal(ZERO, 0.5).log_prob(log_scale) + local.sum(-1)


def make(model, **kwargs):
    options = {"step_size": torch.tensor([0.2, 0.3, 0.4]), "tempering": [0.8, 0.9]}
    guide = AutoHamiltonian(model, 2, hidden_dims=(8,), init_scale=0.5, **(options | kwargs))
    guide()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return guide


def textbook(guide, model, num_draws):
    """The bound by hand; the order of random numbers is that of a guide with many particles."""
    sampler = guide.sampler
    start = guide.loc + guide.scale * torch.randn(num_draws, 3, dtype=torch.float64)
    first = torch.randn(num_draws, 3, dtype=torch.float64)
    z, momentum = start, first / sampler.tempering.prod()
    force = None
    for alpha in sampler.tempering:
        for half in (0, 1):
            if half or force is None:
                force = torch.autograd.grad(model.log_joint(z).sum(), z, create_graph=True)[0]
            momentum = momentum + sampler.step_size / 2 * force
            z = z if half else z + sampler.step_size * momentum
        momentum = alpha * momentum
    loc, scale = sampler.momentum_net(z)
    bound = model.log_joint(z) + Normal(loc, scale).log_prob(momentum).sum(-1)
    bound = bound - Normal(guide.loc, guide.scale).log_prob(start).sum(-1)
    return bound - Normal(ZERO, 1.0).log_prob(first).sum(-1)


@pytest.mark.parametrize(
    "objective", [Trace_ELBO, TraceGraph_ELBO, enum, TraceMeanField_ELBO, multi_sample]
)
def test_equals_the_textbook_bound_of_the_same_draws(objective):
    model = Plated()
    guide = make(model)
    elbo = objective(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    elbo.loss(model, guide)  # some first count plates in a run of the guide
    torch.manual_seed(2)
    loss = elbo.loss_and_grads(model, guide)
    leaves = {**dict(guide.named_parameters()), "shift": model.shift}
    found = {name: leaf.grad for name, leaf in leaves.items()}
    torch.manual_seed(2)
    bound = textbook(guide, model, 50).mean()
    assert -loss == pytest.approx(bound.item())
    expected = torch.autograd.grad(-bound, list(leaves.values()))
    for (name, grad), by_hand in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(grad, by_hand, msg=name)


def test_particles_one_by_one():
    model = Plated()
    guide = make(model)
    ours = torch.tensor([-Trace_ELBO().loss(model, guide) for _ in range(200)])
    other = textbook(guide, model, 20_000).detach()
    error = math.hypot(ours.std() / 200**0.5, other.std() / 20_000**0.5)
    assert abs(ours.mean() - other.mean()) < 5 * error


def test_in_a_bound_of_several_particles():
    model = Plated()
    guide = make(model)
    elbo = MultiSampleELBO(3, num_outer=2_000, max_plate_nesting=1)
    with torch.no_grad():
        ours = torch.tensor([-elbo.loss(model, guide) for _ in range(10)])
    rows = textbook(guide, model, 60_000).detach().reshape(3, -1).logsumexp(0) - math.log(3)
    error = math.hypot(ours.std() / 10**0.5, rows.std() / len(rows) ** 0.5)
    assert abs(ours.mean() - rows.mean()) < 5 * error


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 5)])
def test_the_potential_is_that_of_the_model(lead):
    model = Plated()
    potential = make(model).get_posterior().potential
    u = torch.randn(*lead, 3, dtype=torch.float64)
    torch.testing.assert_close(potential(u), -model.log_joint(u))


class Correlated:
    """A regression, whose posterior is normal: weights of two nearly equal features."""

    x = torch.tensor([[1.0, 1.1], [0.9, 1.0], [-1.0, -0.8], [0.2, 0.1]], dtype=torch.float64)
    y = torch.tensor([0.9, 1.2, -0.7, 0.1], dtype=torch.float64)

    def __call__(self, subsample_size=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        with pyro.plate("data", 4, subsample_size=subsample_size) as index:
            mean = (self.x[index] * w).sum(-1)
            pyro.sample("y", dist.Normal(mean, 0.5), obs=self.y[index])

    @property
    def log_evidence(self):
        covariance = self.x @ self.x.mT + 0.25 * torch.eye(4).double()
        return MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(self.y).item()


def fit(guide, model, num_steps, *args):
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    for _ in range(num_steps):
        svi.step(*args)
    judge = Trace_ELBO(num_particles=1_000, vectorize_particles=True, max_plate_nesting=1)
    losses = torch.tensor([-judge.loss(model, guide, *args) for _ in range(20)])
    return losses.mean().item(), losses.std().item() / 20**0.5


def test_correlations_that_a_diagonal_normal_cannot_learn():
    model = Correlated()
    guide = AutoHamiltonian(model, 5, step_size=0.2, hidden_dims=(20,), init_scale=0.3)
    bound, error = fit(guide, model, 600)
    normal, _ = fit(AutoDiagonalNormal(model), model, 1_000)
    # the best diagonal normal is 0.84 nats below the evidence, by its closed form
    assert normal < model.log_evidence - 0.8
    assert model.log_evidence - 0.6 < bound < model.log_evidence + 5 * error
    draws = Predictive(guide, num_samples=4_000, parallel=True)()["w"].reshape(-1, 2)
    assert draws.T.corrcoef()[0, 1] < -0.5  # of the posterior: -0.91


def test_subsampled_data_make_a_looser_bound():
    model = Correlated()
    guide = AutoHamiltonian(model, 2, step_size=0.05, hidden_dims=(20,))
    bound, error = fit(guide, model, 100, 2)
    assert model.log_evidence - 10 < bound < model.log_evidence + 5 * error


def test_the_posterior_knows_its_data():
    def model(x):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    guide = AutoHamiltonian(model, 4, step_size=0.2, init_scale=0.5)
    means = [guide.get_posterior(x).sample((2_000,)).mean() for x in map(guide_input(guide), DATA)]
    assert means[1] - means[0] > 0.5
    low, high = guide.quantiles([0.1, 0.9], DATA[0])["z"]
    assert low < guide.median(DATA[0])["z"] < high


def guide_input(guide):
    def call(x):
        guide(x)
        return x

    return call


# As an automatic guide among others.


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1).double()

    def forward(self, z):
        return self.layer(z.unsqueeze(-1)).squeeze(-1)


def test_a_network_of_the_model_is_trained_and_not_owned():
    net = Net()

    def model():
        pyro.module("net", net)
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(net(z), 0.5), obs=DATA[0])

    guide = AutoHamiltonian(model, 2)
    before = net.layer.weight.clone()
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step()
    assert (net.layer.weight != before).all()
    assert not {id(p) for p in net.parameters()} & {id(p) for p in guide.parameters()}


def test_handlers_outside_do_not_see_the_model():
    guide = make(Plated())
    trace = poutine.trace(guide).get_trace()
    assert "x" not in trace.nodes
    seeded = poutine.condition(guide, data={"x": DATA})
    assert sorted(seeded()) == ["scale", "z"]


def test_states_and_pickles():
    model = Plated()
    model.shift = model.shift.detach()  # Pyro's automatic guides copy the values they saw
    guide = make(model)
    u = torch.zeros(4, 3, dtype=torch.float64)
    expected = guide.get_posterior().frozen(0).log_prob(u)
    twin = AutoHamiltonian(model, 2, hidden_dims=(8,))
    twin()
    twin.load_state_dict(guide.state_dict())
    assert torch.equal(twin.get_posterior().frozen(0).log_prob(u), expected)
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert other.state_dict().keys() == guide.state_dict().keys()
        with pytest.raises(RuntimeError, match="needs its model"):
            other.get_posterior()


def test_comes_back_from_the_store(tmp_path):
    model = Plated()
    guide = AutoHamiltonian(model, 2, hidden_dims=(8,))
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()

    def loss(guide):
        guide()
        pyro.set_rng_seed(0)
        return Trace_ELBO().loss(model, guide)

    expected = loss(guide)
    pyro.get_param_store().save(tmp_path / "params")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    assert loss(AutoHamiltonian(model, 2, hidden_dims=(8,))) == expected


def test_what_is_not_learned_stays():
    guide = make(Plated(), learn_step_size=False, learn_tempering=False)
    names = {name for name, _ in guide.named_parameters()}
    assert not any("step_size" in name or "tempering" in name for name in names)


# Bad input.


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.1), obs=y)


def test_predictions_take_two_steps():
    x = torch.randn(30, 2)
    y = x @ torch.tensor([1.0, -0.5])
    guide = AutoHamiltonian(regression, 2, step_size=0.01)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 3e-2}), Trace_ELBO())
    for _ in range(150):
        svi.step(x, y)
    with pytest.raises(ValueError, match=r"draws \['y'\] freely.*posterior_samples"):
        Predictive(regression, guide=guide, num_samples=3)(x)
    posterior = Predictive(guide, num_samples=50)(x, y)
    drawn = Predictive(regression, posterior)(x)["y"].mean(0)
    assert (drawn - y).abs().max() < 0.3


def test_models_that_do_not_vectorise_say_so():
    x = torch.randn(30, 2)
    guide = AutoHamiltonian(regression, 2, step_size=0.01)
    guide(x, x[:, 0])
    with pytest.raises(ValueError, match=r"does not run on 1000 draws at once.*from the right"):
        guide.median(x, x[:, 0])


def test_sites_left_to_others_are_refused():
    def model():
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        y = pyro.sample("y", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(y, 1.0), obs=DATA[0])

    with pytest.raises(ValueError, match="log joint density of the model is random"):
        AutoHamiltonian(poutine.block(model, hide=["y"]))()


def test_wake_sleep_is_refused():
    model = Plated()
    with pytest.raises(AuxiliaryLost, match="detached before it was scored"):
        ReweightedWakeSleep(num_particles=2).loss_and_grads(model, make(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"step_size": -0.1}, "step_size"),
        ({"tempering": 1.5}, "tempering"),
        ({"tempering": 0.0}, "tempering"),
        ({"hidden_dims": (0,)}, "each size in hidden_dims"),
        ({"init_scale": 0.0}, "init_scale must be a positive number"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        AutoHamiltonian(Plated(), **options)


def test_step_sizes_of_another_number_of_latents():
    with pytest.raises(ValueError, match="the model has 3 unconstrained latent variables"):
        AutoHamiltonian(Plated(), step_size=torch.tensor([0.1, 0.1]))()


def test_latent_sites_of_a_subsample_are_refused():
    def model():
        with pyro.plate("data", 10, subsample_size=2):
            pyro.sample("z", dist.Normal(ZERO, 1.0))

    with pytest.raises(ValueError, match="'z' lies inside of plate 'data', which is subsampled"):
        AutoHamiltonian(model)()


@pytest.mark.gpu
def test_on_a_gpu():
    data = DATA.cuda()

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros_like(data[0]), 1.0))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    guide = AutoHamiltonian(model)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({}), elbo).step())
    assert guide.median()["z"].is_cuda
