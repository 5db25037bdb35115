"""Guides that a sampler reshapes, against quadrature over everything that they draw.

Statistical assertions use 5 standard errors, a false-alarm probability of 6e-7 each.
"""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from objectives import enum, multi_sample
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import (
    SVI,
    Importance,
    Predictive,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn
from torch.distributions import Normal

from pyro_ext.distributions import AuxiliaryLost, ImportanceSampler, SelfNormalizedImportance
from pyro_ext.infer import AutoEnergyInspired, MultiSampleELBO, pathwise, rws
from pyro_ext.nn import EnergyNet

ZERO = torch.zeros((), dtype=torch.float64)
DATA = torch.tensor([0.3, 1.7], dtype=torch.float64)


# Models, with their log joint density in unconstrained space.


class Curved:
    """One latent number."""

    latent_dim, max_plate_nesting = 1, 0

    def __call__(self):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z**2 / 2 + z, 0.8), obs=DATA[1])

    def log_joint(self, u):
        z = u[..., 0]
        return Normal(ZERO, 1.0).log_prob(z) + Normal(z**2 / 2 + z, 0.8).log_prob(DATA[1])


class Plated:
    """A latent number in (0, 1) for each of two data, and none outside of the plate."""

    latent_dim, max_plate_nesting = 2, 1

    def __call__(self):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Beta(ZERO + 2, 2.0))
            pyro.sample("x", dist.Normal(z, 0.4), obs=DATA)

    def log_joint(self, u):
        z = u.sigmoid()
        prior = (6 * z * (1 - z)).log() + (z * (1 - z)).log()
        return (prior + Normal(z, 0.4).log_prob(DATA)).sum(-1)


class Located:
    """A location and a positive scale of subsampled data."""

    latent_dim, max_plate_nesting = 2, 1

    def __call__(self):
        loc = pyro.sample("loc", dist.Normal(ZERO, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(ZERO, 0.3))
        with pyro.plate("data", 2, subsample_size=1) as index:
            pyro.sample("x", dist.Normal(loc, scale), obs=DATA[index])

    def log_joint(self, u):
        loc, log_scale = u[..., :1], u[..., 1:]
        prior = Normal(ZERO, 1.0).log_prob(loc) + Normal(ZERO, 0.3).log_prob(log_scale)
        return prior.squeeze(-1) + Normal(loc, log_scale.exp()).log_prob(DATA).sum(-1)


MODELS = [Curved(), Plated(), Located()]
by_model = pytest.mark.parametrize("model", MODELS, ids=["curved", "plated", "located"])


class Wave(nn.Module):
    """An energy with one parameter."""

    def __init__(self):
        super().__init__()
        self.height = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, u):
        return self.height * (2 * u).sin().sum(-1)


class ScoreOnly(ImportanceSampler):
    """Whose proposals have no path."""

    def forward(self, proposal):
        base = proposal.base_dist
        return super().forward(NonreparameterizedNormal(base.loc, base.scale).to_event(1))


def make(model, sampler=ImportanceSampler):
    guide = AutoEnergyInspired(model, sampler(Wave(), 2), init_scale=0.7)
    with torch.no_grad():
        guide()
        guide.loc.copy_(torch.tensor([0.4, -0.2], dtype=torch.float64)[: model.latent_dim])
    return guide


# The truth: all that the guide draws, two candidates and an index, summed out by quadrature.


def quadrature(guide, model, num_nodes):
    """Terms of the bound for each pair of candidates and index, with their probabilities."""
    dim = model.latent_dim
    nodes, weights = (torch.from_numpy(x) for x in hermegauss(num_nodes))
    weights = weights / weights.sum()
    noise = torch.cartesian_prod(*[nodes] * (2 * dim)).reshape(-1, 2, dim)
    mass = torch.cartesian_prod(*[weights] * (2 * dim)).prod(-1)
    z = guide.loc + guide.scale * noise
    log_pi = Normal(guide.loc, guide.scale).log_prob(z).sum(-1)
    log_w = -guide.sampler.energy(z)
    upper = log_pi + log_w - log_w.logsumexp(-1, keepdim=True) + math.log(2)
    return mass.unsqueeze(-1) * log_w.softmax(-1), model.log_joint(z) - upper


