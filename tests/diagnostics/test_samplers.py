"""Statistics of samplers against quadrature and closed forms.

Statistical assertions are z-tests at 5 standard errors: false-alarm probability 6e-7 each.
"""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_ext.diagnostics import SamplerDiagnostics, sampler_diagnostics, sampler_kinds, samplers
from pyro_ext.distributions import (
    HamiltonianImportance,
    LearnedAcceptReject,
    SelfNormalizedImportance,
    StochasticDensity,
    TruncatedRejection,
)
from pyro_ext.nn import EnergyNet, MovingNormalizer

GRID = torch.linspace(-8, 8, 801, dtype=torch.float64)
STEP = GRID[1] - GRID[0]
NOISE = dist.Normal(0.0, 1.0).log_prob(GRID).exp() * STEP


def energy(x):
    return -2 * torch.sin(2 * x)


def normal(*batch):
    return dist.Normal(torch.zeros(batch, dtype=torch.float64), 1.0)


def snis(num_proposals=2, *batch, **kwargs):
    return SelfNormalizedImportance(normal(*batch), energy, num_proposals, **kwargs)


def assert_near(result, name, expected, slack=0.0):
    error = 5 * result.standard_errors[name] + slack
    assert ((result.statistics[name] - expected).abs() < error).all(), (name, result, expected)


# Self-normalised importance sampling: two candidates, all pairs on a grid.


def over_pairs(function):
    """E[function(w(x), w(y))] of two candidates x, y."""
    w = (-energy(GRID)).exp()
    return (function(w[:, None], w) * NOISE[:, None] * NOISE).sum()


def gap_of_two():
    """The mean difference of both bounds: the other candidate is fresh, or the rejected one."""
    w = (-energy(GRID)).exp()
    log_total = (w[:, None] + w).log()
    joint = 2 * NOISE[:, None] * NOISE * w[:, None] / (w[:, None] + w)  # chosen, rejected
    lower = (joint.sum(1) * (log_total * NOISE).sum(1)).sum()
    return lower - (joint * log_total).sum()


@pytest.mark.parametrize("share_proposals", [True, False])
def test_two_candidates_against_quadrature(share_proposals):
    result = sampler_diagnostics(snis(share_proposals=share_proposals), num_draws=200_000)
    assert_near(
        result, "effective_proposals", over_pairs(lambda v, w: (v + w) ** 2 / (v**2 + w**2))
    )
    assert_near(result, "largest_share", over_pairs(lambda v, w: torch.maximum(v, w) / (v + w)))
    assert_near(result, "gap", gap_of_two())
    assert result.standard_errors["gap"] < 0.01 < 0.1 < gap_of_two()


def test_standard_errors_are_honest():
    # 200 repetitions of 400 draws: the variance of z is 1 +- 0.1, and 5 of those are below 0.6
    results = [sampler_diagnostics(snis(), num_draws=400) for _ in range(200)]
    expected = gap_of_two()
    z = [(r.statistics["gap"] - expected) / r.standard_errors["gap"] for r in results]
    assert 0.4 < torch.stack(z).square().mean() < 1.6


def test_many_candidates_are_as_effective_as_the_population():
    # ESS / K -> E[w]^2 / E[w^2], off by a relative 1 / K times a few
    w = (-energy(GRID)).exp()
    expected = (w * NOISE).sum() ** 2 / (w**2 * NOISE).sum()
    result = sampler_diagnostics(snis(5000), num_draws=100)
    assert result.statistics["effective_proposals"].item() / 5000 == pytest.approx(
        expected.item(), rel=0.02
    )
    assert "of 5000 proposals count" in result.verdict


def test_equal_weights_use_all_candidates():
    d = SelfNormalizedImportance(normal(3), torch.zeros_like, 8)
    result = sampler_diagnostics(d, num_draws=5)
    torch.testing.assert_close(
        result.statistics["effective_proposals"], torch.full((3,), 8.0).double()
    )
    torch.testing.assert_close(result.statistics["largest_share"], torch.full((3,), 0.125).double())
    assert result.statistics["gap"].abs().max() < 1e-12


def test_one_candidate_is_exact():
    result = sampler_diagnostics(snis(1, 2))
    assert not result.statistics["gap"].any()
    assert str(result) == "Exact: 1 of 1 proposals count, the largest holds 100.0% of the weight."


def test_a_tight_copy_has_a_smaller_gap():
    loose, tight = (sampler_diagnostics(snis().tight(num), 20_000) for num in (1, 20))
    assert tight.statistics["gap"] < loose.statistics["gap"] / 5
    assert_near(tight, "effective_proposals", loose.statistics["effective_proposals"], 0.02)


