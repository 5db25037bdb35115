"""Pyro programs run apart from the handlers around them, over dimensions on their left."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import is_identically_one
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext.distributions.proposals import separated
from pyro_ext.distributions.wrappers import density_kind


class Site(NamedTuple):
    """A sample site of a program, after it ran."""

    fn: Any
    value: Tensor
    is_drawn: bool  # rather than given
    has_path: bool

    def log_density(self, has_rows: bool) -> Tensor:
        """Of a bound the upper one if drawn, the lower one if given.

        Args:
            has_rows: whether the first dimension of given values is of draws that share nothing.
        """
        if self.is_drawn and self.is_bound:
            return self.fn.score_parts(self.value).log_prob
        fn = separated(self.fn, self.value) if has_rows else self.fn
        return fn.log_prob(self.value)

    @property
    def score(self) -> Tensor | float:
        """The log density of the choices without a path."""
        if self.is_bound:
            return self.fn.score_parts(self.value).score_function
        return 0.0 if self.has_path else self.fn.log_prob(self.value)

    @property
    def is_bound(self) -> bool:
        """Whether its density is only a bound."""
        return density_kind(self.fn) != "exact"


Sites = dict[str, Site]


def run(
    program: Callable[..., Any],
    *args: Any,
    batch_shape: torch.Size | None = None,
    values: Mapping[str, Tensor] | None = None,
    pathwise: bool = True,
) -> Sites:
    """Runs a program; nothing but parameters is seen by handlers outside, and none of its sites.

    Args:
        program: a Pyro model or guide.
        args: its arguments.
        batch_shape: to which every site that is drawn is expanded; the program's own if not given.
        values: of all sites; none are drawn then.
        pathwise: whether to draw as ``rsample`` does where possible, and else as ``sample``.

    Raises:
        ValueError: if the program observes, scales or masks a site, if a site does not expand, or
            if the sites are not those of ``values``.
    """
    recorder = _Recorder(batch_shape, values, pathwise)
    with apart(), recorder:
        program(*args)
    left_out = sorted(set(values or ()) - set(recorder.sites))
    if left_out:
        raise ValueError(
            f"{name_of(program)} did not reach the sites {left_out}, of which values are known. "
            "Model and guide need the same latent sites, whatever they draw."
        )
    return recorder.sites


def name_of(program: Callable[..., Any]) -> str:
    """What to call a program in a message."""
    return getattr(program, "__qualname__", type(program).__name__)


class _Recorder(Messenger):
    """Draws or gives the value of each site, and remembers it."""

    def __init__(
        self,
        batch_shape: torch.Size | None,
        values: Mapping[str, Tensor] | None,
        pathwise: bool,
    ):
        super().__init__()
        self.batch_shape, self.values, self.pathwise = batch_shape, values, pathwise
        self.sites: Sites = {}

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        _refuse_unnormalised(msg)
        value = self._draw(msg) if self.values is None else self._given(msg["name"])
        has_path = self.pathwise and bool(msg["fn"].has_rsample)
        self.sites[msg["name"]] = Site(msg["fn"], value, self.values is None, has_path)
        msg["value"], msg["done"] = value, True

    def _draw(self, msg) -> Tensor:
        if self.batch_shape is not None:
            msg["fn"] = _expand(msg["name"], msg["fn"], self.batch_shape)
        return msg["fn"]() if self.pathwise else msg["fn"].sample()

    def _given(self, name: str) -> Tensor:
        assert self.values is not None
        if name not in self.values:
            raise ValueError(
                f"Site '{name}' has no value: model and guide need the same latent sites, whatever "
                f"they draw. Known are {sorted(self.values)}."
            )
        return self.values[name]


def _expand(name: str, fn: Any, batch_shape: torch.Size) -> Any:
    try:
        return fn.expand(batch_shape)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Site '{name}' of batch shape {tuple(fn.batch_shape)} does not expand to "
            f"{tuple(batch_shape)}. A program must run for any dimensions to the left of those "
            "that it has by itself: index dimensions from the right."
        ) from error


def _refuse_unnormalised(msg) -> None:
    name = msg["name"]
    if msg["is_observed"]:
        raise ValueError(
            f"The program observes its site '{name}', so that it has no normalised marginal. Let "
            "it draw every site, without obs= and factor; the values come from outside."
        )
    if not is_identically_one(msg["scale"]) or msg["mask"] is not None:
        raise ValueError(
            f"Site '{name}' is scaled or masked inside of the program, so that it has no "
            "normalised marginal. Scale, mask and subsample around the density."
        )


@contextmanager
def apart() -> Iterator[None]:
    """Lends an empty stack of handlers and plates, but for what parameters have to reach."""
    stack, dims = list(_PYRO_STACK), _DIM_ALLOCATOR._stack
    _PYRO_STACK[:] = [handler for handler in stack if not isinstance(handler, IndepMessenger)]
    _DIM_ALLOCATOR._stack = []
    try:
        with BlockMessenger(hide_fn=lambda msg: msg["type"] != "param"):
            yield
    finally:
        _PYRO_STACK[:] = stack
        _DIM_ALLOCATOR._stack = dims