def expected(guide, model):
    probs, terms = quadrature(guide, model, 24 if model.latent_dim == 1 else 11)
    return (probs * terms).sum()


def expected_iwae(guide, model):
    probs, terms = (x.flatten() for x in quadrature(guide, model, 20))
    pairs = torch.logaddexp(terms.unsqueeze(1), terms) - math.log(2)
    return (probs.unsqueeze(1) * probs * pairs).sum()


def parameters(guide):
    return [guide.loc, guide.scale_unconstrained, guide.sampler.energy.height]


def gradient(value, guide):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters(guide))])


def estimates(elbo, model, guide, num_draws):
    """Values of the bound and its gradients."""
    draws = []
    for _ in range(num_draws):
        guide.zero_grad()
        loss = elbo.loss_and_grads(model, guide)
        grads = [p.grad.flatten() for p in parameters(guide)]
        draws.append(torch.cat([torch.tensor([-loss]).double(), *(-g for g in grads)]))
    return torch.stack(draws)


def assert_mean(draws, truth):
    error = draws.std(0) / len(draws) ** 0.5
    z = ((draws.mean(0) - truth) / error).abs()
    assert z.max() < 5, (draws.mean(0), truth, z)


def vectorized(elbo, model, num_particles=400):
    nesting = model.max_plate_nesting
    return elbo(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=nesting)


OBJECTIVES = [Trace_ELBO, TraceGraph_ELBO, enum, multi_sample]


# A multi-sample bound refuses a subsample that its weights do not keep.
PAIRS = [
    pytest.param(objective, model, id=f"{objective.__name__}-{type(model).__name__}")
    for objective in OBJECTIVES
    for model in MODELS
    if not (objective is multi_sample and isinstance(model, Located))
]


@pytest.mark.parametrize(("objective", "model"), PAIRS)
@pytest.mark.parametrize("sampler", [ImportanceSampler, ScoreOnly], ids=["path", "score"])
def test_value_and_gradient_are_unbiased(model, sampler, objective):
    guide = make(model, sampler)
    truth = expected(guide, model)
    truth = torch.cat([truth.detach().reshape(1), gradient(truth, guide)])
    assert_mean(estimates(vectorized(objective, model), model, guide, 30), truth)


@by_model
def test_quadrature_has_converged(model):
    guide = make(model)
    probs, terms = quadrature(guide, model, 17)
    assert abs((probs * terms).sum() - expected(guide, model)) < 1e-3


@pytest.mark.parametrize(("objective", "model"), PAIRS)
def test_particles_one_by_one_give_the_same_bound(objective, model):
    guide = make(model)
    elbo = objective(
        num_particles=1, vectorize_particles=False, max_plate_nesting=model.max_plate_nesting
    )
    with torch.no_grad():
        values = torch.tensor([-elbo.loss(model, guide) for _ in range(100)]).double()
        assert_mean(values, expected(guide, model))


@pytest.mark.parametrize("sampler", [ImportanceSampler, ScoreOnly], ids=["path", "score"])
def test_in_a_bound_of_several_particles(sampler):
    model = Curved()
    guide = make(model, sampler)
    truth = expected_iwae(guide, model)
    truth = torch.cat([truth.detach().reshape(1), gradient(truth, guide)])
    elbo = MultiSampleELBO(2, num_outer=400, max_plate_nesting=0)
    assert_mean(estimates(elbo, model, guide, 30), truth)


class Mixture(Curved):
    """With a discrete variable that the model sums out."""

    def __call__(self):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        probs = torch.tensor([0.3, 0.7], dtype=torch.float64)
        y = pyro.sample("y", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z + y, 0.8), obs=DATA[1])

    def log_joint(self, u):
        z = u[..., 0]
        likelihood = torch.stack([Normal(z + y, 0.8).log_prob(DATA[1]) for y in (0.0, 1.0)])
        weights = torch.tensor([0.3, 0.7], dtype=torch.float64).log().reshape(2, 1, 1)
        return Normal(ZERO, 1.0).log_prob(z) + (likelihood + weights).logsumexp(0)


