"""The identifiable autoencoder: likelihoods, posteriors, exact bounds, and its effect."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import nn
from torch.nn.functional import softplus

from pyro_ext.data import simulate
from pyro_ext.diagnostics import (
    check_identifiability,
    fastica_baseline,
    importance_diagnostics,
    mean_correlation,
)
from pyro_ext.distributions import GaussianFamily, IdentifiablePrior, IMCAPrior, LaplaceFamily
from pyro_ext.infer import DecomposedELBO, MultiSampleELBO
from pyro_ext.models import (
    FullCovarianceNormal,
    IdentifiableVAE,
    InverseAutoregressiveFlow,
    NegativeBinomialObservation,
    NormalObservation,
    bernoulli,
    poisson,
)
from pyro_ext.nn import CouplingFlow

pytestmark = pytest.mark.filterwarnings("ignore:.*labels cannot identify")

LABELS = torch.arange(6) % 3


def a_prior(dim=2, num_classes=3, **options):
    prior = IdentifiablePrior(dim, num_classes=num_classes, **options)
    with torch.no_grad():
        prior.head.last.add_(torch.randn_like(prior.head.last), alpha=0.5)
    return prior


def a_vae(observation=None, input_dim=4, **options):
    vae = IdentifiableVAE(a_prior(), input_dim, (8,), observation, **options)
    x = vae.model(None, LABELS).detach()
    pyro.clear_param_store()
    return vae, x


OBSERVATIONS = {
    "normal": lambda: None,
    "fixed normal": lambda: NormalObservation(4, 0.5, is_learned=False),
    "bernoulli": lambda: bernoulli,
    "poisson": lambda: poisson,
    "negative binomial": lambda: NegativeBinomialObservation(4),
}


# Observations against torch.


def raw_and(values):
    return torch.randn(7, 4, dtype=torch.float64), torch.as_tensor(values, dtype=torch.float64)


def test_normal_observations():
    raw, x = raw_and(torch.randn(7, 4))
    observation = NormalObservation(4, scale=0.3).double()
    with torch.no_grad():
        observation.log_ratio.copy_(torch.tensor([-1.0, 0.0, 0.5, 100.0]))
    ratio = (6 * torch.tanh(torch.tensor([-1.0, 0.0, 0.5, 100.0]).double() / 6)).exp()
    scale = torch.tensor(0.3).double() * ratio
    expected = torch.distributions.Normal(raw, scale).log_prob(x).sum(-1)
    torch.testing.assert_close(observation(raw).log_prob(x), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(observation.scale, scale, rtol=1e-6, atol=0)


def test_fixed_scales_are_no_parameters():
    assert not list(NormalObservation(4, is_learned=False).parameters())
    assert len(list(NormalObservation(4).parameters())) == 1


def test_bernoulli_observations():
    raw, x = raw_and(torch.rand(7, 4).round())
    expected = -nn.functional.binary_cross_entropy_with_logits(raw, x, reduction="none").sum(-1)
    torch.testing.assert_close(bernoulli(raw).log_prob(x), expected)


def test_poisson_observations():
    raw, x = raw_and(torch.randint(0, 9, (7, 4)))
    rate = nn.functional.softplus(raw) + 1e-6
    loss = nn.functional.poisson_nll_loss(rate, x, log_input=False, reduction="none", eps=0.0)
    torch.testing.assert_close(poisson(raw).log_prob(x), -(loss + torch.lgamma(x + 1)).sum(-1))


def test_negative_binomials_are_poisson_under_a_gamma_rate():
    """By quadrature over the rate."""
    raw, x = raw_and(torch.randint(0, 9, (7, 4)))
    observation = NegativeBinomialObservation(4, dispersion=1.7).double()
    mean, shape = nn.functional.softplus(raw) + 1e-6, torch.tensor(1.7, dtype=torch.float64)
    grid = torch.linspace(-25, 5, 20_001, dtype=torch.float64)
    rate = grid.exp()[:, None, None]
    gamma = torch.distributions.Gamma(shape, shape / mean, validate_args=False)
    density = torch.distributions.Poisson(rate).log_prob(x) + gamma.log_prob(rate) + rate.log()
    expected = torch.trapezoid(density.exp(), grid, dim=0).log().sum(-1)
    found = observation(raw)
    torch.testing.assert_close(found.log_prob(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance, mean + mean.square() / 1.7, rtol=1e-6, atol=0)
    assert observation.dispersion.tolist() == pytest.approx([1.7] * 4)


# Posteriors.


def test_product_posterior_is_the_normalised_product():
    """The ratio of the densities is constant in z."""
    vae, x = a_vae(product_posterior=True)
    vae, x = vae.double(), x.double()
    z = torch.randn(50, 6, 2, dtype=torch.float64)
    alone = vae.posterior(vae.encoder((x - vae.loc) / vae.scale))
    product = alone.log_prob(z) + vae.prior(LABELS).log_prob(z)
    ratio = vae.encode(x, LABELS).log_prob(z) - product
    torch.testing.assert_close(ratio, ratio[:1].expand(50, -1), atol=1e-9, rtol=1e-9)


def test_product_posterior_by_conjugacy():
    """Against the normal law of a mean that is seen with noise."""
    vae, x = a_vae(product_posterior=True)
    vae, x = vae.double(), x.double()
    seen, prior = vae.posterior(vae.encoder(x)), vae.prior(LABELS)
    gain = prior.variance / (prior.variance + seen.variance)
    found = vae.encode(x, LABELS)
    torch.testing.assert_close(found.mean, prior.mean + gain * (seen.mean - prior.mean))
    torch.testing.assert_close(found.variance, (1 - gain) * prior.variance)


def test_encoders_see_what_they_should():
    """The plain one the context beside the data, the product's network data alone."""
    x = torch.randn(6, 4)
    plain, product = a_vae()[0], a_vae(product_posterior=True)[0]
    assert plain.encoder[0].in_features == 4 + 3
    assert product.encoder[0].in_features == 4
    for vae in (plain, product):
        other = vae.encode(x, (LABELS + 1) % 3)
        assert (vae.encode(x, LABELS).mean != other.mean).all()


