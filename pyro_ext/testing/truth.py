"""Clauses on the agreement of draws and density."""

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.testing.case import Clause, clause, expect
from pyro_ext.testing.flyweight import DistributionCase, elementary
from pyro_ext.testing.goodness import p_value
from pyro_ext.testing.statistic import (
    LIMIT,
    WIDEST,
    clusters,
    dependence,
    importance_errors,
    windows,
)

FALSE_ALARM = 1e-6
MAX_TESTED = 12  # batch elements
TRUTH: list[Clause] = []


@clause(TRUTH, "check normaliser and Jacobian of log_prob, and the sampler against log_prob")
def goodness_of_fit(case: DistributionCase) -> None:
    """Exact events of three numbers or less are drawn with the frequency that the density says.

    At most 12 batch elements, spread over the batch, each with false-alarm probability 1e-6 / 12.
    """
    size, support = case.event_shape.numel(), elementary(case.dist.support)
    on_surface = case.continuous and support.event_dim > 0  # as the simplex or the sphere
    if not case.deterministic or not 0 < size <= 3 or on_surface:
        return
    num = 10_000 if size == 1 else 5_000
    draws = case.dist.sample(torch.Size([num])).reshape(num, -1, size)
    probs = case.dist.log_prob(draws.reshape(num, *case.dist.shape())).exp().reshape(num, -1)
    chosen = sorted({round(i) for i in torch.linspace(0, probs.shape[1] - 1, MAX_TESTED).tolist()})
    limit = FALSE_ALARM / MAX_TESTED
    for i in chosen if probs.numel() else []:
        p = p_value(draws[:, i].double().cpu(), probs[:, i].double().cpu(), not case.continuous)
        expect(p > limit, f"samples of element {i} that fit with p-value {p:.1e}", f"p > {limit}")


@clause(
    TRUTH, "check the normaliser of log_prob, the sampler, and which auxiliaries score_parts uses"
)
def normalisation(case: DistributionCase) -> None:
    r"""Densities on real vectors integrate to one, seen from their own draws and from outside.

    With Gaussians :math:`q` fitted to other draws, a narrow and a wide one, for every batch element

    .. math::

        \mathbb{E}_{x \sim p}[q(x) / p(x)] = 1, \qquad \mathbb{E}_{x \sim q}[p(x) / q(x)] = 1

    The first holds for the stochastic upper bound in place of :math:`\log p(x)`, the second for
    the stochastic lower bound. False-alarm probability 4e-9 per comparison.

    Not covered: supports other than the real line, atoms, densities that a Gaussian overlaps
    badly (many narrow modes), and events of more than 64 numbers. For images, that is, the
    variance of the ratio grows exponentially with the size, and only a Gaussian of their full
    covariance would help; test the density's parts at a small size instead.
    """
    size = case.event_shape.numel()
    if not case.continuous or elementary(case.dist.support) is not constraints.real:
        return
    if not 0 < size <= WIDEST or not case.batch_shape.numel():
        return
    _expect_normalised(case, size)


@torch.no_grad()
def _expect_normalised(case: DistributionCase, size: int) -> None:
    per_call = max(16, min(128 if case.deterministic else 32, 2**15 // case.dist.shape().numel()))
    flat, rows = len(case.event_shape), torch.Size([per_call])

    def numbers(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.dim() - flat], size)

    pilot = numbers(case.dist.sample(torch.Size([64 * per_call])))
    values = pilot.reshape(-1, size)
    if len(pilot) < 20 * size or len(values.unique(dim=0)) < 0.99 * len(values):
        return
    narrow, wide = windows(pilot)

    def outside(window: torch.distributions.Distribution) -> Tensor:
        x = window.sample(rows)
        lower = case.dist.log_prob(x.reshape(per_call, *case.dist.shape()))
        return lower - window.log_prob(x)

    num = 64 if case.deterministic else 1024  # many, since wrong bounds may share auxiliaries
    draws, uppers = zip(*(case.upper(rows) for _ in range(num)), strict=True)
    own, upper = numbers(torch.stack(draws)), torch.stack(uppers)
    seen = importance_errors(narrow.log_prob(own) - upper, -clusters(lambda: outside(narrow)))
    _expect_near_zero(seen, "mean of q / p over draws of p")
    seen = importance_errors(clusters(lambda: outside(wide)), upper - wide.log_prob(own))
    _expect_near_zero(seen, "mean of p / q over draws of q")


def _expect_near_zero(errors: Tensor, what: str) -> None:
    worst = float(errors.abs().max())
    expect(worst < LIMIT, f"{what} {worst:.1f} standard errors from one", f"less than {LIMIT:.0f}")


@clause(TRUTH, "draw noise of shape self._extended_shape(sample_shape), not of a part of it")
def independent(case: DistributionCase) -> None:
    """Draws, batch elements and rows of an expanded batch are independent of each other.

    Rank correlations of 2000 draws, at most three places per dimension and 8 numbers per event:
    seven standard errors are 2.6e-12 for each of at most 1e6 pairs.
    """
    wide = case.dist.expand(torch.Size([2]) + case.batch_shape)
    for draw in [wide.sample] + [wide.rsample] * bool(wide.has_rsample):
        x = draw(torch.Size([2000, 2])).detach()
        for dim in range(1, x.dim() - len(case.event_shape)):
            x = x.narrow(dim, 0, min(3 if x.shape[1:dim].numel() < 40 else 1, x.shape[dim]))
        batch = x.shape[1 : x.dim() - len(case.event_shape)].numel()
        if x.numel():
            errors = dependence(x.reshape(2000, batch, -1)[..., :8])[1]
            what = f"a correlation between batch elements of {errors:.1f} standard errors"
            expect(errors < LIMIT, what, f"less than {LIMIT:.0f}")
