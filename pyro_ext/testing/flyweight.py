"""The distribution under test, and the clauses on its declarations."""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.testing.case import (
    Case,
    Clause,
    Outputs,
    Params,
    clause,
    expect,
    expect_close,
    seeded,
)

STRUCTURE: list[Clause] = []


class DistributionCase(Case):
    """A flyweight distribution, built anew from its parameters at each use."""

    def build(self, params: Params, validate_args: bool = False) -> Any:
        """Constructs the distribution."""
        return self.constructor(**params, validate_args=validate_args)

    def evaluate(self, thing: Any, x: Tensor) -> Outputs:
        """The log density."""
        return (thing.log_prob(x),)

    def exercise(self, thing: Any, x: Tensor) -> Outputs:
        """The log density and a draw."""
        return thing.log_prob(x), thing.sample()

    def draw(self, thing: Any) -> Tensor:
        """A draw as Pyro makes it, pathwise where possible."""
        return thing()

    @cached_property
    def dist(self) -> Any:
        """The distribution in float64, validating."""
        return self.build(self.frozen_params, validate_args=True)

    @cached_property
    def one(self) -> Tensor:
        """A draw of shape batch + event."""
        return seeded(lambda: self.dist.sample())

    @cached_property
    def points(self) -> Tensor:
        """The caller's values, or three draws."""
        if self.values is None:
            return seeded(lambda: self.dist.sample(torch.Size([3])))
        return self.values.to(self.one.dtype)

    @property
    def deterministic(self) -> bool:
        """Whether the density is exact rather than a random bound."""
        return getattr(self.dist, "density_kind", "exact") == "exact"

    @property
    def continuous(self) -> bool:
        """Whether the support is continuous."""
        return not self.dist.support.is_discrete

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the distribution."""
        return self.dist.batch_shape

    @property
    def event_shape(self) -> torch.Size:
        """Event shape of the distribution."""
        return self.dist.event_shape

    def upper(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Draws, and their log density or the stochastic upper bound on it."""
        if not self.deterministic:
            return self.dist.sample_and_log_prob(sample_shape)
        x = self.dist.sample(sample_shape)
        return x, self.dist.log_prob(x)

    def expect_log_prob(self, dist: Any, x: Tensor, expected: Callable[[], Tensor]) -> None:
        """Compares shapes, and values too if the density is exact."""
        seen, twin = dist.log_prob(x), expected()
        expect(seen.shape == twin.shape, f"log_prob of shape {tuple(seen.shape)}", twin.shape)
        if self.deterministic:
            expect_close((seen,), (twin,), "log_prob")


def elementary(support: Any) -> Any:
    """The constraint inside independent ones."""
    while isinstance(support, type(constraints.independent(constraints.real, 1))):
        support = support.base_constraint
    return support


@clause(STRUCTURE, "declare every argument in __init__, ending with '*, validate_args=None'")
def signature(case: DistributionCase) -> None:
    """The signature is inspectable and ends with a keyword-only ``validate_args``."""
    arguments = list(inspect.signature(type(case.dist)).parameters.values())
    kinds = {argument.kind for argument in arguments}
    stars = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    expect(not kinds & stars, "*args or **kwargs", "named arguments")
    last = (arguments[-1].name, arguments[-1].kind) if arguments else None
    expected = ("validate_args", inspect.Parameter.KEYWORD_ONLY)
    expect(last == expected, f"last argument {last}", "keyword-only validate_args")


@clause(STRUCTURE, "wrap shapes in torch.Size before calling super().__init__")
def shapes(case: DistributionCase) -> None:
    """Batch and event shapes are ``torch.Size`` and compose to ``shape``."""
    for name in ("batch_shape", "event_shape"):
        seen = getattr(case.dist, name)
        expect(isinstance(seen, torch.Size), f"{name} of {type(seen)}", "torch.Size")
    lead = torch.Size([2, 3])
    expect(case.dist.shape(lead) == lead + case.batch_shape + case.event_shape, "shape()", "sum")
    expect(case.dist.event_dim == len(case.event_shape), "event_dim", "len(event_shape)")


@clause(
    STRUCTURE, "set a class-level constraint, or dependent_property(is_discrete=..., event_dim=...)"
)
def support(case: DistributionCase) -> None:
    """The support has the event's dimension, readable from the class unless it is a wrapper."""
    declared, dim = type(case.dist).support, len(case.event_shape)
    is_constraint = isinstance(declared, constraints.Constraint)
    expect(is_constraint, f"class-level support {declared}", "a constraint")
    seen = case.dist.support.event_dim
    expect(seen == dim, f"support.event_dim = {seen}", f"len(event_shape) = {dim}")
    if case.dist.arg_constraints:
        expect(declared.event_dim == dim, f"class-level event_dim {declared.event_dim}", dim)
        expect(declared.is_discrete in (True, False), "no class-level is_discrete", "a flag")


@clause(
    STRUCTURE, "define the classmethod infer_shapes(**arg_shapes) -> (batch_shape, event_shape)"
)
def infer_shapes(case: DistributionCase) -> None:
    """Shapes can be inferred from the shapes of arguments."""
    names = case.dist.arg_constraints.keys() & vars(case.dist).keys()
    found = {name: getattr(case.dist, name).shape for name in sorted(names)}
    if found:
        seen = type(case.dist).infer_shapes(**found)
        expect(tuple(seen) == (case.batch_shape, case.event_shape), seen, "batch and event shape")
