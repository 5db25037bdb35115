"""Flow-contrastive estimation against quadrature, finite differences and its own schedule."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from torch import nn

from pyro_ext.data.simulate import TwoRings
from pyro_ext.distributions import Glow
from pyro_ext.distributions.flow_density import FlowDensity, FlowTransform
from pyro_ext.infer import FlowContrastive, NoiseContrastive
from pyro_ext.nn import ConditionalEnergy, EnergyNet, GlowNet
from pyro_ext.nn.coupling_flow import CouplingFlow


class Affine(nn.Module):
    """A Normal with parameters: the simplest flow."""

    def __init__(self, dim=2, loc=0.0):
        super().__init__()
        self.loc = nn.Parameter(torch.full((dim,), loc, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def forward(self, context):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class Shift(nn.Module):
    """The same, whose location depends on the label."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 2, dtype=torch.float64))

    def forward(self, context):
        return dist.Normal(self.table[context], 1.0).to_event(1)


class Quantiles(dist.Normal):
    """A Normal whose draws are its quantiles in random order, along paths."""

    def rsample(self, sample_shape=torch.Size()):
        num = torch.Size(sample_shape).numel()
        u = (torch.arange(num, dtype=torch.float64) + 0.5) / num
        noise = dist.Normal(0.0, 1.0).icdf(u[torch.randperm(num)])
        return (self.loc + self.scale * noise).reshape(sample_shape)


class QuantileNoise(nn.Module):
    def __init__(self, loc, scale):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, context):
        return Quantiles(self.loc, self.scale)


class TrueDensity(nn.Module):
    def forward(self, x, context=None):
        return -self.log_density(x)

    def log_density(self, x, context=None):
        return dist.Normal(0.0, 1.0).log_prob(x)


def energy(**options):
    ebm = ConditionalEnergy(2, 3, 4, hidden_dims=(8,), base=EnergyNet(2, (8,)), **options).double()
    nn.init.normal_(ebm.normalizer_head.last)
    return ebm


X = torch.randn(6, 2, dtype=torch.float64)
LABEL = torch.tensor([0, 3, 3, 1, 2, 0])


# Values.


def jensen_shannon(loc, scale):
    from scipy.integrate import quad
    from scipy.stats import norm

    def integrand(t):
        p, q = norm.pdf(t), norm.pdf(t, loc, scale)
        parts = [a * math.log(2 * a / (p + q)) for a in (p, q) if a > 0]
        return sum(parts) / 2

    return quad(integrand, -15, 15, limit=200)[0]


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.5, 1.3), (-2.0, 0.6)])
def test_value_at_the_data_is_the_jensen_shannon_divergence(loc, scale):
    """Data and draws as quantiles; the midpoint rule in probability has an error near 1e-5."""
    x = dist.Normal(0.0, 1.0).icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    fce = FlowContrastive()(TrueDensity(), QuantileNoise(loc, scale))
    value = fce.noise_loss(x)
    expected = -math.log(4) + 2 * jensen_shannon(loc, scale)
    assert value.item() == pytest.approx(expected, abs=2e-4)
    assert fce.ebm_loss(x).item() == pytest.approx(-expected, abs=2e-4)


def test_the_flow_descends_the_divergence():
    """At the best energy the gradient of the value is that of twice the divergence."""
    x = dist.Normal(0.0, 1.0).icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)

    noise = QuantileNoise(0.5, 1.3)
    FlowContrastive()(TrueDensity(), noise).noise_loss(x).backward()
    step = 1e-3
    slope = (jensen_shannon(0.5 + step, 1.3) - jensen_shannon(0.5 - step, 1.3)) / step
    assert noise.loc.grad.item() == pytest.approx(slope, abs=1e-3)
    slope = (jensen_shannon(0.5, 1.3 + step) - jensen_shannon(0.5, 1.3 - step)) / step
    assert noise.scale.grad.item() == pytest.approx(slope, abs=1e-3)


def test_the_energys_loss_is_noise_contrastive():
    ebm, noise = energy(), Shift()
    losses = []
    for objective in (NoiseContrastive(), FlowContrastive()):
        torch.manual_seed(0)
        losses.append(objective(ebm, noise)(X, LABEL))
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("noise", [Affine(), Shift()])
def test_gradient_of_the_flow_by_finite_differences(noise):
    """Through the scores of the data and along the paths of the draws, at the same noise."""
    fce = FlowContrastive()(energy(), noise)

    def value():
        torch.manual_seed(0)
        return fce.noise_loss(X, LABEL)

    for parameter in noise.parameters():
        parameter.grad = None
    value().backward()
    for parameter in noise.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for k in range(len(flat)):
            flat[k] += 1e-5
            above = value().item()
            flat[k] -= 2e-5
            below = value().item()
            flat[k] += 1e-5
            assert gradient[k].item() == pytest.approx((above - below) / 2e-5, abs=1e-8)


