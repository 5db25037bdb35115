"""Gradients of proposals through fresh candidates, by enumeration of what is drawn.

The expectation of a gradient is a sum over all candidates that could be drawn, and the truth the
gradient of such a sum. The statistical assertions are z-tests at 5 standard errors: false-alarm
probability 6e-7 each.
"""

import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import (
    ModelMarginal,
    SelfNormalizedImportance,
    leave_one_out,
    reparameterized,
    stop_gradient,
    straight_through,
)
from pyro_ext.ops.leave_one_out import scored_rows

X = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
BATCH_WEIGHTS = torch.tensor([1.0, -0.4], dtype=torch.float64)  # so that no two values are alike


class Given(dist.Bernoulli):
    """Bits whose draws are given."""

    draws = None

    def sample(self, sample_shape=torch.Size()):
        return Given.draws.reshape(self._extended_shape(sample_shape)).to(self.logits.dtype)


def parameters():
    logits = torch.tensor([0.4, -0.7], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.9, -1.5, 0.6], dtype=torch.float64, requires_grad=True)
    return logits, weights


def log_weight(x, weights):
    return (x * weights[:2]).sum(-1) + weights[2] * x.prod(-1)


def truth(logits, weights, num_proposals, num):
    """The enumerated mean of the bound of X, by its definition."""
    pi = dist.Bernoulli(logits=logits).to_event(1)
    log_w = log_weight(X, weights)
    total = 0.0
    for bits in configurations(num * (num_proposals - 1)):
        others = bits.reshape(num, num_proposals - 1, 2)
        sums = log_w.exp() + log_weight(others, weights).exp().sum(1).unsqueeze(-1)
        bound = pi.log_prob(X) + log_w + (num_proposals / sums).mean(0).log()
        total = total + pi.log_prob(bits).sum().exp() * (BATCH_WEIGHTS * bound).sum()
    return total


def configurations(num):
    for bits in itertools.product((0.0, 1.0), repeat=2 * num):
        yield torch.tensor(bits, dtype=torch.float64).reshape(num, 2)


def enumerated(gradient, num_proposals, num=1):
    """Gradients of the bound for all that may be drawn, and its probability."""
    pi = dist.Bernoulli(logits=parameters()[0].detach()).to_event(1)
    probs, found = [], []
    for bits in configurations(num * (num_proposals - 1)):
        logits, weights = parameters()
        Given.draws = bits
        d = SelfNormalizedImportance(
            Given(logits=logits).to_event(1),
            lambda x, weights=weights: -log_weight(x, weights),
            num_proposals,
            proposal_gradient=gradient,
        ).tight(num)
        objective = (BATCH_WEIGHTS * d.log_prob(X)).sum()
        found.append(torch.cat(torch.autograd.grad(objective, [logits, weights])))
        probs.append(pi.log_prob(bits).sum().exp())
    return torch.stack(probs), torch.stack(found)


def gradient_of_truth(num_proposals, num=1):
    logits, weights = parameters()
    bound = truth(logits, weights, num_proposals, num)
    return torch.cat(torch.autograd.grad(bound, [logits, weights]))


@pytest.mark.parametrize(("num_proposals", "num"), [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2)])
def test_leave_one_out_is_unbiased(num_proposals, num):
    probs, found = enumerated(leave_one_out, num_proposals, num)
    assert probs.sum().item() == pytest.approx(1)
    expected = gradient_of_truth(num_proposals, num)
    torch.testing.assert_close(probs @ found, expected, atol=1e-9, rtol=0)


def test_stop_gradient_is_biased_in_the_proposal_only():
    probs, found = enumerated(stop_gradient, 3)
    bias = probs @ found - gradient_of_truth(3)
    assert (bias[:2].abs() > 0.05).all()
    assert (bias[2:].abs() < 1e-9).all()


def test_the_baseline_reduces_the_variance():
    probs, found = enumerated(leave_one_out, 4)
    plain = enumerated_plain(4)
    mean = gradient_of_truth(4)
    torch.testing.assert_close(probs @ plain, mean, atol=1e-9, rtol=0)
    variances = [probs @ (x - mean).square() for x in (plain, found)]
    assert (variances[0][:2] > 8 * variances[1][:2]).all(), variances


def enumerated_plain(num_proposals):
    """The score function without a baseline."""
    found = []
    for bits in configurations(num_proposals - 1):
        logits, weights = parameters()
        pi = dist.Bernoulli(logits=logits).to_event(1)
        log_w = log_weight(X, weights)
        sums = log_w.exp() + log_weight(bits, weights).exp().sum()
        bound = (BATCH_WEIGHTS * (pi.log_prob(X) + log_w + (num_proposals / sums).log())).sum()
        surrogate = bound + bound.detach() * pi.log_prob(bits).sum()
        found.append(torch.cat(torch.autograd.grad(surrogate, [logits, weights])))
    return torch.stack(found)


