"""Samplers as proposals of samplers, trained by leave_one_out, against enumeration.

Candidates are bits, so that the mean of the bound of a bit is a finite sum over the other
candidates, and the truth its gradient. The statistical assertions are z-tests at 5 standard
errors: false-alarm probability 6e-7 each.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import logsigmoid

from pyro_ext.distributions import (
    HamiltonianImportance,
    LearnedAcceptReject,
    ModelMarginal,
    SelfNormalizedImportance,
    SemiImplicit,
    TruncatedRejection,
    leave_one_out,
)
from pyro_ext.nn import MovingNormalizer

BITS = torch.tensor([0.0, 1.0], dtype=torch.float64)
OUTER = 1.3  # log-weight of a one
NODES, WEIGHTS = (torch.as_tensor(x) for x in np.polynomial.hermite_e.hermegauss(60))


def log_bits(logit):
    return torch.stack([logsigmoid(-logit), logsigmoid(logit)])


class Snis:
    """Two candidates, of which the bits and the energy are trained."""

    @staticmethod
    def make(a):
        pi = dist.Bernoulli(logits=a)
        return SelfNormalizedImportance(pi, lambda x: a * x, 2, proposal_gradient=leave_one_out)

    @staticmethod
    def tables(a):
        """Log probabilities, and mean bounds, of both bits."""
        log_pi, log_w = log_bits(a), -a * BITS
        log_ratio = math.log(2) + log_w[:, None] - torch.logaddexp(log_w[:, None], log_w)
        bound = log_pi + (log_pi.exp() * log_ratio).sum(1)
        return log_pi + (log_pi.exp() * log_ratio.exp()).sum(1).log(), bound


class Trs:
    """Two tries of fair bits, of which the acceptance is trained."""

    @staticmethod
    def make(a):
        return TruncatedRejection(dist.Bernoulli(probs=BITS[1] / 2), lambda x: a * (2 * x - 0.5), 2)

    @staticmethod
    def tables(a):
        """Log probabilities, and mean bounds, of both bits."""
        accept = (a * (2 * BITS - 0.5)).sigmoid()
        weight = (accept[:, None] + 1 - accept) / 2
        return weight.mean(1).log(), weight.log().mean(1)


class Mixed:
    """Bits whose logit is normal, of which the location is trained."""

    @staticmethod
    def make(a):
        return SemiImplicit(dist.Normal(a, 1.0), lambda psi: dist.Bernoulli(logits=psi))

    @staticmethod
    def tables(a):
        """Log probabilities, and mean bounds, of both bits."""
        log_given = log_bits(a + NODES)
        probs = WEIGHTS / WEIGHTS.sum()
        return (probs * log_given.exp()).sum(1).log(), (probs * log_given).sum(1)


class Program:
    """Bits whose logit a normal latent draws, given by a guide that is the prior."""

    @staticmethod
    def make(a):
        def model():
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z))

        return ModelMarginal(model, lambda x: pyro.sample("z", dist.Normal(a.expand(x.shape), 1.0)))

    tables = Mixed.tables


def mean_bound(kind, a, num_proposals=3):
    """Of a one, summed over the other candidates."""
    log_p, bound = kind.tables(a)
    total = bound[1]
    for others in itertools.product((0, 1), repeat=num_proposals - 1):
        log_w = torch.tensor([1, *others], dtype=torch.float64) * OUTER
        log_ratio = math.log(num_proposals) + log_w[0] - log_w.logsumexp(0)
        total = total + log_p[list(others)].sum().exp() * log_ratio
    return total


@pytest.mark.parametrize("kind", [Snis, Trs, Mixed, Program])
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: d.to_event(0).mask(True)])
def test_gradient_of_a_sampler_as_proposal(kind, wrap):
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    expected = mean_bound(kind, a)
    (truth,) = torch.autograd.grad(expected, a)
    d = SelfNormalizedImportance(
        wrap(kind.make(a)), lambda x: -OUTER * x, 3, False, proposal_gradient=leave_one_out
    )
    ones, values, gradients = torch.ones(1000, dtype=torch.float64), [], []
    for _ in range(100):
        bound = d.log_prob(ones).mean()
        values.append(bound.detach())
        gradients.append(torch.autograd.grad(bound, a)[0])
    for seen, exact in ((values, expected), (gradients, truth)):
        seen = torch.stack(seen)
        assert (seen.mean() - exact).abs() < 5 * seen.std() / 10


def outer(proposal, energy=torch.square):
    return SelfNormalizedImportance(proposal, energy, 3, proposal_gradient=leave_one_out)


def test_proposals_of_which_only_a_bound_is_known_are_refused():
    a = torch.tensor(0.3, requires_grad=True)
    snis = SelfNormalizedImportance(dist.Normal(a, 1.0), torch.square, 3)
    for inner in (
        HamiltonianImportance(snis, torch.square, 2, 0.1, 1.0),
        SelfNormalizedImportance(snis, torch.square, 3),
        TruncatedRejection(snis, torch.neg, 3),
        TruncatedRejection(snis, torch.neg, 1),
    ):
        with pytest.raises(NotImplementedError, match="only has a lower bound"):
            outer(inner).log_prob(torch.tensor(0.5))


def test_an_estimate_is_refused():
    a = torch.tensor(0.3, requires_grad=True)
    lars = LearnedAcceptReject(dist.Normal(a, 1.0), torch.neg, 3, MovingNormalizer())
    with pytest.raises(ValueError, match="estimate that bounds nothing"):
        outer(lars).log_prob(torch.tensor(0.5))


def test_exact_samplers_are_scored_by_their_density():
    trs = TruncatedRejection(dist.Normal(0.0, 1.0), torch.neg, 3, normalizer=0.5)
    assert outer(trs).log_prob(torch.zeros(4)).shape == (4,)


@pytest.mark.parametrize("reshape", ["trs", "his", "snis"])
def test_frozen_noise_of_a_proposal_is_independent_of_the_sampler_s(reshape):
    # the mean weight over seeds is the density, as that of fresh weights is: 5 standard errors
    inner = SelfNormalizedImportance(dist.Normal(0.0, 1.0), lambda x: 3 * x, 2, False)
    d = {
        "trs": lambda: TruncatedRejection(inner, lambda x: 2 * x, 3, False),
        "snis": lambda: SelfNormalizedImportance(inner, lambda x: -2 * x, 2, False),
        "his": lambda: HamiltonianImportance(inner, lambda x: -2 * x, 1, 0.7, 1.0),
    }[reshape]()
    x = torch.tensor(0.5)
    fresh = d.log_prob(x.expand(100_000)).exp()
    frozen = torch.stack([d.frozen(seed).log_prob(x).exp() for seed in range(3000)])
    error = (fresh.var() / len(fresh) + frozen.var() / len(frozen)).sqrt()
    assert (fresh.mean() - frozen.mean()).abs() < 5 * error


# Tight bounds reach the parts.

GRID = torch.linspace(-9, 9, 1801, dtype=torch.float64)
STEP = GRID[1] - GRID[0]


def wavy():
    pi = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    return SelfNormalizedImportance(pi, lambda x: -1.5 * torch.sin(2 * x), 2)


def wavy_density():
    pi, w = dist.Normal(0.0, 1.0).log_prob(GRID).exp(), (1.5 * torch.sin(2 * GRID)).exp()
    return (2 * pi[:, None] * w[:, None] / (w[:, None] + w) * pi * STEP).sum(1)


def free_particle():
    """Two thirds of the candidates' place and a momentum."""
    return HamiltonianImportance(wavy(), lambda x: 0 * x, 1, 0.7, 1.0)


