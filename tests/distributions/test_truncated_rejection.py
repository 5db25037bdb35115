"""Truncated rejection against enumeration, closed forms and quadrature.

With ``a(x) = c exp(-x^2 / 2)`` and a standard normal proposal, ``Z = c / sqrt(2)`` and
``E log(1 - a) = -sum_k c^k / (k sqrt(1 + k))``. Statistical assertions are z-tests at 5 standard
errors, false-alarm probability 6e-7 each, or say otherwise.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from scipy.stats import kstest
from torch.nn.functional import logsigmoid

import pyro_ext.distributions.stochastic_density as stochastic_density
from pyro_ext.data.simulate import TwoRings
from pyro_ext.distributions import (
    SelfNormalizedImportance,
    StochasticDensity,
    TruncatedRejection,
)
from pyro_ext.distributions.rejection_bounds import GuessedIndex, SummedIndex, log_index
from pyro_ext.nn import EnergyNet
from pyro_ext.ops.truncated_geometric import log_truncated_ratio

GRID = torch.linspace(-9, 9, 1501, dtype=torch.float64)
STEP = GRID[1] - GRID[0]
PROPOSAL = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
POINTS = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
CEILING = 0.9
RATE = CEILING / math.sqrt(2)  # 0.6364
MEAN_LOG_REJECT = -sum(CEILING**k / (k * math.sqrt(1 + k)) for k in range(1, 2000))
PAPER_RATE = 1 - math.exp(MEAN_LOG_REJECT)  # 0.7158


def bell(x):
    log_accept = math.log(CEILING) - x.square() / 2
    return log_accept - torch.log(-torch.expm1(log_accept))


def waves(x):
    return 1.3 * torch.sin(3 * x) - 0.5 * (x - 0.7) ** 2 + 0.2 * x


def trs(num_tries, logit=bell, **kwargs):
    return TruncatedRejection(PROPOSAL, logit, num_tries, **kwargs)


def integrate(values):
    return values.sum() * STEP


def exact_log_prob(x, num_tries, logit=bell, proposal=PROPOSAL):
    """By the formula, with the normaliser by quadrature."""
    rate = integrate(proposal.log_prob(GRID).exp() * logit(GRID).sigmoid())
    forced = (1 - rate) ** (num_tries - 1)
    return proposal.log_prob(x) + (logit(x).sigmoid() * (1 - forced) / rate + forced).log()


def assert_mean(samples, expected, dim=0):
    """z-test at 5 standard errors."""
    error = samples.std(dim) / samples.shape[dim] ** 0.5
    z = (samples.mean(dim) - expected).abs() / error
    assert (z < 5).all(), f"mean {samples.mean(dim)} +- {error}, expected {expected}"


def assert_follows(x, log_density):
    """Dvoretzky-Kiefer-Wolfowitz at a false-alarm probability of 1e-6."""
    cdf = torch.cumsum(log_density(GRID).exp(), 0) * STEP  # up to the cell's right edge
    x = x.sort().values
    empirical = torch.searchsorted(x, GRID + STEP / 2) / len(x)
    assert (empirical - cdf).abs().max() < (math.log(2e6) / (2 * len(x))) ** 0.5


# Truth on a finite alphabet, where everything is enumerated.

PROBS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
TABLE = torch.tensor([-0.8, 0.4, 1.5], dtype=torch.float64)
RATE_OF_TABLE = (PROBS * TABLE.sigmoid()).sum()


def draws(num_tries, probs=PROBS, table=TABLE):
    """Candidates (T, N), indices (N) and log probabilities (N) of all that the sampler can do."""
    rows = list(itertools.product(range(3), repeat=num_tries))
    rows = [(*row, i) for row in rows for i in range(num_tries)]
    *candidates, index = torch.tensor(rows).T
    candidates = torch.stack(candidates)
    return (
        candidates,
        index,
        probs.log()[candidates].sum(0) + log_index(table[candidates], index)[1],
    )


def enumerated(num_tries):
    """The density, by adding up what the sampler can do."""
    candidates, index, log_q = draws(num_tries)
    chosen = candidates.gather(0, index[None])[0]
    return torch.zeros_like(PROBS).index_add(0, chosen, log_q.exp())


def discrete(num_tries, **kwargs):
    return TruncatedRejection(dist.Categorical(PROBS), lambda x: TABLE[x], num_tries, **kwargs)


@pytest.mark.parametrize("num_tries", [1, 2, 3, 5])
def test_exact_density_is_what_the_sampler_does(num_tries):
    d = discrete(num_tries, normalizer=RATE_OF_TABLE)
    assert d.density_kind == "exact"
    torch.testing.assert_close(d.log_prob(torch.arange(3)).exp(), enumerated(num_tries))
    assert enumerated(num_tries).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("num_tries", [2, 3, 5])
def test_weights_have_the_density_as_their_mean(num_tries):
    others = torch.tensor(list(itertools.product(range(3), repeat=num_tries - 1))).T  # (T - 1, N)
    auxiliaries = SummedIndex().fresh(TABLE[others])
    x = torch.arange(3)
    log_w = discrete(num_tries).log_weights(x, auxiliaries)  # (N, 3)
    mean = (PROBS.log()[others].sum(0).exp()[:, None] * log_w.exp()).sum(0)
    torch.testing.assert_close(mean, enumerated(num_tries))


@pytest.mark.parametrize("bound", [None, 0.3])
@pytest.mark.parametrize("num_tries", [2, 3, 5])
def test_reciprocal_weights_of_the_draws_have_the_reciprocal_density(num_tries, bound):
    candidates, index, log_q = draws(num_tries)
    chosen = candidates.gather(0, index[None])[0]
    how = SummedIndex() if bound is None else GuessedIndex(bound, num_tries)
    auxiliaries = how.of_draw(TABLE[candidates], index)
    log_w = discrete(num_tries, reverse_logit=bound).log_weights(chosen, auxiliaries)[0]
    total = torch.zeros_like(PROBS).index_add(0, chosen, (log_q - log_w).exp())
    torch.testing.assert_close(total, torch.ones_like(PROBS))  # p(x) E[1 / W | x]


@pytest.mark.parametrize("num_tries", [2, 3])
def test_gradient_of_the_enumerated_upper_bound(num_tries):
    probs = PROBS.clone().requires_grad_()
    table = TABLE.clone().requires_grad_()
    candidates, index, log_q = draws(num_tries, probs, table)
    chosen = candidates.gather(0, index[None])[0]
    d = TruncatedRejection(
        dist.Categorical(probs, validate_args=False), lambda x: table[x], num_tries
    )
    upper = d.log_weights(chosen, SummedIndex().of_draw(table[candidates], index))[0]
    expected = torch.autograd.grad((log_q.exp() * upper).sum(), [probs, table], retain_graph=True)
    surrogate = log_q.exp().detach() * (log_q * upper.detach() + upper)
    for seen, truth in zip(
        torch.autograd.grad(surrogate.sum(), [probs, table]), expected, strict=True
    ):
        torch.testing.assert_close(seen, truth)


def test_score_of_a_discrete_draw_is_its_log_probability():
    d = discrete(3)
    x = d.sample((5,))
    upper = d.score_parts(x)
    candidates, index, log_q = draws(3)
    log_w = d.log_weights(
        candidates.gather(0, index[None])[0], SummedIndex().of_draw(TABLE[candidates], index)
    )[0]
    for score, value in zip(upper.score_function, upper.log_prob, strict=True):
        twins = (log_q - score).abs() < 1e-9
        assert ((log_w[twins] - value).abs() < 1e-9).any()


def test_samples_of_a_discrete_proposal():
    exact = enumerated(4)
    for x in (discrete(4).sample((50_000,)), discrete(4).draw(torch.Size((50_000,)))):
        counts = torch.bincount(x, minlength=3)
        error = (exact * (1 - exact) / 50_000).sqrt()
        assert ((counts / 50_000 - exact).abs() < 5 * error).all()


# Truth on the line.


def test_the_rate_of_the_bell():
    rate = integrate(PROPOSAL.log_prob(GRID).exp() * bell(GRID).sigmoid())
    assert rate.item() == pytest.approx(RATE, abs=1e-9)
    mean = integrate(PROPOSAL.log_prob(GRID).exp() * logsigmoid(-bell(GRID)))
    assert mean.item() == pytest.approx(MEAN_LOG_REJECT, abs=1e-9)


@pytest.mark.parametrize("num_tries", [1, 2, 3, 20, 200])
@pytest.mark.parametrize("logit", [bell, waves])
def test_exact_density_is_normalised(num_tries, logit):
    rate = integrate(PROPOSAL.log_prob(GRID).exp() * logit(GRID).sigmoid())
    d = trs(num_tries, logit, normalizer=rate)
    assert integrate(d.log_prob(GRID).exp()).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(d.log_prob(GRID), exact_log_prob(GRID, num_tries, logit))


def test_one_try_is_the_proposal_exactly():
    for d in (trs(1), trs(1, reverse_logit=0.7), trs(1, normalizer=RATE)):
        assert d.density_kind == "exact"
        torch.testing.assert_close(d.log_prob(GRID), PROPOSAL.log_prob(GRID))
        x, log_prob = d.sample_and_log_prob((20_000,))
        torch.testing.assert_close(log_prob, PROPOSAL.log_prob(x))
        assert kstest(x.numpy(), "norm").pvalue > 1e-6


def test_many_tries_approach_the_reshaped_proposal():
    target = PROPOSAL.log_prob(POINTS) + logsigmoid(bell(POINTS)) - math.log(RATE)
    torch.testing.assert_close(trs(10_000, normalizer=RATE).log_prob(POINTS), target)
    torch.testing.assert_close(trs(200_000).log_prob(POINTS), target, atol=0.02, rtol=0)


@pytest.mark.parametrize("num_tries", [2, 3, 100])
@pytest.mark.parametrize("constant", [-20.0, 0.0, 20.0])
def test_a_constant_logit_is_the_proposal(num_tries, constant):
    d = trs(num_tries, lambda x: constant + 0 * x)
    torch.testing.assert_close(d.log_prob(GRID), PROPOSAL.log_prob(GRID))
    x, upper = d.sample_and_log_prob((5_000,))
    torch.testing.assert_close(upper, PROPOSAL.log_prob(x))
    assert kstest(x.numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("num_tries", [2, 3, 20])
def test_density_estimate_is_unbiased(num_tries):
    expected = exact_log_prob(POINTS, num_tries).exp()
    unshared = trs(num_tries, share_proposals=False)
    assert_mean(unshared.log_prob(POINTS.expand(8_000, 4)).exp(), expected)
    shared = trs(num_tries)
    assert_mean(torch.stack([shared.log_prob(POINTS).exp() for _ in range(300)]), expected)


@pytest.mark.parametrize("num_tries", [2, 20])
def test_tight_converges_to_the_exact_density(num_tries):
    exact = exact_log_prob(POINTS, num_tries)
    log_prob = trs(num_tries).tight(100_000).log_prob(POINTS)
    torch.testing.assert_close(log_prob, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("num_tries", [2, 10])
def test_sandwich_of_the_entropy(num_tries, num):
    log_prob = exact_log_prob(GRID, num_tries)
    negative_entropy = integrate(log_prob.exp() * log_prob)
    d = trs(num_tries, share_proposals=False).tight(num)
    x, upper = d.sample_and_log_prob((20_000,))
    lower, exact = d.log_prob(x), exact_log_prob(x, num_tries)
    assert_mean(exact, negative_entropy)
    for gap in (exact - lower, upper - exact):
        assert gap.mean() - 5 * gap.std() / 20_000**0.5 > 0
    inside = (x > 0.2) & (x < 1.4)
    assert_mean(inside * (-upper).exp(), 1.2)  # E_x E[h(x) / W | x] is the integral of h


@pytest.mark.parametrize("num_tries", [2, 5, 50])
def test_samples_follow_the_exact_density(num_tries):
    for d in (trs(num_tries, waves), trs(num_tries, waves, normalizer=0.5)):
        for x in (d.sample((20_000,)), d.draw(torch.Size((20_000,)))):
            assert_follows(x, lambda x: exact_log_prob(x, num_tries, waves))


def test_large_samples_come_in_chunks(monkeypatch):
    monkeypatch.setattr(stochastic_density, "MOST_NUMBERS", 4_000)
    loc = torch.tensor([[-1.0], [0.0]], dtype=torch.float64)
    d = TruncatedRejection(dist.Normal(loc, 1.0), waves, 20).expand((2, 3))
    x = d.sample((5, 1_000))
    assert x.shape == (5, 1_000, 2, 3)
    for i, place in enumerate(loc):
        proposal = dist.Normal(place, 1.0)
        assert_follows(
            x[..., i, 0].flatten(), lambda x, p=proposal: exact_log_prob(x, 20, waves, p)
        )
    vector = TruncatedRejection(PROPOSAL.expand((2,)).to_event(1), lambda x: x.sum(-1), 7)
    assert vector.expand((3,)).sample((1_000,)).shape == (1_000, 3, 2)


def test_rounds_score_only_who_is_left():
    logit = Counting(lambda x: 3 + 0 * x)  # accepts 95 %
    TruncatedRejection(PROPOSAL, logit, 1_000).draw(torch.Size((10_000,)))
    # tries per round fill the place of the accepted: a few rounds, no thousand
    assert logit.evaluations <= 60_000


def test_estimate_of_the_normaliser():
    estimate = trs(5).estimate_normalizer(100_000, chunk=7_001)
    assert abs(estimate.value - RATE) < 5 * estimate.standard_error
    spread = integrate(PROPOSAL.log_prob(GRID).exp() * bell(GRID).sigmoid() ** 2) - RATE**2
    expected = (spread / 100_000) ** 0.5
    assert estimate.standard_error.item() == pytest.approx(expected.item(), rel=0.02)
    assert not estimate.value.requires_grad
    wide = TruncatedRejection(PROPOSAL.expand((3,)), bell, 5).estimate_normalizer(100)
    assert wide.value.shape == wide.standard_error.shape == (3,)


# The bound of the paper.


def paper_bound(x, num_tries, rate, charge_last=False):
    """By the sum over indices, with exact expectations over the other candidates."""
    index = torch.arange(num_tries, dtype=torch.float64)
    log_accept = logsigmoid(bell(x)).unsqueeze(-1)
    log_q = index * math.log1p(-rate) + log_accept * (index < num_tries - 1)
    log_q = log_q.log_softmax(-1)
    charged = log_accept * ((index < num_tries - 1) | charge_last)
    terms = log_q.exp() * (charged + index * MEAN_LOG_REJECT - log_q)
    return PROPOSAL.log_prob(x) + terms.sum(-1)


def logit_of(rate):
    return math.log(rate / (1 - rate))


@pytest.mark.parametrize("num_tries", [2, 5, 200])
@pytest.mark.parametrize("rate", [0.1, RATE, PAPER_RATE])
def test_guessed_index_is_the_papers_bound(num_tries, rate):
    expected = paper_bound(POINTS, num_tries, rate)
    d = trs(num_tries, reverse_logit=logit_of(rate), share_proposals=False)
    assert_mean(d.log_prob(POINTS.expand(3_000, 4)), expected)
    assert (expected < exact_log_prob(POINTS, num_tries)).all()


@pytest.mark.parametrize("num_tries", [2, 5, 200])
def test_the_papers_bound_at_its_best_has_a_closed_form(num_tries):
    closed = PROPOSAL.log_prob(POINTS) + log_truncated_ratio(
        logsigmoid(bell(POINTS)), torch.tensor(PAPER_RATE, dtype=torch.float64), num_tries
    )
    best = paper_bound(POINTS, num_tries, PAPER_RATE)
    torch.testing.assert_close(best, closed)
    for rate in (0.1, 0.5, RATE, 0.71, 0.72, 0.9):
        assert (paper_bound(POINTS, num_tries, rate) <= best).all()


def test_the_published_code_charges_the_last_try():
    x = torch.tensor(2.0, dtype=torch.float64)
    published = [paper_bound(x, n, PAPER_RATE, charge_last=True) for n in (1, 5)]
    correct = [paper_bound(x, n, PAPER_RATE) for n in (1, 5)]
    assert correct[0] == PROPOSAL.log_prob(x)
    assert (correct[0] - published[0]).item() == pytest.approx(-logsigmoid(bell(x)).item())
    assert 0.01 < correct[1] - published[1] < 0.1


@pytest.mark.parametrize("num_tries", [2, 5, 200])
@pytest.mark.parametrize("reverse_logit", [-3.0, 0.0, logit_of(PAPER_RATE), 3.0])
def test_the_default_is_tighter_draw_by_draw(num_tries, reverse_logit):
    for seed in range(20):
        ours = trs(num_tries).frozen(seed).log_prob(POINTS)
        paper = trs(num_tries, reverse_logit=reverse_logit).frozen(seed).log_prob(POINTS)
        assert (ours >= paper - 1e-12).all()


def test_gaps_at_two_hundred_tries():
    exact = exact_log_prob(POINTS, 200)
    ours = trs(200, share_proposals=False).log_prob(POINTS.expand(4_000, 4)).mean(0)
    paper = paper_bound(POINTS, 200, PAPER_RATE)
    torch.testing.assert_close(exact - paper, torch.full_like(exact, 0.11756), atol=1e-5, rtol=0)
    # 0.0004 on average; standard error of the mean 0.0004
    assert (exact - ours < 0.003).all()


def test_a_guessed_index_never_reaches_the_density():
    d = trs(20, reverse_logit=logit_of(PAPER_RATE))
    gap = exact_log_prob(POINTS, 20) - d.tight(50_000).log_prob(POINTS)
    assert (gap > 0.02).all()
    x, upper = d.sample_and_log_prob((20_000,))
    gap = upper - exact_log_prob(x, 20)
    assert gap.mean() - 5 * gap.std() / 20_000**0.5 > 0
    with pytest.raises(NotImplementedError, match="no tight upper bound"):
        d.tight(2).sample_and_log_prob()


def test_the_reverse_logit_learns_the_papers_rate():
    reverse_logit = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    others = trs(200_000, reverse_logit=0.0).frozen(0).draw_auxiliaries(POINTS, 1)
    optimizer = torch.optim.LBFGS([reverse_logit], max_iter=50)

    def loss():
        optimizer.zero_grad()
        bound = GuessedIndex(reverse_logit, 50).log_ratio(logsigmoid(bell(POINTS)), others)
        (-bound.mean()).backward()
        return -bound.mean()

    optimizer.step(loss)
    assert reverse_logit.sigmoid().item() == pytest.approx(PAPER_RATE, abs=0.01)


# Truth: gradients.


def parameters():
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, 0.2)]


def parabola(a):
    return lambda x: 1 - a * (x - 1) ** 2


@pytest.mark.parametrize("share", [True, False])
def test_gradients_of_the_lower_bound_against_quadrature(share):
    x = torch.tensor(0.8, dtype=torch.float64)
    a, loc = parameters()
    logit, noise = parabola(a), dist.Normal(0.0, 1.0).log_prob(GRID).exp()
    weight = logit(x).sigmoid() + logit(loc + GRID).neg().sigmoid()  # two tries
    bound = integrate(noise * (dist.Normal(loc, 1.0).log_prob(x) + weight.log()))
    expected = torch.stack(torch.autograd.grad(bound, [a, loc]))

    def draw():
        a, loc = parameters()
        d = TruncatedRejection(dist.Normal(loc, 1.0), parabola(a), 2, share)
        return torch.stack(torch.autograd.grad(d.log_prob(x), [a, loc]))

    assert_mean(torch.stack([draw() for _ in range(500)]), expected)


@pytest.mark.parametrize("num_tries", [2, 4])
@pytest.mark.parametrize("pathwise", [True, False])
def test_gradient_of_a_mean_over_draws_against_quadrature(pathwise, num_tries):
    a, loc = parameters()
    log_prob = exact_log_prob(GRID, num_tries, parabola(a), dist.Normal(loc, 1.0))
    mean = integrate(log_prob.exp() * (2 * GRID).sin())
    expected = torch.stack(torch.autograd.grad(mean, [a, loc]))

    def draw():
        a, loc = parameters()
        d = TruncatedRejection(dist.Normal(loc, 1.0), parabola(a), num_tries)
        x = d((1_000,)) if pathwise else d.sample((1_000,))
        assert x.requires_grad == pathwise
        value = (2 * x).sin()
        surrogate = value + value.detach() * d.score_parts(x).score_function
        return torch.stack(torch.autograd.grad(surrogate.mean(), [a, loc]))

    # 5 standard errors of 100 means: false-alarm probability 3e-6
    assert_mean(torch.stack([draw() for _ in range(100)]), expected)


@pytest.mark.parametrize("reverse_logit", [None, 0.4])
def test_frozen_gradient_against_finite_differences(reverse_logit):
    x = torch.randn(5, 2, dtype=torch.float64)
    net = EnergyNet(2, (3,)).double()

    def log_prob(weight, scale, reverse):
        def logit(y):
            return torch.func.functional_call(net, {"layers.0.weight": weight}, (y,))

        proposal = dist.Normal(torch.zeros(2).double(), scale).to_event(1)
        reverse = None if reverse_logit is None else reverse
        d = TruncatedRejection(proposal, logit, 6, reverse_logit=reverse)
        return d.tight(2).frozen(0).log_prob(x)

    weight = net.layers[0].weight.detach().clone().requires_grad_()
    scale = torch.tensor([0.8, 1.3], dtype=torch.float64, requires_grad=True)
    reverse = torch.tensor(reverse_logit or 0.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_prob, (weight, scale, reverse))


@pytest.mark.parametrize("reverse_logit", [None, 0.0])
@pytest.mark.parametrize("level", [-60.0, 60.0])
def test_extreme_logits_in_single_precision(level, reverse_logit):
    x = torch.linspace(-2, 2, 5, requires_grad=True)
    shift = torch.tensor(level, requires_grad=True)
    proposal = dist.Normal(0.0, 1.0)
    d = TruncatedRejection(proposal, lambda x: shift + x, 1024, reverse_logit=reverse_logit)
    log_prob = d.log_prob(x)
    assert log_prob.isfinite().all()
    if reverse_logit is None:
        torch.testing.assert_close(log_prob, proposal.log_prob(x), atol=1e-5, rtol=0)
    for grad in torch.autograd.grad(log_prob.sum(), [x, shift]):
        assert grad.isfinite().all()


@pytest.mark.slow
def test_maximum_likelihood_learns_two_rings():
    target, net = TwoRings(), EnergyNet(2, (20, 20))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    d = TruncatedRejection(proposal, net, 1024)
    for _ in range(4_000):
        optimizer.zero_grad()
        (-d.log_prob(target.sample((128,))).mean()).backward()
        optimizer.step()
    x = target.sample((5_000,))
    with torch.no_grad():
        rate = d.estimate_normalizer(1_000_000).value
        exact = TruncatedRejection(proposal, net, 1024, normalizer=rate).log_prob(x).mean().item()
        bound = d.tight(20).log_prob(x).mean().item()
    # the proposal alone scores -2.36, the target itself -1.514; the score's error is 0.012
    assert -2.2 < exact < -1.45
    assert abs(exact - bound) < 0.05


# Behaviour.


class Counting:
    def __init__(self, logit):
        self.logit = logit
        self.evaluations = 0

    def __call__(self, x):
        self.evaluations += x.numel()
        return self.logit(x)


@pytest.mark.parametrize(("share", "expected"), [(True, 99 + 20), (False, 99 * 20 + 20)])
def test_cost_with_and_without_sharing(share, expected):
    logit = Counting(torch.neg)
    d = TruncatedRejection(dist.Normal(0.0, 1.0), logit, 100, share)
    d.expand((20,)).log_prob(torch.randn(20))
    assert logit.evaluations == expected


@pytest.mark.parametrize("kwargs", [{}, {"reverse_logit": 0.3}, {"normalizer": 0.3}])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("batch", "value", "expected"),
    [((), (7, 3), (7, 3)), ((3,), (3,), (3,)), ((3,), (7, 1), (7, 3)), ((2, 3), (3,), (2, 3))],
)
def test_shapes(kwargs, share, batch, value, expected):
    proposal = dist.Normal(torch.zeros(*batch, 2), 1.0).to_event(1)
    d = TruncatedRejection(proposal, lambda x: x.sum(-1), 6, share, **kwargs)
    assert (d.batch_shape, d.event_shape) == (batch, (2,))
    for density in (d, d.tight(3), d.frozen(0), d.tight(3).frozen(0)):
        assert density.log_prob(torch.zeros(*value, 2)).shape == expected
    x, upper = d.sample_and_log_prob((4, 5))
    assert x.shape == (4, 5, *batch, 2)
    assert upper.shape == (4, 5, *batch)


@pytest.mark.parametrize("batch", [2, 5])  # five is the number of other candidates, too
@pytest.mark.parametrize("share", [True, False])
def test_logit_may_depend_on_the_batch_of_an_expanded_proposal(share, batch):
    context = torch.linspace(-1, 1, batch, dtype=torch.float64)
    d = TruncatedRejection(PROPOSAL, lambda x: bell(x - context), 6, share).expand((batch,))
    x = torch.tensor(0.4, dtype=torch.float64)
    exact = torch.stack([exact_log_prob(x, 6, lambda x, c=c: bell(x - c)) for c in context])
    for value in (x, x.expand(batch), x.expand(3, batch), x.expand(3, 1)):
        assert d.log_prob(value).shape == torch.broadcast_shapes(value.shape, (batch,))
    assert_mean(torch.stack([d.log_prob(x).exp() for _ in range(300)]), exact.exp())
    torch.testing.assert_close(d.tight(5_000).frozen(0).log_prob(x), exact, atol=0.05, rtol=0)
    assert d.sample_and_log_prob((7,))[1].shape == (7, batch)
    rate = d.estimate_normalizer(100_000).value
    assert rate.shape == (batch,)
    known = TruncatedRejection(
        PROPOSAL.expand((batch,)), lambda x: bell(x - context), 6, normalizer=rate
    )
    torch.testing.assert_close(known.log_prob(x), exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kwargs", [{}, {"reverse_logit": 0.3}, {"normalizer": 0.3}])
def test_dtype_follows_the_proposal(dtype, kwargs):
    proposal = dist.Normal(torch.zeros((), dtype=dtype), 1.0)
    x, upper = TruncatedRejection(proposal, torch.neg, 3, **kwargs).sample_and_log_prob((2,))
    log_prob = TruncatedRejection(proposal, torch.neg, 3, **kwargs).log_prob(x)
    assert x.dtype == upper.dtype == log_prob.dtype == dtype


def test_a_known_normaliser_makes_an_ordinary_density():
    d = trs(5, normalizer=RATE)
    x = d.sample((3,))
    parts = d.score_parts(x.clone())
    assert torch.equal(parts.log_prob, d.log_prob(x))
    assert torch.equal(parts.score_function, parts.log_prob)
    assert not parts.entropy_term.any()
    with pytest.raises(NotImplementedError):
        d.rsample()
    assert d.draw_size == 1
    assert trs(5).draw_size == 5


def test_mcmc_needs_a_known_normaliser_or_frozen_proposals():
    def run(density):
        kernel = NUTS(lambda: pyro.sample("x", density), max_tree_depth=2)
        sampler = MCMC(kernel, num_samples=5, warmup_steps=2, disable_progbar=True)
        sampler.run()
        return sampler.get_samples()["x"]

    assert run(trs(20, normalizer=RATE)).isfinite().all()
    assert run(trs(20).tight(5).frozen(0)).isfinite().all()
    with pytest.raises(ValueError, match="MCMC needs a deterministic density"):
        run(trs(20))


def test_a_stochastic_proposal_gives_a_lower_bound_and_no_upper_one():
    inner = SelfNormalizedImportance(PROPOSAL, torch.square, 3)
    x = torch.zeros(5, dtype=torch.float64)
    for kwargs in ({}, {"normalizer": 0.3}, {"reverse_logit": 0.3}):
        d = TruncatedRejection(inner, bell, 2, **kwargs)
        assert d.density_kind == "lower"
        assert d.log_prob(x).shape == (5,)
        assert torch.equal(d.frozen(0).log_prob(x), d.frozen(0).log_prob(x))
        with pytest.raises(NotImplementedError, match="only has a lower bound"):
            d.sample_and_log_prob()


def test_it_is_a_stochastic_density_and_says_so():
    assert issubclass(TruncatedRejection, StochasticDensity)
    assert TruncatedRejection.__doc__.startswith("Stochastic:")
    assert "num_tries=3" in repr(trs(3))
    assert "normalizer=0.5" in repr(trs(3, normalizer=0.5))
    assert repr(trs(3).tight(5).frozen(2)).endswith(".tight(5).frozen(2)")


@pytest.mark.gpu
def test_on_a_gpu_no_step_synchronises():
    proposal = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    net = EnergyNet(2).cuda()
    d = TruncatedRejection(proposal, net, 64, validate_args=False)
    x = torch.randn(8, 2, device="cuda")
    d.log_prob(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        d.log_prob(x).sum().backward()
        value, upper = d.sample_and_log_prob((3,))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.device == upper.device == x.device
    assert torch.equal(d.frozen(0).log_prob(x), d.frozen(0).log_prob(x))
    assert d.draw(torch.Size((1_000,))).device == x.device
    rate = d.estimate_normalizer(1_000).value
    known = TruncatedRejection(proposal, net, 64, normalizer=rate)
    with torch.no_grad():
        assert known.log_prob(x).device == x.device


# Bad input.


@pytest.mark.parametrize("num_tries", [0, -3, 2.5, True])
def test_too_few_tries(num_tries):
    with pytest.raises(ValueError, match=f"got num_tries={num_tries}"):
        trs(num_tries)


def test_numpy_integers_are_integers():
    assert trs(np.int64(3)).num_tries == 3


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, math.nan])
def test_normaliser_out_of_range(value):
    for normalizer in (value, torch.tensor(value)):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            trs(3, normalizer=normalizer)


def test_a_learned_normaliser_is_not_the_normaliser():
    learned = (
        torch.tensor(0.5, requires_grad=True),
        torch.nn.Parameter(torch.tensor(0.5), requires_grad=False),
        torch.nn.Linear(1, 1),
    )
    for normalizer in learned:
        with pytest.raises(ValueError, match="a learned normaliser is not the normaliser"):
            trs(3, normalizer=normalizer)


@pytest.mark.parametrize("name", ["normalizer", "reverse_logit"])
def test_constants_of_the_wrong_kind(name):
    with pytest.raises(ValueError, match=f"{name} must be of floating-point numbers"):
        trs(3, **{name: torch.full((2,), 0.5)})
    with pytest.raises(ValueError, match=f"{name} must be of floating-point numbers"):
        trs(3, **{name: torch.tensor(1)})
    for bad in ("half", True):
        with pytest.raises(ValueError, match=f"{name} must be a number"):
            trs(3, **{name: bad})
    with pytest.raises(ValueError, match="got both"):
        trs(3, normalizer=0.5, reverse_logit=0.0)


def test_training_with_a_constant_normaliser_is_refused():
    net = EnergyNet(2, (3,))
    loc = torch.zeros(2)
    x = torch.randn(4, 2, requires_grad=True)

    def known(loc):
        return TruncatedRejection(dist.Normal(loc, 1.0).to_event(1), net, 3, normalizer=0.5)

    for value in (x, x.detach()):
        with pytest.raises(ValueError, match="gradient would be wrong"):
            known(loc).log_prob(value)
    with torch.no_grad():
        assert known(loc).log_prob(x).isfinite().all()
    net.requires_grad_(False)
    (grad,) = torch.autograd.grad(known(loc).log_prob(x).sum(), x)
    assert grad.isfinite().all()
    with pytest.raises(ValueError, match="gradient would be wrong"):
        known(loc.requires_grad_()).log_prob(x)


def test_arguments_of_the_wrong_kind():
    with pytest.raises(ValueError, match="TruncatedRejection takes a distribution as proposal"):
        TruncatedRejection(3, bell, 4)
    with pytest.raises(ValueError, match="a callable as logit"):
        TruncatedRejection(PROPOSAL, 3, 4)
    with pytest.raises(ValueError, match="The logit must return a tensor of floating-point"):
        trs(4, lambda x: x.long()).sample()
    with pytest.raises(ValueError, match="num must be"):
        trs(4).estimate_normalizer(1)


def test_shapes_that_disagree():
    proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"events of shape \(3,\), but the proposal"):
        TruncatedRejection(proposal, EnergyNet(3), 4)
    for bad in (lambda x: x, lambda x: x.sum(), lambda x: x.sum(-1, keepdim=True)):
        with pytest.raises(ValueError, match="The logit returned shape"):
            TruncatedRejection(proposal, bad, 4).log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logit_that_is_not_finite(value):
    with pytest.raises(ValueError, match="The logit is not finite at 4 of 4 values"):
        trs(4, lambda x: x + value).sample()


def test_biased_gradient_of_a_discrete_proposal_is_refused():
    logits = torch.zeros(3, requires_grad=True)
    d = TruncatedRejection(dist.Categorical(logits=logits), lambda x: x.double(), 4)
    with pytest.raises(ValueError, match="would be biased"):
        d.log_prob(torch.tensor(1))
    with torch.no_grad():
        assert d.log_prob(torch.tensor(1)).isfinite()


def test_value_outside_the_support():
    d = TruncatedRejection(dist.Exponential(torch.tensor(1.0)), torch.neg, 4)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor(-1.0))
