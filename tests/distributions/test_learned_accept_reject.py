"""LARS against the exact density of truncated rejection, and its moving average by hand.

The acceptance is ``a(x) = 0.9 exp(-x^2 / 2)``, so that ``Z = 0.9 / sqrt(2)`` for a standard normal
proposal. Statistical assertions are z-tests at 5 standard errors, false-alarm probability 6e-7.
"""

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO

from pyro_ext.distributions import (
    LearnedAcceptReject,
    LearnedAcceptRejectSampler,
    SelfNormalizedImportance,
    StochasticDensity,
    TruncatedRejection,
    TruncatedRejectionSampler,
)
from pyro_ext.nn import EnergyNet, MovingNormalizer

GRID = torch.linspace(-9, 9, 1501, dtype=torch.float64)
STEP = GRID[1] - GRID[0]
PROPOSAL = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
POINTS = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
RATE = 0.9 / math.sqrt(2)


def bell(x):
    log_accept = math.log(0.9) - x.square() / 2
    return log_accept - torch.log(-torch.expm1(log_accept))


def lars(num_tries, logit=bell, proposal=PROPOSAL, **kwargs):
    normalizer = MovingNormalizer(kwargs.pop("batch_shape", ()), kwargs.pop("decay", 0.99)).double()
    return LearnedAcceptReject(proposal, logit, num_tries, normalizer, **kwargs)


def evaluated(d, rate=RATE):
    d.normalizer.eval().store(torch.tensor(rate).double(), torch.tensor(0.0).double(), 10**9)
    return d


# Truth.


@pytest.mark.parametrize("num_tries", [1, 2, 20, 200])
def test_it_is_truncated_rejection_with_a_known_normaliser(num_tries):
    d = evaluated(lars(num_tries))
    known = TruncatedRejection(PROPOSAL, bell, num_tries, normalizer=RATE)
    assert d.density_kind == "exact"
    torch.testing.assert_close(d.log_prob(POINTS), known.log_prob(POINTS))
    assert (d.log_prob(GRID).exp().sum() * STEP).item() == pytest.approx(1, abs=1e-6)
    parts = d.score_parts(POINTS)
    assert torch.equal(parts.log_prob, d.log_prob(POINTS))
    assert torch.equal(parts.score_function, parts.log_prob)
    assert not parts.entropy_term.any()


@pytest.mark.parametrize("exact", [True, False])
def test_samples_follow_the_exact_density(exact):
    d = evaluated(lars(5)) if exact else lars(5)
    known = TruncatedRejection(PROPOSAL, bell, 5, normalizer=RATE)
    cdf = torch.cumsum(known.log_prob(GRID).exp(), 0) * STEP  # up to the cell's right edge
    x = d.sample((20_000,)).sort().values
    empirical = torch.searchsorted(x, GRID + STEP / 2) / 20_000
    # Dvoretzky-Kiefer-Wolfowitz at a false-alarm probability of 1e-6
    assert (empirical - cdf).abs().max() < (math.log(2e6) / 40_000) ** 0.5


def test_an_estimate_of_the_normaliser_makes_it_exact():
    d = lars(200)
    d.normalizer.eval()
    assert d.density_kind == "estimate"
    assert d.estimate_normalizer(200_000) == (d.normalizer.value, d.normalizer.standard_error)
    assert abs(d.normalizer.value - RATE) < 5 * d.normalizer.standard_error
    assert d.normalizer.num_samples == 200_000
    assert d.density_kind == "exact"
    known = TruncatedRejection(PROPOSAL, bell, 200, normalizer=RATE)
    torch.testing.assert_close(d.log_prob(POINTS), known.log_prob(POINTS), atol=0.01, rtol=0)


def test_training_makes_it_an_estimate_again():
    d = evaluated(lars(5))
    d.normalizer.train()
    assert d.density_kind == "estimate"
    d.log_prob(POINTS)
    d.normalizer.eval()
    assert d.density_kind == "estimate"
    assert 0 < abs(d.normalizer.value.item() - RATE) < 0.01


