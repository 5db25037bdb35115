"""Clauses on what Pyro's inference asks of a distribution."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer import Predictive, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_ext.testing.case import (
    Clause,
    clause,
    expect,
    expect_close,
    gradients,
    leaves,
    seeded,
)
from pyro_ext.testing.flyweight import DistributionCase

INFERENCE: list[Clause] = []


@clause(INFERENCE, "return ScoreParts(log_prob, 0, log_prob) if has_rsample, else (lp, lp, 0)")
def score_parts(case: DistributionCase) -> None:
    """An exact density reports itself to the gradient estimators."""
    if not case.deterministic:
        return
    x = case.dist()
    parts, log_prob = case.dist.score_parts(x), case.dist.log_prob(x)
    zero, pathwise = torch.zeros_like(log_prob), case.dist.has_rsample
    score, entropy = (zero, log_prob) if pathwise else (log_prob, zero)
    for name, expected in zip(parts._fields, (log_prob, score, entropy), strict=True):
        seen = torch.as_tensor(getattr(parts, name)).expand_as(expected)
        expect_close((seen,), (expected,), name)


@clause(INFERENCE, "leave to_event to Pyro, and do not shadow it with an attribute")
def to_event(case: DistributionCase) -> None:
    """``to_event`` sums ``log_prob`` over the dimensions it takes, and can be undone."""
    wide = case.dist.expand(torch.Size([2]) + case.batch_shape)
    for n in range(len(wide.batch_shape) + 1):
        event, x = wide.to_event(n), wide.sample()
        expected = sum_rightmost(seeded(partial(wide.log_prob, x)), n)
        seen = seeded(partial(event.log_prob, x))
        expect_close((seen,), (expected,), f"to_event({n}).log_prob")
        back = event.to_event(-n)
        expect(back.batch_shape == wide.batch_shape, back.batch_shape, wide.batch_shape)


@clause(INFERENCE, "leave mask to Pyro, and do not shadow it with an attribute")
def mask(case: DistributionCase) -> None:
    """``mask`` zeroes the log density where it is false, as method and as handler."""
    wide = case.dist.expand(torch.Size([2]) + case.batch_shape)
    keep = torch.tensor([True, False], device=case.one.device)
    keep = keep.reshape(2, *(1,) * len(case.batch_shape)).expand(wide.batch_shape)
    x = wide.sample()
    expected = seeded(lambda: wide.log_prob(x)).where(keep, 0)
    expect_close((seeded(lambda: wide.mask(keep).log_prob(x)),), (expected,), "mask().log_prob")
    with_mask: Any = poutine.mask
    expect_close(
        (_log_prob(with_mask(_model, mask=keep), wide, x),),
        (expected,),
        "log_prob under poutine.mask",
    )


@clause(INFERENCE, "return a pyro.distributions.score_parts.ScoreParts from score_parts")
def scale(case: DistributionCase) -> None:
    """``poutine.scale`` scales ``log_prob`` and ``score_parts``."""
    trace = poutine.trace(poutine.scale(_model, scale=0.25)).get_trace(case.dist)
    site: Any = trace.nodes["x"]
    seeded(trace.compute_score_parts)
    expected = seeded(lambda: site["fn"].score_parts(site["value"]).log_prob) / 4
    expect_close((site["score_parts"].log_prob,), (expected,), "scaled score_parts")
    expected = seeded(lambda: case.dist.log_prob(case.one)) / 4
    handled = poutine.scale(_model, scale=0.25)
    expect_close((_log_prob(handled, case.dist, case.one),), (expected,), "scaled log_prob")


@clause(INFERENCE, "leave the scaling of subsampled plates to Pyro, and expand to the plate's size")
def plate(case: DistributionCase) -> None:
    """In a subsampled plate ``log_prob`` is scaled by size over subsample size."""
    wide = case.dist.expand(torch.Size([2]) + case.batch_shape)
    x = wide.sample()
    expected = 5 * seeded(lambda: wide.log_prob(x))
    seen = _log_prob(_subsampled, case.dist, x)
    expect_close((seen,), (expected,), "log_prob in the plate")


@clause(INFERENCE, "let score_parts, log_prob and rsample accept extra left dimensions")
def particles(case: DistributionCase) -> None:
    """``Trace_ELBO(vectorize_particles=True)`` is zero between two equals, and differentiable."""
    params = case.cast(grad=True)
    dist = case.build(params)
    elbo = Trace_ELBO(
        num_particles=4, vectorize_particles=True, max_plate_nesting=len(case.batch_shape)
    )
    loss = elbo.differentiable_loss(_model, _model, dist)
    if loss.requires_grad:
        for name, grad in gradients(loss, leaves(params)).items():
            expect(bool(grad.isfinite().all()), f"a gradient {grad} in {name!r}", "finite numbers")
    seen = torch.tensor(elbo.loss(_model, _model, dist), dtype=torch.float64)
    expect(bool(seen.isfinite()), f"loss {seen}", "a finite number")
    if case.deterministic:
        expect_close((seen,), (torch.zeros_like(seen),), "ELBO between equals", 1e-6)


@clause(INFERENCE, "draw fresh noise for every row of an expanded batch")
def predictive(case: DistributionCase) -> None:
    """``Predictive(parallel=True)`` makes independent draws of the right shape."""
    dist, lead = case.build(case.frozen_params), torch.Size([20])
    seen = Predictive(lambda: _model(dist), num_samples=20, parallel=True)()["x"]
    expect(seen.shape == case.dist.shape(lead), f"shape {seen.shape}", case.dist.shape(lead))
    if _varies(dist.sample(lead)):
        expect(_varies(seen), "equal rows in the expanded batch", "independent rows")


@clause(INFERENCE, "build from the arguments alone: no pyro.param, no pyro.module inside")
def local_params(case: DistributionCase) -> None:
    """Both settings of ``module_local_params`` give equal gradients and nothing is registered."""
    case.run(case.cast(grad=True))
    names = list(pyro.get_param_store().keys())
    expect(not names, f"{names} in the parameter store", "nothing registered")
    in_store, local = (tuple(_module_gradients(case, flag).values()) for flag in (False, True))
    expect_close(local, in_store, "gradients with local parameters")


class _Model(PyroModule):
    """The case's parameters as a module, and one observed site."""

    def __init__(self, case: DistributionCase) -> None:
        super().__init__()
        self.case = case
        for name, value in case.cast().items():
            free = isinstance(value, Tensor) and value.is_floating_point()
            if isinstance(value, nn.Module):
                value.requires_grad_()
            setattr(self, f"arg_{name}", PyroParam(value) if free else value)

    def forward(self) -> None:
        params = {name: getattr(self, f"arg_{name}") for name in self.case.params}
        _model(self.case.build(params), self.case.one)


