"""Identities that hold in expectation, tested in standard errors.

Statistics are averaged over 64 independent clusters or more, so that noise which the draws of one
call share counts once. Beyond ``LIMIT`` standard errors lies 2e-9 of Student's distribution with 63
degrees of freedom: a thousand comparisons give a false alarm with probability 2e-6, if the means
of clusters are normal. Those whose skewness would spoil this are not judged.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIMIT = 7.0
MAX_SKEWNESS = 0.15  # of the mean of the clusters
WIDEST = 64  # numbers per event for which a Gaussian can be fitted


def clusters(fn: Callable[[], Tensor], num: int = 64) -> Tensor:
    """Calls ``fn`` again and again, and stacks the results on the left."""
    return torch.stack([fn() for _ in range(num)])


@torch.no_grad()
def standard_errors(means: Tensor, expected: float = 0.0, variance: Tensor | None = None) -> Tensor:
    """How far the mean over dimension 0 is from its expectation, zero where that is unknowable.

    Args:
        means: independent statistics, one per cluster.
        expected: their expectation.
        variance: another estimate of the variance of one of them; the larger one counts.
    """
    centred = means - means.mean(0)
    own = centred.square().sum(0) / (len(means) - 1)
    skewness = centred.pow(3).mean(0) / own.pow(1.5) / len(means) ** 0.5
    worst = own if variance is None else torch.maximum(own, variance)
    score = (means.mean(0) - expected) / (worst / len(means)).sqrt()
    judged = (skewness.abs() < MAX_SKEWNESS) & score.isfinite()
    return score.where(judged, torch.zeros_like(score))


def importance_errors(log_w: Tensor, log_v: Tensor) -> Tensor:
    """Tests that ``E_p[q / p] = 1`` in standard errors.

    The second moment of the weights is ``E_p[(q / p)^2] = E_q[q / p]``, so that draws from ``q``
    see the variance which draws from ``p`` may miss, where ``p`` is almost zero and ``q`` is not.

    Args:
        log_w: ``log q(x) - log p(x)`` of shape ``(clusters, draws, ...)`` at draws from ``p``.
        log_v: the same at draws from ``q``.
    """
    w, v = log_w.exp(), log_v.exp()
    mean = w.mean((0, 1))
    variance = (mean * v.mean((0, 1)) - mean.square()).nan_to_num(nan=torch.inf)
    errors = standard_errors(w.mean(1), 1.0, variance / w.shape[1])
    too_large = markov_errors(w.mean(1))
    return too_large.where(too_large > LIMIT, errors)


def markov_errors(means: Tensor) -> Tensor:
    """Too many large clusters, for weights of mean one that are too heavy-tailed to average.

    Markov's inequality lets a mean exceed ``t`` with probability ``1 / t`` at most, so that the
    count of such clusters is below a binomial one. Seven standard deviations of that are 4e-9.
    """
    found = []
    for t in (2, 4, 8):
        expected, spread = len(means) / t, (len(means) * (t - 1)) ** 0.5 / t
        found.append(((means > t).sum(0) - expected) / spread)
    return torch.stack(found).amax(0)


def windows(pilot: Tensor) -> tuple[Any, Any]:
    """Gaussians a little narrower and a little wider than draws of shape ``(N, *batch, D)``.

    With excess ``e`` the weights of a Gaussian have relative variance of about ``D e^2 / 2``.
    """
    dim = pilot.shape[-1]
    centred = pilot - pilot.mean(0)
    covariance = torch.einsum("n...i,n...j->...ij", centred, centred) / len(pilot)
    root = torch.linalg.cholesky(covariance)
    excess = min(0.5, (0.7 / dim) ** 0.5)
    narrow, wide = (
        torch.distributions.MultivariateNormal(pilot.mean(0), scale_tril=root * scale**0.5)
        for scale in (1 - excess, 1 + excess)
    )
    return narrow, wide


@torch.no_grad()
def dependence(draws: Tensor) -> tuple[Tensor, float]:
    """Correlates ranks, and distances from the median rank, of the columns of ``(N, B, D)``.

    Columns of one batch element may depend on each other, those of two may not.

    Returns:
        The correlation matrix that has the largest entry between two batch elements, and that
        entry in standard errors.
    """
    num, batch, event = draws.shape
    ranks = _ranks(draws.reshape(num, -1).double())
    own = torch.eye(batch, dtype=torch.bool, device=draws.device)
    own = own.repeat_interleave(event, 0).repeat_interleave(event, 1)
    found = [_correlation(x).masked_fill(own, 0) for x in (ranks, ranks.abs())]
    worst = max(found, key=lambda matrix: float(matrix.abs().max()))
    return worst, float(worst.abs().max()) * (num - 1) ** 0.5


def _ranks(columns: Tensor) -> Tensor:
    """Centred ranks of each column, ties broken at random."""
    shuffle = torch.rand_like(columns).argsort(0)
    ranks = columns.gather(0, shuffle).argsort(dim=0, stable=True).argsort(0)
    return torch.zeros_like(columns).scatter(0, shuffle, ranks.double()) - (len(columns) - 1) / 2


def _correlation(columns: Tensor) -> Tensor:
    centred = columns - columns.mean(0)
    unit = centred / centred.norm(dim=0)
    return unit.mT @ unit