def test_moving_average_by_hand():
    d = lars(5, decay=0.8, num_proposals=50)
    expected = 0.5
    for seed in range(5):
        torch.manual_seed(seed)
        current = bell(PROPOSAL.sample((50,))).sigmoid().mean()
        expected = 0.8 * expected + 0.2 * current.item()
        torch.manual_seed(seed)
        seen = d.log_prob(POINTS)
        assert d.normalizer.value.item() == pytest.approx(expected)
        known = TruncatedRejection(PROPOSAL, bell, 5, normalizer=expected)
        torch.testing.assert_close(seen, known.log_prob(POINTS))


def test_gradient_against_finite_differences_of_the_quadrature_density():
    def log_prob(a, loc, x):
        proposal = dist.Normal(loc, 1.0)
        accept = torch.sigmoid(1 - a * (x - 1) ** 2)
        on_grid = torch.sigmoid(1 - a * (GRID - 1) ** 2)
        rate = (proposal.log_prob(GRID).exp() * on_grid).sum() * STEP
        forced = (1 - rate) ** 3
        return rate, proposal.log_prob(x) + (accept * (1 - forced) / rate + forced).log()

    x = torch.tensor(0.3, dtype=torch.float64)
    place, step = torch.tensor([0.7, 0.2], dtype=torch.float64), 1e-5
    expected = torch.stack(
        [
            (log_prob(*(place + e), x)[1] - log_prob(*(place - e), x)[1]) / (2 * step)
            for e in step * torch.eye(2, dtype=torch.float64)
        ]
    )
    rate = log_prob(*place, x)[0]

    def draw():
        a, loc = (p.clone().requires_grad_() for p in place)
        d = lars(4, lambda x: 1 - a * (x - 1) ** 2, dist.Normal(loc, 1.0), num_proposals=16)
        d.normalizer.decay = 1.0  # stays at the exact rate, where the gradient is unbiased
        d.normalizer.value.copy_(rate)
        return torch.stack(torch.autograd.grad(d.log_prob(x), [a, loc]))

    samples = torch.stack([draw() for _ in range(1_000)])
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected).abs() < 5 * error).all()


def test_in_training_it_is_no_bound():
    # a normaliser that is too small promises more than all the probability there is
    d = lars(200, decay=0.99, num_proposals=1)
    d.normalizer.value.fill_(RATE / 2)
    with torch.no_grad():
        mass = d.log_prob(GRID).exp().sum() * STEP
    assert mass > 1.5