@pytest.mark.parametrize("objective", [TraceEnum_ELBO, multi_sample], ids=["enum", "multi_sample"])
def test_beside_an_enumerated_site(objective):
    model = Mixture()
    guide = AutoEnergyInspired(
        poutine.block(model, hide=["y"]), ImportanceSampler(Wave(), 2), init_scale=0.7
    )
    with torch.no_grad():
        guide()
    truth = expected(guide, model)
    truth = torch.cat([truth.detach().reshape(1), gradient(truth, guide)])
    assert_mean(estimates(vectorized(objective, model), model, guide, 30), truth)


def test_scaled_programs_are_scaled_alike():
    model = Plated()
    guide = make(model)
    truth = expected(guide, model)
    truth = 3 * torch.cat([truth.detach().reshape(1), gradient(truth, guide)])
    scaled = [poutine.scale(program, 3.0) for program in (model, guide)]
    elbo = vectorized(Trace_ELBO, model)
    draws = []
    for _ in range(30):
        guide.zero_grad()
        loss = elbo.loss_and_grads(*scaled)
        grads = [-p.grad.flatten() for p in parameters(guide)]
        draws.append(torch.cat([torch.tensor([-loss]).double(), *grads]))
    assert_mean(torch.stack(draws), truth)


# Other samplers.


class OwnWeights(nn.Module):
    """Importance sampling with the weights of the model, and a base without parameters."""

    def __init__(self, model, num_proposals):
        super().__init__()
        self.model, self.num_proposals = model, num_proposals

    def forward(self, proposal):
        def energy(u):
            return proposal.log_prob(u) - self.model.log_joint(u)

        return SelfNormalizedImportance(proposal, energy, self.num_proposals)


@by_model
def test_importance_sampling_with_own_weights_is_the_importance_weighted_bound(model):
    guide = AutoEnergyInspired(model, OwnWeights(model, 4), init_scale=0.9)
    elbo = vectorized(Trace_ELBO, model, 500)
    with torch.no_grad():
        guide()
        ours = torch.tensor([-elbo.loss(model, guide) for _ in range(40)])
        base = guide.get_base_dist()
        u = base.sample((20_000, 4))
        log_w = model.log_joint(u) - base.log_prob(u)
        bound = log_w.logsumexp(1) - math.log(4)
    difference = ours.mean() - bound.mean()
    error = math.hypot(ours.std() / len(ours) ** 0.5, bound.std() / len(bound) ** 0.5)
    # in the subsampled model the noise of the subsample is in both the density and the weights
    assert abs(difference) < 5 * error


def test_draws_follow_the_posterior():
    model = Curved()
    guide = AutoEnergyInspired(model, OwnWeights(model, 200), init_scale=1.5)
    draws = Predictive(guide, num_samples=5_000, parallel=True)()["z"].flatten()
    grid = torch.linspace(-6, 6, 4_001, dtype=torch.float64)
    weights = model.log_joint(grid.unsqueeze(-1)).softmax(0)
    mean = (weights * grid).sum()
    assert abs(draws.mean() - mean) < 5 * draws.std() / 5_000**0.5 + 0.01
    guide.num_draws = 10_000
    median = grid[(weights.cumsum(0) < 0.5).sum()]
    assert abs(guide.median()["z"] - median) < 0.06  # 5 standard errors of 10,000 draws
    quantiles = guide.quantiles([0.1, 0.9])["z"]
    assert (
        quantiles - grid[(weights.cumsum(0) < torch.tensor([[0.1], [0.9]])).sum(-1)]
    ).abs().max() < 0.12


class DoubleWell(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.0, -1.0, 0.3]))

    def forward(self, u):
        u = u.squeeze(-1)
        return torch.stack([u, u**2, u**4], -1) @ self.weights


def test_learns_a_posterior_of_two_modes():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z**2, 0.5), obs=torch.tensor(1.5))

    grid = torch.linspace(-5, 5, 4_001)
    log_joint = Normal(0.0, 1.0).log_prob(grid) + Normal(grid**2, 0.5).log_prob(torch.tensor(1.5))
    log_evidence = log_joint.logsumexp(0) + math.log(10 / 4_000)
    guide = AutoEnergyInspired(model, ImportanceSampler(DoubleWell(), 20), init_scale=1.0)
    elbo = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-2}), elbo)
    for _ in range(200):
        svi.step()
    bound = -sum(elbo.loss(model, guide) for _ in range(40)) / 40
    # a normal in one of the modes stays log(2) = 0.69 nats below the evidence
    assert log_evidence - 0.5 < bound < log_evidence + 0.05
    z = Predictive(guide, num_samples=500)()["z"]
    assert 0.2 < (z < 0).float().mean() < 0.8


