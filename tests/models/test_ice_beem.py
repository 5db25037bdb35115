"""Samples and normalisers of conditional energies against closed forms and quadrature."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_ext.infer import NoiseContrastive
from pyro_ext.models import ICEBeeM
from pyro_ext.nn import ConditionalEnergy, EnergyNet

Z_SCORE = 5  # false-alarm probability 6e-7
LOC = torch.tensor([0.7, -1.5], dtype=torch.float64)
SCALE = torch.tensor([0.5, 1.2], dtype=torch.float64)
LOG_Z = LOC**2 / (2 * SCALE**2) + (SCALE * (2 * math.pi) ** 0.5).log()


def gaussian_energy():
    """Of a Normal for each of two labels, without its normaliser."""
    energy = ConditionalEnergy(1, 1, 2, feature_net=nn.Identity(), augment=True).double()
    with torch.no_grad():
        energy.weight_head.table.copy_(torch.stack([LOC / SCALE**2, -0.5 / SCALE**2], -1))
    return energy


def wide(loc=0.0, scale=2.0):
    return dist.Normal(torch.full((1,), loc, dtype=torch.float64), scale).to_event(1)


def given_label(label):
    return dist.Normal(LOC[label].unsqueeze(-1) + 0.1, 1.2 * SCALE[label].unsqueeze(-1)).to_event(1)


LABELS = torch.arange(2)


# Normalisers.


@pytest.mark.parametrize("num_temperatures", [1, 5])
@pytest.mark.parametrize("noise", [wide(), given_label])
def test_normaliser_of_gaussians(noise, num_temperatures):
    model = ICEBeeM(gaussian_energy(), noise)
    found = model.estimate_log_normalizer(
        LABELS, 20_000, num_temperatures=num_temperatures, step_size=0.3
    )
    assert found.value.shape == found.pareto_k.shape == (2,)
    assert ((found.value - LOG_Z).abs() < Z_SCORE * found.standard_error).all()
    assert (found.standard_error < 0.02).all()
    assert (found.pareto_k < 0.7).all()
    assert (found.ess > 4_000).all()


def test_normaliser_by_quadrature_and_by_any_batch():
    torch.manual_seed(0)
    energy = ConditionalEnergy(1, 3, 4, hidden_dims=(8,), base=EnergyNet(1, (8,))).double()
    confined = copy.deepcopy(energy)
    confined.base = Confined(energy.base)
    model = ICEBeeM(confined, wide())
    grid = torch.linspace(-20, 20, 8001, dtype=torch.float64)
    labels = torch.tensor([[0, 1], [2, 3]])
    density = -confined(grid[:, None, None, None], labels)
    log_z = torch.trapezoid(density.exp(), grid, dim=0).log()
    found = model.estimate_log_normalizer(labels, 20_000)
    assert found.value.shape == (2, 2)
    assert ((found.value - log_z).abs() < Z_SCORE * found.standard_error).all()
    assert (found.standard_error < 0.02).all()


class Confined(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) - x.squeeze(-1).square() / 4


def test_standard_errors_are_honest():
    """Of 400 estimates: the mean square of their z-scores, whose own spread is near 0.07."""
    model = ICEBeeM(gaussian_energy(), given_label)
    scores = []
    for _ in range(400):
        found = model.estimate_log_normalizer(LABELS, 500)
        scores.append((found.value - LOG_Z) / found.standard_error)
    assert torch.stack(scores).square().mean(0).min() > 0.65
    assert torch.stack(scores).square().mean(0).max() < 1.45


def test_estimates_rise_to_the_normaliser_with_their_number():
    """A bound from below in expectation, ever tighter."""
    model, label = ICEBeeM(gaussian_energy(), wide()), torch.zeros(4_000).long()
    proposal = wide().expand((4_000,))
    means = []
    for num in (1, 4, 32, 256):
        log_w = model._log_weights(proposal, label, torch.Size((num,)))
        means.append((log_w.logsumexp(0) - math.log(num)).mean())
    assert means[0] + 0.5 < means[1]
    assert means[1] < means[2] < means[3] < LOG_Z[0] + 0.01


def test_narrow_noise_is_found_out():
    """The mean of 20 independent tails: 0.93 with a spread near 0.03 in trials."""
    narrow = lambda u: wide(scale=0.1).expand(u.shape)  # noqa: E731
    model = ICEBeeM(gaussian_energy(), narrow)
    found = model.estimate_log_normalizer(torch.ones(20).long(), 5_000)
    assert found.pareto_k.mean() > 0.7


# Samples.


@pytest.mark.parametrize("noise", [wide(), given_label])
def test_samples_have_the_moments_of_the_energy(noise):
    """4,000 draws of 1,000 proposals each: the bias, of order 1/1000, is below a tenth of an
    error of the mean."""
    model = ICEBeeM(gaussian_energy(), noise, num_proposals=1000)
    x = model.sample(LABELS, (4_000,))
    assert x.shape == (4_000, 2, 1)
    x = x.squeeze(-1)
    assert ((x.mean(0) - LOC).abs() < Z_SCORE * SCALE / 4_000**0.5).all()
    assert ((x.var(0) / SCALE**2 - 1).abs() < Z_SCORE * (2 / 4_000) ** 0.5 + 0.01).all()


def test_density_is_near_that_of_the_energy():
    model = ICEBeeM(gaussian_energy(), given_label)
    x, label = torch.randn(6, 1, dtype=torch.float64) / 4 - 0.5, torch.tensor([0, 1, 1, 0, 1, 0])
    expected = dist.Normal(LOC[label], SCALE[label]).log_prob(x.squeeze(-1))
    found = model.density(label, 20_000).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_without_a_context():
    model = ICEBeeM(ConditionalEnergy(2, 3), dist.Normal(torch.zeros(2), 1.0).to_event(1))
    assert model.sample(sample_shape=(5,)).shape == (5, 2)
    assert model.estimate_log_normalizer(num_samples=100).value.shape == ()


# As a Pyro program.


@pytest.mark.parametrize("size", [None, 40])
def test_model_scores_the_data_by_the_density(size):
    model = ICEBeeM(gaussian_energy(), given_label, num_proposals=50)
    x, label = torch.randn(6, 1, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    torch.manual_seed(0)
    found = Trace_ELBO().loss(model.model, lambda *a, **k: None, x, label, size=size)
    torch.manual_seed(0)
    expected = -model.density(label).log_prob(x).sum() * (1 if size is None else size / 6)
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_it_trains_by_likelihood_and_is_drawn_by_predictive():
    model = ICEBeeM(ConditionalEnergy(2, 3, 4), dist.Normal(torch.zeros(2), 1.0).to_event(1))
    x, label = torch.randn(8, 2), torch.arange(8) % 4
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    before = model.energy.weight_head.table.detach().clone()
    assert math.isfinite(svi.step(x, label))
    assert not torch.equal(model.energy.weight_head.table, before)
    drawn = Predictive(model.model, num_samples=3)(None, label)["x"]
    assert drawn.shape == (3, 8, 2)


def test_it_is_stored_and_copied(tmp_path):
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    model = ICEBeeM(ConditionalEnergy(2, 3, 4), noise)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = ICEBeeM(ConditionalEnergy(2, 3, 4), noise)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = torch.randn(5, 2)
    assert torch.equal(other.features(x), model.features(x))
    assert torch.equal(copy.deepcopy(model).features(x), model.features(x))


@pytest.mark.slow
def test_learned_constants_estimates_and_quadrature_agree():
    """Noise contrast of two Normals: the three normalisers within 0.01 nats."""
    energy = ConditionalEnergy(1, 2, 2, hidden_dims=(20,), base=EnergyNet(1, (20,), nn.SiLU))
    model = ICEBeeM(energy, dist.Normal(torch.zeros(1), 2.0).to_event(1))
    loss = NoiseContrastive(10)(model.energy, model.noise)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    loc = torch.tensor([-1.0, 1.0])
    for _ in range(1500):
        label = torch.randint(2, (512,))
        optimizer.zero_grad()
        loss((loc[label] + 0.7 * torch.randn(512)).unsqueeze(-1), label).backward()
        optimizer.step()
        schedule.step()
    grid = torch.linspace(-8, 8, 4001)
    density = -energy(grid[:, None, None], LABELS).detach()
    log_z = torch.trapezoid(density.exp(), grid, dim=0).log()
    found = model.estimate_log_normalizer(LABELS, 200_000)
    torch.testing.assert_close(found.value, log_z, atol=0.01, rtol=0)
    torch.testing.assert_close(energy.log_normalizer(LABELS).detach(), log_z, atol=0.01, rtol=0)
    annealed = model.estimate_log_normalizer(LABELS, 20_000, num_temperatures=5, step_size=0.3)
    torch.testing.assert_close(annealed.value, log_z, atol=0.03, rtol=0)


# Bad input.


def test_bad_arguments_are_refused():
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    energy = ConditionalEnergy(2, 3, 4)
    with pytest.raises(ValueError, match="energy must be a ConditionalEnergy"):
        ICEBeeM(EnergyNet(2), noise)
    with pytest.raises(ValueError, match="The noise is 3"):
        ICEBeeM(energy, 3)
    with pytest.raises(ValueError, match="num_proposals must be an integer >= 1"):
        ICEBeeM(energy, noise, 0)
    model = ICEBeeM(energy, noise)
    with pytest.raises(ValueError, match="num_samples must be an integer >= 25"):
        model.estimate_log_normalizer(torch.arange(4), 10)
    with pytest.raises(ValueError, match="needs data or contexts"):
        model.model()
    with pytest.raises(ValueError, match="Labels are integers from 0 to 3"):
        model.sample(torch.arange(5))


def test_sizes_that_do_not_fit():
    noise = dist.Normal(torch.zeros(2), 2.0).to_event(1)
    model = ICEBeeM(ConditionalEnergy(2, 3, num_classes=4), noise)
    x, label = torch.randn(7, 2), torch.zeros(7, dtype=torch.long)
    with pytest.raises(ValueError, match="There are 7 data, but 3 contexts"):
        model.model(x, label[:3])
    with pytest.raises(ValueError, match="A mini-batch of 7 cannot stand for size=3"):
        model.model(x, label, size=3)
    with pytest.raises(ValueError, match="num_proposals"):
        model.density(label, num_proposals=0)
    assert model.model(None, label, size=70).shape == (7, 2)


def test_noise_without_context_is_drawn_once_for_all():
    """Two equal contexts have the very same estimate."""
    noise = dist.Normal(torch.zeros(2), 2.0).to_event(1)
    model = ICEBeeM(ConditionalEnergy(2, 3, num_classes=4), noise)
    value = model.estimate_log_normalizer(torch.tensor([1, 1, 2]), 100).value
    assert value[0] == value[1]
    assert value[0] != value[2]