def test_frozen_draws_are_independent_all_the_same():
    result = sampler_diagnostics(snis().frozen(3), num_draws=50_000)
    assert_near(result, "gap", gap_of_two())


# Truncated rejection.


def logit(x):
    return 3 * torch.sin(x) - 1


ACCEPT = logit(GRID).sigmoid()
NORMALIZER = (ACCEPT * NOISE).sum()


@pytest.mark.parametrize("num_tries", [1, 2, 7, 40])
def test_tries_against_the_truncated_geometric_distribution(num_tries):
    d = TruncatedRejection(normal(), logit, num_tries)
    result = sampler_diagnostics(d, num_draws=20_000)
    assert_near(result, "acceptance_rate", NORMALIZER)
    assert_near(result, "tries", (1 - (1 - NORMALIZER) ** num_tries) / NORMALIZER, 1e-12)
    assert_near(result, "forced", (1 - NORMALIZER) ** (num_tries - 1), 1e-12)
    assert f"of {num_tries} tries" in result.verdict


def test_the_gap_of_two_tries_against_quadrature():
    # returned and left over: x accepted at first, or returned after y was rejected
    weight = ACCEPT[:, None] + 1 - ACCEPT
    joint = NOISE[:, None] * NOISE * weight
    lower = (joint.sum(1) * (weight.log() * NOISE).sum(1)).sum()
    expected = (joint * weight.log()).sum() - lower
    result = sampler_diagnostics(TruncatedRejection(normal(), logit, 2), num_draws=200_000)
    assert_near(result, "gap", expected)
    assert result.standard_errors["gap"] < expected / 10


def test_a_known_normalizer_closes_the_gap():
    d = TruncatedRejection(normal(2), logit, 9, normalizer=NORMALIZER)
    result = sampler_diagnostics(d, 200)
    assert not result.statistics["gap"].any()
    assert result.verdict.startswith("Exact: it accepts ")


def test_a_learned_normalizer_is_left_alone_and_bounds_nothing():
    learned = MovingNormalizer().double()
    d = LearnedAcceptReject(normal(), logit, 7, learned)
    result = sampler_diagnostics(d, num_draws=20_000)
    assert learned.value == 0.5
    assert_near(result, "tries", (1 - (1 - NORMALIZER) ** 7) / NORMALIZER)
    assert str(result).startswith("No bounds to compare: it accepts ")
    learned.eval()
    d.estimate_normalizer(1000)
    assert str(sampler_diagnostics(d, 10)).startswith("Exact: it accepts ")


# Hamiltonian importance: one step of size one on a slope, x = x_0 + rho_0 + 1/2, rho = rho_0 + 1.


def slope(x):
    return -x


def sloping(momentum_net=None):
    return HamiltonianImportance(normal(), slope, 1, 1.0, 1.0, momentum_net)


def exact_momentum(x):
    return (x - 0.5) / 2 + 1, torch.full_like(x, 0.5**0.5)


def test_momenta_against_the_closed_form():
    # r = N(0, 1), but rho given x is N(m, 1/2), where m ~ N(1, 1/2): two divergences of normals
    result = sampler_diagnostics(sloping(), num_draws=50_000)
    assert_near(result, "gap", (0.5 + 1.5 - 2 + 2 * 2.5) / 2)
    assert_near(result, "potential_change", -0.5)
    assert result.verdict.startswith("Very loose: ")


def test_two_momenta_against_quadrature(monkeypatch):
    monkeypatch.setattr(sampler_kinds, "NUM_MOMENTA", 2)
    coarse, step = GRID[::10], 10 * STEP
    noise = dist.Normal(0.0, 1.0).log_prob(coarse).exp() * step
    places = dist.Normal(1.0, 0.5**0.5).log_prob(coarse).exp() * step
    momentum = dist.Normal(coarse[:, None], 0.5**0.5).log_prob(coarse).exp()  # (m, rho)
    w = momentum / dist.Normal(0.0, 1.0).log_prob(coarse).exp()
    v, w = w[:, :, None], w[:, None, :]
    ess = ((v + w) ** 2 / (v**2 + w**2) * noise[:, None] * noise).sum((1, 2))
    result = sampler_diagnostics(sloping(), num_draws=50_000)
    assert_near(result, "effective_momenta", (ess * places).sum())


def test_exact_momenta_all_count():
    result = sampler_diagnostics(sloping(exact_momentum), num_draws=20)
    assert result.statistics["effective_momenta"].item() == pytest.approx(100)
    assert result.statistics["gap"].abs() < 1e-12
    assert "100 of 100 momenta count" in result.verdict


# A generic stochastic density whose gap is known.