def test_it_sees_standardised_data():
    vae, _ = a_vae()
    x = 100 + 7 * torch.randn(200, 4)
    labels = torch.arange(200) % 3
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    expected = vae.encode(standard, labels).mean
    found = vae.initialize(x).encode(x, labels).mean
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# Exact bounds.


def linear(dim=3, input_dim=5, scale=0.4):
    """A model with a linear decoder, its exact evidence, and the exact posterior as a guide."""
    prior = a_prior(dim).double()
    noise = NormalObservation(input_dim, scale, is_learned=False).double()
    vae = IdentifiableVAE(prior, input_dim, (8,), noise).double()
    vae.decoder = nn.Linear(dim, input_dim).double()
    weight, bias = vae.decoder.weight, vae.decoder.bias
    variance = noise.scale[0] ** 2

    def log_evidence(x, labels):
        law = prior(labels)
        covariance = weight @ law.variance.diag_embed() @ weight.T
        covariance = covariance + variance * torch.eye(input_dim).double()
        return dist.MultivariateNormal(law.mean @ weight.T + bias, covariance).log_prob(x)

    def guide(x, labels, size=None):
        law = prior(labels)
        precision = weight.T @ weight / variance + law.variance.reciprocal().diag_embed()
        target = (x - bias) @ weight / variance + law.mean / law.variance
        loc = torch.linalg.solve(precision, target.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    return vae, log_evidence, guide


def test_every_draw_of_the_exact_posterior_gives_the_evidence():
    vae, log_evidence, guide = linear()
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = log_evidence(x, LABELS).sum().item()
    for _ in range(5):
        assert -Trace_ELBO().loss(vae.model, guide, x, LABELS) == pytest.approx(expected, abs=1e-10)
    for num_particles in (1, 7):
        bound = -MultiSampleELBO(num_particles).loss(vae.model, guide, x, LABELS)
        assert bound == pytest.approx(expected, abs=1e-10)


def test_importance_weights_estimate_the_evidence():
    """The prior as a guide; five standard errors by the delta method, false alarm 6 x 6e-7."""
    vae, log_evidence, _ = linear(dim=2, scale=2.0)
    x = torch.randn(6, 5, dtype=torch.float64)

    def guide(x, labels):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.prior(labels))

    found = importance_diagnostics(vae.model, guide, x, LABELS, num_particles=20_000)
    expected = log_evidence(x, LABELS).detach()
    assert (found.pareto_k < 0.7).all()
    assert ((found.log_evidence - expected).abs() < 5 * found.ess.rsqrt()).all()


class Known(nn.Module):
    """In place of an encoder: features that are given."""

    def __init__(self, *features):
        super().__init__()
        self.features = torch.cat(features, -1)

    def forward(self, seen):
        return self.features