def bernoulli_snis(gradient, share=True, num_proposals=3, batch=()):
    logits, weights = parameters()
    pi = dist.Bernoulli(logits=logits.expand(*batch, 2)).to_event(1)
    energy = lambda x: -log_weight(x, weights)  # noqa: E731
    return (logits, weights), SelfNormalizedImportance(
        pi, energy, num_proposals, share, proposal_gradient=gradient
    )


def mean_gradient(gradient, num=200, rows=100, share=False, batch=()):
    """Clusters of gradients of the mean bound of copies of X."""
    leaves, d = bernoulli_snis(gradient, share, batch=batch)
    x = X.expand(rows, 2, 2)
    found = []
    for _ in range(num):
        objective = (BATCH_WEIGHTS * d.log_prob(x)).sum(-1).mean()
        found.append(torch.cat(torch.autograd.grad(objective, leaves)))
    return torch.stack(found)


@pytest.mark.parametrize(("share", "batch"), [(False, ()), (True, ()), (True, (2,)), (False, (2,))])
def test_leave_one_out_of_shared_and_own_proposals(share, batch):
    found = mean_gradient(leave_one_out, 800 if share else 200, share=share, batch=batch)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - gradient_of_truth(3)).abs() < 5 * error).all()


def test_straight_through_is_biased_in_the_proposal_only():
    found = mean_gradient(straight_through(0.7))
    error = found.std(0) / len(found) ** 0.5
    bias = (found.mean(0) - gradient_of_truth(3)).abs()
    assert (bias[2:] < 5 * error[2:]).all()
    assert (bias[:2] > 20 * error[:2]).any()  # small, but there


@pytest.mark.parametrize("gradient", [leave_one_out, stop_gradient], ids=lambda g: g.__name__)
@pytest.mark.parametrize("num_proposals", [1, 2, 6])
def test_the_value_is_not_changed(gradient, num_proposals):
    _, d = bernoulli_snis(gradient, num_proposals=num_proposals)
    d = d.frozen(3)
    value = d.log_prob(X)
    with torch.no_grad():
        assert torch.equal(d.log_prob(X), value)
    torch.testing.assert_close(
        bernoulli_snis(leave_one_out, num_proposals=num_proposals)[1].frozen(3).log_prob(X), value
    )


