"""Clauses on drawing from a distribution and evaluating its density."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.testing.case import (
    Clause,
    Outputs,
    brief,
    clause,
    expect,
    expect_close,
    expect_derivative,
    leaves,
    seeded,
)
from pyro_ext.testing.flyweight import DistributionCase
from pyro_ext.testing.goodness import p_value
from pyro_ext.testing.shared import expect_finite_gradients

FALSE_ALARM = 1e-6
DENSITY: list[Clause] = []


@clause(DENSITY, "draw self._extended_shape(sample_shape) values")
def samples(case: DistributionCase) -> None:
    """Samples have shape ``sample_shape + batch_shape + event_shape``."""
    draws = [case.dist.sample] + [case.dist.rsample] * bool(case.dist.has_rsample)
    for draw in draws:
        for lead in ((), (2,), (2, 3)):
            seen, expected = draw(torch.Size(lead)).shape, case.dist.shape(torch.Size(lead))
            expect(seen == expected, f"a draw of shape {tuple(seen)}", tuple(expected))


@clause(DENSITY, "let sample() run under torch.no_grad(), or detach its result")
def detached(case: DistributionCase) -> None:
    """``sample`` carries no gradient."""
    draw = case.build(case.cast(grad=True)).sample()
    expect(not draw.requires_grad, "a draw that requires grad", "a detached one")


@clause(DENSITY, "draw inside the support, rounding included, or widen the support")
def in_support(case: DistributionCase) -> None:
    """Samples lie in the support."""
    for dtype in (torch.float32, torch.float64):
        dist = case.build(case.cast(dtype))
        draws = dist.sample(torch.Size([100]))
        expect(bool(dist.support.check(draws).all()), "draws outside", "draws in the support")


@clause(DENSITY, "sum log_prob over event dimensions only")
def log_prob(case: DistributionCase) -> None:
    """``log_prob`` has the batch shape: events are summed, batches are not."""
    seen = case.dist.log_prob(case.one).shape
    expect(seen == case.batch_shape, f"log_prob of shape {tuple(seen)}", tuple(case.batch_shape))


@clause(DENSITY, "begin log_prob with: if self._validate_args: self._validate_sample(value)")
def validation(case: DistributionCase) -> None:
    """A validating ``log_prob`` refuses NaN."""
    try:
        case.dist.log_prob(case.one.double() * float("nan"))
    except ValueError:
        return
    expect(False, "log_prob(nan) accepted with validate_args=True", "a ValueError")


@clause(DENSITY, "make log_prob a pure function, or derive from StochasticDensity and say so")
def deterministic(case: DistributionCase) -> None:
    """An exact ``log_prob`` draws no random numbers."""
    if case.deterministic:
        first, again = (seeded(lambda: case.dist.log_prob(case.points), seed) for seed in (1, 2))
        expect_close((again,), (first,), "log_prob at the second call")


@clause(DENSITY, "index dimensions from the right, and flatten left ones before calling networks")
def left_dims(case: DistributionCase) -> None:
    """``log_prob`` accepts any extra dimensions on the left."""
    x = case.dist.sample(torch.Size([2, 3]))
    rows = [[case.dist.log_prob(x[i, j]) for j in range(3)] for i in range(2)]
    case.expect_log_prob(case.dist, x, lambda: torch.stack([torch.stack(row) for row in rows]))


@clause(DENSITY, "clamp at the edges, in both branches of torch.where")
def edges(case: DistributionCase) -> None:
    """Gradients are finite at the closed edges of the support."""
    support = case.dist.support
    for x in _edges(support, case.one):
        if bool(support.check(x).all()):
            expect_finite_gradients(case, x)


@clause(DENSITY, "make rsample a differentiable function of parameters and parameter-free noise")
def pathwise(case: DistributionCase) -> None:
    """Gradients of ``rsample`` agree with finite differences under common random numbers."""
    params = case.cast(grad=True)
    if case.dist.has_rsample and leaves(params):
        expect_derivative(lambda: seeded(lambda: _rsample(case.build(params))), leaves(params))


@clause(DENSITY, "check normaliser and Jacobian of log_prob, and the sampler against log_prob")
def goodness_of_fit(case: DistributionCase) -> None:
    """Small exact events are drawn with the frequency that the normalised density says."""
    size, support = case.event_shape.numel(), _elementary(case.dist.support)
    on_surface = case.continuous and support.event_dim > 0  # as the simplex or the sphere
    if not case.deterministic or not 0 < size <= 3 or on_surface:
        return
    num = 10_000 if size == 1 else 5_000
    draws = case.dist.sample(torch.Size([num])).reshape(num, -1, size)
    probs = case.dist.log_prob(draws.reshape(num, *case.dist.shape())).exp().reshape(num, -1)
    for x, prob in list(zip(draws.unbind(1), probs.unbind(1), strict=True))[:3]:
        p = p_value(x.double().cpu(), prob.double().cpu(), not case.continuous)
        expect(p > FALSE_ALARM, f"samples that fit with p-value {p:.1e}", f"p > {FALSE_ALARM:.0e}")


@clause(DENSITY, "avoid .item(), numpy, in-place writes and branches on values in log_prob")
def vmaps(case: DistributionCase) -> None:
    """``log_prob`` runs under ``torch.func.vmap``.

    Stochastic densities share their noise: torch's Normal has no other kind of noise there.
    """
    dist = case.build(case.frozen_params)
    x = dist.sample(torch.Size([4]))
    randomness = "different" if case.deterministic else "same"
    seen = torch.func.vmap(dist.log_prob, randomness=randomness)(x)
    case.expect_log_prob(dist, x, lambda: seen)


@clause(
    DENSITY, "return (n, 1, ..., 1, *event) if expand is False, and (n, *batch, *event) otherwise"
)
def enumeration(case: DistributionCase) -> None:
    """An enumerable support has the right shapes, and total probability one."""
    if not case.dist.has_enumerate_support:
        return
    thin, full = case.dist.enumerate_support(expand=False), case.dist.enumerate_support()
    ones = (1,) * len(case.batch_shape)
    expect(thin.shape[1:] == ones + case.event_shape, thin.shape, "(n, 1, ..., 1, *event)")
    expect(full.shape == thin.shape[:1] + case.dist.shape(), full.shape, "(n, *batch, *event)")
    mass = case.dist.log_prob(thin).logsumexp(0)
    if case.deterministic:
        expect_close((mass,), (torch.zeros_like(mass),), "log of the total probability", 1e-6)


@clause(DENSITY, "derive from StochasticDensity and implement its four methods; say it in line one")
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


def _rsample(dist: Any) -> Outputs:
    return (dist.rsample(torch.Size([4])),)


def _elementary(support: Any) -> Any:
    while isinstance(support, type(constraints.independent(constraints.real, 1))):
        support = support.base_constraint
    return support


def _edges(support: Any, like: Tensor) -> list[Tensor]:
    base = _elementary(support)
    bounds = [getattr(base, f"{side}_bound", None) for side in ("lower", "upper")]
    return [torch.zeros_like(like) + bound for bound in bounds if bound is not None]


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
