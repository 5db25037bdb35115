"""Many draws at once: memory, chunks, what is remembered; and who is refused.

Goodness-of-fit assertions are Kolmogorov-Smirnov tests at a false-alarm probability of 1e-6.
"""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.mcmc import HMC, MCMC, NUTS
from scipy import stats

from pyro_ext.distributions import (
    AuxiliaryLost,
    HamiltonianImportance,
    LearnedAcceptReject,
    ModelMarginal,
    SelfNormalizedImportance,
    TruncatedRejection,
    stochastic_density,
)
from pyro_ext.distributions.semi_implicit import SemiImplicit
from pyro_ext.nn import MovingNormalizer

ALARM = 1e-6
GRID = torch.linspace(-9, 9, 1801, dtype=torch.float64)
STEP = GRID[1] - GRID[0]


def normal(loc=0.0):
    return dist.Normal(torch.as_tensor(loc, dtype=torch.float64), 1.0)


def energy(x):
    return -1.5 * torch.sin(2 * x)


def slope(x):
    return -x


def snis(loc=0.0, num_proposals=2):
    return SelfNormalizedImportance(normal(loc), energy, num_proposals)


def trs(loc=0.0, **kwargs):
    return TruncatedRejection(normal(loc), lambda x: energy(x) - 1, 4, **kwargs)


def his(loc=0.0):
    return HamiltonianImportance(normal(loc), slope, 1, 1.0, 1.0)


def semi_implicit(loc=0.0):
    return SemiImplicit(normal(loc), lambda psi: dist.Normal(psi, 1.0))


def marginal(loc=0.0):
    loc = torch.as_tensor(loc, dtype=torch.float64)

    def model():
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(loc, 1.0)), 1.0))

    return ModelMarginal(model, lambda x: pyro.sample("z", dist.Normal((x + loc) / 2, 1.0)))


DENSITIES = {
    "snis": snis,
    "trs": trs,
    "his": his,
    "semi_implicit": semi_implicit,
    "marginal": marginal,
}
every_density = pytest.mark.parametrize("make", DENSITIES.values(), ids=DENSITIES)


def density_of(name):
    """The exact density on the grid."""
    pi, w = normal().log_prob(GRID).exp(), (-energy(GRID)).exp()
    if name == "snis":
        return (2 * pi[:, None] * w[:, None] / (w[:, None] + w) * pi * STEP).sum(1)
    if name == "trs":
        accept = (energy(GRID) - 1).sigmoid()
        rejected = 1 - (pi * accept).sum() * STEP
        return pi * (accept * (1 + rejected + rejected**2) + rejected**3)
    loc = 0.5 if name == "his" else 0.0
    return dist.Normal(loc, 2**0.5).log_prob(GRID).exp()


def assert_drawn_from(x, density):
    cumulative = (density * STEP).cumsum(0) - density * STEP / 2
    assert cumulative[-1].item() == pytest.approx(1, abs=1e-5)
    table = GRID.numpy(), cumulative.numpy()
    assert stats.kstest(x.numpy(), lambda v: np.interp(v, *table)).pvalue > ALARM


def draw_little(monkeypatch, numbers):
    monkeypatch.setattr(stochastic_density, "MOST_NUMBERS", numbers)
    monkeypatch.setattr(stochastic_density, "CHUNK", numbers)


@pytest.fixture
def small_chunks(monkeypatch):
    """Draws come in chunks of a few."""
    draw_little(monkeypatch, 1000)


# Chunks.


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("in_chunks", [True, False])
def test_draws_against_quadrature(name, in_chunks, monkeypatch):
    if in_chunks:
        draw_little(monkeypatch, 20_000)
    x = DENSITIES[name]().sample((50_000,))
    assert_drawn_from(x, density_of(name))
    assert x.unique().numel() > 49_000  # no chunk is repeated


@every_density
def test_chunks_keep_shapes_places_and_dtype(make, small_chunks):
    locs = torch.tensor([[0.0], [1000.0], [-1000.0]])
    d = make(locs.double()).expand((3, 2))
    x = d.sample((7, 101))
    assert x.shape == (7, 101, 3, 2)
    assert x.dtype == torch.float64
    assert not x.requires_grad
    assert ((x - locs).abs() < 100).all()
    assert x.unique().numel() == x.numel()


@every_density
def test_draws_in_chunks_are_not_remembered(make, small_chunks):
    d = make()
    x = d.sample((2000,))
    assert d.log_prob(x).shape == (2000,)
    with pytest.raises(AuxiliaryLost, match="one of more draws than are remembered"):
        d.score_parts(x)
    with pytest.raises(AuxiliaryLost, match="one of more draws than are remembered"):
        make(torch.zeros(2)).to_event(1).sample_and_log_prob((2000,))


@every_density
def test_wrappers_draw_in_chunks(make, small_chunks):
    d = make(torch.zeros(3)).to_event(1).mask(False)
    assert d.sample((2000,)).shape == (2000, 3)


@every_density
def test_pyro_never_chunks_what_a_guide_scores(make, small_chunks, monkeypatch):
    def refuse(*_):
        raise AssertionError("drawn in chunks")

    monkeypatch.setattr(stochastic_density.StochasticDensity, "_sample_in_chunks", refuse)

    def model():
        with pyro.plate("data", 2000):
            pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))

    def guide():
        with pyro.plate("data", 2000):
            pyro.sample("z", make())

    trace = poutine.trace(guide).get_trace()
    trace.compute_score_parts()
    assert trace.nodes["z"]["log_prob"].shape == (2000,)
    for vectorize in (True, False):
        elbo = Trace_ELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
        assert SVI(model, guide, pyro.optim.Adam({}), elbo).evaluate_loss() > 0


