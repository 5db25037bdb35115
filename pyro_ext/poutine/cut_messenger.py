"""Draws that downstream code sees as leaves of the autograd graph."""

from collections.abc import Container
from typing import Any

from pyro.distributions import Delta, Independent, Rejector
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor


class CutMessenger(Messenger):
    """Cuts the autograd graph at each reparameterised draw, and remembers both ends.

    Inside the context such a site has a leaf of the graph as its value, which equals the draw; the
    draw itself, as a function of the parameters, is kept in ``draws``. A density of the value then
    separates into what comes through the value and what comes from the parameters, which
    ``Distribution.detach()`` would do if there were one. Left alone are observed sites, sites that
    do not depend on parameters, ``Delta`` (a computation, not a draw) and ``Rejector`` (whose draw
    is reparameterised only in part).

    Args:
        requires_grad: whether the leaves ask for a gradient.
        skip: names of sites to leave alone.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> loc = torch.zeros((), requires_grad=True)
        >>> with CutMessenger() as cut:
        ...     z = pyro.sample("z", dist.Normal(loc, 1.0))
        >>> z.is_leaf, cut.draws["z"].is_leaf, bool(z == cut.draws["z"])
        (True, False, True)
    """

    def __init__(self, requires_grad: bool = True, skip: Container[str] = ()):
        super().__init__()
        self.requires_grad = requires_grad
        self.skip = skip
        self.draws: dict[str, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}

    def __enter__(self):
        self.draws.clear()
        self.leaves.clear()
        return super().__enter__()

    def _pyro_sample(self, msg) -> None:
        name = msg["name"]
        if msg["done"] or msg["is_observed"] or name in self.skip or not is_draw(msg["fn"]):
            return
        draw = msg["fn"](*msg["args"], **msg["kwargs"])
        if draw.requires_grad:
            self.draws[name] = draw
            draw = self.leaves[name] = draw.detach().requires_grad_(self.requires_grad)
        msg["value"], msg["done"] = draw, True


def is_draw(distribution: Any) -> bool:
    """Whether a sample is a random, fully reparameterised function of the parameters."""
    return bool(getattr(distribution, "has_rsample", False)) and not isinstance(
        innermost(distribution), Delta | Rejector
    )


def innermost(distribution: Any) -> Any:
    """The distribution under any ``to_event``, ``mask`` and ``expand``."""
    while isinstance(distribution, Independent | MaskedDistribution | ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution
