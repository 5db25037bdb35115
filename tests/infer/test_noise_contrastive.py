"""Noise-contrastive estimation against enumeration, quadrature and the normaliser it learns."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalDistribution, TorchDistribution
from torch import nn
from torch.distributions import constraints

from pyro_ext.distributions import SelfNormalizedImportance
from pyro_ext.distributions.noise import draw
from pyro_ext.infer import NoiseContrastive
from pyro_ext.nn import ConditionalEnergy, EnergyNet


class Enumerated(TorchDistribution):
    """A law on 0, 1, ..., whose draws are given rows, so that a mean over them is exact."""

    support = constraints.nonnegative

    def __init__(self, probs, draws):
        self.probs, self.draws = probs, draws  # (*batch, values), (num, *batch)
        super().__init__(probs.shape[:-1], (), validate_args=False)

    def sample(self, sample_shape=torch.Size()):
        return self.draws.expand(self.draws.shape[: len(sample_shape)] + self.batch_shape)

    def log_prob(self, value):
        probs = self.probs.expand(value.shape + self.probs.shape[-1:])
        return probs.gather(-1, value.long().unsqueeze(-1)).squeeze(-1).log()


class Table(nn.Module):
    """An energy for each value and context, with a normaliser for each context."""

    def __init__(self, log_probs):
        super().__init__()
        self.scores = nn.Parameter(log_probs.clone())
        self.normalizer = nn.Parameter(torch.zeros(len(log_probs), dtype=log_probs.dtype))

    def forward(self, x, context):
        return -self.scores[context, x.long()]

    def log_density(self, x, context):
        return -self(x, context) - self.normalizer[context]


def repeated(counts):
    """Each value as often as its count says."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).double()


# Data of two contexts, the second twice as frequent, in exact proportions.
COUNTS = [[1, 2, 3, 4], [12, 4, 2, 2]]
P = torch.tensor(COUNTS).double() / torch.tensor([[10.0], [20.0]])
NOISE_COUNTS = [[3, 3, 2, 2], [1, 2, 3, 4]]
Q = torch.tensor(NOISE_COUNTS).double() / 10
DATA = torch.cat([repeated(counts) for counts in COUNTS])
CONTEXT = torch.tensor([0] * 10 + [1] * 20)


def enumerated_noise(context):
    draws = torch.stack([repeated(NOISE_COUNTS[int(u)]) for u in context], -1)  # (10, B)
    return Enumerated(Q[context], draws)


def gradients(loss, *args):
    for parameter in loss.parameters():
        parameter.grad = None
    loss(*args).backward()
    return [p.grad for p in loss.parameters() if p.grad is not None]


@pytest.mark.parametrize("shift", [0.0, 1.7])
def test_population_gradient_is_zero_at_the_truth(shift):
    """All data and all noise, each context with its own, ten draws per datum."""
    ebm = Table(P.log() + shift)
    with torch.no_grad():
        ebm.normalizer.fill_(shift)  # the log normaliser of these energies
    loss = NoiseContrastive(10)(ebm, enumerated_noise)
    for gradient in gradients(loss, DATA, CONTEXT):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
    best = loss(DATA, CONTEXT).item()
    for _ in range(20):
        start = [p.detach().clone() for p in ebm.parameters()]
        with torch.no_grad():
            for p in ebm.parameters():
                p.add_(0.3 * torch.randn_like(p))
            assert loss(DATA, CONTEXT).item() > best
            for p, old in zip(ebm.parameters(), start, strict=True):
                p.copy_(old)


def test_without_the_right_offset_the_truth_is_no_minimum():
    """The power of the test above: nine draws that pass for ten."""
    ebm = Table(P.log())
    noise = lambda u: Enumerated(Q[u], enumerated_noise(u).draws[:9])  # noqa: E731
    grads = gradients(NoiseContrastive(9)(ebm, noise), DATA, CONTEXT)
    assert max(gradient.abs().max() for gradient in grads) > 1e-3


@pytest.mark.parametrize("num_noise", [1, 2, 10, 100])
def test_value_where_energy_and_noise_agree(num_noise):
    noise = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.5).to_event(1)
    ebm = ConditionalEnergy(3, 1, 2).double()
    ebm.log_density = lambda x, context: noise.log_prob(x)
    loss = NoiseContrastive(num_noise)(ebm, noise)(torch.randn(7, 3).double(), torch.ones(7).long())
    nu = num_noise
    expected = math.log(1 + nu) + nu * math.log(1 + 1 / nu)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    if nu == 1:
        assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("ranking", [False, True])
def test_value_by_hand(ranking, share):
    """The same draws, one datum after another."""
    ebm = ConditionalEnergy(2, 3, 4).double()
    nn.init.normal_(ebm.normalizer_head.table)
    noise = dist.Normal(torch.tensor([0.5, 0.0]).double(), 1.5).to_event(1)
    x, label = torch.randn(6, 2).double(), torch.tensor([0, 3, 3, 1, 2, 0])
    loss = NoiseContrastive(5, ranking=ranking, share_noise=share)(ebm, noise)
    torch.manual_seed(0)
    found = loss(x, label)
    torch.manual_seed(0)
    draws = noise.sample((5, 1) if share else (5, 6)).expand(5, 6, 2)
    total = 0.0
    for n in range(6):
        rows = torch.cat([x[n : n + 1], draws[:, n]])
        ratio = ebm.log_density(rows, label[n].expand(6)) - noise.log_prob(rows)
        if ranking:  # any number may be added to the ratio
            total -= (ratio + 3.0).softmax(0)[0].log()
        else:
            is_datum = torch.sigmoid(ratio - math.log(5))
            total -= is_datum[0].log() + (1 - is_datum[1:]).log().sum()
    torch.testing.assert_close(found, total / 6)


# Ranking.


def test_ranking_by_enumeration():
    """All pairs of a datum and one draw, by their probabilities, in one batch."""
    counts, noise_counts = COUNTS[0], NOISE_COUNTS[0]
    pairs = list(itertools.product(repeated(counts).tolist(), repeated(noise_counts).tolist()))
    x, other = torch.tensor(pairs, dtype=torch.float64).T
    context = torch.zeros(len(x), dtype=torch.long)

    def noise(context):
        return Enumerated(Q[context], other.unsqueeze(0))

    ebm = Table(P.log() + 0.4)  # no normaliser is needed
    loss = NoiseContrastive(1, ranking=True)(ebm, noise)
    expected = 0.0
    for a, b in itertools.product(range(4), repeat=2):
        w = P[0] / Q[0]
        expected -= P[0, a] * Q[0, b] * (w[a] / (w[a] + w[b])).log()
    torch.testing.assert_close(loss(x, context), expected)
    gradient = gradients(loss, x, context)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
    assert ebm.normalizer.grad is None
    with torch.no_grad():
        ebm.scores[0, 0] += 0.5
    assert loss(x, context) > expected + 1e-3


def test_ranking_where_energy_and_noise_agree_is_log_k():
    noise = dist.Normal(torch.zeros(3), 1.0).to_event(1)

    class Same(nn.Module):
        def forward(self, x):
            return -noise.log_prob(x) + 5.0

    loss = NoiseContrastive(9, ranking=True)(Same(), noise)(torch.randn(20, 3))
    assert loss.item() == pytest.approx(math.log(10), rel=1e-5)


# Numbers.


@pytest.mark.parametrize("logit", [60.0, -60.0, 30.0, -30.0])
def test_gradients_at_extreme_logits_are_exact(logit):
    """Of a datum and of a draw, each with the derivative of the log-sigmoid to all digits."""
    noise = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)

    class Ratio(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.tensor(logit, dtype=torch.float64))
            self.noise_logit = nn.Parameter(torch.tensor(logit, dtype=torch.float64))

        def forward(self, x):
            raise NotImplementedError

        def log_density(self, x, context):
            offset = self.noise_logit if x.dim() == 2 else self.logit
            return noise.log_prob(x).detach() + offset

    ebm = Ratio()
    NoiseContrastive()(ebm, noise)(torch.zeros(3, dtype=torch.float64)).backward()
    exact = 1 / (1 + math.exp(logit)), 1 / (1 + math.exp(-logit))
    assert ebm.logit.grad.item() == pytest.approx(-exact[0], rel=1e-12, abs=0)
    assert ebm.noise_logit.grad.item() == pytest.approx(exact[1], rel=1e-12, abs=0)


class Quantiles(dist.Normal):
    """A Normal whose draws are its quantiles in the order of a permutation."""

    def rsample(self, sample_shape=torch.Size()):
        num = torch.Size(sample_shape).numel()
        u = (torch.arange(num, dtype=torch.float64) + 0.5) / num
        return self.icdf(u[torch.randperm(num)]).reshape(sample_shape)

    sample = rsample


def test_population_value_against_quadrature():
    """Data and noise as quantiles; the midpoint rule in probability has an error near 1e-5."""
    from scipy.integrate import quad
    from scipy.stats import norm

    x = dist.Normal(0.0, 1.0).icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    ebm = ConditionalEnergy((), 1)
    ebm.log_density = lambda x, context: dist.Normal(0.3, 1.2).log_prob(x)
    noise = Quantiles(torch.tensor(-0.5, dtype=torch.float64), 1.5)
    found = NoiseContrastive(3)(ebm, noise)(x).item()

    def integrand(t):
        h = norm.logpdf(t, 0.3, 1.2) - norm.logpdf(t, -0.5, 1.5) - math.log(3)
        data, draws = math.log1p(math.exp(-h)), math.log1p(math.exp(h))
        return norm.pdf(t) * data + 3 * norm.pdf(t, -0.5, 1.5) * draws

    assert found == pytest.approx(quad(integrand, -12, 12)[0], abs=2e-4)


# Noise.


class Given(ConditionalDistribution):
    def condition(self, context):
        return dist.Normal(context.double(), 2.0)


@pytest.mark.parametrize("noise", [lambda u: dist.Normal(u.double(), 2.0), Given()])
def test_noise_given_the_context(noise):
    ebm = ConditionalEnergy((), 2, 3).double()
    x, label = torch.randn(5).double(), torch.tensor([0, 1, 2, 2, 0])
    torch.manual_seed(0)
    found = NoiseContrastive(4)(ebm, noise)(x, label)
    torch.manual_seed(0)
    q = dist.Normal(label.double(), 2.0)
    draws = q.sample((4,))
    h = ebm.log_density(x, label) - q.log_prob(x) - math.log(4)
    h_draws = ebm.log_density(draws, label) - q.log_prob(draws) - math.log(4)
    expected = -(h.sigmoid().log().mean() + (-h_draws).sigmoid().log().sum(0).mean())
    torch.testing.assert_close(found, expected)


class Affine(nn.Module):
    """A Normal with parameters, as noise."""

    def __init__(self, dim=2):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, context):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


def test_the_module_owns_both_but_trains_the_energy():
    ebm, noise = ConditionalEnergy(2, 3, 4), Affine()
    loss = NoiseContrastive(2)(ebm, noise)
    assert set(loss.parameters()) == {*ebm.parameters(), *noise.parameters()}
    loss(torch.randn(6, 2), torch.zeros(6).long()).backward()
    assert all(p.grad is None for p in noise.parameters())
    assert all(p.grad is not None for p in ebm.parameters())


def test_a_batch_of_any_shape_and_images():
    ebm = ConditionalEnergy((1, 4, 4), 3, 4)
    noise = dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3)
    x, label = torch.randn(5, 3, 1, 4, 4), torch.zeros(5, 3).long()
    for options in ({}, {"share_noise": True}, {"ranking": True, "share_noise": True}):
        assert NoiseContrastive(6, **options)(ebm, noise)(x, label).shape == ()


def one_pass_cases():
    from pyro.distributions import transforms as T

    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    flat = dist.Normal(torch.zeros(3), 1.0)
    spline = T.spline_coupling(3, hidden_dims=[5])
    yield dist.TransformedDistribution(
        base, [T.affine_coupling(3, [5]), T.Permute(torch.arange(3))]
    )
    yield dist.TransformedDistribution(base, [T.affine_autoregressive(3, [5])])
    yield dist.TransformedDistribution(base, [spline, T.ExpTransform()])
    yield dist.TransformedDistribution(flat, [T.ExpTransform(), T.affine_coupling(3, [5])])
    yield dist.TransformedDistribution(flat, [T.AffineTransform(1.0, 2.0)]).to_event(1)
    yield dist.TransformedDistribution(flat.to_event(1), [T.StickBreakingTransform()])
    yield dist.TransformedDistribution(flat, [T.Spline(3)])
    square = T.ReshapeTransform((4,), (2, 2))
    four = dist.Normal(torch.zeros(4), 1.0).to_event(1)
    yield dist.TransformedDistribution(four, [square, T.ExpTransform()])


