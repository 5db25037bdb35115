"""What a check of identifiability found."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

MET, WEAK, OUTSIDE, VIOLATED, UNCHECKED = "met", "weak", "outside", "violated", "unchecked"

PROMISES = {
    "permutation": "up to permutation, and an affine map of each coordinate's statistics",
    "linear": "only up to an invertible affine map of all statistics",
    "none": "not promised",
}


class Condition(NamedTuple):
    """One condition of a theorem."""

    name: str
    status: str  # met, weak, outside, violated or unchecked
    detail: str


@dataclass(frozen=True, eq=False, repr=False)
class IdentifiabilityReport:
    """The conditions of a theorem on identifiability, one by one.

    Made by :func:`check_identifiability`. Printing it prints a table. A condition is *met*;
    *violated*; *weak*, when it holds but little is promised or little is left of it; *outside*,
    when the theorem does not speak about this case; or *unchecked*.

    Attributes:
        conditions: tuples ``(name, status, detail)``.
        promise: ``"permutation"``, ``"linear"`` or ``"none"``: what the theorem promises, as far as
            conditions were checked.
        num_contexts: distinct contexts.
        required_contexts: how many it takes.
        rank: of the differences between natural parameters.
        required_rank: what it has to be.
        condition_number: of these differences, with columns scaled; infinite if the rank is
            lacking.
        modulation: mean divergence between the laws of two contexts in each coordinate, in nats,
            ``(latent_dim,)``; None for an energy.
        effective_rank: of an energy's features on data; None for a prior.
    """

    conditions: tuple[Condition, ...]
    promise: str
    num_contexts: int
    required_contexts: int
    rank: int
    required_rank: int
    condition_number: float
    modulation: Tensor | None = None
    effective_rank: float | None = None

    @property
    def is_identifiable(self) -> bool:
        """Whether no condition is violated, nor outside of the theorem."""
        return not self.found(VIOLATED, OUTSIDE)

    def found(self, *statuses: str) -> tuple[Condition, ...]:
        """The conditions of some statuses."""
        return tuple(one for one in self.conditions if one.status in statuses)

    def raise_if_violated(self, strict: bool = False) -> None:
        """Raises where a condition is violated.

        Args:
            strict: whether weak conditions, and those outside of the theorem, raise too.

        Raises:
            ValueError: with what is wrong and how to mend it.
        """
        found = self.found(VIOLATED, *((WEAK, OUTSIDE) if strict else ()))
        if found:
            raise ValueError(_message(found))

    def warn_if_violated(self) -> None:
        """Warns where a condition is violated, weak, or outside of the theorem."""
        found = self.found(VIOLATED, OUTSIDE, WEAK)
        if found:
            warnings.warn(_message(found), UserWarning, stacklevel=2)

    def __repr__(self) -> str:
        is_open = self.promise != "none" and self.found(UNCHECKED)
        proviso = ", if what is unchecked holds" if is_open else ""
        width = max(len(one.name) for one in self.conditions)
        rows = [f"  {status:<9} {name:<{width}}  {text}" for name, status, text in self.conditions]
        return "\n".join([f"identifiability: {PROMISES[self.promise]}{proviso}", *rows])


def _message(found: tuple[Condition, ...]) -> str:
    return " ".join(f"{name} ({status}): {text}." for name, status, text in found)


def promised(conditions: list[Condition], best: str) -> str:
    """What is left of the best promise."""
    lost = any(one.status in (VIOLATED, OUTSIDE) for one in conditions)
    return "none" if lost else best