def test_each_loss_trains_one_player():
    ebm, noise = energy(), Affine()
    fce = FlowContrastive()(ebm, noise)
    assert set(fce.parameters()) == {*ebm.parameters(), *noise.parameters()}
    ebm.normalizer_head.table.requires_grad_(False)
    fce.noise_loss(X, LABEL).backward()
    assert all(p.grad is None for p in ebm.parameters())
    assert all(p.grad.abs().sum() > 0 for p in noise.parameters())
    assert [n for n, p in ebm.named_parameters() if not p.requires_grad] == [
        "normalizer_head.table"
    ]
    fce.zero_grad()
    fce.ebm_loss(X, LABEL).backward()
    assert all(p.grad is None for p in noise.parameters())
    assert all(p.grad is not None for p in ebm.parameters() if p.requires_grad)


# Turns.


class Sure(nn.Module):
    """Tells noise from data below zero with certainty."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x, context=None):
        return -self.log_density(x)

    def log_density(self, x, context=None):
        return torch.where(x.sum(-1) > 0, 60.0, -60.0) * self.slope


def test_turns_by_accuracy():
    far, near = X.abs(), -X.abs()
    noise = Affine(loc=-30.0)
    fce = FlowContrastive(memory=0.0, max_turn=4)(Sure(), noise)
    assert fce.turn == "ebm"
    fce(far)
    assert (fce.turn, fce.accuracy.item()) == ("noise", 1.0)  # told apart: the flow's turn
    fce(far)
    assert fce.turn == "noise"
    with torch.no_grad():
        noise.loc.fill_(1000.0)
        noise.log_scale.fill_(5.0)
    fce(far)  # draws pass for data: half of all guesses are wrong
    assert (fce.turn, fce.accuracy.item()) == ("noise", 0.5)
    fce(near)
    assert (fce.turn, fce.accuracy.item()) == ("ebm", 0.0)
    for _ in range(3):
        fce(near)
        assert fce.turn == "ebm"
    fce(near)
    assert fce.turn == "noise"  # after four steps at the latest


def test_accuracy_is_a_moving_average_and_evaluation_takes_no_turn():
    fce = FlowContrastive(memory=0.9)(Sure(), Affine(loc=-30.0))
    fce.eval()(X.abs())
    with torch.no_grad():
        fce.train()(X.abs())
    assert (fce.accuracy.item(), fce.steps.item()) == (0.5, 0)
    fce(X.abs())
    assert fce.accuracy.item() == pytest.approx(0.55)


def test_one_optimiser_moves_the_player_whose_turn_it_is():
    ebm, noise = energy(), Affine()
    fce = FlowContrastive(low=0.0, high=1.0, max_turn=2)(ebm, noise)
    optimizer = torch.optim.Adam(fce.parameters(), lr=1e-2)
    for turn in ["ebm", "ebm", "noise", "noise", "ebm"]:
        before = [[p.detach().clone() for p in m.parameters()] for m in (ebm, noise)]
        assert fce.turn == turn
        optimizer.zero_grad()
        fce(X, LABEL).backward()
        optimizer.step()
        moved = [
            any(not torch.equal(p, old) for p, old in zip(m.parameters(), olds, strict=True))
            for m, olds in zip((ebm, noise), before, strict=True)
        ]
        assert moved == [turn == "ebm", turn == "noise"]


def test_the_turn_is_stored(tmp_path):
    fce = FlowContrastive(low=0.0, high=1.0, max_turn=1)(energy(), Affine())
    fce(X, LABEL)
    torch.save(fce.state_dict(), tmp_path / "fce.pt")
    other = FlowContrastive()(energy(), Affine())
    other.load_state_dict(torch.load(tmp_path / "fce.pt", weights_only=True))
    assert other.turn == "noise"


# Flows.


class GlowNoise(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.net = GlowNet((1, 4, 4), depth=2, levels=1, width=8, **options)

    def forward(self, context):
        return Glow(self.net, context if self.net.num_classes else None)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
def test_glow_starts_from_the_data_and_is_drawn_in_one_pass(options, monkeypatch):
    noise, calls = GlowNoise(**options), []
    for name in ("encode", "decode"):
        method = getattr(GlowNet, name)

        def counted(self, *args, _method=method, _name=name, **kwargs):
            calls.append(_name)
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(GlowNet, name, counted)
    images, label = 5 + 3 * torch.randn(64, 1, 4, 4), torch.arange(64) % 3
    fce = FlowContrastive()(ConditionalEnergy((1, 4, 4), 2, 3, hidden_dims=(8,)), noise)
    fce.noise_loss(images, label).backward()
    assert calls == ["encode", "decode"]
    assert noise.net.is_initialized
    assert Glow(noise.net, label if options else None).sample().mean() > 2  # near the data
    trained = [n for n, p in noise.named_parameters() if p.grad is None]
    assert trained == []


def test_flat_flows():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.transforms = nn.ModuleList([T.affine_coupling(2, [8]), T.spline_coupling(2)])

        def forward(self, context):
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            return dist.TransformedDistribution(base, list(self.transforms))

    noise = Flow()
    fce = FlowContrastive()(ConditionalEnergy(2, 3, 4), noise)
    fce.noise_loss(X.float(), LABEL).backward()
    assert all(p.grad is not None for p in noise.parameters())


# Labels.


def test_semi_supervised_loss_by_hand():
    ebm, noise = energy(), Affine()
    fce = FlowContrastive(label_weight=0.7)(ebm, noise)
    labels = torch.tensor([0, -1, 3, -1, -1, 2])
    torch.manual_seed(0)
    found = fce(X, labels)
    torch.manual_seed(0)
    q = noise(None)
    draws = q.sample((1, 6))[0]

    def log_p(x):
        each = [ebm.log_density(x, torch.full((6,), k)).exp() for k in range(4)]
        return torch.stack(each).mean(0).log()

    h, h_draws = log_p(X) - q.log_prob(X), log_p(draws) - q.log_prob(draws)
    contrast = -(h.sigmoid().log().mean() + (1 - h_draws.sigmoid()).log().mean())
    posterior = [ebm.class_logits(X)[n].softmax(-1)[labels[n]].log() for n in (0, 2, 5)]
    torch.testing.assert_close(found, contrast - 0.7 * torch.stack(posterior).mean())
    unlabelled = torch.full((6,), -1)
    torch.manual_seed(0)
    torch.testing.assert_close(fce.ebm_loss(X, unlabelled), contrast)
    torch.manual_seed(0)
    torch.testing.assert_close(fce.ebm_loss(X), contrast)
    torch.manual_seed(0)
    torch.testing.assert_close(fce.noise_loss(X, labels), -contrast)


@pytest.mark.parametrize("bad", [LABEL.double(), LABEL[:3], LABEL + 9, LABEL - 4])
def test_bad_labels_are_refused(bad):
    with pytest.raises(ValueError, match=r"labels of torch.int64|Labels reach from"):
        FlowContrastive(label_weight=1.0)(energy(), Affine())(X, bad)


# Effect.


@pytest.mark.slow
def test_players_meet_at_the_data():
    """A Gaussian energy and a diagonal Gaussian flow that starts three away, on correlated data."""
    torch.manual_seed(0)
    truth = dist.MultivariateNormal(
        torch.tensor([0.7, -0.4]).double(), torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double()
    )

    class Quadratic(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], 1)

    ebm = ConditionalEnergy(2, 5, feature_net=Quadratic()).double()
    with torch.no_grad():
        ebm.weight_head.table.copy_(torch.tensor([[0.0, 0.0, -0.5, 0.0, -0.5]]))
    noise = Affine(loc=3.0)
    fce = FlowContrastive(max_turn=1, low=0.0, high=1.0)(ebm, noise)
    optimizer = torch.optim.Adam(fce.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4000)
    for _ in range(4000):
        optimizer.zero_grad()
        fce(truth.sample((512,))).backward()
        optimizer.step()
        schedule.step()
    a, b, c, d, e = ebm.weights().tolist()
    precision = -torch.tensor([[2 * c, d], [d, 2 * e]], dtype=torch.float64)
    linear = torch.tensor([a, b], dtype=torch.float64)
    log_z = linear @ precision.inverse() @ linear / 2 + math.log(2 * math.pi)
    log_z = log_z - precision.logdet() / 2
    assert ebm.log_normalizer().item() == pytest.approx(log_z.item(), abs=0.05)
    torch.testing.assert_close(noise.loc.detach(), truth.loc, atol=0.1, rtol=0)
    torch.testing.assert_close(precision.inverse(), truth.covariance_matrix, atol=0.15, rtol=0)
    assert fce.ebm_loss(truth.sample((20_000,))) < 2 * math.log(2) - 0.02


class CouplingNoise(nn.Module):
    """Two couplings: too few for rings."""

    def __init__(self, x):
        super().__init__()
        self.net = CouplingFlow(2, 2, (16,)).initialize(x)

    def forward(self, context=None):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        return FlowDensity(base, [FlowTransform(self.net)])


class LogDensity(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.noise = copy.deepcopy(noise).requires_grad_(False)

    def forward(self, x):
        return self.noise().log_prob(x)


class Waves(nn.Module):
    """Features by sines of random frequencies."""

    def __init__(self, width=64):
        super().__init__()
        self.register_buffer("frequencies", 3 * torch.randn(2, 64))
        self.layers = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x):
        phase = x @ self.frequencies
        return self.layers(torch.cat([phase.sin(), phase.cos()], -1))


def minimise(parameters, loss, steps, rate):
    optimizer = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def cells():
    axis = torch.linspace(-4, 4, 301)
    return torch.cartesian_prod(axis, axis), 2 * math.log((axis[1] - axis[0]).item())


def divergence(log_p, log_q):
    """Jensen-Shannon's, of log probabilities of cells."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    parts = [(log.exp() * (log - middle)).sum() for log in (log_p, log_q)]
    return (sum(parts) / 2).item()


