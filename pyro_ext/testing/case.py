"""What both kits share: a case under test, and the running of its clauses."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, ...]
Params = dict[str, Any]
Check = Callable[[Any], None]


class ConformanceError(AssertionError):
    """A distribution or transform breaks a clause of the contract, named first in the message."""


class Clause(NamedTuple):
    """One line of the contract: ``check(case)`` raises if it is broken."""

    name: str
    check: Check
    fix: str


class Case(ABC):
    """One constructor with its parameters, and what it computes.

    Everything runs in float64 unless a clause asks otherwise. Parameters are copied before use.
    """

    def __init__(self, constructor: Callable[..., Any], params: Params, values: Tensor | None):
        _check_arguments(constructor, params)
        self.constructor = constructor
        self.params = {
            name: torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value
            for name, value in params.items()
        }
        self.values = values

    @abstractmethod
    def build(self, params: Params) -> Any:
        """Constructs the object under test, without validation."""

    @abstractmethod
    def evaluate(self, thing: Any, x: Tensor) -> Outputs:
        """Computes what must be differentiable and compilable."""

    @abstractmethod
    def exercise(self, thing: Any, x: Tensor) -> Outputs:
        """Computes everything that a user reads."""

    @abstractmethod
    def draw(self, thing: Any) -> Tensor:
        """Makes a value that the object itself may have remembered."""

    @property
    @abstractmethod
    def points(self) -> Tensor:
        """Where to evaluate."""

    @property
    def deterministic(self) -> bool:
        """Whether :meth:`evaluate` draws no random numbers."""
        return True

    @property
    def continuous(self) -> bool:
        """Whether it makes sense to differentiate with respect to the points."""
        return True

    def run(self, params: Params, x: Tensor | None = None) -> Outputs:
        """Builds and evaluates under a fixed seed, by default at fresh copies of the points."""
        x = self.points.clone() if x is None else x
        return seeded(lambda: self.evaluate(self.build(params), x))

    @cached_property
    def frozen_params(self) -> Params:
        """The parameters in float64, without gradients."""
        return self.cast()

    def cast(self, dtype: torch.dtype = torch.float64, grad: bool = False) -> Params:
        """Copies the parameters to a dtype."""
        return cast(self.params, dtype, grad)


def _check_arguments(constructor: Callable[..., Any], params: Params) -> None:
    if isinstance(constructor, torch.distributions.Distribution) or not callable(constructor):
        raise ValueError(
            "The kit takes a class, or a function that returns an instance of it, got the "
            f"instance {constructor!r}."
        )
    if not isinstance(params, Mapping):
        raise ValueError(f"params must be a dictionary of arguments by name, got {params!r}.")
    accepted = inspect.signature(constructor)
    try:
        accepted.bind_partial(**params)
    except TypeError as error:
        raise ValueError(f"params {list(params)} do not fit {accepted}: {error}.") from error


def clause(registry: list[Clause], fix: str) -> Callable[[Check], Check]:
    """Enters a function into a registry under its own name; ``fix`` tells how to obey it."""

    def enter(check):
        registry.append(Clause(check.__name__, check, fix))
        return check

    return enter


def run_clauses(clauses: Sequence[Clause], case: Case, skip: Sequence[str]) -> None:
    """Runs every clause that is not skipped, each in a fresh world with the same seed."""
    unknown = sorted(set(skip) - {clause.name for clause in clauses})
    if unknown:
        names = ", ".join(clause.name for clause in clauses)
        raise ValueError(f"Cannot skip unknown clauses {unknown}. The clauses are: {names}.")
    for name, check, fix in clauses:
        if name not in skip:
            try:
                with isolated():
                    check(case)
            except Exception as error:
                raise ConformanceError(f"{name}: {_describe(error)} To fix: {fix}.") from error


def expect(condition: bool, seen: object, expected: object) -> None:
    """Raises what :func:`run_clauses` completes with the clause's name and remedy."""
    if not condition:
        raise ConformanceError(f"saw {seen}, expected {expected}.")


