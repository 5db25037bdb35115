"""Semi-implicit guides: the textbook bound of the same draws, unbiased gradients, known evidence.

Statistical assertions use 5 standard errors, a false-alarm probability of 6e-7 each.
"""

import copy
import math
import pickle
from itertools import pairwise

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
from torch.distributions import Normal

from pyro_ext.distributions import AuxiliaryLost
from pyro_ext.infer import AutoSemiImplicit, MultiSampleELBO, dreg

ZERO = torch.zeros((), dtype=torch.float64)
DATA = torch.tensor([0.3, 1.7], dtype=torch.float64)


class Plated:
    """A positive scale, and a location for each of two data."""

    def __call__(self):
        scale = pyro.sample("scale", dist.LogNormal(ZERO, 0.5))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=DATA)

    def log_joint(self, u):
        log_scale, z = u[..., 0], u[..., 1:]
        local = Normal(ZERO, 1.0).log_prob(z)
        local = local + Normal(z, log_scale.exp().unsqueeze(-1)).log_prob(DATA)
        return Normal(ZERO, 0.5).log_prob(log_scale) + local.sum(-1)


MODEL = Plated()


def make(reverse, num_fresh=3, model=MODEL):
    guide = AutoSemiImplicit(model, (8,), 2, num_fresh, reverse, init_scale=0.5)
    guide()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return guide


def terms(guide, noise, z):
    """log of each weight of the bound."""
    log_w = Normal(guide.loc + guide.mixing_net(noise), guide.scale).log_prob(z).sum(-1)
    if guide.reverse:
        q, r = Normal(ZERO, 1.0), Normal(*guide.reverse_net(z))
        log_w = log_w + q.log_prob(noise).sum(-1) - r.log_prob(noise).sum(-1)
    return log_w


def textbook(guide, num_fresh, num_draws):
    """The bound by hand; the order of random numbers is that of a guide with many particles."""
    noise = torch.randn(num_draws, 2, dtype=torch.float64)
    loc = guide.loc + guide.mixing_net(noise)
    z = loc + guide.scale * torch.randn(num_draws, 3, dtype=torch.float64)
    log_w = [terms(guide, noise, z)]
    fresh = torch.randn(num_fresh, num_draws, 2, dtype=torch.float64)
    if guide.reverse:
        loc, scale = guide.reverse_net(z)
        fresh = loc + scale * fresh
    log_w += [terms(guide, one, z) for one in fresh]
    upper = torch.stack(log_w).logsumexp(0) - math.log(num_fresh + 1)
    return MODEL.log_joint(z) - upper


OBJECTIVES = [Trace_ELBO, TraceGraph_ELBO, enum, TraceMeanField_ELBO, multi_sample]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_textbook_bound_of_the_same_draws(objective, reverse):
    guide = make(reverse)
    elbo = objective(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    guide.get_posterior()  # whose construction draws, too
    elbo.loss(MODEL, guide)
    torch.manual_seed(2)
    loss = elbo.loss_and_grads(MODEL, guide)
    found = {name: p.grad for name, p in guide.named_parameters()}
    torch.manual_seed(2)
    torch.randn(2, dtype=torch.float64)  # what the construction draws
    bound = textbook(guide, 3, 50).mean()
    assert -loss == pytest.approx(bound.item())
    expected = torch.autograd.grad(-bound, list(guide.parameters()))
    for (name, grad), by_hand in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(grad, by_hand, msg=name)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("num_fresh", [0, 3])
def test_particles_one_by_one(reverse, num_fresh):
    guide = make(reverse, num_fresh)
    with torch.no_grad():
        ours = torch.tensor([-Trace_ELBO().loss(MODEL, guide) for _ in range(200)])
        other = textbook(guide, num_fresh, 20_000)
    error = math.hypot(ours.std() / 200**0.5, other.std() / 20_000**0.5)
    assert abs(ours.mean() - other.mean()) < 5 * error


def test_the_bound_rises_with_fresh_noise_below_the_evidence():
    nodes = torch.linspace(-4, 4, 2_001, dtype=torch.float64)
    z = torch.linspace(-6, 6, 601, dtype=torch.float64)
    local = Normal(ZERO, 1.0).log_prob(z) + Normal(z, nodes[::10, None, None].exp()).log_prob(
        DATA[:, None]
    )
    inner = (local.logsumexp(-1) + math.log(0.02)).sum(-1)
    outer = Normal(ZERO, 0.5).log_prob(nodes[::10]) + inner
    log_evidence = outer.logsumexp(0) + math.log(0.04)
    for reverse in (False, True):
        guide = make(reverse)
        bounds = []
        for num_fresh in (0, 2, 10, 50):  # of the same draws
            torch.manual_seed(3)
            with torch.no_grad():
                bounds.append(textbook(guide, num_fresh, 20_000))
        for looser, tighter in pairwise(bounds):
            rise = tighter - looser
            assert rise.mean() > 5 * rise.std() / len(rise) ** 0.5
        assert bounds[-1].mean() < log_evidence


@pytest.mark.parametrize("gradient", [None, dreg])
def test_in_a_bound_of_several_particles(gradient):
    guide = make(True, 2)
    options = {} if gradient is None else {"gradient": gradient}
    elbo = MultiSampleELBO(3, num_outer=50, max_plate_nesting=1, **options)
    draws, by_hand = [], []
    for _ in range(30):
        guide.zero_grad()
        loss = elbo.loss_and_grads(MODEL, guide)
        draws.append(torch.cat([torch.tensor([-loss]).double(), -guide.loc.grad]))
        bound = (textbook(guide, 2, 1_500).reshape(3, 500).logsumexp(0) - math.log(3)).mean()
        by_hand.append(torch.cat([bound.reshape(1), *torch.autograd.grad(bound, guide.loc)]))
    draws, by_hand = torch.stack(draws), torch.stack(by_hand).detach()
    error = ((draws.var(0) + by_hand.var(0)) / 30).sqrt()
    assert ((draws.mean(0) - by_hand.mean(0)).abs() < 5 * error).all()


def test_fits_two_modes_that_a_normal_misses():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z**2, 0.5), obs=torch.tensor(1.5))

    grid = torch.linspace(-5, 5, 4_001)
    log_joint = Normal(0.0, 1.0).log_prob(grid) + Normal(grid**2, 0.5).log_prob(torch.tensor(1.5))
    log_evidence = log_joint.logsumexp(0) + math.log(10 / 4_000)
    guide = AutoSemiImplicit(model, (20,), 3, 20, init_scale=1.0)
    elbo = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), elbo)
    for _ in range(800):
        svi.step()
    bound = -sum(elbo.loss(model, guide) for _ in range(40)) / 40
    # a normal in one of the modes stays log(2) = 0.69 nats below the evidence
    assert log_evidence - 0.4 < bound < log_evidence + 0.05
    z = Predictive(guide, num_samples=500)()["z"]
    assert 0.2 < (z < 0).float().mean() < 0.8


