"""Clauses on stochastic densities: do their bounds enclose, and approach, one log density?"""

import inspect
from typing import Any

import torch
from torch import Tensor

from pyro_ext.testing.case import Clause, brief, clause, expect, leaves, seeded
from pyro_ext.testing.flyweight import DistributionCase
from pyro_ext.testing.slope import expect_unbiased, score_surrogate
from pyro_ext.testing.statistic import LIMIT, clusters, standard_errors

SANDWICH: list[Clause] = []
LOOSE, TIGHT = 16, 256  # weights
TOLERANCE = 0.1  # nats
NEGLIGIBLE = 1e-6  # nats


@clause(SANDWICH, "derive from StochasticDensity, implement its four methods, say it in line one")
def stochastic(case: DistributionCase) -> None:
    """A random ``log_prob`` says so, can be frozen, and knows the auxiliaries of its draws."""
    if case.deterministic:
        return
    dist = case.dist
    expect(dist.density_kind == "lower", f"density_kind {dist.density_kind!r}", "'lower'")
    first = (inspect.getdoc(type(dist)) or "").split("\n")[0]
    expect("stochastic" in first.lower(), f"docstring {first!r}", "the word 'stochastic' in it")
    _expect_frozen(dist.frozen(0), case.one)
    _expect_auxiliaries(dist)
    x, log_prob = dist.sample_and_log_prob(torch.Size([2]))
    expect(x.shape == dist.shape(torch.Size([2])), f"x of shape {x.shape}", "shape((2,))")
    expect(log_prob.shape == torch.Size([2]) + dist.batch_shape, log_prob.shape, "(2, *batch)")
    seen = dist.tight(2).log_prob(case.one).shape
    expect(seen == dist.batch_shape, f"tight(2).log_prob of shape {seen}", dist.batch_shape)


@clause(SANDWICH, "let tight(num) return a copy whose log_prob averages num weights")
def tightening(case: DistributionCase) -> None:
    """``tight(50)`` narrows the spread of ``log_prob``, or else raises its mean.

    Weights of finite variance lose 6/7 of their spread; a ratio above 0.7 is refused unless the
    mean rises by seven standard errors, as it does for weights that are seldom large.
    """
    if case.deterministic:
        return
    one, fifty = (_repeated(dist, case.one) for dist in (case.dist, case.dist.tight(50)))
    spreads = [float(x.var(0).mean().sqrt()) for x in (one, fifty)]
    if spreads[0] > NEGLIGIBLE * (1 + float(one.abs().mean())):
        rises = float(standard_errors(fifty - one).max()) > LIMIT
        seen = f"a spread of {spreads[0]:.3g} that tight(50) changes to {spreads[1]:.3g}"
        expect(spreads[1] < 0.7 * spreads[0] or rises, seen, "a seventh of it")


@clause(SANDWICH, "check log_weights: one log p(x, a) - log r(a | x), constants included")
def sandwich(case: DistributionCase) -> None:
    """The mean lower bound is below the mean upper one, and ``tight`` makes them meet.

    False-alarm probability 2e-9 per comparison. They meet if at 256 weights they differ by less
    than 0.1 nats, or by less than half of what they differ by at 16: a weight of great variance
    needs more than we can afford here.
    """
    if not case.deterministic:
        _expect_positive(_gaps(case, 1, 64), "upper bound minus lower bound")
        loose, tight = _gaps(case, LOOSE, 8), _gaps(case, TIGHT, 8)
        _expect_positive(tight, f"upper minus lower bound under tight({TIGHT})")
        open_still = torch.minimum(
            standard_errors(tight, TOLERANCE), standard_errors(tight - loose / 2)
        )
        gap = float(tight.mean(0).max())
        what = f"bounds {gap:.3g} nats apart under tight({TIGHT})"
        expect(float(open_still.max()) < LIMIT, what, f"less than {TOLERANCE}")


@clause(SANDWICH, "return from score_function the log density of everything that was drawn")
def score_gradient(case: DistributionCase) -> None:
    """Without ``rsample``, ``score_function`` gives unbiased gradients of the mean of a function.

    False-alarm probability 2e-9 per parameter. Not covered: parameters whose effect on draws is
    small beside the noise of 16384 draws, and faults in densities with ``rsample``, which
    ``pathwise`` judges.
    """
    if not case.deterministic and not case.dist.has_rsample and leaves(case.params):
        expect_unbiased(case, score_surrogate)


@torch.no_grad()
def _gaps(case: DistributionCase, num: int, most: int) -> Tensor:
    """Upper minus lower bound at own draws: 64 cluster means for each batch element."""
    dist = case.dist.tight(num) if num > 1 else case.dist
    rows = max(1, min(most, 2**14 // (num * case.dist.shape().numel() or 1)))

    def gap() -> Tensor:
        x, upper = dist.sample_and_log_prob(torch.Size([rows]))
        return (upper - dist.log_prob(x)).mean(0)

    return clusters(gap)


@torch.no_grad()
def _repeated(dist: Any, x: Tensor) -> Tensor:
    return clusters(lambda: dist.log_prob(x), 200)


def _expect_positive(gaps: Tensor, what: str) -> None:
    errors = float(standard_errors(gaps).min())
    expect(errors > -LIMIT, f"{what} at {errors:.1f} standard errors", f"above {-LIMIT:.0f}")


def _expect_frozen(dist: Any, x: Tensor) -> None:
    first, again = (seeded(lambda: dist.log_prob(x), seed) for seed in (1, 2))
    expect(torch.equal(first, again), f"frozen(0).log_prob = {brief(again)}", brief(first))


def _expect_auxiliaries(dist: Any) -> None:
    x = dist()
    seen = dist.score_parts(x).log_prob.shape
    expect(seen == dist.batch_shape, f"score_parts of shape {seen}", dist.batch_shape)
    try:
        dist.score_parts(x.clone())
    except RuntimeError:
        return
    expect(False, "score_parts of a clone accepted", "an error: its auxiliaries are lost")