class Blurred(StochasticDensity):
    """Stochastic: a ~ N(0, s^2), x ~ N(a, 1), scored with r(a | x) = N(x / 2, 1)."""

    support = dist.constraints.real

    def __init__(self, scale):
        self.scale = torch.tensor(scale, dtype=torch.float64)
        super().__init__(self.scale.shape, (), validate_args=None)

    def simulate(self, sample_shape, pathwise):
        noise = torch.randn(2, *sample_shape, *self.batch_shape, dtype=torch.float64)
        a = self.scale * noise[0]
        return a + noise[1], a[None]

    def draw_auxiliaries(self, value, num):
        return value / 2 + torch.randn(num, *value.shape, dtype=torch.float64)

    def log_weights(self, value, auxiliaries):
        joint = dist.Normal(0.0, self.scale).log_prob(auxiliaries)
        joint = joint + dist.Normal(auxiliaries, 1.0).log_prob(value)
        return joint - dist.Normal(value / 2, 1.0).log_prob(auxiliaries)

    def gap(self):
        """KL(p || r) + KL(r || p) of two normals over a, averaged over x."""
        shrink = self.scale**2 / (1 + self.scale**2)  # p(a | x) = N(shrink x, shrink)
        distance = (shrink - 0.5) ** 2 * (1 + self.scale**2)
        return (shrink + distance) / 2 + (1 + distance) / (2 * shrink) - 1


def test_the_gap_of_any_density_against_its_closed_form():
    d = Blurred([0.5, 1.0, 3.0])
    result = sampler_diagnostics(d, num_draws=50_000)
    assert list(result.statistics) == ["gap"]
    assert_near(result, "gap", d.gap())
    assert "nothing else is known of a Blurred" in result.verdict


def test_the_advice_is_that_of_the_worst():
    exact = Blurred([1.0]).gap()  # p = N(x / 2, 1 / 2), r = N(x / 2, 1)
    torch.testing.assert_close(exact, torch.tensor([0.25], dtype=torch.float64))
    assert str(sampler_diagnostics(Blurred([1.0]))).startswith("Loose: 0.")
    mixed = str(
        sampler_diagnostics(Blurred([1.0] * 9 + [0.5]), 4000)
    )  # 0.25 and 1.9, 0.4 on average
    assert mixed.startswith("Very loose: ")
    assert ", at most " in mixed
    assert str(sampler_diagnostics(snis(500), 1000)).startswith("Tight: ")


def test_a_sampler_without_an_upper_bound_has_no_gap():
    nested = SelfNormalizedImportance(snis(2, 3).to_event(1), lambda x: x.sum(-1), 4)
    result = sampler_diagnostics(nested, 10)
    assert "gap" not in result.statistics
    assert str(result).startswith("No bounds to compare: ")


# Shapes, chunks, devices.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d.to_event(1),
        lambda d: d.mask(torch.tensor([True, False])),
        lambda d: d.expand((3, 2)),
    ],
    ids=["to_event", "mask", "expand"],
)
def test_wrappers_show_the_density_inside(wrap):
    d = wrap(snis(3, 2))
    result = sampler_diagnostics(d, 50)
    shape = (3, 2) if d.batch_shape == (3, 2) else (2,)
    for part in (result.statistics, result.standard_errors):
        assert {name: each.shape for name, each in part.items()} == dict.fromkeys(
            ["gap", "effective_proposals", "largest_share"], shape
        )


def test_vector_events_and_their_networks():
    proposal = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
    result = sampler_diagnostics(SelfNormalizedImportance(proposal, EnergyNet(2, (8,)), 16), 30)
    for name, each in result.statistics.items():
        assert each.shape == (4,), name
        assert each.dtype == torch.float32
        assert not each.requires_grad


def test_chunks_change_nothing_but_the_memory(monkeypatch):
    sizes = []
    monkeypatch.setattr(samplers, "BLOCK", 2 * 10 * 3)

    def watched(x):
        sizes.append(x.numel())
        return energy(x)

    d = SelfNormalizedImportance(normal(3), watched, 10)
    result = sampler_diagnostics(d, num_draws=25)
    assert max(sizes) <= 60
    assert result.statistics["gap"].shape == (3,)
    assert sum(size for size in sizes if size == 60) >= 12 * 60


def test_a_single_draw_has_no_standard_error():
    result = sampler_diagnostics(snis(), 1)
    assert math.isnan(result.standard_errors["gap"])
    assert isinstance(result, SamplerDiagnostics)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"takes a StochasticDensity.*got Normal"):
        sampler_diagnostics(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="num_draws must be an integer >= 1"):
        sampler_diagnostics(snis(), 0)


@pytest.mark.gpu
def test_on_the_gpu():
    proposal = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    d = SelfNormalizedImportance(proposal, EnergyNet(2, (8,)).cuda(), 16)
    assert sampler_diagnostics(d, 30).statistics["gap"].device.type == "cuda"