def below(matrix):
    row, column = torch.tril_indices(*matrix.shape[-2:], -1)
    return matrix[..., row, column]


def exact(vae, weight, offset, x):
    """Location and Cholesky factor of the posterior under a linear decoder."""
    law, variance = vae.prior(LABELS), vae.observation.scale[0] ** 2
    precision = weight.T @ weight / variance + law.variance.reciprocal().diag_embed()
    target = (x - offset) @ weight / variance + law.mean / law.variance
    loc = torch.linalg.solve(precision, target.unsqueeze(-1)).squeeze(-1)
    return loc, torch.linalg.cholesky(precision.inverse())


def test_full_covariance_contains_the_exact_posterior():
    vae, log_evidence, _ = linear()
    weight, offset = vae.decoder.weight, vae.decoder.bias
    full = IdentifiableVAE(vae.prior, 5, (8,), vae.observation, posterior=FullCovarianceNormal(3))
    full.decoder, x = vae.decoder, torch.randn(6, 5, dtype=torch.float64)
    loc, root = exact(vae, weight, offset, x)
    raw = (root.diagonal(dim1=-2, dim2=-1) - 1e-5).expm1().log()
    full.encoder = Known(loc, raw, below(root))
    expected = log_evidence(x, LABELS).sum().item()
    for elbo in (Trace_ELBO(), MultiSampleELBO(3), DecomposedELBO(max_plate_nesting=1)):
        found = -elbo.loss(full.double().model, full.guide, x, LABELS)
        assert found == pytest.approx(expected, abs=1e-9)


def test_posterior_around_the_inverse_contains_the_exact_one():
    """At the start the flow is affine."""
    noise, flow = NormalObservation(3, 0.4, is_learned=False), CouplingFlow(3, 2, (4,))
    options = {"posterior": FullCovarianceNormal(3), "decoder": flow}
    vae = IdentifiableVAE(a_prior(3), 3, (8,), noise, **options).double()
    x = 2 + torch.randn(6, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    vae.initialize(x)
    offset = flow.decode(torch.zeros(3).double())[0]
    weight = (flow.decode(torch.eye(3).double())[0] - offset).T
    loc, root = exact(vae, weight, offset, x)
    diagonal = root.diagonal(dim1=-2, dim2=-1)
    raw = 10 * (diagonal.div(0.4).log() / 10).atanh()
    lower = below(root / diagonal.unsqueeze(-2))
    vae.encoder = Known((loc - flow.encode(x)[0]) / 0.4, raw, lower)
    law = vae.prior(LABELS)
    covariance = weight @ law.variance.diag_embed() @ weight.T + 0.16 * torch.eye(3).double()
    evidence = dist.MultivariateNormal(law.mean @ weight.T + offset, covariance).log_prob(x)
    found = -Trace_ELBO().loss(vae.model, vae.guide, x, LABELS)
    assert found == pytest.approx(evidence.sum().item(), rel=1e-6)
    torch.testing.assert_close(vae.encode(x, LABELS).mean, loc, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.4, 1e-3])
def test_independent_coordinates_cost_what_is_not_orthogonal(scale):
    r"""The best of them is $\frac12 (\sum_i \log P_{ii} - \log \det P)$ nats below the evidence."""
    vae, log_evidence, _ = linear(scale=scale)
    x, weight = torch.randn(6, 5, dtype=torch.float64), vae.decoder.weight
    loc, root = exact(vae, weight, vae.decoder.bias, x)
    precision = torch.cholesky_inverse(root)
    best = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    diagonal = dist.Normal(loc, best).to_event(1)
    posterior = dist.MultivariateNormal(loc, scale_tril=root)
    gap = -best.log().sum(-1) - torch.linalg.slogdet(precision).logabsdet / 2
    steps = 3**0.5 * torch.cat([torch.eye(3), -torch.eye(3)]).double().unsqueeze(1)
    points = loc + best * steps  # (6, B, 3); exact for means of quadratic functions
    mean = (diagonal.log_prob(points) - posterior.log_prob(points)).mean(0)
    torch.testing.assert_close(mean, gap, rtol=1e-6, atol=1e-8)
    assert (gap > 0.01).all()
    bound = vae.decode(points).log_prob(x) + vae.prior(LABELS).log_prob(points)
    found = (bound - diagonal.log_prob(points)).mean(0)
    torch.testing.assert_close(found, log_evidence(x, LABELS) - gap, rtol=1e-6, atol=1e-6)


