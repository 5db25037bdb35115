"""Latent variables of automatic guides with two parameters each."""

import operator
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro
from pyro.nn import PyroModule
from torch import Tensor


class Latent(NamedTuple):
    """One latent variable, and the modules that own its parameters.

    They are looked up once: each step down a path of Pyro's modules costs more than a density.

    Args:
        name: of the site.
        key: the last part of the name.
        event_dim: of the site.
        plates: names of those around it.
        owners: of location and spread.
    """

    name: str
    key: str
    event_dim: int
    plates: list[str]
    owners: tuple[PyroModule, PyroModule]

    @classmethod
    def of(cls, name: str, site: Any, locs: PyroModule, spreads: PyroModule) -> "Latent":
        """That of a site of the prototype."""
        path, _, key = name.rpartition(".")
        get = operator.attrgetter(path) if path else lambda module: module
        plates = [frame.name for frame in site["cond_indep_stack"]]
        return cls(name, key, site["fn"].event_dim, plates, (get(locs), get(spreads)))

    def hold_spread(self) -> None:
        """Makes a buffer of the spread, which is a plain attribute so far."""
        owner = self.owners[1]
        value = getattr(owner, self.key)
        delattr(owner, self.key)
        owner.register_buffer(self.key, value)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """The present location and spread."""
        loc, spread = self.owners
        return getattr(loc, self.key), getattr(spread, self.key)

    def sample(self, law: Callable[[Tensor, Tensor], Any], plates: dict[str, Any]) -> Tensor:
        """Draws from a law of location and spread, subsampled by the plates."""
        with ExitStack() as stack:
            for name in self.plates:
                stack.enter_context(plates[name])
            return pyro.sample(self.name, law(*self.parameters()).to_event(self.event_dim))
