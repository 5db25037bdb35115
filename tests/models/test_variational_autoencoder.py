"""The VAE against its own formulas, in every objective, and trained on a known answer."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_ext.infer import MultiSampleELBO
from pyro_ext.models import (
    DiagonalNormal,
    EnergyInspiredPrior,
    FullCovarianceNormal,
    InverseAutoregressiveFlow,
    VariationalAutoencoder,
)


def small(prior=None, **kwargs):
    return VariationalAutoencoder(6, 2, (5,), prior, **kwargs)


def pixels(num=4, dim=6):
    return torch.bernoulli(torch.full((num, dim), 0.5))


def test_log_joint_against_the_formula():
    vae, x = small(data_mean=torch.full((6,), 0.3)), pixels()
    trace = poutine.trace(poutine.condition(vae.model, {"z": torch.ones(4, 2)})).get_trace(x)
    logits = vae.decoder(torch.ones(4, 2))
    prior = 4 * 2 * (-0.5 - 0.5 * math.log(2 * math.pi))
    expected = prior - nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    q = vae.encode(x)
    loc, raw = vae.encoder(x - 0.3).chunk(2, -1)
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.stddev, nn.functional.softplus(raw) + 1e-5)
    with torch.no_grad():
        vae.encoder.layers[-1].bias[2:] = -100
    torch.testing.assert_close(vae.encode(x).stddev, torch.full((4, 2), 1e-5), atol=0, rtol=1e-3)


def test_a_mini_batch_stands_for_the_data():
    vae, x = small(), pixels()
    trace = poutine.trace(vae.model).get_trace(x, size=40)
    trace.compute_log_prob()
    node = trace.nodes["x"]
    torch.testing.assert_close(node["log_prob"], 10 * node["unscaled_log_prob"])


@pytest.mark.parametrize("prior", [None, EnergyInspiredPrior(2, (4,), 8)], ids=["normal", "snis"])
@pytest.mark.parametrize("fit", ["svi", "torch", "torch, local parameters"])
@pytest.mark.parametrize(
    "elbo",
    [MultiSampleELBO(3), MultiSampleELBO(2, vectorize_particles=False), Trace_ELBO()],
    ids=["vectorised", "sequential", "trace"],
)
def test_every_parameter_is_trained(elbo, fit, prior):
    with pyro.settings.context(module_local_params="local" in fit):
        vae = small(copy.deepcopy(prior))
        before = copy.deepcopy(vae.state_dict())
        if fit == "svi":
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), elbo)
            assert math.isfinite(svi.step(pixels(), size=100))
        else:
            optimizer = torch.optim.Adam(vae.parameters(), lr=0.1)
            elbo.differentiable_loss(vae.model, vae.guide, pixels(), size=100).backward()
            optimizer.step()
    unmoved = [name for name, value in vae.state_dict().items() if torch.equal(value, before[name])]
    # a constant in the energy cancels, so that its last bias has no gradient
    assert set(unmoved) <= {"prior.sampler.energy.layers.2.bias"}


def test_mean_field_elbo_works_with_the_normal_prior():
    vae = small()
    assert math.isfinite(TraceMeanField_ELBO().loss(vae.model, vae.guide, pixels()))


def test_generation_and_prediction():
    vae = small(EnergyInspiredPrior(2, (4,), 8))
    assert vae.model(size=3).shape == (3, 6)
    samples = Predictive(vae.model, num_samples=5, parallel=True)(size=3)
    assert samples["x"].shape == (5, 3, 6)
    assert samples["z"].shape == (5, 3, 2)


def test_data_mean_starts_the_decoder():
    mean = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0, 0.3])
    vae = small(data_mean=mean)
    with torch.no_grad():
        for layer in vae.decoder.layers:
            layer.weight.zero_()
    expected = mean.clamp(1e-4, 1 - 1e-4)
    torch.testing.assert_close(vae.decode(torch.zeros(1, 2)).mean[0], expected)


def normal_pixels(loc):
    return dist.Normal(loc, 0.1).to_event(1)


def test_another_observation():
    vae = small(observation=normal_pixels, data_mean=torch.zeros(6))
    assert math.isfinite(MultiSampleELBO(2).loss(vae.model, vae.guide, torch.randn(4, 6)))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_score_alike(copier):
    vae, x = small(EnergyInspiredPrior(2, (4,), 8)), pixels()
    elbo, losses = MultiSampleELBO(3, max_plate_nesting=1), []
    for module in (vae, copier(vae)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(module.model, module.guide, x))
    assert losses[0] == losses[1]


def test_state_dict_round_trip(tmp_path):
    vae, other = small(data_mean=torch.full((6,), 0.2)), small(data_mean=torch.zeros(6))
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    other.load_state_dict(torch.load(tmp_path / "vae.pt", weights_only=True))
    x = pixels()
    assert torch.equal(vae.encode(x).mean, other.encode(x).mean)


def test_bad_input():
    with pytest.raises(ValueError, match="positive sizes"):
        VariationalAutoencoder(6, 0)
    with pytest.raises(ValueError, match=r"shape \(3,\) in batches of \(\), expected \(2,\)"):
        small(EnergyInspiredPrior(3, (4,), 8))
    with pytest.raises(ValueError, match=r"data_mean has shape \(5,\), expected \(6,\)"):
        small(data_mean=torch.zeros(5))
    with pytest.raises(ValueError, match=r"shape \(batch, 6\), got \(4, 2, 3\)"):
        small().model(torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match="a hidden layer"):
        VariationalAutoencoder(6, 2, ())
    with pytest.raises(ValueError, match=r"mean in \[0, 1\], but data_mean reaches from 0 to 255"):
        small(data_mean=torch.tensor([0.0, 255, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"floating-point data, got torch\.uint8"):
        small().guide(pixels().byte())
    with pytest.raises(ValueError, match="batch of 4 cannot stand for size=3"):
        small().model(pixels(), size=3)


# A linear decoder with Gaussian noise is probabilistic principal component analysis.

NOISE = 0.7


def noisy_pixels(loc):
    return dist.Normal(loc, NOISE).to_event(1)


def inverse_softplus(scale):
    return torch.log(torch.expm1(scale - 1e-5))


def linear_vae(family, scale):
    """A linear VAE whose guide has the exact mean; ``scale`` makes its raw scale features."""
    vae = small(observation=noisy_pixels, posterior=family(2)).double()
    vae.decoder = nn.Linear(2, 6).double()
    weight, bias = vae.decoder.weight.detach(), vae.decoder.bias.detach()
    covariance = torch.linalg.inv(weight.T @ weight / NOISE**2 + torch.eye(2).double())
    vae.encoder = nn.Linear(6, vae.posterior.feature_dim).double()
    gain = covariance @ weight.T / NOISE**2
    with torch.no_grad():
        vae.encoder.weight.zero_()
        vae.encoder.weight[:2] = gain
        vae.encoder.bias.copy_(torch.cat([-gain @ bias, scale(covariance)]))
    total = weight @ weight.T + NOISE**2 * torch.eye(6).double()
    return vae, dist.MultivariateNormal(bias, total), covariance


def cholesky_features(covariance):
    tril = torch.linalg.cholesky(covariance)
    return torch.cat([inverse_softplus(tril.diagonal()), tril[1:, 0]])


def best_diagonal_features(covariance):
    """The minimiser of KL(q || p): the diagonal of the precision."""
    return inverse_softplus(torch.linalg.inv(covariance).diagonal().rsqrt())


def test_full_covariance_reaches_the_evidence_of_the_linear_vae():
    vae, evidence, _ = linear_vae(FullCovarianceNormal, cholesky_features)
    x = torch.randn(5, 6, dtype=torch.float64)
    log_w = MultiSampleELBO(7, max_plate_nesting=1).log_weights(vae.model, vae.guide, x)
    torch.testing.assert_close(log_w, evidence.log_prob(x).expand(7, 5))
    loss = MultiSampleELBO(3).loss(vae.model, vae.guide, x, size=50)
    assert math.isclose(-loss, 10 * evidence.log_prob(x).sum().item(), rel_tol=1e-9)


def test_a_diagonal_posterior_misses_it_by_its_divergence():
    vae, evidence, covariance = linear_vae(DiagonalNormal, best_diagonal_features)
    x = torch.randn(5, 6, dtype=torch.float64)
    gap = (covariance.logdet() + torch.linalg.inv(covariance).diagonal().log().sum()) / 2
    assert gap > 1e-2
    with torch.no_grad():
        log_w = MultiSampleELBO(20_000, max_plate_nesting=1).log_weights(vae.model, vae.guide, x)
    error = (evidence.log_prob(x) - gap).mean() - log_w.mean()
    assert error.abs() < 4.5 * log_w.mean(1).std() / 20_000**0.5  # false alarms: 7e-6


# Context.


def test_context_reaches_both_networks():
    vae, x = small(context_dim=3), pixels()
    context = torch.eye(3)[[0, 1, 2, 0]]
    logits = vae.decoder(torch.cat([torch.ones(4, 2), context], -1))
    torch.testing.assert_close(vae.decode(torch.ones(4, 2), context).base_dist.logits, logits)
    loc = vae.encoder(torch.cat([x, context], -1))[:, :2]
    torch.testing.assert_close(vae.encode(x, context).mean, loc)
    elbo = MultiSampleELBO(3)
    elbo.loss_and_grads(vae.model, vae.guide, x, context, size=40)
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters())
    samples = Predictive(vae.model, num_samples=5, parallel=True)(None, context, size=4)
    assert samples["x"].shape == (5, 4, 6)


def test_context_broadcasts_to_the_left():
    vae, every = small(context_dim=3), torch.eye(3).unsqueeze(1)
    assert vae.encode(pixels(), every).batch_shape == (3, 4)
    assert vae.decode(torch.zeros(7, 1, 4, 2), every).batch_shape == (7, 3, 4)


def test_bad_context():
    with pytest.raises(ValueError, match="context_dim=3, but the context is none"):
        small(context_dim=3).model(pixels())
    with pytest.raises(
        ValueError, match=r"context_dim=0, but the context is one of shape \(4, 3\)"
    ):
        small().guide(pixels(), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"context_dim=3, but the context is one of shape \(4,\)"):
        small(context_dim=3).guide(pixels(), torch.zeros(4))
    with pytest.raises(ValueError, match=r"floating-point context, got torch\.int64"):
        small(context_dim=3).guide(pixels(), torch.zeros(4, 3).long())
    with pytest.raises(ValueError, match="context_dim must be an integer >= 0"):
        small(context_dim=-1)


def test_an_observation_with_features_of_its_own():
    vae = small(observation=DiagonalNormal(6))
    assert vae.decode(torch.zeros(3, 2)).event_shape == (6,)
    elbo = MultiSampleELBO(2)
    elbo.loss_and_grads(vae.model, vae.guide, torch.randn(4, 6))
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters())


@pytest.mark.gpu
def test_on_a_gpu():
    vae = small(posterior=InverseAutoregressiveFlow(2), context_dim=3).cuda()
    x, context = pixels().cuda(), torch.eye(3)[[0, 1, 2, 0]].cuda()
    elbo = MultiSampleELBO(3)
    assert math.isfinite(elbo.loss_and_grads(vae.model, vae.guide, x, context, size=40))


@pytest.mark.slow
@pytest.mark.parametrize(
    "prior", [None, EnergyInspiredPrior(1, (20,), 256)], ids=["normal", "snis"]
)
def test_training_reaches_the_likelihood_of_a_known_mixture(prior):
    prototypes = torch.tensor([[0.9] * 8 + [0.1] * 8, [0.1] * 8 + [0.9] * 8])
    x = torch.bernoulli(prototypes[torch.randint(2, (2_000,))])
    log_components = dist.Bernoulli(prototypes).to_event(1).log_prob(x[:, None])
    exact = (log_components.logsumexp(1) - math.log(2)).mean()
    vae = VariationalAutoencoder(16, 1, (20,), copy.deepcopy(prior))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 5e-3}), MultiSampleELBO(5))
    for _ in range(2_500):
        svi.step(x[torch.randint(2_000, (128,))])
    bounds = [-MultiSampleELBO(50).loss(vae.model, vae.guide, x) / 2_000 for _ in range(30)]
    bound = sum(bounds) / 30  # the images of one evaluation share the prior's proposals
    # 300 parameters may gain 300 / 2 / 2,000 nats on their own training data
    assert exact - 0.15 < bound < exact + 0.075


def test_a_function_may_be_a_prior_if_it_has_no_parameters():
    VariationalAutoencoder(6, 2, (5,), lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1))
    prior = EnergyInspiredPrior(2)
    with pytest.raises(ValueError, match="prior is a function with trainable parameters"):
        VariationalAutoencoder(6, 2, (5,), lambda: prior())


def test_parts_of_the_wrong_kind():
    with pytest.raises(ValueError, match=r"class FullCovarianceNormal\. Pass an instance"):
        VariationalAutoencoder(8, 3, (4,), posterior=FullCovarianceNormal)
    with pytest.raises(ValueError, match="prior returned a Tensor, expected a distribution"):
        VariationalAutoencoder(8, 3, (4,), prior=dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="hidden_dims must be a sequence of widths, got 10"):
        VariationalAutoencoder(8, 2, 10)