def _module_gradients(case: DistributionCase, local: bool) -> dict[str, Tensor]:
    with pyro.get_param_store().scope(), pyro.settings.context(module_local_params=local):
        model = _Model(case)
        guide: Any = lambda: None  # noqa: E731
        loss = seeded(Trace_ELBO()(model, guide))
        variables: dict[str, Tensor] = dict(model.named_parameters())
        return gradients(loss, variables) if variables else {}


def _model(dist: Any, obs: Tensor | None = None) -> Tensor:
    """One site, every batch dimension in its plate."""
    with ExitStack() as stack:
        for i, size in enumerate(reversed(dist.batch_shape), 1):
            stack.enter_context(pyro.plate(f"batch_{i}", size, dim=-i))
        return pyro.sample("x", dist, obs=obs)


def _subsampled(dist: Any, obs: Tensor) -> Tensor:
    index = torch.tensor([3, 7], device=obs.device)
    with pyro.plate("data", 10, subsample=index, dim=-1 - len(dist.batch_shape)):
        return _model(dist, obs)


def _log_prob(model: Callable, dist: Any, obs: Tensor) -> Tensor:
    trace = poutine.trace(model).get_trace(dist, obs)
    seeded(trace.compute_log_prob)
    return trace.nodes["x"]["log_prob"]


def _varies(rows: Tensor) -> bool:
    return bool((rows != rows[:1]).any())