# As Pyro programs.


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_it_trains_with_any_bound(name, product):
    elbos = [
        Trace_ELBO(2, vectorize_particles=True),
        TraceMeanField_ELBO(),
        MultiSampleELBO(3),
        DecomposedELBO(10.0, total_correlation=0.0),
    ]
    vae, x = a_vae(OBSERVATIONS[name](), product_posterior=product)
    for elbo in elbos:
        pyro.clear_param_store()
        before = [p.detach().clone() for p in vae.parameters()]
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
        assert math.isfinite(svi.step(x, LABELS, size=60))
        after = list(vae.parameters())
        assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("size", [None, 60])
def test_loss_by_hand(size):
    vae, x = a_vae()
    pyro.set_rng_seed(0)
    q, p = vae.encode(x, LABELS), vae.prior(LABELS)
    z = q.rsample()
    terms = vae.decode(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)
    expected = -terms.sum() * (1 if size is None else size / 6)
    pyro.set_rng_seed(0)
    loss = Trace_ELBO().loss(vae.model, vae.guide, x, LABELS, size=size)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("posterior", [None, FullCovarianceNormal(4)])
@pytest.mark.parametrize("product", [False, True])
def test_invertible_decoders_train_with_any_bound(product, posterior):
    if product and posterior is not None:
        return
    options = {"product_posterior": product, "posterior": posterior}
    decoder = CouplingFlow(4, 2, (5,))
    vae = IdentifiableVAE(a_prior(4), 4, (8,), NormalObservation(4), decoder=decoder, **options)
    x = vae.initialize(torch.randn(50, 4)).model(None, LABELS).detach()
    for elbo in (Trace_ELBO(), MultiSampleELBO(3), DecomposedELBO(10.0, total_correlation=0.0)):
        pyro.clear_param_store()
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
        before = [p.detach().clone() for p in vae.parameters()]
        for _ in range(2):  # the first step moves what is zero at the start
            assert math.isfinite(svi.step(x, LABELS, size=60))
        assert all(not torch.equal(*pair) for pair in zip(before, vae.parameters(), strict=True))


def test_little_noise_stays_around_the_inverse():
    noise = NormalObservation(4, 1e-3, is_learned=False)
    vae = IdentifiableVAE(a_prior(4), 4, (8,), noise, decoder=CouplingFlow(4))
    x = torch.randn(6, 4)
    law = vae.encode(x, LABELS)
    assert (law.mean - vae.decoder.encode(x)[0]).abs().max() < 0.01
    assert (vae.decode(law.mean).mean - x).abs().max() < 0.01
    assert (law.stddev < 0.01).all()


def test_divergences_are_known_in_closed_form():
    vae, x = a_vae()
    losses = torch.tensor(
        [TraceMeanField_ELBO().loss(vae.model, vae.guide, x, LABELS) for _ in range(300)]
    )
    plain = torch.tensor([Trace_ELBO().loss(vae.model, vae.guide, x, LABELS) for _ in range(300)])
    error = (losses.var() + plain.var()).sqrt() / 300**0.5
    assert (losses.mean() - plain.mean()).abs() < 5 * error  # false alarm 6e-7


def test_it_draws_and_takes_vectors():
    vae = IdentifiableVAE(IdentifiablePrior(2, context_dim=3, hidden_dims=(5,)), 4, (8,))
    u = torch.randn(6, 3)
    assert vae.model(None, u).shape == (6, 4)
    assert vae.encode(torch.randn(6, 4), u).mean.shape == (6, 2)
    drawn = Predictive(vae.model, num_samples=5, parallel=True)(None, u)
    assert drawn["x"].shape[-2:] == (6, 4)


def test_it_takes_other_priors_and_is_checked():
    for prior in (
        IMCAPrior(2, num_classes=9),
        IdentifiablePrior(2, num_classes=9, family=LaplaceFamily()),
    ):
        vae = IdentifiableVAE(prior, 4, (8,), poisson)
        x, labels = torch.ones(9, 4), torch.arange(9)
        assert math.isfinite(Trace_ELBO().loss(vae.model, vae.guide, x, labels))
        report = check_identifiability(
            vae.prior,
            labels,
            likelihood=vae.decode(torch.zeros(2)),
            decoder=lambda z, vae=vae: vae.decode(z).mean,
        )
        assert not report.is_identifiable  # counts are outside of the theory


