"""Contrastive bounds against the densities and the information that they bound."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import SelfNormalizedImportance
from pyro_ext.ops import info_nce, ranking_nce


def energy(x):
    return -torch.sin(3 * x) + x**2 / 4


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("num_proposals", [2, 7])
def test_snis_is_ranking_above_its_proposals(num_proposals, share):
    """log_prob - log pi = ranking NCE + log K, with the same proposals."""
    proposal = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.3)
    d = SelfNormalizedImportance(proposal, energy, num_proposals, share)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.manual_seed(0)
    batch = (3,) if share else (5, 3)
    noise = proposal.expand(batch).sample((1, num_proposals - 1))[0]
    torch.manual_seed(0)
    log_prob = d.log_prob(x)
    if share:  # one set for all rows
        noise = noise.unsqueeze(1)
    ranked = ranking_nce(-energy(x), -energy(noise))
    assert ranked.shape == (5, 3)
    assert (ranked <= 0).all()
    torch.testing.assert_close(log_prob - proposal.log_prob(x), ranked + math.log(num_proposals))


def test_ranking_is_the_probability_of_the_datum():
    positive, negative = torch.randn(4), torch.randn(6, 4)
    probs = torch.cat([positive.unsqueeze(0), negative]).softmax(0)
    torch.testing.assert_close(ranking_nce(positive, negative).exp(), probs[0])
    assert ranking_nce(torch.tensor(1e4), torch.tensor([-1e4])) == 0


def test_info_nce_is_the_mean_ranking():
    scores = torch.randn(3, 5, 5, dtype=torch.float64)
    rows = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        rows.append(ranking_nce(scores[:, i, i], scores[:, i, others].T))
    torch.testing.assert_close(info_nce(scores), torch.stack(rows).mean(0) + math.log(5))


def log_ratio(x, y, correlation):
    """log p(y | x) - log p(y) of standard normals."""
    conditional = dist.Normal(correlation * x, (1 - correlation**2) ** 0.5)
    return conditional.log_prob(y) - dist.Normal(0.0, 1.0).log_prob(y)


def draw_bounds(correlation, num_pairs, num=4_000):
    x, noise = torch.randn(2, num, num_pairs, dtype=torch.float64)
    y = correlation * x + (1 - correlation**2) ** 0.5 * noise
    return info_nce(log_ratio(x[..., :, None], y[..., None, :], correlation))


@pytest.mark.parametrize("num_pairs", [2, 8, 64])
@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_info_nce_stays_below_gaussian_information_and_below_log_k(correlation, num_pairs):
    """False-alarm probability of the z-test at 5 standard errors: 3e-7."""
    information = -math.log(1 - correlation**2) / 2
    bounds = draw_bounds(correlation, num_pairs, 64_000 // num_pairs)
    error = bounds.std() / len(bounds) ** 0.5
    assert bounds.mean() < information + 5 * error
    assert (bounds <= math.log(num_pairs) + 1e-9).all()
    if num_pairs == 64:  # the best score is near its bound where log K is far
        assert bounds.mean() > information - 0.1


def test_info_nce_equals_snis_with_the_marginal_as_proposal():
    """The others of a batch are draws from the marginal: E[log p(y | x) - log p(y)], K = 8.

    The difference of two means, at 5 standard errors: false-alarm probability 6e-7.
    """
    correlation, num_pairs, num = 0.8, 8, 20_000
    x, noise = torch.randn(2, num, dtype=torch.float64)
    y = correlation * x + (1 - correlation**2) ** 0.5 * noise
    marginal = dist.Normal(torch.zeros(num, dtype=torch.float64), 1.0)
    d = SelfNormalizedImportance(
        marginal, lambda y: -log_ratio(x, y, correlation), num_pairs, share_proposals=False
    )
    theirs = d.log_prob(y) - marginal.log_prob(y)
    ours = draw_bounds(correlation, num_pairs, num // num_pairs)
    error = (ours.var() / len(ours) + theirs.var() / num).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 5 * error


def test_gradients_are_those_of_the_softmax():
    scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(info_nce(scores), scores)
    torch.testing.assert_close(gradient, (torch.eye(4) - scores.softmax(-1)) / 4)
    assert torch.autograd.gradcheck(lambda s: ranking_nce(s[0], s[1:]), (scores,))


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (0, 0)])
def test_scores_that_are_no_square(shape):
    with pytest.raises(ValueError, match="takes a square of scores"):
        info_nce(torch.zeros(shape))


def test_noise_without_a_dimension():
    with pytest.raises(ValueError, match="with the noise leftmost"):
        ranking_nce(torch.zeros(()), torch.zeros(()))