@pytest.mark.parametrize("case", range(8))
def test_draws_of_flows_are_scored_forwards(case):
    d = list(one_pass_cases())[case]
    x, log_prob = draw(d, (5,))
    assert log_prob.shape == (5, *d.batch_shape)
    torch.testing.assert_close(log_prob, d.log_prob(x.detach()), rtol=1e-3, atol=1e-3)


def test_flows_without_an_inverse_are_scored():
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    planar = dist.transforms.planar(3)
    x, log_prob = draw(dist.TransformedDistribution(base, [planar]), (5,))
    assert (x.shape, log_prob.shape) == ((5, 3), (5,))


# Effect.


@pytest.mark.slow
def test_learned_constant_is_the_normaliser_of_the_learned_energy():
    """A one-dimensional energy of labels: log Z by quadrature, to what 512 x 10 draws allow."""
    ebm = ConditionalEnergy(1, 2, 2, hidden_dims=(20,), base=EnergyNet(1, (20,), nn.SiLU))
    loc = torch.tensor([-1.0, 1.0])
    noise = dist.Normal(torch.zeros(1), 2.0).to_event(1)
    loss = NoiseContrastive(10)(ebm, noise)
    optimizer = torch.optim.Adam(ebm.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        label = torch.randint(2, (512,))
        x = (loc[label] + 0.7 * torch.randn(512)).unsqueeze(-1)
        optimizer.zero_grad()
        loss(x, label).backward()
        optimizer.step()
        schedule.step()
    grid = torch.linspace(-8, 8, 4001)
    for label in range(2):
        labels = torch.full((4001,), label)
        log_density = -ebm(grid.unsqueeze(-1), labels).detach()
        log_z = torch.trapezoid(log_density.exp(), grid).log()
        assert ebm.log_normalizer(labels[0]).item() == pytest.approx(log_z.item(), abs=0.01)
        truth = dist.Normal(loc[label], 0.7).log_prob(grid)
        mass = truth.exp() / truth.exp().sum()
        assert (mass * (truth - log_density + log_z)).sum() < 0.01  # the divergence


# Bad input.


def test_bad_arguments_are_refused():
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    ebm = ConditionalEnergy(2, 3, 4)
    with pytest.raises(ValueError, match="num_noise must be an integer >= 1"):
        NoiseContrastive(0)
    with pytest.raises(ValueError, match="ebm must be a torch module"):
        NoiseContrastive()(lambda x, u: x.sum(-1), noise)
    with pytest.raises(ValueError, match=r"EnergyNet does not have.*or ranking=True"):
        NoiseContrastive()(EnergyNet(2), noise)
    with pytest.raises(ValueError, match="The noise is 3"):
        NoiseContrastive()(ebm, 3)
    with pytest.raises(ValueError, match="The noise is <class"):
        NoiseContrastive()(ebm, Affine)


def test_bad_noise_is_refused():
    ebm, x, label = ConditionalEnergy(2, 3, 4), torch.zeros(5, 2), torch.zeros(5).long()
    bad = [
        (lambda u: u, "noise returned tensor"),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), r"events \(3,\) in batches \(\)"),
        (dist.Normal(torch.zeros(2), 1.0), r"events \(\) in batches \(2,\)"),
        (dist.Normal(torch.zeros(4, 2), 1.0).to_event(1), r"in batches \(4,\)"),
        (
            SelfNormalizedImportance(dist.Normal(torch.zeros(2), 1.0).to_event(1), EnergyNet(2), 3),
            "is a bound",
        ),
    ]
    for noise, message in bad:
        with pytest.raises(ValueError, match=message):
            NoiseContrastive()(ebm, noise)(x, label)
    noise = dist.Normal(torch.zeros(5, 2), 1.0).to_event(1)
    with pytest.raises(ValueError, match="share_noise draws one set"):
        NoiseContrastive(share_noise=True)(ebm, noise)(x, label)


def test_bad_data_are_refused():
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    loss = NoiseContrastive()(ConditionalEnergy(2, 3, 4), noise)
    x, label = torch.zeros(5, 2), torch.zeros(5).long()
    x[1, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 10 numbers of the data are NaN"):
        loss(x, label)
    with pytest.raises(ValueError, match=r"floating-point numbers, got torch.int64"):
        loss(x.long(), label)
    with pytest.raises(ValueError, match="Labels are integers from 0 to 3"):
        loss(torch.zeros(5, 2), label + 4)
    with pyro.validation_enabled(False):
        assert loss(x, label).isnan()