def expect_close(seen: Outputs, expected: Outputs, what: str, rtol: float = 1e-8) -> None:
    """Compares tuples of tensors in shape and value."""
    for a, b in zip(seen, expected, strict=True):
        expect(a.shape == b.shape, f"{what} of shape {tuple(a.shape)}", tuple(b.shape))
        same = torch.isclose(a.double(), b.double(), rtol=rtol, atol=rtol, equal_nan=True)
        expect(bool(same.all()), f"{what} = {brief(a)}", brief(b))


def brief(x: Tensor) -> str:
    """The first few numbers of a tensor."""
    numbers = x.detach().double().flatten()[:4].tolist()
    return "[" + ", ".join(f"{n:.8g}" for n in numbers) + (", ...]" if x.numel() > 4 else "]")


def cast(params: Params, dtype: torch.dtype = torch.float64, grad: bool = False) -> Params:
    """Copies tensors and modules to a dtype; anything else passes as it is."""
    return {name: _cast(value, dtype, grad) for name, value in params.items()}


def leaves(params: Params) -> dict[str, Tensor]:
    """Floating-point tensors and module parameters by name."""
    found: dict[str, Tensor] = {}
    for name, value in params.items():
        if isinstance(value, nn.Module):
            found |= {f"{name}.{key}": leaf for key, leaf in value.named_parameters()}
        elif isinstance(value, Tensor):
            found[name] = value
    return {name: leaf for name, leaf in found.items() if leaf.is_floating_point()}


def modules(params: Params) -> dict[str, nn.Module]:
    """The modules among the parameters."""
    return {name: value for name, value in params.items() if isinstance(value, nn.Module)}


def total(outputs: Outputs) -> Tensor:
    """A scalar in which every output has its own weight, so that no two errors cancel."""
    return sum(ramp(out).mul(out).sum() for out in outputs)  # type: ignore[return-value]


def ramp(x: Tensor) -> Tensor:
    """Weights from 0.5 to 1.5, in the shape of ``x``."""
    return torch.linspace(0.5, 1.5, max(x.numel(), 1), dtype=x.dtype, device=x.device)[
        : x.numel()
    ].reshape(x.shape)


def seeded(fn: Callable[[], Any], seed: int = 0) -> Any:
    """Calls ``fn`` under a fixed seed and leaves the generators as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return fn()


def expect_derivative(
    fn: Callable[[], Outputs], variables: dict[str, Tensor], rtol: float = 1e-4
) -> None:
    """Compares autograd with a central difference along one direction of each leaf variable."""
    grads = gradients(total(fn()), variables)
    for name, leaf in variables.items():
        direction = ramp(leaf).to(leaf.device)
        slope = (grads[name] * direction).sum()
        difference = _central_difference(fn, leaf, direction)
        expect_close((slope,), (difference,), f"derivative in {name!r}", rtol)


def gradients(output: Tensor, variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by name, zeros where a variable is unused."""
    found = torch.autograd.grad(
        output, list(variables.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(variables, found, strict=True))


@contextmanager
def isolated() -> Iterator[None]:
    """Lends a fresh world: seed, parameter store, Pyro settings, default dtype, gradients on."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(default_dtype(torch.get_default_dtype()))
        stack.enter_context(pyro.settings.context(**pyro.settings.get()))
        stack.enter_context(pyro.get_param_store().scope())
        stack.enter_context(torch.enable_grad())
        torch.manual_seed(0)
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets torch's default dtype for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _cast(value: Any, dtype: torch.dtype, grad: bool) -> Any:
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(dtype).requires_grad_(grad)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().to(dtype, copy=True).requires_grad_(grad)
    return value


@torch.no_grad()
def _central_difference(
    fn: Callable[[], Outputs], leaf: Tensor, direction: Tensor, step: float = 1e-6
) -> Tensor:
    origin = leaf.clone()
    ahead = total(_at(fn, leaf, origin + step * direction))
    behind = total(_at(fn, leaf, origin - step * direction))
    leaf.copy_(origin)
    return (ahead - behind) / (2 * step)


def _at(fn: Callable[[], Outputs], leaf: Tensor, place: Tensor) -> Outputs:
    leaf.copy_(place)
    return fn()


def _describe(error: Exception) -> str:
    if isinstance(error, ConformanceError):
        return str(error)
    return f"raised {type(error).__name__}: {error}".rstrip(".") + "."