def test_it_is_stored_and_copied(tmp_path):
    vae, x = a_vae(NegativeBinomialObservation(4))
    vae.initialize(x + torch.randn(6, 4))
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    other = a_vae(NegativeBinomialObservation(4))[0]
    other.load_state_dict(torch.load(tmp_path / "vae.pt", weights_only=True))
    expected = vae.encode(x, LABELS).mean
    for one in (other, copy.deepcopy(vae)):
        assert torch.equal(one.encode(x, LABELS).mean, expected)


# Bad input.


def test_bad_arguments():
    prior = a_prior(3)
    with pytest.raises(ValueError, match="no continuous decoder is injective"):
        IdentifiableVAE(prior, 2)
    with pytest.raises(ValueError, match="The prior is"):
        IdentifiableVAE(lambda: None, 5)
    with pytest.raises(ValueError, match="each size in hidden_dims"):
        IdentifiableVAE(prior, 5, (0,))
    with pytest.raises(ValueError, match="Pass an instance of it"):
        IdentifiableVAE(prior, 5, (5,), NormalObservation)
    for other in (IMCAPrior(3, num_classes=4), a_prior(3, family=LaplaceFamily())):
        with pytest.raises(ValueError, match="product_posterior multiplies normal laws"):
            IdentifiableVAE(other, 5, product_posterior=True)
    with pytest.raises(ValueError, match="multiplies single coordinates"):
        IdentifiableVAE(prior, 5, product_posterior=True, posterior=FullCovarianceNormal(3))
    for dim in (3, 5):
        with pytest.raises(ValueError, match="Give a CouplingFlow of both sizes"):
            IdentifiableVAE(prior, 5, decoder=CouplingFlow(dim))
    with pytest.raises(ValueError, match="Give a CouplingFlow of both sizes"):
        IdentifiableVAE(prior, 3, decoder=nn.Linear(3, 3))
    with pytest.raises(ValueError, match="goes with a NormalObservation"):
        IdentifiableVAE(prior, 3, observation=poisson, decoder=CouplingFlow(3))
    flow = InverseAutoregressiveFlow(3)
    with pytest.raises(ValueError, match="DiagonalNormal or FullCovarianceNormal"):
        IdentifiableVAE(prior, 3, posterior=flow, decoder=CouplingFlow(3))
    for bad in (0.0, -1.0, math.nan, "a"):
        with pytest.raises(ValueError, match="scale must be a positive finite number"):
            NormalObservation(3, bad)
        with pytest.raises(ValueError, match="dispersion must be a positive finite number"):
            NegativeBinomialObservation(3, bad)


def test_bad_data():
    vae, x = a_vae()
    with pytest.raises(ValueError, match=r"shape \(batch, 4\)"):
        vae.model(x[:, :3], LABELS)
    with pytest.raises(ValueError, match="There are 6 data, but 5 contexts"):
        vae.guide(x, LABELS[:5])
    with pytest.raises(ValueError, match="Labels are integers from 0 to 2"):
        vae.guide(x, LABELS + 1)
    with pytest.raises(ValueError, match="hold NaN"):
        vae.initialize(torch.full((6, 4), math.nan))
    with pytest.raises(ValueError, match="are constant"):
        vae.initialize(torch.ones(6, 4))


# The effect.


@pytest.mark.slow
def test_it_finds_sources_under_noise():
    """Two sources of twelve contexts in five noisy numbers; on data that nothing was fitted on."""
    problem = simulate.tcl(latent_dim=2, num_contexts=12, num_layers=1, scale_range=(0.2, 3.0))
    train, test = problem.sample(200, seed=0), problem.sample(200, seed=1)
    weight = torch.randn(2, 5)

    def observe(draws):
        mixed = draws.sources @ weight
        return mixed.tanh() + 0.3 * mixed + 0.05 * torch.randn(len(mixed), 5)

    x, x_test = observe(train), observe(test)
    prior = IdentifiablePrior(2, num_classes=12, family=GaussianFamily(("scale",)))
    vae = IdentifiableVAE(prior, 5, (50, 50)).initialize(x)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 1500, pct_start=0.05)
    with pyro.validation_enabled(False):
        for _ in range(1500):
            index = torch.randint(len(x), (100,))
            optimizer.zero_grad()
            elbo = Trace_ELBO().differentiable_loss
            (elbo(vae.model, vae.guide, x[index], train.context[index]) / 100).backward()
            optimizer.step()
            schedule.step()
    z = vae.encode(x_test, test.context).mean.detach()
    z_train = vae.encode(x, train.context).mean.detach()
    score = mean_correlation(z, test.sources, fit=(z_train, train.sources)).score
    linear = fastica_baseline(x_test, test.sources, fit=(x, train.sources)).score
    assert score > 0.88
    assert score > linear + 0.05


