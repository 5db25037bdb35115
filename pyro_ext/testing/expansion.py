"""Clauses on expanding a distribution and broadcasting values against it."""

import copy
from typing import Any

import torch

from pyro_ext.testing.case import Clause, clause, expect
from pyro_ext.testing.flyweight import DistributionCase

EXPANSION: list[Clause] = []


@clause(
    EXPANSION, "override expand: new = self._get_checked_instance(Cls, _instance), then fill it"
)
def expand(case: DistributionCase) -> None:
    """``expand`` keeps the type, takes any sequence, and can be repeated."""
    wide = case.dist.expand([2, *case.batch_shape])
    wider = wide.expand(torch.Size([3, 2]) + case.batch_shape)
    for seen, lead in ((wide, (2,)), (wider, (3, 2))):
        expect(type(seen) is type(case.dist), type(seen), type(case.dist))
        expected = torch.Size(lead) + case.batch_shape
        expect(seen.batch_shape == expected, f"batch_shape {seen.batch_shape}", expected)
        expect(isinstance(seen.batch_shape, torch.Size), type(seen.batch_shape), "torch.Size")
        expect(seen.event_shape == case.event_shape, seen.event_shape, case.event_shape)
        expect(seen.sample().shape == seen.shape(), "a draw of another shape", seen.shape())


@clause(EXPANSION, "let expand write to the new instance only")
def expand_pure(case: DistributionCase) -> None:
    """``expand`` leaves the original alone, the second time too."""
    first = case.dist.expand(torch.Size([1]) + case.batch_shape)
    for dist in (case.dist, first):
        before, shape = dict(vars(dist)), dist.batch_shape
        dist.expand(torch.Size([2, 2]) + case.batch_shape)
        changed = [name for name, old in before.items() if vars(dist).get(name) is not old]
        expect(not changed and dist.batch_shape == shape, f"changed {changed}", "no change")


@clause(EXPANSION, "end expand with: new._validate_args = self._validate_args")
def expand_validation(case: DistributionCase) -> None:
    """``expand`` carries the validation flag."""
    for flag in (True, False):
        dist = case.build(case.frozen_params, validate_args=flag)
        seen = dist.expand(torch.Size([2]) + case.batch_shape)._validate_args
        expect(seen is flag, f"_validate_args = {seen}", flag)


@clause(EXPANSION, "create the new instance with _get_checked_instance, not by calling the class")
def expand_subclass(case: DistributionCase) -> None:
    """A subclass without its own constructor survives ``expand``, so KL pairs keep working."""
    original: Any = type(case.dist)
    subclass = type(original)("Subclass", (original,), {"__doc__": original.__doc__})
    dist = copy.copy(case.dist)
    dist.__class__ = subclass
    seen = type(dist.expand(torch.Size([2]) + case.batch_shape))
    expect(seen is subclass, seen, subclass)


@clause(EXPANSION, "expand every parameter to the new batch shape")
def expand_density(case: DistributionCase) -> None:
    """``expand`` repeats the density along the new dimensions."""
    wide = case.dist.expand(torch.Size([1]) + case.batch_shape)
    wide = wide.expand(torch.Size([4]) + case.batch_shape)
    x = wide.sample()
    case.expect_log_prob(wide, x, lambda: torch.stack([case.dist.log_prob(row) for row in x]))


@clause(EXPANSION, "compute log_prob by broadcasting value against parameters")
def broadcast(case: DistributionCase) -> None:
    """``log_prob`` broadcasts values over the batch, missing or of size one."""
    dist = case.build(case.frozen_params)
    event = case.one.reshape(-1, *case.event_shape)[0]
    full = event.expand(case.dist.shape())
    case.expect_log_prob(dist, event, lambda: dist.log_prob(full))
    thin = event.reshape((1,) * len(case.batch_shape) + case.event_shape)
    case.expect_log_prob(
        dist, thin.expand(4, *thin.shape), lambda: dist.log_prob(full.expand(4, *full.shape))
    )
    wide = dist.expand(torch.Size([2]) + case.batch_shape)
    tall = wide.sample()[:1].expand(4, *case.dist.shape()).unsqueeze(1)
    case.expect_log_prob(wide, tall, lambda: wide.log_prob(tall.expand(4, *wide.shape())))