def program():
    def model():
        pyro.sample("x", dist.Normal(pyro.sample("z", wavy()), 0.7))

    return ModelMarginal(model, lambda x: pyro.sample("z", dist.Normal(x / 2, 1.0)))


def plain():
    return SelfNormalizedImportance(program(), lambda x: 0 * x, 3)


@pytest.mark.parametrize("make", [free_particle, program, plain])
def test_tight_bounds_approach_the_density(make):
    # both noise and gap are of a few thousandths: far below the tolerance
    x = torch.tensor(0.5, dtype=torch.float64)
    kernel = dist.Normal(GRID, 0.7).log_prob(x).exp()
    exact = (wavy_density() * kernel * STEP).sum().log()
    d = make().tight(10_000)
    for _ in range(5):
        torch.testing.assert_close(d.log_prob(x), exact, atol=0.08, rtol=0)
    d = make().tight(5)
    loose = torch.stack([d.log_prob(x) for _ in range(300)]).mean()
    assert loose < exact


def test_parts_are_not_loosened():
    inner = wavy().tight(50).to_event(0)
    for d in (
        SelfNormalizedImportance(inner, torch.square, 3),
        TruncatedRejection(inner, slope, 3),
    ):
        assert d.tight(5).proposal._num_weights == 50
        assert d.tight(500).proposal._num_weights == 500


def slope(x):
    return -x


def test_parts_that_know_neither_tight_nor_frozen():
    inner = dist.TransformedDistribution(wavy(), dist.transforms.AffineTransform(0.0, 2.0))
    d = SelfNormalizedImportance(inner, torch.square, 3)
    for variant in (d.tight, d.frozen):
        with pytest.raises(ValueError, match="wraps a stochastic density, and has no"):
            variant(3)