@pytest.mark.slow
def test_correlated_posteriors_find_what_independent_ones_do_not():
    """Three sources, mixed without noise; on data that nothing was fitted on."""
    problem = simulate.xtanh(3, 12, 2, mixing_seed=1, modulator_seed=1)
    train, test = problem.sample(500, seed=0), problem.sample(200, seed=1)
    correlated = found(FullCovarianceNormal(3), train, test)
    linear = fastica_baseline(test.x, test.sources, fit=(train.x, train.sources)).score
    assert correlated > 0.9
    assert correlated > linear + 0.15
    assert correlated > found(None, train, test) + 0.03


def found(posterior, train, test, num_steps=700):
    """The mean correlation of an autoencoder with an invertible decoder."""
    pyro.set_rng_seed(0)
    prior = IdentifiablePrior(3, num_classes=12, family=GaussianFamily(("scale",)))
    noise, decoder = NormalObservation(3, 0.03, is_learned=False), CouplingFlow(3, 4, (32,))
    vae = IdentifiableVAE(prior, 3, (32, 32), noise, posterior=posterior, decoder=decoder)
    optimizer = torch.optim.Adam(vae.initialize(train.x).parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, num_steps, pct_start=0.05)
    elbo = Trace_ELBO().differentiable_loss
    with pyro.validation_enabled(False):
        for _ in range(num_steps):
            index = torch.randint(len(train.x), (128,))
            optimizer.zero_grad()
            (elbo(vae.model, vae.guide, train.x[index], train.context[index]) / 128).backward()
            optimizer.step()
            schedule.step()
    z, z_train = (vae.encode(draws.x, draws.context).mean.detach() for draws in (test, train))
    return mean_correlation(z, test.sources, fit=(z_train, train.sources)).score


def test_the_factor_of_a_product_knows_no_context():
    vae = IdentifiableVAE(IdentifiablePrior(2, num_classes=5), 4, product_posterior=True)
    x, label = torch.randn(6, 4), torch.arange(6) % 5
    factor, prior, whole = vae.encode(x), vae.prior(label), vae.encode(x, label)
    z = torch.randn(6, 2)
    left = whole.log_prob(z) - whole.log_prob(0 * z)
    right = sum(law.log_prob(z) - law.log_prob(0 * z) for law in (factor, prior))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="needs a context"):
        IdentifiableVAE(IdentifiablePrior(2, num_classes=5), 4).encode(x)


def test_data_of_another_kind():
    vae = IdentifiableVAE(IdentifiablePrior(2, context_dim=1), 4)
    x, context = torch.randn(6, 4), torch.randn(6, 1)
    with pytest.raises(
        ValueError, match=r"Data are of torch\.float64, but the model of torch\.flo"
    ):
        vae.guide(x.double(), context)
    with pytest.raises(ValueError, match="The mini-batch is empty"):
        vae.guide(x[:0], context[:0])
    with pytest.raises(ValueError, match="Contexts hold NaN"):
        vae.model(x, context * math.nan)
    with pytest.raises(ValueError, match="Data hold NaN"):
        vae.guide(x * math.nan, context)
    with pytest.raises(ValueError, match="narrower than the 5 latents"):
        IdentifiableVAE(IdentifiablePrior(5, context_dim=1), 8, hidden_dims=(3,))


def test_the_factor_sees_standardised_data():
    vae = IdentifiableVAE(IdentifiablePrior(2, num_classes=5), 4, product_posterior=True)
    x = 100 + 30 * torch.randn(50, 4)
    vae.initialize(x)
    expected = vae.posterior(vae.encoder((x - x.mean(0)) / x.std(0, correction=0)))
    torch.testing.assert_close(vae.encode(x).mean, expected.mean, rtol=1e-3, atol=1e-3)


def test_each_column_of_counts_has_its_own_dispersion():
    observation = NegativeBinomialObservation(2)
    with torch.no_grad():
        observation.log_ratio.copy_(torch.tensor([-1.0, 1.5]))
    raw, counts = torch.tensor([[0.3, 1.0]]), torch.tensor([[2.0, 5.0]])
    rate, r = softplus(raw).double(), observation.dispersion.detach().double()
    expected = stats.nbinom.logpmf(counts, r, r / (r + rate)).sum()
    assert observation(raw).log_prob(counts).item() == pytest.approx(expected, abs=1e-4)