def test_predictive_takes_any_number(small_chunks):
    def generative():
        with pyro.plate("data", 3):
            pyro.sample("z", snis())

    for parallel in (True, False):
        assert Predictive(generative, num_samples=400, parallel=parallel)()["z"].shape == (400, 3)


@every_density
def test_draws_are_forgotten_with_their_tensors(make):
    d, alive = make(), []
    for draw in (d, d.sample, d.rsample if d.has_rsample else d):
        value = draw((5,))
        alive.append(weakref.ref(value))
        del value
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3
    assert len(d._draws) == 0


@every_density
def test_sizes_of_draws_are_whole_and_grow_with_the_batch(make):
    d = make(torch.zeros(3))
    assert isinstance(d.draw_size, int)
    assert d.expand((7, 3)).draw_size == 7 * d.draw_size > 0


@pytest.mark.parametrize("sampler", [SelfNormalizedImportance, TruncatedRejection])
def test_no_chunk_is_larger_than_what_draws_may_hold(sampler, small_chunks):
    sizes = []

    def watched(x):
        sizes.append(x.numel())
        return energy(x)

    assert sampler(normal(torch.zeros(3)), watched, 10).sample((500,)).shape == (500, 3)
    assert 0 < max(sizes) <= 1000


MILLION = """
import resource, sys, torch, pyro.distributions as dist
from pyro_ext.distributions import SelfNormalizedImportance, TruncatedRejection

proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
energy = lambda x: (x - 1).square().sum(-1)
d = {
    "snis": lambda: SelfNormalizedImportance(proposal, energy, 128),
    "trs": lambda: TruncatedRejection(proposal, lambda x: -energy(x), 128),
}[sys.argv[1]]()
d.sample((10,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = d.sample((1_000_000,))
assert x.shape == (1_000_000, 2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
@pytest.mark.parametrize("name", ["snis", "trs"])
def test_a_million_draws_take_half_a_gigabyte_at_most(name):
    # all candidates at once would be 1 GB, and their weights, gathered and compared, several
    run = subprocess.run(
        [sys.executable, "-c", MILLION, name], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 512 * 1024  # kB


# MCMC.


def latent(density):
    def model():
        pyro.sample("z", density)

    return model


def run(kernel, density):
    mcmc = MCMC(kernel(latent(density)), num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["z"]


@every_density
@pytest.mark.parametrize("kernel", [NUTS, HMC])
def test_mcmc_is_refused_unless_frozen(make, kernel):
    with pytest.raises(ValueError, match=r"MCMC needs a deterministic density.*frozen"):
        run(kernel, make())
    with pytest.raises(ValueError, match=r"MCMC needs a deterministic density.*frozen"):
        run(kernel, make(torch.zeros(2)).tight(3).to_event(1))


@every_density
@pytest.mark.parametrize(
    "wrap", [lambda d: d.tight(20).frozen(0), lambda d: d.expand((2,)).frozen(0).to_event(1)]
)
def test_nuts_runs_on_frozen_densities(make, wrap):
    z = run(NUTS, wrap(make()))
    assert z.isfinite().all()
    assert z.unique().numel() > 1


@every_density
def test_frozen_densities_are_functions_with_a_gradient(make):
    # autograd against finite differences of the same frozen noise
    d, x = make().tight(10).frozen(0), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(d.log_prob(x), d.log_prob(x))
    assert torch.autograd.gradcheck(d.log_prob, x)


@pytest.mark.parametrize("make", [snis, trs, his, semi_implicit])
def test_frozen_densities_can_be_mapped(make):
    d, x = make().tight(3).frozen(0), torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    mapped = torch.func.vmap(d.log_prob, randomness="same")(x)
    torch.testing.assert_close(mapped, torch.stack([d.log_prob(v) for v in x]))


@pytest.mark.parametrize("make", [snis, trs, his, semi_implicit])  # a program's noise does
def test_frozen_densities_do_not_depend_on_the_place_in_the_batch(make):
    d, x = make().tight(3).frozen(0), torch.tensor([0.3, -1.0, 2.0, 0.3], dtype=torch.float64)
    together = d.log_prob(x)
    torch.testing.assert_close(together, torch.stack([d.log_prob(v) for v in x]))
    torch.testing.assert_close(d.expand((2, 4)).log_prob(x), together.expand(2, 4))


def test_a_frozen_program_freezes_stochastic_sites_within():
    def model():
        pyro.sample("x", dist.Normal(pyro.sample("z", snis()), 1.0))

    d = ModelMarginal(model, lambda x: pyro.sample("z", dist.Normal(x / 2, 1.0)))
    x = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(d.frozen(0).log_prob(x), d.frozen(0).log_prob(x))
    assert not torch.equal(d.frozen(0).log_prob(x), d.frozen(1).log_prob(x))
    assert not torch.equal(d.log_prob(x), d.log_prob(x))


def test_nuts_runs_on_an_exact_density():
    rejected = 1 - ((energy(GRID) - 1).sigmoid() * normal().log_prob(GRID).exp()).sum() * STEP
    assert run(NUTS, trs(normalizer=1 - rejected)).isfinite().all()


def test_mcmc_is_refused_until_a_normaliser_is_estimated():
    normalizer = MovingNormalizer().double()
    d = LearnedAcceptReject(normal(), lambda x: energy(x) - 1, 4, normalizer)
    for density in (d, d.frozen(0)):
        with pytest.raises(ValueError, match=r"MCMC needs a density.*estimate_normalizer"):
            run(NUTS, density)
    normalizer.eval()
    d.estimate_normalizer(100_000)
    assert run(NUTS, d).unique().numel() > 1
