"""The contract of a transform, one small function per clause."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_ext.testing.case import (
    Case,
    Clause,
    Outputs,
    Params,
    clause,
    expect,
    expect_close,
    leaves,
    run_clauses,
    seeded,
)
from pyro_ext.testing.shared import SHARED

_OWN: list[Clause] = []


class TransformCase(Case):
    """A transform, built anew from its parameters at each use."""

    def build(self, params: Params) -> Any:
        """Constructs the transform."""
        return self.constructor(**params)

    def evaluate(self, thing: Any, x: Tensor) -> Outputs:
        """The image and, if there is one, the log determinant."""
        y = thing(x)
        return (y, thing.log_abs_det_jacobian(x, y)) if thing.bijective else (y,)

    def exercise(self, thing: Any, x: Tensor) -> Outputs:
        """The image, the log determinant and the way back."""
        outputs = self.evaluate(thing, x)
        return (*outputs, thing.inv(outputs[0])) if thing.bijective else outputs

    def draw(self, thing: Any) -> Tensor:
        """A preimage that the transform computed itself."""
        y = self.points.clone()
        return thing.inv(thing(y)) if thing.bijective else y

    @cached_property
    def transform(self) -> Any:
        """The transform in float64."""
        return self.build(self.frozen_params)

    @cached_property
    def points(self) -> Tensor:
        """The caller's values, or three numbers in a scalar domain."""
        if self.values is not None:
            return self.values.double()
        if self.transform.domain.event_dim:
            raise ValueError("check_transform needs values=, since the event has dimensions.")
        device = next((leaf.device for leaf in leaves(self.params).values()), None)
        noise = seeded(lambda: torch.randn(3, dtype=torch.float64, device=device))
        return transform_to(self.transform.domain)(noise)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the points without their event dimensions."""
        return self.points.shape[: self.points.dim() - self.transform.domain.event_dim]


@clause(_OWN, "declare domain and codomain, constraints.independent(constraints.real, n) say")
def event_dim(case: TransformCase) -> None:
    """Domain and codomain are constraints whose event dimensions fit the values."""
    for name in ("domain", "codomain"):
        constraint = getattr(case.transform, name, None)
        expect(isinstance(constraint, constraints.Constraint), f"{name} {constraint}", "constraint")
    dims = case.transform.domain.event_dim, case.transform.codomain.event_dim
    expect(
        dims[0] <= case.points.dim(), f"domain.event_dim {dims[0]}", f"{case.points.dim()} or less"
    )
    seen = case.transform(case.points).dim() - len(case.batch_shape)
    expect(seen == dims[1], f"images with {seen} event dimensions", dims[1])


@clause(_OWN, "set the class attribute bijective = True, or False for a projection")
def bijective(case: TransformCase) -> None:
    """``bijective`` is a flag, true only of what can be inverted."""
    flag = case.transform.bijective
    expect(flag in (True, False) and isinstance(flag, bool), f"bijective = {flag!r}", "a bool")
    if flag:
        case.transform.inv(case.transform(case.points))


@clause(_OWN, "map the domain into the codomain, and back")
def codomain(case: TransformCase) -> None:
    """Images lie in the codomain, preimages in the domain."""
    y = case.transform(case.points)
    expect(bool(case.transform.codomain.check(y).all()), "images outside", "points of codomain")
    if case.transform.bijective:
        x = case.transform.inv(y)
        expect(bool(case.transform.domain.check(x).all()), "preimages outside", "points of domain")


@clause(_OWN, "define forward_shape and inverse_shape when the shape changes")
def shapes(case: TransformCase) -> None:
    """Shapes are predicted in both directions."""
    x, y = case.points.shape, case.transform(case.points).shape
    seen = case.transform.forward_shape(x)
    expect(seen == y, f"forward_shape {seen}", y)
    seen = case.transform.inverse_shape(y)
    expect(seen == x, f"inverse_shape {seen}", x)


@clause(_OWN, "make _inverse undo _call, to rounding")
def round_trip(case: TransformCase) -> None:
    """The inverse undoes the transform and the transform undoes the inverse."""
    if case.transform.bijective:
        y = case.transform(case.points)
        x = case.transform.inv(y.clone())
        expect_close((x,), (case.points,), "inverse of the image", 1e-6)
        shifted = case.transform(case.points.flip(0)).clone()
        again = case.transform(case.transform.inv(shifted).clone())
        expect_close((again,), (shifted,), "image of the preimage", 1e-6)


@clause(_OWN, "sum log_abs_det_jacobian over event dimensions, and expand it to the batch")
def log_det_shape(case: TransformCase) -> None:
    """``log_abs_det_jacobian`` has the batch shape."""
    for log_det in case.evaluate(case.transform, case.points)[1:]:
        seen, expected = tuple(log_det.shape), tuple(case.batch_shape)
        expect(seen == expected, f"log_abs_det_jacobian of shape {seen}", expected)


@clause(_OWN, "derive log_abs_det_jacobian again: it is log |det dy/dx|, of the forward map")
def log_det(case: TransformCase) -> None:
    """``log_abs_det_jacobian`` equals the log determinant of the autograd Jacobian."""
    if not case.transform.bijective:
        return
    _, seen = case.evaluate(case.transform, case.points)
    expect_close((seen,), (_log_det(case),), "log_abs_det_jacobian", 1e-6)


@clause(_OWN, "index dimensions from the right, and flatten left ones before calling networks")
def left_dims(case: TransformCase) -> None:
    """Any extra dimensions on the left are accepted."""
    x = torch.stack([case.points, case.points.flip(0)]).unsqueeze(0)
    rows = [case.evaluate(case.transform, row) for row in x[0]]
    expected = tuple(torch.stack(parts).unsqueeze(0) for parts in zip(*rows, strict=True))
    expect_close(case.evaluate(case.transform, x), expected, "values with extra dimensions")


@clause(_OWN, "default to cache_size=0; offer rsample_and_log_prob for speed")
def no_cache(case: TransformCase) -> None:
    """Nothing is cached by default."""
    size = getattr(case.transform, "_cache_size", 0)
    expect(size == 0, f"cache_size {size}", 0)


@clause(_OWN, "avoid .item(), numpy, in-place writes and branches on values")
def vmaps(case: TransformCase) -> None:
    """The transform runs under ``torch.func.vmap``."""
    x = torch.stack([case.points, case.points.flip(0)])
    seen = torch.func.vmap(lambda row: case.evaluate(case.transform, row))(x)
    expect_close(seen, case.evaluate(case.transform, x), "values under vmap")


TRANSFORM_CLAUSES: tuple[Clause, ...] = (*_OWN, *SHARED)


def check_transform(
    constructor: Callable[..., Any],
    /,
    params: Params,
    *,
    values: Tensor | None = None,
    skip: Sequence[str] = (),
) -> None:
    r"""Asserts the whole contract of a transform, for one constructor and its parameters.

    The constructor is called as ``constructor(**params)``, again and again, as in
    :func:`check_distribution`. A transform that is itself a module is its own parameter:
    ``check_transform(lambda flow: flow, {"flow": flow}, values=x)``.

    Args:
        constructor: the class, or a function that returns an instance of it.
        params: its arguments by name. Tensors and modules are copied, cast and differentiated;
            anything else is passed on.
        values: points of the domain, of shape ``(*batch, *event)``; needed if events have
            dimensions. Keep them small: the Jacobian is computed by autograd.
        skip: clauses that do not apply, by name.

    Raises:
        ConformanceError: at the first broken clause, naming it, what was seen, what was expected
            and how to fix it.
        ValueError: if ``skip`` holds a name that is no clause.

    Example:
        >>> from torch.distributions import AffineTransform
        >>> import torch
        >>> params = {"loc": torch.tensor(1.0), "scale": torch.tensor([-2.0, 0.5, 3.0])}
        >>> check_transform(AffineTransform, params)
    """
    run_clauses(TRANSFORM_CLAUSES, TransformCase(constructor, params, values), skip)


def _log_det(case: TransformCase) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(case.transform, case.points)
    num = case.batch_shape.numel()
    blocks = jacobian.reshape(num, -1, num, case.points.numel() // num).diagonal(dim1=0, dim2=2)
    return blocks.movedim(-1, 0).slogdet().logabsdet.reshape(case.batch_shape)