@pytest.mark.slow
def test_an_energy_relative_to_a_poor_flow_finds_rings_and_their_normalizer():
    """Quadrature on the plane; one seed, so that there is no chance in it but the platform's."""
    torch.manual_seed(0)
    rings = TwoRings()
    noise = CouplingNoise(rings.sample((2_000,)))
    minimise(noise.parameters(), lambda: -noise().log_prob(rings.sample((256,))).mean(), 600, 5e-3)
    ebm = ConditionalEnergy(2, 64, feature_net=Waves(), base=LogDensity(noise))
    with torch.no_grad():
        ebm.weight_head.table.mul_(0.1)
    fce = FlowContrastive(0.0, 1.0, max_turn=1)(ebm, noise)
    trained = [
        {"params": [p for p in ebm.parameters() if p.requires_grad]},
        {"params": noise.parameters(), "lr": 1e-3},
    ]
    minimise(trained, lambda: fce(rings.sample((256,))), 800, 1e-2)
    points, log_area = cells()
    with torch.no_grad():
        log_p, log_q, log_e = (
            density(points).double() + log_area
            for density in (rings.log_prob, noise().log_prob, ebm.log_density)
        )
    log_z = log_e.logsumexp(0)
    assert abs(log_z.item()) < 0.05
    of_flow = divergence(log_p - log_p.logsumexp(0), log_q)
    of_energy = divergence(log_p - log_p.logsumexp(0), log_e - log_z)
    assert of_flow > 0.1
    assert of_energy < of_flow / 10


