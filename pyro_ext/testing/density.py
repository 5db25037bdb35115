"""Clauses on drawing from a distribution and evaluating its density."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_ext.testing.case import (
    Clause,
    ConformanceError,
    Outputs,
    clause,
    expect,
    expect_close,
    expect_derivative,
    gradients,
    leaves,
    seeded,
    total,
)
from pyro_ext.testing.flyweight import DistributionCase, elementary
from pyro_ext.testing.shared import expect_finite_gradients
from pyro_ext.testing.slope import expect_unbiased, pathwise_surrogate

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
    """A validating ``log_prob`` refuses NaN, one number outside the support, and other events."""
    for what, x in _invalid(case):
        try:
            case.dist.log_prob(x)
        except ValueError:
            continue
        expect(False, f"log_prob({what}) accepted with validate_args=True", "a ValueError")


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


@clause(DENSITY, "clamp at the edges, in both branches of torch.where; skip it if the density is 0")
def edges(case: DistributionCase) -> None:
    """Gradients are finite at the closed edges of the support.

    Where the log density is itself infinite no gradient can be finite, but it is still a number.
    torch's Gamma and Beta break this where their density is finite at an edge: there the gradient
    of ``0 * log(0)`` is NaN.
    """
    support = case.dist.support
    for x in _edges(support, case.one):
        if bool(support.check(x).all()):
            if bool(case.run(case.frozen_params, x)[0].isfinite().all()):
                expect_finite_gradients(case, x)
            elif case.continuous and x.is_floating_point():
                _expect_no_nan(case, x)


@clause(DENSITY, "make rsample a differentiable function of parameters and parameter-free noise")
def pathwise(case: DistributionCase) -> None:
    """Gradients of ``rsample`` agree with finite differences under common random numbers.

    Or else, since implicit gradients through rejection samplers do not, the gradient of the mean
    of a smooth function is unbiased; false-alarm probability 2e-9 per parameter.
    """
    params = case.cast(grad=True)
    if case.dist.has_rsample and leaves(params):
        try:
            expect_derivative(lambda: seeded(lambda: _rsample(case.build(params))), leaves(params))
        except ConformanceError:
            expect_unbiased(case, pathwise_surrogate)


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
        expect(not _enumerates(case.dist), "a support", "has_enumerate_support")
        return
    thin, full = case.dist.enumerate_support(expand=False), case.dist.enumerate_support()
    ones = (1,) * len(case.batch_shape)
    expect(thin.shape[1:] == ones + case.event_shape, thin.shape, "(n, 1, ..., 1, *event)")
    expect(full.shape == thin.shape[:1] + case.dist.shape(), full.shape, "(n, *batch, *event)")
    mass = case.dist.log_prob(thin).logsumexp(0)
    if case.deterministic:
        expect_close((mass,), (torch.zeros_like(mass),), "log of the total probability", 1e-6)


def _enumerates(dist: Any) -> bool:
    try:
        dist.enumerate_support()
    except NotImplementedError:
        return False
    return True


def _rsample(dist: Any) -> Outputs:
    return (dist.rsample(torch.Size([4])),)


def _edges(support: Any, like: Tensor) -> list[Tensor]:
    base = elementary(support)
    bounds = [getattr(base, f"{side}_bound", None) for side in ("lower", "upper")]
    return [torch.zeros_like(like) + bound for bound in bounds if bound is not None]


def _expect_no_nan(case: DistributionCase, x: Tensor) -> None:
    x = x.detach().clone().requires_grad_()
    output = total(case.run(case.cast(grad=True), x))
    if output.requires_grad:
        grad = gradients(output, {"value": x})["value"]
        expect(not bool(grad.isnan().any()), f"a gradient {grad} in 'value'", "a number")


def _invalid(case: DistributionCase) -> Iterator[tuple[str, Tensor]]:
    x, support = case.one.double(), case.dist.support
    yield "nan", x * float("nan")
    for number in (-1.5, 0.5, 1.5, *_bounds(support, x)):
        outside = x.clone()
        outside.view(-1)[:1] = number
        if not bool(support.check(outside).all()):
            yield f"a number {float(number):g} outside the support", outside
    if case.event_shape:
        yield "an event with one number more", torch.cat([x, x[..., :1]], -1)
        if case.event_shape[-1] > 1:
            yield "an event of size one", x[..., :1]


def _bounds(support: Any, like: Tensor) -> Iterator[float]:
    for sign, edge in zip((-1, 1), _edges(support, like), strict=False):
        yield from (float(edge.min()) - 1, float(edge.max()) + sign)
