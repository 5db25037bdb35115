"""The hierarchical VAE against its formula and the closed form of a linear chain."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from torch import nn
from torch.nn.functional import softplus

from pyro_ext.infer import MultiSampleELBO, dreg, pathwise
from pyro_ext.models import EnergyInspiredPrior, HierarchicalVariationalAutoencoder


def small(*args, **kwargs):
    return HierarchicalVariationalAutoencoder(6, (3, 2), (5, 4), *args, **kwargs)


def pixels(num=4):
    return torch.bernoulli(torch.full((num, 6), 0.5))


def normal(features):
    loc, raw = features.chunk(2, -1)
    return torch.distributions.Normal(loc, softplus(raw) + 1e-5)


def test_densities_against_the_formula():
    vae, x = small(data_mean=torch.full((6,), 0.3)), pixels()
    z1, z2 = torch.randn(4, 3), torch.randn(4, 2)
    values = {"z1": z1, "z2": z2}
    model = poutine.trace(poutine.condition(vae.model, values)).get_trace(x)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z2).sum()
    log_p = log_p + normal(vae.decoders[1](z2)).log_prob(z1).sum()
    logits = vae.decoders[0](z1)
    log_p = log_p - nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    torch.testing.assert_close(model.log_prob_sum(), log_p)
    guide = poutine.trace(poutine.condition(vae.guide, values)).get_trace(x)
    log_q = normal(vae.encoders[0](x - 0.3)).log_prob(z1).sum()
    log_q = log_q + normal(vae.encoders[1](z1)).log_prob(z2).sum()
    torch.testing.assert_close(guide.log_prob_sum(), log_q)


NOISE = 0.6


def noisy_pixels(loc):
    return dist.Normal(loc, NOISE).to_event(1)


def linear(weight, bias, log_scale_at):
    """Features of a normal with a linear mean and a constant scale."""
    layer = nn.Linear(weight.shape[1], 2).double()
    raw = torch.log(torch.expm1(log_scale_at.sqrt() - 1e-5))
    with torch.no_grad():
        layer.weight.copy_(torch.cat([weight, torch.zeros_like(weight)]))
        layer.bias.copy_(torch.stack([bias, raw]))
    return layer


def test_linear_chain_reaches_its_evidence():
    slope, shift, variance = torch.tensor([0.8, -0.4, 0.5], dtype=torch.float64)
    loading = torch.randn(6, 1, dtype=torch.float64)
    vae = HierarchicalVariationalAutoencoder(6, (1, 1), (3,), observation=noisy_pixels).double()
    marginal = slope**2 + variance  # of z1
    vae.decoders[1] = linear(slope.reshape(1, 1), shift, variance)
    vae.decoders[0] = nn.Linear(1, 6, bias=False).double()
    with torch.no_grad():
        vae.decoders[0].weight.copy_(loading)
    posterior = 1 / (1 / marginal + (loading**2).sum() / NOISE**2)  # variance of z1 given x
    gain = posterior * loading.T / NOISE**2
    vae.encoders[0] = linear(gain, posterior * shift / marginal, posterior)
    vae.encoders[1] = linear(
        (slope / marginal).reshape(1, 1), -slope * shift / marginal, variance / marginal
    )
    covariance = marginal * loading @ loading.T + NOISE**2 * torch.eye(6).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    evidence = dist.MultivariateNormal(shift * loading[:, 0], covariance).log_prob(x)
    log_w = MultiSampleELBO(7, max_plate_nesting=1).log_weights(vae.model, vae.guide, x)
    torch.testing.assert_close(log_w, evidence.expand(7, 5))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(2, vectorize_particles=True),
        MultiSampleELBO(3, gradient=pathwise),
        MultiSampleELBO(3, gradient=dreg),
        MultiSampleELBO(2, vectorize_particles=False),
    ],
    ids=["trace", "pathwise", "dreg", "sequential"],
)
def test_every_parameter_is_trained(elbo, local):
    with pyro.settings.context(module_local_params=local):
        vae = small()
        elbo.loss_and_grads(vae.model, vae.guide, pixels(), size=40)
        assert all(p.grad.abs().sum() > 0 for p in vae.parameters())


def test_three_layers_and_generation():
    vae = HierarchicalVariationalAutoencoder(6, (4, 3, 2), (5,), EnergyInspiredPrior(2, (4,), 8))
    samples = Predictive(vae.model, num_samples=5, parallel=True)(size=3)
    shapes = {name: tuple(value.shape) for name, value in samples.items()}
    assert shapes == {"z3": (5, 3, 2), "z2": (5, 3, 3), "z1": (5, 3, 4), "x": (5, 3, 6)}
    assert math.isfinite(MultiSampleELBO(2).loss(vae.model, vae.guide, pixels()))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_score_alike(copier):
    vae, x, losses = small(data_mean=torch.full((6,), 0.3)), pixels(), []
    for module in (vae, copier(vae)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = MultiSampleELBO(3, max_plate_nesting=1)
        losses.append(elbo.loss(module.model, module.guide, x))
    assert losses[0] == losses[1]
    other = small(data_mean=torch.zeros(6))
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.decode(torch.ones(1, 3)).mean, vae.decode(torch.ones(1, 3)).mean)


def test_bad_input():
    with pytest.raises(ValueError, match="has 1 layers, expected two or more"):
        HierarchicalVariationalAutoencoder(6, (3,))
    with pytest.raises(ValueError, match=r"a hidden layer, got input_dim=6, z1=3, z2=0"):
        HierarchicalVariationalAutoencoder(6, (3, 0))
    with pytest.raises(
        ValueError, match=r"events of shape \(3,\) in batches of \(\), expected \(2"
    ):
        small(EnergyInspiredPrior(3, (4,), 8))
    with pytest.raises(ValueError, match=r"data_mean has shape \(5,\), expected \(6,\)"):
        small(data_mean=torch.zeros(5))
    with pytest.raises(ValueError, match=r"shape \(batch, 6\), got \(4, 5\)"):
        small().guide(torch.zeros(4, 5))
