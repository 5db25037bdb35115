"""The semi-supervised VAE against the sum over its classes by hand."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceEnum_ELBO
from torch import nn

from pyro_ext.infer import MultiSampleELBO
from pyro_ext.models import (
    FullCovarianceNormal,
    SemiSupervisedVariationalAutoencoder,
    VariationalAutoencoder,
)

NOISE = 0.7
LABELS = torch.tensor([2, -1, 0, -1, 1])


def small(**kwargs):
    autoencoder = VariationalAutoencoder(6, 2, (5,), context_dim=3)
    return SemiSupervisedVariationalAutoencoder(autoencoder, (4,), **kwargs)


def pixels(num=5):
    return torch.bernoulli(torch.full((num, 6), 0.5))


def noisy_pixels(loc):
    return dist.Normal(loc, NOISE).to_event(1)


def linear_vae(weight=1.5):
    """Exact posterior of z given x and y, so that the bound of each class has no noise."""
    autoencoder = VariationalAutoencoder(
        6, 2, (5,), observation=noisy_pixels, posterior=FullCovarianceNormal(2), context_dim=3
    )
    vae = SemiSupervisedVariationalAutoencoder(autoencoder, (4,), weight).double()
    autoencoder.decoder = nn.Linear(5, 6).double()
    loading, shifts = autoencoder.decoder.weight.detach().split([2, 3], 1)
    bias = autoencoder.decoder.bias.detach()
    covariance = torch.linalg.inv(loading.T @ loading / NOISE**2 + torch.eye(2).double())
    gain, tril = covariance @ loading.T / NOISE**2, torch.linalg.cholesky(covariance)
    raw = torch.log(torch.expm1(tril.diagonal() - 1e-5))
    autoencoder.encoder = nn.Linear(9, 5).double()
    with torch.no_grad():
        autoencoder.encoder.weight.zero_()
        autoencoder.encoder.weight[:2] = torch.cat([gain, -gain @ shifts], 1)
        autoencoder.encoder.bias.copy_(torch.cat([-gain @ bias, raw, tril[1:, 0]]))
    total = loading @ loading.T + NOISE**2 * torch.eye(6).double()
    return vae, dist.MultivariateNormal((bias[:, None] + shifts).T, total)


def by_hand(vae, classes, x):
    """``log p(x, y)`` of every class, and ``log q(y | x)``, both ``(batch, classes)``."""
    log_joint = classes.log_prob(x[:, None]) - math.log(3)
    return log_joint, vae.classifier(x).log_softmax(-1)


def labelled(table, labels=LABELS):
    return table.gather(1, labels.clamp(min=0)[:, None])[:, 0]


@pytest.mark.parametrize("labels", [None, LABELS, LABELS.clamp(min=0)], ids=["none", "mix", "all"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_enumeration_against_the_sum_by_hand(labels, num_particles):
    vae, classes = linear_vae()
    x = torch.randn(5, 6, dtype=torch.float64)
    log_joint, log_q = by_hand(vae, classes, x)
    missing = (log_q.exp() * (log_joint - log_q)).sum(1)
    known = labelled(log_joint) + 1.5 * labelled(log_q)
    is_known = torch.zeros(5, dtype=torch.bool) if labels is None else labels >= 0
    elbo = TraceEnum_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)
    loss = elbo.differentiable_loss(vae.model, vae.guide, x, labels, size=50)
    torch.testing.assert_close(-loss, 10 * torch.where(is_known, known, missing).sum())
    ours = torch.autograd.grad(loss, list(vae.classifier.parameters()))
    theirs = torch.autograd.grad(
        -10 * torch.where(is_known, known, missing).sum(), list(vae.classifier.parameters())
    )
    torch.testing.assert_close(ours, theirs)


def test_importance_weights_sum_over_classes():
    vae, classes = linear_vae()
    x = torch.randn(5, 6, dtype=torch.float64)
    log_joint, log_q = by_hand(vae, classes, x)
    known = labelled(log_joint) + 1.5 * labelled(log_q)
    expected = torch.where(LABELS >= 0, known, log_joint.logsumexp(1))
    elbo = MultiSampleELBO(3, max_plate_nesting=1)
    log_w = elbo.log_weights(vae.model, vae.guide, x, LABELS)
    torch.testing.assert_close(log_w, expected.expand(3, 5))
    vae.classification_weight = 0.0
    log_w = elbo.log_weights(vae.model, vae.guide, x, LABELS.clamp(min=0))
    torch.testing.assert_close(log_w, labelled(log_joint).expand(3, 5))


def test_importance_weights_do_not_depend_on_the_classifier():
    vae, x = small(), pixels()
    parameters = list(vae.classifier.parameters())
    for elbo, depends in ((MultiSampleELBO(3), False), (TraceEnum_ELBO(), True)):
        loss = elbo.differentiable_loss(vae.model, vae.guide, x)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert any(g is not None and g.any() for g in gradients) == depends


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    "elbo",
    [TraceEnum_ELBO(max_plate_nesting=1), MultiSampleELBO(2), MultiSampleELBO(1)],
    ids=["enumerated", "importance", "importance of one"],
)
def test_every_parameter_is_trained(elbo, local):
    with pyro.settings.context(module_local_params=local):
        vae = small()
        elbo.loss_and_grads(vae.model, vae.guide, pixels(), LABELS, size=50)
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_labels_are_kept_where_known():
    vae, x = small(), pixels()
    samples = Predictive(vae.guide, num_samples=50, parallel=True)(x, LABELS)["context"]
    assert samples.shape == (50, 5)
    assert (samples[:, LABELS >= 0] == LABELS[LABELS >= 0]).all()
    assert len(samples[:, 1].unique()) > 1
    drawn = Predictive(vae.model, num_samples=50, parallel=True)(None, LABELS, size=5)
    assert (drawn["context"][:, LABELS >= 0] == LABELS[LABELS >= 0]).all()
    assert drawn["x"].shape == (50, 5, 6)
    assert vae.model(size=7).shape == (7, 6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_score_alike(copier):
    vae, x, losses = small(), pixels(), []
    for module in (vae, copier(vae)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        losses.append(elbo.loss(module.model, module.guide, x, LABELS))
    assert losses[0] == losses[1]
    other = small()
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.classify(x).logits, vae.classify(x).logits)


def test_bad_input():
    autoencoder = VariationalAutoencoder(6, 2, (5,))
    with pytest.raises(ValueError, match="context_dim=0, expected the number of classes"):
        SemiSupervisedVariationalAutoencoder(autoencoder)
    with pytest.raises(ValueError, match="classification_weight must be >= 0, got -1"):
        small(classification_weight=-1)
    vae, x = small(), pixels()
    with pytest.raises(ValueError, match="a hidden layer"):
        SemiSupervisedVariationalAutoencoder(vae.autoencoder, ())
    with pytest.raises(ValueError, match=r"Labels have shape \(5, 3\), expected \(5,\)"):
        vae.model(x, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"Labels have shape \(4,\), expected \(5,\)"):
        vae.guide(x, LABELS[:4])
    with pytest.raises(ValueError, match=r"torch\.float32, expected torch\.int64"):
        vae.guide(x, LABELS.float())
    with pytest.raises(ValueError, match="reach from 0 to 3, expected 0 to 2, or -1"):
        vae.guide(x, torch.tensor([0, 1, 2, 3, 0]))


@pytest.mark.slow
def test_training_finds_the_classes_from_few_labels():
    prototypes = torch.bernoulli(torch.full((4, 30), 0.5)) * 0.6 + 0.2
    labels = torch.randint(4, (1_500,))
    x = torch.bernoulli(prototypes[labels])
    given = torch.where(torch.arange(1_500) < 12, labels, -1)
    autoencoder = VariationalAutoencoder(30, 2, (20,), data_mean=x.mean(0), context_dim=4)
    vae = SemiSupervisedVariationalAutoencoder(autoencoder, (20,), classification_weight=10.0)
    svi = SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 5e-3}), TraceEnum_ELBO(max_plate_nesting=1)
    )
    for _ in range(400):
        index = torch.cat([torch.arange(12), torch.randint(12, 1_500, (128,))])
        svi.step(x[index], given[index])
    best = dist.Bernoulli(prototypes).to_event(1).log_prob(x[:, None]).argmax(1)
    accuracy, ceiling = (
        (guess == labels)[12:].float().mean() for guess in (vae.classify(x).logits.argmax(1), best)
    )
    assert accuracy > 0.9 * ceiling  # chance is 0.25
