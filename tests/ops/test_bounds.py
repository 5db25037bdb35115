"""Bounds against their definitions, against quadrature, and at their edges."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_ext.ops import ciwae, cubo, iwae, renyi, tvo

BOUNDS = {
    "iwae": iwae,
    "renyi(-1.5)": renyi(-1.5),
    "renyi(0.5)": renyi(0.5),
    "renyi(2)": renyi(2),
    "cubo(1)": cubo(1),
    "cubo(2)": cubo(2),
    "tvo(1)": tvo(1),
    "tvo(4)": tvo(4),
    "tvo(4, upper)": tvo(4, upper=True),
    "tvo(points)": tvo([0, 0.1, 1]),
    "ciwae(0)": ciwae(0),
    "ciwae(0.3)": ciwae(0.3),
    "ciwae(1)": ciwae(1),
}
UPPER = {"cubo(1)", "cubo(2)", "tvo(4, upper)"}
MEAN_OF_LOGS = {"tvo(1)", "tvo(4)", "tvo(points)", "ciwae(0.3)", "ciwae(1)"}
NORMAL = torch.distributions.Normal

every_bound = pytest.mark.parametrize("name", BOUNDS)
log_weights = st.lists(st.floats(-300, 300), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@pytest.fixture
def log_w():
    return torch.randn(7, 3, dtype=torch.float64)


def at_most(low, high):
    """``low <= high`` up to rounding errors."""
    return low <= high + 1e-10 * (1 + abs(high))


# Definitions.


def test_power_means_are_the_naive_formulas(log_w):
    w = log_w.exp()
    torch.testing.assert_close(renyi(0.25)(log_w), (w**0.75).mean(0).log() / 0.75)
    torch.testing.assert_close(renyi(3)(log_w), (w**-2).mean(0).log() / -2)
    torch.testing.assert_close(cubo(2.5)(log_w), (w**2.5).mean(0).log() / 2.5)
    assert torch.equal(renyi(-1)(log_w), cubo(2)(log_w))


def test_sums_are_the_naive_formulas(log_w):
    def mean_at(beta):
        tempered = log_w.exp() ** beta
        return (tempered * log_w).sum(0) / tempered.sum(0)

    lower = 0.1 * mean_at(0) + 0.6 * mean_at(0.1) + 0.3 * mean_at(0.7)
    upper = 0.1 * mean_at(0.1) + 0.6 * mean_at(0.7) + 0.3 * mean_at(1)
    points = [0, 0.1, 0.7, 1]
    torch.testing.assert_close(tvo(points)(log_w), lower)
    torch.testing.assert_close(tvo(points, upper=True)(log_w), upper)
    torch.testing.assert_close(tvo(3)(log_w), tvo([0, 1 / 3, 2 / 3, 1])(log_w))
    torch.testing.assert_close(
        ciwae(0.3)(log_w), 0.3 * log_w.mean(0) + 0.7 * log_w.exp().mean(0).log()
    )


def test_members_of_two_families(log_w):
    for one in (tvo(1), ciwae(1)):
        torch.testing.assert_close(one(log_w), log_w.mean(0))
    for other in (renyi(0), ciwae(0), cubo(1)):
        assert torch.equal(other(log_w), iwae(log_w))


def test_limits(log_w):
    # both sums of 1000 parts are within the steepest slope / 1000 of the integral
    spread = (log_w.amax(0) - log_w.amin(0)).max().item()
    for upper in (False, True):
        torch.testing.assert_close(tvo(1000, upper)(log_w), iwae(log_w), atol=spread / 1000, rtol=0)
    torch.testing.assert_close(renyi(1 - 1e-6)(log_w), log_w.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(cubo(1e6)(log_w), log_w.amax(0), atol=1e-5, rtol=0)


# Inequalities that hold for all weights.


@given(log_weights, st.integers(1, 20))
def test_iwae_is_between_the_two_sums(log_w, partitions):
    assert at_most(tvo(partitions)(log_w), iwae(log_w))
    assert at_most(iwae(log_w), tvo(partitions, upper=True)(log_w))


@given(log_weights, st.lists(st.floats(0.001, 0.999), unique=True, max_size=8).map(sorted))
def test_iwae_is_between_the_two_sums_of_unequal_parts(log_w, inner):
    points = [0, *inner, 1]
    assert at_most(tvo(points)(log_w), iwae(log_w))
    assert at_most(iwae(log_w), tvo(points, upper=True)(log_w))


@given(log_weights, st.integers(1, 10))
def test_halving_the_parts_tightens_both_sums(log_w, partitions):
    assert at_most(tvo(partitions)(log_w), tvo(2 * partitions)(log_w))
    assert at_most(tvo(2 * partitions, upper=True)(log_w), tvo(partitions, upper=True)(log_w))


@given(log_weights)
def test_the_order_of_the_bounds(log_w):
    ladder = [log_w.amin(), renyi(3), renyi(1.5), ciwae(1), renyi(0.5), iwae, cubo(2), cubo(5)]
    values = [rung(log_w) if callable(rung) else rung for rung in ladder] + [log_w.amax()]
    assert all(at_most(low, high) for low, high in pairwise(values))
    assert at_most(log_w.mean(), ciwae(0.6)(log_w))
    assert at_most(ciwae(0.6)(log_w), ciwae(0.2)(log_w))


# What an objective relies on.


@every_bound
def test_equal_weights_are_returned(name):
    # one particle, or an exact guide
    log_w = torch.tensor([-800.0, 3.0, 800.0]).expand(4, 3)
    torch.testing.assert_close(BOUNDS[name](log_w), log_w[0])
    torch.testing.assert_close(BOUNDS[name](log_w[:1]), log_w[0])


@every_bound
def test_a_constant_goes_through(name, log_w):
    torch.testing.assert_close(BOUNDS[name](log_w + 900), BOUNDS[name](log_w) + 900)


@every_bound
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plates", [(), (5,), (2, 1, 3), (0,)])
def test_only_the_particles_are_reduced(name, plates, dtype):
    log_w = torch.randn(6, *plates, dtype=dtype)
    bound = BOUNDS[name](log_w)
    assert (bound.shape, bound.dtype) == (plates, dtype)
    flat = log_w.reshape(6, -1)
    if flat.numel():
        each = torch.stack([BOUNDS[name](column) for column in flat.T])
        torch.testing.assert_close(bound.flatten(), each)


@every_bound
def test_vmap(name, log_w):
    mapped = torch.func.vmap(BOUNDS[name], in_dims=1)(log_w)
    torch.testing.assert_close(mapped, BOUNDS[name](log_w))


@every_bound
def test_both_derivatives(name, log_w):
    log_w.requires_grad_()
    assert torch.autograd.gradcheck(BOUNDS[name], log_w)
    assert torch.autograd.gradgradcheck(BOUNDS[name], log_w)


@every_bound
def test_shares_of_the_particles_sum_to_one(name, log_w):
    gradient = torch.func.grad(lambda log_w: BOUNDS[name](log_w).sum())(log_w)
    torch.testing.assert_close(gradient.sum(0), torch.ones(3, dtype=torch.float64))


@every_bound
@pytest.mark.parametrize("again", [lambda b: pickle.loads(pickle.dumps(b)), copy.deepcopy])
def test_copies_know_their_side(name, again, log_w):
    bound = again(BOUNDS[name])
    assert torch.equal(bound(log_w), BOUNDS[name](log_w))
    assert getattr(bound, "upper", False) is (name in UPPER)


# Weights of zero.


def derivatives(bound, log_w):
    log_w = log_w.clone().requires_grad_()
    value = bound(log_w)
    (first,) = torch.autograd.grad(value, log_w, create_graph=True)
    if not first.requires_grad:  # linear
        return value, first, torch.zeros_like(first)
    (second,) = torch.autograd.grad(first.square().sum(), log_w)
    return value, first, second


@pytest.mark.parametrize("name", sorted(BOUNDS.keys() - MEAN_OF_LOGS - {"renyi(2)"}))
def test_a_zero_weight_is_the_limit_of_a_small_one(name):
    zero = torch.tensor([0.3, -math.inf, -1.0], dtype=torch.float64)
    small = zero.clamp(min=-1e5)  # every power used here underflows
    for found, expected in zip(
        derivatives(BOUNDS[name], zero), derivatives(BOUNDS[name], small), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", sorted(MEAN_OF_LOGS))
def test_a_zero_weight_makes_a_mean_of_logarithms_minus_infinity(name):
    value, first, second = derivatives(BOUNDS[name], torch.tensor([0.3, -math.inf, -1.0]))
    assert value == -math.inf
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_an_order_above_one_cannot_miss_a_zero_weight():
    assert renyi(2)(torch.tensor([0.3, -math.inf])) == -math.inf


# Quadrature: z ~ N(0, 1), x | z ~ N(z, 1), x = 1.3, guide N(0.2, 0.9).


@pytest.fixture
def conjugate():
    zero, x = torch.zeros((), dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
    guide = NORMAL(zero + 0.2, 0.9)

    def log_w(z):
        return NORMAL(zero, 1.0).log_prob(z) + NORMAL(z, 1.0).log_prob(x) - guide.log_prob(z)

    return guide, log_w


def integrate(guide, log_w, power, weight):
    """``log int q w^power dz`` and the mean of ``weight(log w)`` under the normalised integrand."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    log_density = guide.log_prob(z) + power * log_w(z)
    log_total = log_density.logsumexp(0)
    return log_total + math.log(24 / 4000), (
        (log_density - log_total).exp() * weight(log_w(z))
    ).sum()