def test_training_moves_the_density_to_the_data():
    data = 0.3 * torch.randn(2_000) + 1
    sampler = LearnedAcceptRejectSampler(EnergyNet((), (10,)), 100, num_proposals=256)
    proposal = dist.Normal(0.0, 1.0)
    optimizer = torch.optim.Adam(sampler.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        (-sampler(proposal).log_prob(data[:256]).mean()).backward()
        optimizer.step()
    d = sampler.eval()(proposal)
    d.estimate_normalizer(200_000)
    with torch.no_grad():
        score = d.log_prob(data).mean().item()
    # the proposal scores -1.46, the data's own density -0.215; the error is 0.02
    assert -0.6 < score < -0.15
    assert d.sample((1_000,)).mean().item() == pytest.approx(1, abs=0.4)


# Behaviour.


def test_it_says_what_it_is():
    assert issubclass(LearnedAcceptReject, StochasticDensity)
    first, *_ = LearnedAcceptReject.__doc__.split("\n")
    assert "not a bound" in first
    assert "num_tries=5" in repr(lars(5))
    assert repr(lars(5).frozen(2)).endswith(".frozen(2)")
    assert lars(1).density_kind == "exact"
    stochastic = SelfNormalizedImportance(PROPOSAL, torch.square, 3)
    assert lars(5, proposal=stochastic).density_kind == "estimate"
    assert evaluated(lars(5, proposal=stochastic)).density_kind == "lower"
    assert lars(5).expand((2,)).to_event(1).density_kind == "estimate"


def test_only_training_in_grad_mode_updates():
    d = lars(5)
    with torch.no_grad():
        d.log_prob(POINTS)
    d.frozen(0).log_prob(POINTS)
    d.sample((10,))
    assert d.normalizer.value == 0.5
    d.normalizer.eval()
    assert torch.equal(d.log_prob(POINTS), d.log_prob(POINTS))
    assert d.normalizer.value == 0.5


def test_frozen_proposals():
    d = lars(5).frozen(3)
    assert torch.equal(d.log_prob(POINTS), d.log_prob(POINTS))
    assert d.density_kind == "estimate"


def test_tight_takes_more_proposals():
    calls = []

    def logit(x):
        calls.append(x.numel())
        return bell(x)

    d = lars(5, logit, num_proposals=10)
    d.tight(7).log_prob(POINTS)
    assert sum(calls) == 70 + 4


@pytest.mark.parametrize(
    ("batch", "value", "expected"),
    [((), (7, 3), (7, 3)), ((3,), (3,), (3,)), ((3,), (7, 1), (7, 3)), ((2, 3), (3,), (2, 3))],
)
def test_shapes(batch, value, expected):
    proposal = dist.Normal(torch.zeros(*batch, 2), 1.0).to_event(1)
    d = LearnedAcceptReject(proposal, lambda x: x.sum(-1), 6, MovingNormalizer(batch))
    assert (d.batch_shape, d.event_shape) == (batch, (2,))
    assert d.log_prob(torch.zeros(*value, 2)).shape == expected
    wide = d.expand((4, *batch))
    assert wide.log_prob(torch.zeros(4, *batch, 2)).shape == (4, *batch)
    assert d.sample((4, 5)).shape == (4, 5, *batch, 2)
    d.normalizer.eval()
    assert wide.estimate_normalizer(100).value.shape == batch
    assert wide.sample_and_log_prob((5,))[1].shape == (5, 4, *batch)


def test_a_state_that_survives():
    sampler = LearnedAcceptRejectSampler(EnergyNet(2, (8,)), 7).eval()
    proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    sampler(proposal).estimate_normalizer(1_000)
    x = torch.randn(4, 2)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    other = LearnedAcceptRejectSampler(EnergyNet(2, (8,)), 7).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = sampler(proposal).log_prob(x)
        for twin in (other, copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
            assert twin(proposal).density_kind == "exact"
            assert torch.equal(twin(proposal).log_prob(x), expected)


@pytest.mark.gpu
def test_on_a_gpu_no_step_synchronises():
    proposal = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    sampler = LearnedAcceptRejectSampler(EnergyNet(2), 64).cuda()
    d = LearnedAcceptReject(proposal, sampler.logit, 64, sampler.normalizer, validate_args=False)
    x = torch.randn(8, 2, device="cuda")
    d.log_prob(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        d.log_prob(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert d.sample((3,)).device == x.device
    sampler.eval()
    assert d.estimate_normalizer(1_000).value.device == x.device


# Samplers.


def normal(*batch):
    return dist.Normal(torch.zeros(*batch, 2), 1.5).to_event(1)


@pytest.mark.parametrize("share_proposals", [True, False])
def test_sampler_equals_the_distribution_built_by_hand(share_proposals):
    net, x = EnergyNet(2, (8,)), torch.randn(4, 3, 2)
    built = TruncatedRejectionSampler(net, 7, share_proposals)(normal(3))
    by_hand = TruncatedRejection(normal(3), net, 7, share_proposals)
    assert torch.equal(built.frozen(0).log_prob(x), by_hand.frozen(0).log_prob(x))
    assert (built.batch_shape, built.event_shape, built.num_tries) == ((3,), (2,), 7)
    guessed = TruncatedRejectionSampler(net, 7, learn_reverse=True)
    by_hand = TruncatedRejection(normal(3), net, 7, reverse_logit=0.0)
    assert torch.equal(guessed(normal(3)).frozen(0).log_prob(x), by_hand.frozen(0).log_prob(x))


def test_samplers_learn_what_they_own():
    x = torch.randn(6, 2)
    for sampler in (
        TruncatedRejectionSampler(EnergyNet(2, (8,)), 7),
        TruncatedRejectionSampler(EnergyNet(2, (8,)), 7, learn_reverse=True),
        LearnedAcceptRejectSampler(EnergyNet(2, (8,)), 7),
    ):
        assert sampler.event_shape == (2,)
        sampler(normal()).log_prob(x).mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in sampler.parameters())


def test_a_likelihood_whose_proposal_is_the_decoder_s():
    sampler = TruncatedRejectionSampler(EnergyNet(2, (8,)), 5)

    def model(x, sampler):
        pyro.module("sampler", sampler)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            decoded = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1)
            pyro.sample("x", sampler(decoded), obs=x)

    def guide(x, sampler):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    elbo.loss_and_grads(model, guide, torch.randn(6, 2), sampler)
    assert all(p.grad.isfinite().all() for p in sampler.parameters())
    assert sampler.logit.layers[0].weight.grad.abs().sum() > 0
    learned = LearnedAcceptRejectSampler(EnergyNet(2, (8,)), 5)
    with pytest.raises(ValueError, match="use TruncatedRejection"):
        elbo.loss(model, guide, torch.randn(6, 2), learned)


# Bad input.


def test_guides_and_mcmc_need_an_exact_normaliser():
    d = lars(20)
    with pytest.raises(NotImplementedError, match=r"Call eval\(\).*estimate_normalizer"):
        d.sample_and_log_prob()

    def run(density):
        kernel = NUTS(lambda: pyro.sample("x", density), max_tree_depth=2)
        sampler = MCMC(kernel, num_samples=5, warmup_steps=2, disable_progbar=True)
        sampler.run()
        return sampler.get_samples()["x"]

    for density in (d, d.frozen(0)):
        with pytest.raises(ValueError, match=r"MCMC needs a density.*estimate_normalizer"):
            run(density)
    assert run(evaluated(d)).isfinite().all()
    x, log_prob = d.sample_and_log_prob((3,))
    assert torch.equal(log_prob, d.log_prob(x))


def test_a_guide_in_training_is_refused():
    sampler = LearnedAcceptRejectSampler(EnergyNet((), (4,)), 5)

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("z", sampler(dist.Normal(0.0, 1.0)))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    with pytest.raises(NotImplementedError, match="needs an upper bound"):
        svi.step()


def test_training_in_evaluation_mode_is_refused():
    sampler = LearnedAcceptRejectSampler(EnergyNet(2, (8,)), 7).eval()
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"call train\(\)"):
        sampler(normal()).log_prob(x)
    with torch.no_grad():
        assert sampler(normal()).log_prob(x).isfinite().all()


def test_estimating_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="is in training mode"):
        lars(5).estimate_normalizer(100)


