"""Plates around a network with random weights: what they may hold."""

from collections.abc import Iterator
from typing import Any

from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_ext.poutine.lazy_weights_messenger import PARTICLES


def refuse_data_plates(*_: Any) -> None:
    """Raises if weights are about to be drawn in a plate of data.

    Args:
        *_: of a hook before calls; ignored.

    Raises:
        ValueError: if a plate of anything but draws is open in the dimension of data.
    """
    handler: Any
    for handler in _PYRO_STACK:
        is_last = isinstance(handler, IndepMessenger) and handler.dim == -1
        if is_last and not handler.name.startswith(PARTICLES):
            raise ValueError(
                f"Plate {handler.name!r} is open, but weights are drawn once for all data. "
                "Call the network and its guide outside of plates: draw its random inputs in "
                "one plate, call it, and observe the data in a second plate of another name."
            )


def refuse_drawn_inputs(inputs: Any, weights: dict[str, Tensor], num_draws: int) -> None:
    """Raises if inputs may have one entry for each draw, as the weights have.

    Args:
        inputs: of the network, nested.
        weights: by name, the only random variables of a program in which all inputs are data.
        num_draws: of particles, or of a predictive distribution.

    Raises:
        ValueError: if the program drew anything else, and an input is of that length.
    """
    drawn = list(_drawn(num_draws, {id(w) for w in weights.values()}))
    if drawn and any(_is_long(x, num_draws) for x in tree_leaves(inputs)):
        raise ValueError(
            f"The network has {num_draws} draws of its weights, and its input, which may depend on "
            f"the draws of {drawn}, has a first dimension of {num_draws} too: each draw of weights "
            "would meet all of the input. Take one particle after the other "
            "(vectorize_particles=False, Predictive(..., parallel=False)); or, if the input is "
            "data, another number of particles."
        )


def _drawn(num_draws: int, own: set[int]) -> Iterator[str]:
    for handler in _PYRO_STACK:
        if isinstance(handler, TraceMessenger):
            for name, site in handler.trace.nodes.items():
                is_other = site["type"] == "sample" and id(site["value"]) not in own
                if is_other and _is_long(site["value"], num_draws) and not site_is_subsample(site):
                    yield name


def _is_long(value: Any, num_draws: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == num_draws