def sandwich(conjugate):
    """The bounds by quadrature, from the lowest to the highest."""

    def mean_at(beta):
        return integrate(*conjugate, beta, lambda log_w: log_w)[1].item()

    def riemann(partitions, shift):
        return sum(mean_at((i + shift) / partitions) for i in range(partitions)) / partitions

    def power_mean(power):
        return integrate(*conjugate, power, lambda log_w: log_w)[0].item() / power

    return {
        "elbo": (ciwae(1), mean_at(0)),
        "lower 2": (tvo(2), riemann(2, 0)),
        "lower 5": (tvo(5), riemann(5, 0)),
        "lower 50": (tvo(50), riemann(50, 0)),
        "evidence": (iwae, power_mean(1)),
        "upper 50": (tvo(50, upper=True), riemann(50, 1)),
        "upper 5": (tvo(5, upper=True), riemann(5, 1)),
        "upper 2": (tvo(2, upper=True), riemann(2, 1)),
        "chi": (cubo(2), power_mean(2)),
    }


def test_the_sandwich_against_quadrature(conjugate):
    guide, log_w = conjugate
    expected = sandwich(conjugate)
    evidence = NORMAL(0.0, 2**0.5).log_prob(torch.tensor(1.3)).item()
    assert expected["evidence"][1] == pytest.approx(evidence, abs=1e-6)
    assert all(low < high for (_, low), (_, high) in pairwise(expected.values()))
    # one particle per quantile of the guide: many particles without their noise
    quantiles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    particles = log_w(guide.icdf(quantiles))
    for name, (bound, value) in expected.items():
        assert bound(particles).item() == pytest.approx(value, abs=1e-4), name