def test_arguments_of_the_wrong_kind():
    with pytest.raises(ValueError, match="takes a MovingNormalizer"):
        LearnedAcceptReject(PROPOSAL, bell, 5, 0.5)
    with pytest.raises(ValueError, match="num_proposals"):
        lars(5, num_proposals=0)
    with pytest.raises(ValueError, match="num_tries"):
        lars(0)
    with pytest.raises(ValueError, match="as proposal"):
        lars(5, proposal=3)
    for cls in (TruncatedRejectionSampler, LearnedAcceptRejectSampler):
        with pytest.raises(ValueError, match="takes a callable"):
            cls(3)
        with pytest.raises(ValueError, match="num_tries"):
            cls(torch.neg, 0)
    with pytest.raises(ValueError, match="decay"):
        LearnedAcceptRejectSampler(torch.neg, decay=1.0)
    with pytest.raises(ValueError, match="events of shape"):
        TruncatedRejectionSampler(EnergyNet(3))(normal())


def test_a_discrete_proposal_with_parameters_is_refused():
    logits = torch.zeros(3, requires_grad=True)
    d = LearnedAcceptReject(
        dist.Categorical(logits=logits), lambda x: x.float(), 4, MovingNormalizer()
    )
    with pytest.raises(ValueError, match="would be biased"):
        d.log_prob(torch.tensor(1))