def test_many_proposals_and_extreme_weights_stay_finite():
    logits = torch.zeros(20, requires_grad=True)
    pi = dist.Bernoulli(logits=logits).to_event(1)
    d = SelfNormalizedImportance(
        pi, lambda x: 60 * x.sum(-1), 1024, proposal_gradient=leave_one_out
    )
    value = d.tight(3).log_prob(torch.stack([torch.zeros(20), torch.ones(20)]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


# Straight-through draws.


def test_straight_through_bits_are_bits_with_the_right_probabilities():
    logits = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    draws, score = straight_through(0.7)(dist.Bernoulli(logits=logits).to_event(1), (20_000,))
    assert score is None
    assert ((draws == 0) | (draws == 1)).all()
    probs = logits.detach().sigmoid()
    error = (probs * (1 - probs) / 20_000).sqrt()
    assert ((draws.mean(0) - probs).abs() < 5 * error).all()
    (gradient,) = torch.autograd.grad(draws.mean(0).sum(), logits)
    assert (gradient > 0).all()


def test_straight_through_gradient_is_that_of_the_relaxed_draw():
    logits = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    draws, _ = straight_through(0.5)(dist.Bernoulli(logits=logits), (4,))
    torch.manual_seed(0)
    u = torch.rand(4, 2, dtype=torch.float64)
    soft = ((logits + u.logit()) / 0.5).sigmoid()
    seen, expected = (torch.autograd.grad((x * u).sum(), logits)[0] for x in (draws, soft))
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(draws, (soft > 0.5).double())


def test_straight_through_one_hot():
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    proposal = dist.OneHotCategorical(logits=logits)
    draws, _ = straight_through()(proposal, (20_000,))
    assert proposal.support.check(draws.detach()).all()
    probs = logits.detach().softmax(-1)
    error = (probs * (1 - probs) / 20_000).sqrt()
    assert ((draws.mean(0) - probs).abs() < 5 * error).all()
    table = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    d = SelfNormalizedImportance(
        proposal, lambda x: (x * table).sum(-1), 5, proposal_gradient=straight_through()
    )
    (gradient,) = torch.autograd.grad(d.log_prob(torch.eye(3).double()).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_straight_through_a_program_s_bits():
    logit = torch.tensor(0.4, requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z + logit))

    def guide(x):
        pyro.sample("z", dist.Normal(x - 0.5, 1.0))

    draws, score = straight_through()(ModelMarginal(model, guide), torch.Size([50]))
    assert score is None
    assert ((draws == 0) | (draws == 1)).all()
    (gradient,) = torch.autograd.grad(draws.sum(), logit)
    assert gradient > 0


def test_functions_can_be_pickled_and_printed():
    for gradient in (reparameterized, stop_gradient, straight_through(0.3), leave_one_out):
        assert pickle.loads(pickle.dumps(gradient)) is not None
    assert "proposal_gradient=leave_one_out" in repr(bernoulli_snis(leave_one_out)[1])
    assert "proposal_gradient" not in repr(bernoulli_snis(reparameterized)[1])


# Reparameterised proposals, and functions of the user's.


def normal_snis(gradient):
    loc = torch.tensor(0.3, requires_grad=True, dtype=torch.float64)
    return loc, SelfNormalizedImportance(
        dist.Normal(loc, 1.0), lambda x: (x - 1) ** 2, 3, proposal_gradient=gradient
    )


def test_score_and_path_agree_where_both_exist():
    means, errors = [], []
    for gradient in (reparameterized, leave_one_out):
        loc, d = normal_snis(gradient)
        x = torch.full((200,), 0.8, dtype=torch.float64)
        d = SelfNormalizedImportance(d.proposal, d.energy, 3, False, proposal_gradient=gradient)
        found = torch.stack([torch.autograd.grad(d.log_prob(x).mean(), loc)[0] for _ in range(200)])
        means.append(found.mean())
        errors.append(found.var() / 200)
    assert (means[0] - means[1]).abs() < 5 * (errors[0] + errors[1]).sqrt()


def test_a_function_of_the_user_s():
    def halved(proposal, sample_shape):
        candidates = proposal.rsample(sample_shape)
        return (candidates + candidates.detach()) / 2, None

    grads = []
    for gradient in (halved, reparameterized, stop_gradient):
        loc, d = normal_snis(gradient)
        torch.manual_seed(0)
        value = d.log_prob(torch.tensor(0.8, dtype=torch.float64))
        grads.append(torch.autograd.grad(value, loc)[0])
    torch.testing.assert_close(grads[0], (grads[1] + grads[2]) / 2)


def test_scored_rows_have_the_gradient_of_the_mean():
    """Rows drawn from a bit each: E[log-mean-exp] enumerated."""
    table = torch.tensor([0.2, 1.7], dtype=torch.float64)

    def objective(logit, num, surrogate):
        pi = dist.Bernoulli(logits=logit)
        total = 0.0
        for bits in itertools.product((0, 1), repeat=num):
            rows = torch.tensor(bits)
            scores = pi.log_prob(rows.double())
            log_w = scored_rows(table[rows], scores) if surrogate else table[rows]
            prob = scores.sum().exp()
            bound = log_w.logsumexp(0) - math.log(num)
            total = total + (prob.detach() if surrogate else prob) * bound
        return total

    for num in (1, 2, 4):
        logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        seen, expected = (
            torch.autograd.grad(objective(logit, num, flag), logit)[0] for flag in (True, False)
        )
        torch.testing.assert_close(seen, expected, atol=1e-12, rtol=0)


# Bad input.


def test_trainable_bits_are_refused_by_default():
    _, d = bernoulli_snis(reparameterized)
    with pytest.raises(ValueError, match=r"would be biased.*leave_one_out"):
        d.log_prob(X)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="needs a temperature > 0"):
        straight_through(temperature)


def test_straight_through_takes_bits_only():
    _, d = normal_snis(straight_through())
    with pytest.raises(ValueError, match="takes a Bernoulli or OneHotCategorical"):
        d.log_prob(torch.tensor(0.0, dtype=torch.float64))


def test_a_name_is_no_gradient():
    with pytest.raises(ValueError, match="is a function such as leave_one_out"):
        normal_snis("leave_one_out")
    with pytest.raises(ValueError, match="temperature in parentheses"):
        normal_snis(straight_through)


def test_a_tight_upper_bound_has_no_leave_one_out_gradient():
    _, d = bernoulli_snis(leave_one_out)
    d = d.tight(2)
    with pytest.raises(NotImplementedError, match="leave out tight"):
        d.score_parts(d.sample())
    with torch.no_grad():
        assert d.score_parts(d.sample()).log_prob.isfinite()