def test_the_sandwich_against_figures_of_an_independent_run(conjugate):
    # by Monte Carlo, with an error of about 1e-3
    figures = [-1.9585, -1.8116, -1.7341, -1.6919, -1.6880, -1.6830, -1.6449, -1.5887, -1.5576]
    values = [value for _, value in sandwich(conjugate).values()]
    assert values == pytest.approx(figures, abs=1.1e-3)


@pytest.mark.parametrize("bound", [cubo(2), tvo(5, upper=True)])
def test_an_upper_bound_needs_particles(bound, conjugate):
    # means of 100,000 and of 200 estimates; 5 standard errors are a false alarm of 3e-7 each
    guide, log_w = conjugate
    evidence = sandwich(conjugate)["evidence"][1]
    few, many = bound(log_w(guide.sample((1, 100_000)))), bound(log_w(guide.sample((5_000, 200))))
    assert few.mean() + 5 * few.std() / few.numel() ** 0.5 < evidence
    assert many.mean() - 5 * many.std() / many.numel() ** 0.5 > evidence


# Bad input.


@pytest.mark.parametrize("alpha", [1, 1.0, torch.tensor(1.0)])
def test_the_order_one_is_a_limit(alpha):
    with pytest.raises(ValueError, match=r"limit is the evidence lower bound.*ciwae\(1\)"):
        renyi(alpha)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "half"])
@pytest.mark.parametrize("family", [renyi, cubo, ciwae])
def test_parameters_are_finite_numbers(family, value):
    with pytest.raises(ValueError, match="must be a finite number"):
        family(value)


@pytest.mark.parametrize(("family", "value"), [(cubo, 0.5), (ciwae, -0.1), (ciwae, 1.5)])
def test_parameters_are_in_their_range(family, value):
    with pytest.raises(ValueError, match=rf"in \[\d, (1|inf)\], got \w+={value}"):
        family(value)


@pytest.mark.parametrize("partitions", [0, -3, 2.5, True, None, "ab", ["a"]])
def test_partitions_are_counted(partitions):
    with pytest.raises(ValueError, match=r"partitions must be an integer >= 1, got"):
        tvo(partitions)


@pytest.mark.parametrize(
    "points", [[], [0], [0.1, 1], [0, 0.9], [0, 0.5, 0.5, 1], [0, 0.6, 0.5, 1], [0, math.nan, 1]]
)
def test_points_increase_from_zero_to_one(points):
    with pytest.raises(ValueError, match=r"increase from 0 to 1, such as \[0, 0\.1, 1\], got"):
        tvo(points)


@pytest.mark.parametrize("points", [(0, 0.5, 1), torch.tensor([0, 0.5, 1])])
def test_points_of_other_kinds(points, log_w):
    assert torch.equal(tvo(points)(log_w), tvo(2)(log_w))


@every_bound
def test_no_particle_is_refused(name):
    with pytest.raises(ValueError, match="at least one particle"):
        BOUNDS[name](torch.zeros(0, 3))