# As an automatic guide among others.


class Local:
    """A global site, and a local one for each datum of a subsample."""

    def __call__(self):
        loc = pyro.sample("loc", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)


def composite(model):
    guide = AutoGuideList(model)
    outer = poutine.block(model, hide=["z"])
    guide.append(AutoEnergyInspired(outer, ImportanceSampler(Wave(), 2), init_scale=0.7))
    guide.append(AutoNormal(poutine.block(model, expose=["z"]), init_scale=0.7))
    return guide


@pytest.mark.parametrize(
    "elbo",
    [
        MultiSampleELBO(3, num_outer=2, max_plate_nesting=1),
        MultiSampleELBO(3, num_outer=2, max_plate_nesting=1, vectorize_particles=False),
    ],
    ids=["vectorized", "sequential"],
)
def test_shared_by_the_particles_of_a_nested_bound(elbo):
    model = Local()
    guide = composite(model)
    with torch.no_grad():
        values = torch.tensor([-elbo.loss(model, guide) for _ in range(200)])
        part = guide[0]
        density = part.get_posterior().expand((60_000,))
        loc = density()
        upper = density.score_parts(loc).log_prob
        q = Normal(guide[1].locs.z, guide[1].scales.z)
        z = q.sample((60_000, 3))
        log_w = Normal(loc.unsqueeze(1), 1.0).log_prob(z) + Normal(z, 1.0).log_prob(DATA)
        inner = ((log_w - q.log_prob(z)).logsumexp(1) - math.log(3)).sum(-1)
        terms = inner + Normal(ZERO, 1.0).log_prob(loc.squeeze(-1)) - upper
    error = math.hypot(values.std() / 200**0.5, terms.std() / 60_000**0.5)
    assert abs(values.mean() - terms.mean()) < 5 * error


def test_predictive_of_the_model_takes_its_draws():
    model = Plated()
    guide = make(model)

    def generative():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Beta(ZERO + 2, 2.0))
            pyro.sample("y", dist.Normal(z, 0.8))

    for parallel in (True, False):
        draws = Predictive(generative, guide=guide, num_samples=5, parallel=parallel)()
        assert draws["y"].shape == (5, 2)
    alone = Predictive(guide, num_samples=5)()
    assert alone["z"].shape == (5, 2)
    assert (alone["z"] > 0).all()


@pytest.mark.parametrize("local", [True, False])
def test_trains_with_svi_and_comes_back_from_the_store(local, tmp_path):
    with pyro.settings.context(module_local_params=local):
        model = Plated()
        guide = make(model)
        before = [p.detach().clone() for p in parameters(guide)]
        if local:
            Trace_ELBO()(model, guide)().backward()
            torch.optim.Adam(guide.parameters(), lr=1e-2).step()
        else:
            SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step()
        assert all((b != p).all() for b, p in zip(before, parameters(guide), strict=True))
        twin = make(model)
        twin.load_state_dict(guide.state_dict())
        u = torch.zeros(3, 2, dtype=torch.float64)

        def loss(guide):
            guide()
            pyro.set_rng_seed(0)
            return Trace_ELBO().loss(model, guide)

        expected_log_prob = guide.get_posterior().frozen(0).log_prob(u)
        assert torch.equal(twin.get_posterior().frozen(0).log_prob(u), expected_log_prob)
        for other in (pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)):
            assert torch.equal(other.get_posterior().frozen(0).log_prob(u), expected_log_prob)
        if not local:
            value = loss(guide)
            pyro.get_param_store().save(tmp_path / "params")
            pyro.clear_param_store()
            pyro.get_param_store().load(tmp_path / "params")
            third = AutoEnergyInspired(model, ImportanceSampler(Wave(), 2))
            assert loss(third) == value