# Bad input.


def test_bad_arguments_are_refused():
    for options in ({"low": 0.6}, {"high": 1.2}, {"low": -0.1}):
        with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
            FlowContrastive(**options)
    with pytest.raises(ValueError, match="memory is in"):
        FlowContrastive(memory=1.0)
    with pytest.raises(ValueError, match="max_turn must be an integer >= 1"):
        FlowContrastive(max_turn=0)
    with pytest.raises(ValueError, match="label_weight must be None or a finite number"):
        FlowContrastive(label_weight=-1.0)


def test_bad_players_are_refused():
    with pytest.raises(ValueError, match="EnergyNet does not have"):
        FlowContrastive()(EnergyNet(2), Affine())
    with pytest.raises(ValueError, match="calls class_logits of the ebm"):
        FlowContrastive(label_weight=1.0)(TrueDensity(), Affine())
    with pytest.raises(ValueError, match="owns no parameters that an optimiser could find"):
        FlowContrastive()(energy(), Affine()(None))
    with pytest.raises(ValueError, match="NaN"):
        FlowContrastive()(energy(), Affine())(X * math.nan, LABEL)


def test_noise_without_a_path_is_refused():
    class Discrete(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, context):
            return dist.Bernoulli(logits=self.logits).to_event(1)

    fce = FlowContrastive()(energy(), Discrete())
    assert fce.ebm_loss(X.sigmoid().round(), LABEL).isfinite()
    with pytest.raises(ValueError, match="which have no path"):
        fce.noise_loss(X.sigmoid().round(), LABEL)
