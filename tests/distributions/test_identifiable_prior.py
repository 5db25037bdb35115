"""Identifiable priors, against scipy, quadrature and autograd."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from fixtures import BOUNDED, ON_LINE, bell, cube
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import integrate, stats
from torch.distributions import kl_divergence

from pyro_ext.distributions import (
    ExponentialTilt,
    GaussianFamily,
    IdentifiablePrior,
    IMCAPrior,
    LaplaceFamily,
    StatisticsFamily,
)

DOUBLE = torch.float64
FAMILIES = {
    "loc and scale": GaussianFamily(("loc", "scale")),
    "scale": GaussianFamily(("scale",)),
    "loc": GaussianFamily(("loc",)),
    "laplace": LaplaceFamily(),
    "bounded": BOUNDED,
    "on the line": ON_LINE,
}
LABELS = torch.tensor([0, 3, 3, 6])


def spread(prior):
    """The same prior in double precision, with parameters far from the start."""
    prior = prior.double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return prior


def priors(latent_dim=2):
    made = {
        name: IdentifiablePrior(latent_dim, num_classes=7, family=family)
        for name, family in FAMILIES.items()
    }
    made["imca"] = IMCAPrior(latent_dim, num_classes=7)
    made["imca with loc"] = IMCAPrior(latent_dim, num_classes=7, modulated=("loc", "scale"))
    return {name: spread(prior) for name, prior in made.items()}


NAMES = [*FAMILIES, "imca", "imca with loc"]


@pytest.mark.parametrize("name", NAMES)
def test_density_is_the_exponential_family_that_it_says(name):
    prior = priors()[name]
    law = prior.condition(LABELS)
    assert (law.batch_shape, law.event_shape) == ((4,), (2,))
    z = law.sample((50,))
    natural, statistics = prior.natural_parameters(LABELS), prior.statistics(z)
    assert natural.shape == (4, 2, prior.num_statistics)
    assert statistics.shape == (50, 4, 2, prior.num_statistics)
    tilt = (statistics * natural).sum((-2, -1))
    seen = tilt - prior.log_normalizer(natural) + prior.log_base(z)
    torch.testing.assert_close(seen, law.log_prob(z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_slopes_of_the_log_normalizer_are_the_mean_statistics(name):
    """Six standard errors in at most 28 comparisons: 1e-7."""
    prior = priors()[name]
    natural = prior.natural_parameters(torch.arange(7)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(prior.log_normalizer(natural).sum(), natural)
    seen = prior.statistics(prior.condition(torch.arange(7)).sample((5000,)))
    errors = (seen.mean(0) - slope) / (seen.std(0) / len(seen) ** 0.5)
    assert errors.abs().max() < 6


@pytest.mark.parametrize("name", FAMILIES)
def test_natural_parameters_make_the_same_law(name):
    family = FAMILIES[name]
    free = torch.randn(6, family.num_statistics, dtype=DOUBLE)
    law = family.law(free)
    again = family.from_natural(family.natural_parameters(free))
    torch.testing.assert_close(again.mean, law.mean, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(again.variance, law.variance, rtol=1e-13, atol=1e-14)
    z = law.sample((9,))
    torch.testing.assert_close(again.log_prob(z), law.log_prob(z), rtol=1e-12, atol=1e-12)


def test_normal_and_laplace_are_those_of_scipy():
    z = torch.linspace(-3, 3, 11, dtype=DOUBLE).unsqueeze(-1)
    free = torch.randn(4, 2, dtype=DOUBLE)
    loc, scale = free[:, 0], (6 * torch.tanh(free[:, 1] / 6)).exp()
    zero, one = torch.zeros(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE)
    expected = {
        "loc and scale": (free, stats.norm(loc, scale)),
        "scale": (free[:, 1:], stats.norm(zero, scale)),
        "loc": (free[:, :1], stats.norm(loc, one)),
        "laplace": (free[:, 1:], stats.laplace(zero, scale)),
    }
    for name, (numbers, law) in expected.items():
        seen = FAMILIES[name].law(numbers).log_prob(z)
        torch.testing.assert_close(seen, torch.from_numpy(law.logpdf(z)), rtol=1e-12, atol=1e-12)


def test_base_measure_of_imca_does_not_factorise():
    prior = priors(3)["imca with loc"]
    law = prior(LABELS)
    natural = prior.natural_parameters(LABELS)
    precision = prior.base_precision + torch.diag_embed(-2 * natural[..., 1])
    covariance = precision.inverse()
    loc = (covariance @ natural[..., :1]).squeeze(-1)
    z = law.sample()
    loc, covariance = loc.detach().numpy(), covariance.detach().numpy()
    for i in range(len(LABELS)):
        twin = stats.multivariate_normal(loc[i], covariance[i])
        assert law.log_prob(z)[i].item() == pytest.approx(twin.logpdf(z[i]), rel=1e-9)
    base = prior.base_precision.detach()
    assert base.tril(-1).abs().max() > 0.1
    assert torch.linalg.eigvalsh(base).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_starts_near_one_with_contexts_that_differ(name):
    """A normal number nine standard deviations out has probability 2e-19."""
    make = {"imca": {}, "imca with loc": {"modulated": ("loc", "scale")}}
    if name in make:
        prior = IMCAPrior(10, num_classes=7, **make[name]).double()
    else:
        prior = IdentifiablePrior(10, num_classes=7, family=FAMILIES[name]).double()
    law = prior(torch.arange(7))
    assert (law.variance.sqrt() > 0.1).all()
    assert (law.variance.sqrt() < 10).all()
    natural = prior.natural_parameters(torch.arange(7)).flatten(1)
    assert torch.cdist(natural, natural).add(torch.eye(7)).min() > 1e-3


def test_scales_stay_within_their_bounds():
    for family in (GaussianFamily(), GaussianFamily(("scale",), 3.0), LaplaceFamily(2.0)):
        law = family.law(torch.full((family.num_statistics,), 1e4))
        assert float(law.scale) == pytest.approx(math.exp(family.max_log_scale))
    for big in (-1e6, 1e6):
        natural = BOUNDED.natural_parameters(torch.full((2,), big))
        assert BOUNDED.law(torch.full((2,), big)).log_prob(torch.tensor(0.5)).isfinite()
        assert natural.abs().tolist() == [3.0, 3.0]


# Any statistics.


def density(natural, family, z):
    """Not normalised, from the functions themselves."""
    value = torch.tensor(z, dtype=DOUBLE)
    return float((natural @ family.statistics(value) + family.log_base(value)).exp())


POINTS = {
    "bounded": (BOUNDED, [(0.0, 0.0), (-3.0, 3.0), (3.0, 3.0), (1.0, -2.5)]),
    "on the line": (ON_LINE, [(0.0, 0.0), (1.5, 1.5), (-2.0, -2.0), (0.3, 1.2)]),
}


@pytest.mark.parametrize("name", POINTS)
def test_normaliser_and_moments_equal_adaptive_quadrature(name):
    family, points = POINTS[name]
    for point in points:
        natural = torch.tensor(point, dtype=DOUBLE)
        law, limits = family.from_natural(natural), (family.rule.low, family.rule.high)

        def mean(function, natural=natural, limits=limits):
            def integrand(z):
                return density(natural, family, z) * function(z)

            return integrate.quad(integrand, *limits, epsabs=1e-13, epsrel=1e-12, limit=200)[0]

        mass = mean(lambda z: 1.0)
        assert float(law.log_normalizer) == pytest.approx(math.log(mass), abs=1e-9)
        assert float(law.mean) == pytest.approx(mean(lambda z: z) / mass, abs=1e-9)
        square = mean(lambda z: z**2) / mass
        assert float(law.variance + law.mean**2) == pytest.approx(square, abs=1e-9)
        z = 0.7
        below = integrate.quad(lambda z: density(natural, family, z), limits[0], z, epsabs=1e-13)
        assert float(law.cdf(torch.tensor(z, dtype=DOUBLE))) == pytest.approx(below[0] / mass)
        log_density = math.log(density(natural, family, z) / mass)
        assert float(law.log_prob(torch.tensor(z, dtype=DOUBLE))) == pytest.approx(log_density)


@pytest.mark.parametrize("name", POINTS)
def test_draws_pass_the_test_of_kolmogorov(name):
    """False alarm 1e-6 for each of eight laws."""
    family, points = POINTS[name]
    law = family.from_natural(torch.tensor(points, dtype=DOUBLE))
    draws = law.sample((4000,))
    for i, point in enumerate(points):
        one = family.from_natural(torch.tensor(point, dtype=DOUBLE))
        result = stats.kstest(draws[:, i].numpy(), lambda z: one.cdf(torch.from_numpy(z)).numpy())
        assert result.pvalue > 1e-6


@pytest.mark.parametrize("name", POINTS)
def test_quantiles_invert_the_distribution_function(name):
    family, points = POINTS[name]
    law = family.from_natural(torch.tensor(points, dtype=DOUBLE))
    prob = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.77, 0.999, 1 - 1e-6], dtype=DOUBLE).unsqueeze(-1)
    torch.testing.assert_close(law.cdf(law.icdf(prob)), prob.expand(7, 4), rtol=1e-11, atol=1e-13)
    small = family.from_natural(torch.tensor(points))
    seen = small.cdf(small.icdf(prob.float()))
    torch.testing.assert_close(seen, prob.float().expand(7, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", POINTS)
def test_pathwise_gradient_keeps_the_probability(name):
    """F(z(u, a), a) = u for all a; and by finite differences of the quantile itself."""
    family, points = POINTS[name]
    natural = torch.tensor(points, dtype=DOUBLE)
    prob = torch.tensor([0.001, 0.2, 0.5, 0.93, 0.9999], dtype=DOUBLE)
    for i in range(2):
        step = 1e-5 * torch.eye(2, dtype=DOUBLE)[i]
        for row in 0.9 * natural:
            row = row.clone().requires_grad_()
            x = family.from_natural(row).icdf(prob)
            seen = torch.stack(
                [torch.autograd.grad(one, row, retain_graph=True)[0][i] for one in x]
            )
            ahead, behind = (family.from_natural(row + sign * step).icdf(prob) for sign in (1, -1))
            slope = ((ahead - behind) / 2e-5).detach()
            torch.testing.assert_close(seen, slope, rtol=1e-5, atol=1e-7)


def test_quantiles_are_differentiable_in_the_probability():
    prob = torch.tensor([0.2, 0.9], dtype=DOUBLE, requires_grad=True)
    law = BOUNDED.from_natural(torch.tensor([1.0, -2.0], dtype=DOUBLE))
    x = law.icdf(prob)
    (slope,) = torch.autograd.grad(x.sum(), prob)
    torch.testing.assert_close(slope, 1 / law.log_prob(x.detach()).exp(), rtol=1e-8, atol=1e-8)


def test_normaliser_is_differentiable_twice():
    """Its second derivative is the covariance of the statistics."""
    natural = torch.tensor([0.4, -1.0], dtype=DOUBLE)
    hessian = torch.autograd.functional.hessian(BOUNDED.log_normalizer, natural)
    law = BOUNDED.from_natural(natural)
    t = BOUNDED.statistics(law.family.rule.nodes()) - law.mean_statistics
    covariance = torch.stack(
        [torch.stack([law.expectation(lambda z, i=i, j=j: t[:, i] * t[:, j]) for i in (0, 1)])
         for j in (0, 1)]
    )  # fmt: skip
    torch.testing.assert_close(hessian, covariance, rtol=1e-9, atol=1e-9)


def test_known_laws_are_special_cases():
    """Truncated normal and exponential, von Mises, and the normal on the line."""
    z = torch.tensor([-0.9, 0.1, 0.6], dtype=DOUBLE)
    line = StatisticsFamily([torch.clone, torch.square], -1.0, 1.0)
    seen = line.from_natural(torch.tensor([1.5, -0.5], dtype=DOUBLE)).log_prob(z)
    twin = stats.truncnorm(-2.5, -0.5, loc=1.5)
    torch.testing.assert_close(seen, torch.from_numpy(twin.logpdf(z)))
    circle = StatisticsFamily([torch.sin, torch.cos], -math.pi, math.pi)
    natural = 2.5 * torch.tensor([math.sin(0.4), math.cos(0.4)], dtype=DOUBLE)
    seen = circle.from_natural(natural).log_prob(z)
    torch.testing.assert_close(seen, torch.from_numpy(stats.vonmises(2.5, loc=0.4).logpdf(z)))
    normal = StatisticsFamily(
        torch.square, -9, 9, lambda z: -z.square() / 2, limits=(-2.0, 0.2), unbounded=True
    )
    seen = normal.from_natural(torch.tensor([-1.5], dtype=DOUBLE)).log_prob(20 * z)
    torch.testing.assert_close(seen, torch.from_numpy(stats.norm(0, 0.5).logpdf(20 * z)))


def test_outside_of_the_limits_there_is_nothing():
    law = ExponentialTilt(BOUNDED, torch.zeros(2), validate_args=False)
    z = torch.tensor([-1.01, -1.0, 2.0, 2.01], requires_grad=True)
    log_prob = law.log_prob(z)
    assert log_prob.isfinite().tolist() == [False, True, True, False]
    torch.testing.assert_close(log_prob[1].exp(), torch.tensor(1 / 3))
    (slope,) = torch.autograd.grad(log_prob[1:3].sum(), z)
    assert slope.isfinite().all()
    assert law.cdf(torch.tensor([-5.0, 5.0])).tolist() == pytest.approx([0.0, 1.0])
    with pytest.raises(ValueError, match="support"):
        ExponentialTilt(BOUNDED, torch.zeros(2), validate_args=True).log_prob(z)


# Divergences.


@pytest.mark.parametrize("name", NAMES)
def test_divergence_is_registered_and_right(name):
    """Five and a half standard errors over four comparisons: 2e-7."""
    prior = priors()[name]
    p, q = prior(LABELS), prior(LABELS.flip(0))
    exact = kl_divergence(p, q)
    z = p.sample((5000,))
    gaps = p.log_prob(z) - q.log_prob(z)
    tolerance = 5.5 * gaps.std(0) / len(z) ** 0.5 + 1e-12
    assert ((gaps.mean(0) - exact).abs() <= tolerance).all()


def test_divergence_of_tilts_equals_quadrature():
    natural = torch.tensor([[-1.0, 0.5], [2.0, -2.0]], dtype=DOUBLE)
    p, q = (ExponentialTilt(BOUNDED, row) for row in natural)
    expected = p.expectation(lambda z: p.log_prob(z) - q.log_prob(z))
    torch.testing.assert_close(kl_divergence(p, q), expected)
    assert float(kl_divergence(p, p)) == pytest.approx(0, abs=1e-12)
    again = StatisticsFamily((torch.square, cube), -1.0, 2.0)
    torch.testing.assert_close(kl_divergence(p, ExponentialTilt(again, natural[1])), expected)
    wide = StatisticsFamily((torch.square, cube), -1.0, 2.5)
    with pytest.raises(NotImplementedError, match="one StatisticsFamily"):
        kl_divergence(p, ExponentialTilt(wide, natural[1]))


def test_entropy_equals_that_of_scipy():
    line = StatisticsFamily([torch.square], -1.0, 1.0)
    law = line.from_natural(torch.tensor([-0.5], dtype=DOUBLE))
    assert float(law.entropy()) == pytest.approx(stats.truncnorm(-1, 1).entropy())


# As a prior.


def model(prior, context, data):
    pyro.module("prior", prior)
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", prior(context))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=data)


def guide(prior, context, data):
    with pyro.plate("data", len(data)):
        pyro.sample("z", dist.Normal(data, 0.3).to_event(1))


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_trains_in_pyro(objective):
    prior = IdentifiablePrior(2, context_dim=3, hidden_dims=(8,))
    context, data = torch.randn(6, 3), torch.randn(6, 2)
    elbo = objective(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(model, guide, prior, context, data).backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_maximum_likelihood_finds_the_scales_of_segments():
    """An exponential family fits the moments of its statistics."""
    scales = torch.tensor([0.3, 1.0, 2.5])
    data = scales[:, None, None] * torch.randn(3, 400, 2)
    prior = IdentifiablePrior(2, num_classes=3, family=GaussianFamily(("scale",)))
    optimiser = torch.optim.LBFGS(prior.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -prior(torch.arange(3)).log_prob(data.movedim(1, 0)).mean()
        value.backward()
        return value

    optimiser.step(loss)
    fitted = prior(torch.arange(3)).variance
    torch.testing.assert_close(fitted, data.square().mean(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_survives_pickle_and_state_dict(name):
    prior = priors()[name]
    z = prior(LABELS).sample()
    again = pickle.loads(pickle.dumps(prior))
    torch.testing.assert_close(again(LABELS).log_prob(z), prior(LABELS).log_prob(z))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(again(LABELS).log_prob(z), prior(LABELS).log_prob(z))


def test_contexts_may_be_of_any_shape():
    by_label = IdentifiablePrior(2, num_classes=4)
    assert by_label(torch.zeros(3, 5, dtype=torch.long)).batch_shape == (3, 5)
    by_vector = IdentifiablePrior(2, context_dim=4, family=BOUNDED)
    assert by_vector(torch.randn(3, 5, 4)).batch_shape == (3, 5)
    assert by_vector(torch.randn(4)).sample((6,)).shape == (6, 2)
    assert IMCAPrior(2, context_dim=4)(torch.randn(3, 5, 4)).batch_shape == (3, 5)


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IdentifiablePrior(0, 3), "latent_dim"),
        (lambda: IdentifiablePrior(2), "needs a context"),
        (lambda: IMCAPrior(2), "needs a context"),
        (lambda: IdentifiablePrior(2, 3, 4), "one of them zero"),
        (lambda: IdentifiablePrior(2, 3)(torch.tensor([3])), "from 0 to 2"),
        (lambda: IdentifiablePrior(2, 3)(torch.tensor([0.5])), "integers"),
        (lambda: IdentifiablePrior(2, context_dim=3)(torch.zeros(5, 2)), "shape"),
        (lambda: IMCAPrior(2, 3, modulated=("loc",)), "scale"),
        (lambda: GaussianFamily("scale"), "tuple"),
        (lambda: GaussianFamily(()), "modulated"),
        (lambda: GaussianFamily(("mean",)), "modulated"),
        (lambda: GaussianFamily(max_log_scale=0.0), "max_log_scale"),
        (lambda: LaplaceFamily(math.inf), "max_log_scale"),
        (lambda: StatisticsFamily([]), "limits"),
        (lambda: StatisticsFamily([torch.sin], 1.0, -1.0), "in order"),
        (lambda: StatisticsFamily([torch.sin], -math.inf, math.inf), "unbounded=True"),
        (lambda: StatisticsFamily([torch.sin], limits=(1.0, -1.0)), "limits"),
        (lambda: StatisticsFamily([torch.sin], limits=[(0.0, 1.0)] * 2), "limits"),
        (lambda: StatisticsFamily([torch.log], -1.0, 1.0), "finite"),
        (lambda: StatisticsFamily([torch.mean]), "shape"),
        (lambda: StatisticsFamily([lambda z: z @ z[:3]]), "same shape"),
        (lambda: StatisticsFamily([cube], -1, 1, limits=(-900.0, 0.0), num_panels=2), "num_panels"),
        (lambda: StatisticsFamily([torch.square], -2, 2, unbounded=True), "mass"),
        (lambda: StatisticsFamily([torch.clone], -3, 3, bell, unbounded=True), "mass"),
        (lambda: ExponentialTilt(BOUNDED, torch.zeros(3)), "one number for each statistic"),
        (lambda: ExponentialTilt(BOUNDED, torch.full((2,), 3.5), validate_args=True), "limits"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_values_are_refused():
    with pytest.raises(ValueError, match="invalid values"):
        IdentifiablePrior(2, context_dim=1)(torch.tensor([[math.nan]]))


def test_monotone_statistics_are_known():
    assert GaussianFamily(("loc",)).is_monotone
    assert StatisticsFamily([cube]).is_monotone
    assert not StatisticsFamily([torch.square]).is_monotone
    assert StatisticsFamily([torch.square], 0.0, 1.0).is_monotone
    assert not any(FAMILIES[name].is_monotone for name in FAMILIES if name != "loc")


def test_all_corners_of_many_statistics_are_looked_at():
    """The first statistic alone is refused; so it is in the company of others."""
    steep = [lambda z: (60 * z).sin()]
    gentle = [lambda z, k=k: z**k for k in range(1, 8)]
    limits = [(0.0, 40.0), *[(-0.1, 0.1)] * 7]
    with pytest.raises(ValueError, match="Raise num_panels"):
        StatisticsFamily(steep, limits=limits[:1], num_panels=4)
    with pytest.raises(ValueError, match="Raise num_panels"):
        StatisticsFamily(steep + gentle, limits=limits, num_panels=4)
    with pytest.raises(ValueError, match="at most 10 statistics"):
        StatisticsFamily([lambda z: z] * 11)


def test_mass_beyond_the_right_end_is_found():
    """exp(-z) on the left falls fast; on the right the window is too narrow."""
    with pytest.raises(ValueError, match="there is mass"):
        StatisticsFamily(
            [torch.tanh], -9.0, 3.0, lambda z: -z.square() / 2, limits=(-1.0, 1.0), unbounded=True
        )
    with pytest.raises(ValueError, match="there is mass"):
        StatisticsFamily(
            [torch.tanh], -3.0, 9.0, lambda z: -z.square() / 2, limits=(-1.0, 1.0), unbounded=True
        )


def test_statistics_that_are_infinite_at_the_limits():
    """The beta law: gradients are finite at the limits, and out of the support."""
    family = StatisticsFamily(
        [torch.log, lambda z: (1 - z).log()], 0.0, 1.0, limits=(0.5, 3.0), num_panels=256
    )
    natural = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    law = family.from_natural(natural)
    z = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    expected = torch.distributions.Beta(2.0, 3.0).log_prob(torch.tensor(0.3))
    log_prob = law.log_prob(z)
    assert log_prob[1].item() == pytest.approx(expected.item(), abs=1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob.sum(), [z, natural]))
    law = family.law(natural * 0, validate_args=False)
    outside = law.log_prob(torch.tensor([-1.0, 0.5, math.nan], dtype=torch.float64))
    assert outside[0] == -math.inf
    assert outside[2].isnan()
    assert law.cdf(torch.tensor(math.nan, dtype=torch.float64)).isnan()


def test_families_are_instances():
    for family in (GaussianFamily, "laplace"):
        with pytest.raises(ValueError, match="family must be an instance"):
            IdentifiablePrior(2, num_classes=3, family=family)