def test_the_function_is_called_once_and_its_module_follows_the_latents():
    calls = []

    def sampler(latent_dim):
        calls.append(latent_dim)
        return ImportanceSampler(EnergyNet(latent_dim, (5,)), 3)

    guide = AutoEnergyInspired(Plated(), sampler)
    guide()
    guide()
    assert calls == [2]
    assert guide.sampler.energy.layers[0].weight.dtype == torch.float64
    pickle.dumps(guide)


def test_masked_programs_cost_no_density():
    guide = make(Plated())
    with poutine.mask(mask=False):
        trace = poutine.trace(guide).get_trace()
    assert trace.nodes["z"]["fn"].log_density.sum() == 0


# Objectives that know other things.


def test_mean_field_elbo_refuses_discrete_choices():
    model = Curved()
    with pytest.raises(NotImplementedError, match="reparameterized"):
        TraceMeanField_ELBO().loss_and_grads(model, make(model))


def test_wake_sleep_is_refused():
    model = Curved()
    elbo = ReweightedWakeSleep(num_particles=2)
    with pytest.raises(AuxiliaryLost, match="detached before it was scored"):
        elbo.loss_and_grads(model, make(model))


def test_pathwise_estimator_is_refused():
    model = Curved()
    with pytest.raises(ValueError, match="not reparameterised"):
        MultiSampleELBO(2, gradient=pathwise).loss_and_grads(model, make(model))


def test_reweighted_wake_sleep_would_follow_the_path():
    model = Curved()
    elbo = MultiSampleELBO(2, gradient=rws, max_plate_nesting=0)
    with pytest.raises(ValueError, match="where a stochastic density draws along paths"):
        elbo.loss_and_grads(model, make(model))

    def by_hand():
        base = dist.Normal(pyro.param("loc", ZERO), 1.0)
        pyro.sample("z", SelfNormalizedImportance(base, torch.square, 3).to_event(0))

    with pytest.raises(ValueError, match="where a stochastic density draws along paths"):
        elbo.loss_and_grads(model, by_hand)


def test_importance_weighs_with_the_upper_bound():
    model = Curved()
    guide = make(model)
    grid = torch.linspace(-8, 8, 4_001, dtype=torch.float64).unsqueeze(-1)
    evidence = (model.log_joint(grid).logsumexp(0) + math.log(16 / 4_000)).exp()
    run = Importance(model, guide, num_samples=800).run()
    weights = torch.stack(run.log_weights).detach().exp()
    assert abs(weights.mean() - evidence) < 5 * weights.std() / 800**0.5


# Bad input.


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="sampler must be a module"):
        AutoEnergyInspired(Curved(), 3)
    with pytest.raises(ValueError, match="init_scale must be a positive number"):
        AutoEnergyInspired(Curved(), ImportanceSampler(Wave()), init_scale=0)


@pytest.mark.parametrize(
    "sampler",
    [
        lambda dim: None,
        lambda dim: nn.Identity(),
        lambda dim: lambda base: base.expand((3,)),
        EnergyNet,
        EnergyNet(1),
    ],
)
def test_a_sampler_must_return_a_stochastic_density(sampler):
    guide = AutoEnergyInspired(Curved(), sampler)
    with pytest.raises(ValueError, match=r"sampler must map the base distribution|A sampler takes"):
        guide()


def test_energies_of_another_size_say_so():
    guide = AutoEnergyInspired(Plated(), ImportanceSampler(EnergyNet(3)))
    with pytest.raises(ValueError, match=r"events of shape \(3,\)"):
        guide()


def test_latent_sites_of_a_subsample_are_refused():
    def model():
        with pyro.plate("data", 10, subsample_size=2):
            pyro.sample("z", dist.Normal(ZERO, 1.0))

    with pytest.raises(ValueError, match="'z' lies inside of plate 'data', which is subsampled"):
        AutoEnergyInspired(model, ImportanceSampler(Wave()))()


@pytest.mark.gpu
def test_on_a_gpu():
    data = DATA.cuda()

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros_like(data[0]), 1.0))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    guide = AutoEnergyInspired(model, lambda dim: ImportanceSampler(EnergyNet(dim), 5))
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({}), elbo).step())
    assert guide.median()["z"].is_cuda