def test_sites_draws_and_quantiles():
    guide = make(True)
    draws = Predictive(guide, num_samples=4_000, parallel=True)()
    assert draws["scale"].flatten().shape == (4_000,)
    assert draws["z"].reshape(4_000, 2).shape == (4_000, 2)
    z = draws["z"].reshape(4_000, 2)
    guide.num_draws = 10_000
    median, quantiles = guide.median(), guide.quantiles([0.1, 0.9])
    assert median["z"].shape == (2,)
    assert quantiles["scale"].shape == (2,)
    assert ((z < median["z"]).double().mean(0) - 0.5).abs().max() < 0.06
    assert ((z < quantiles["z"][0]).double().mean(0) - 0.1).abs().max() < 0.04
    assert sorted(guide()) == ["scale", "z"]


def test_copies_and_states():
    guide = make(True)
    u = torch.zeros(4, 3, dtype=torch.float64)
    expected = guide.get_posterior().frozen(0).log_prob(u)
    twin = AutoSemiImplicit(MODEL, (8,), 2, 3, True)
    twin()
    twin.load_state_dict(guide.state_dict())
    for other in (twin, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert torch.equal(other.get_posterior().frozen(0).log_prob(u), expected)


def test_comes_back_from_the_store(tmp_path):
    guide = AutoSemiImplicit(MODEL, (8,), 2, 3, True)
    SVI(MODEL, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()

    def loss(guide):
        guide()
        pyro.set_rng_seed(0)
        return Trace_ELBO().loss(MODEL, guide)

    expected = loss(guide)
    pyro.get_param_store().save(tmp_path / "params")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    assert loss(AutoSemiImplicit(MODEL, (8,), 2, 3, True)) == expected


def test_starts_near_the_diagonal_normal():
    guide = AutoSemiImplicit(MODEL, num_fresh=20)
    guide()
    normal = AutoDiagonalNormal(MODEL)
    normal()
    assert torch.equal(guide.scale, normal.scale)
    assert guide.noise_dim == 10
    noise = torch.randn(1_000, 10, dtype=torch.float64)
    assert guide.mixing_net(noise).std() < 0.2


def test_wake_sleep_is_refused():
    with pytest.raises(AuxiliaryLost, match="detached before it was scored"):
        ReweightedWakeSleep(num_particles=2).loss_and_grads(MODEL, make(False))


def test_masked_programs_cost_no_density():
    guide = make(False)
    with poutine.mask(mask=False):
        trace = poutine.trace(guide).get_trace()
    assert trace.nodes["scale"]["fn"].log_density.sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_dim": 0}, "noise_dim must be an integer >= 1"),
        ({"hidden_dims": (3, 0)}, "each size in hidden_dims"),
        ({"num_fresh": -1}, "num_fresh must be an integer >= 0"),
        ({"init_scale": -1.0}, "init_scale must be a positive number"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        AutoSemiImplicit(MODEL, **options)


@pytest.mark.gpu
def test_on_a_gpu():
    data = DATA.cuda()

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros_like(data[0]), 1.0))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    guide = AutoSemiImplicit(model, reverse=True)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({}), elbo).step())
    assert guide.median()["z"].is_cuda
