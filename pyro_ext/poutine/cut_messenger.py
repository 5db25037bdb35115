"""Draws that downstream code sees as leaves of the autograd graph."""

import math
from collections.abc import Container
from typing import Any

from pyro.distributions import (
    Delta,
    Independent,
    Rejector,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ext.distributions.stochastic_density import StochasticDensity

NO_DRAWS = (
    Delta,  # a computation
    Rejector,  # reparameterised only in part
    RelaxedBernoulliStraightThrough,  # densities of their draws only, not of copies
    RelaxedOneHotCategoricalStraightThrough,
    StochasticDensity,
)


class CutMessenger(Messenger):
    """Cuts the autograd graph at each reparameterised draw, and remembers both ends.

    Inside the context such a site has a leaf of the graph as its value, which equals the draw; the
    draw itself, as a function of the parameters, is kept in ``draws``. A density of the value then
    separates into what comes through the value and what comes from the parameters, which
    ``Distribution.detach()`` would do if there were one. Left alone are observed sites, sites that
    do not depend on parameters, masked sites, sites that depend on enumerated ones, ``Delta`` and
    distributions that do not know the density of a copy of their draw.

    Args:
        requires_grad: whether the leaves ask for a gradient.
        skip: names of sites to leave alone.
        max_batch_dim: the number of batch dimensions to the left of which are enumerated ones.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> loc = torch.zeros((), requires_grad=True)
        >>> with CutMessenger() as cut:
        ...     z = pyro.sample("z", dist.Normal(loc, 1.0))
        >>> z.is_leaf, cut.draws["z"].is_leaf, bool(z == cut.draws["z"])
        (True, False, True)
    """

    def __init__(
        self,
        requires_grad: bool = True,
        skip: Container[str] = (),
        max_batch_dim: float = math.inf,
    ):
        super().__init__()
        self.max_batch_dim = max_batch_dim
        self.requires_grad = requires_grad
        self.skip = skip
        self.draws: dict[str, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}

    def __enter__(self):
        self.draws.clear()
        self.leaves.clear()
        return super().__enter__()

    def _pyro_sample(self, msg) -> None:
        if msg["done"] or msg["is_observed"] or not self._is_cut(msg):
            return
        draw = msg["fn"](*msg["args"], **msg["kwargs"])
        if draw.requires_grad:
            self.draws[msg["name"]] = draw
            draw = self.leaves[msg["name"]] = draw.detach().requires_grad_(self.requires_grad)
        msg["value"], msg["done"] = draw, True

    def _is_cut(self, msg) -> bool:
        is_plain = msg["mask"] is None and msg["name"] not in self.skip and is_draw(msg["fn"])
        return is_plain and len(msg["fn"].batch_shape) <= self.max_batch_dim


def is_draw(distribution: Any) -> bool:
    """Whether a sample is a random, fully reparameterised and unmasked function of parameters."""
    is_pathwise = bool(getattr(distribution, "has_rsample", False))
    return (
        is_pathwise
        and unmasked(distribution) is distribution
        and not isinstance(innermost(distribution), NO_DRAWS)
    )


def unmasked(distribution: Any) -> Any:
    """The distribution without the masks inside of it, itself if there are none."""
    if isinstance(distribution, MaskedDistribution):
        return unmasked(distribution.base_dist)
    if isinstance(distribution, Independent):
        base = unmasked(distribution.base_dist)
        if base is not distribution.base_dist:
            return base.to_event(distribution.reinterpreted_batch_ndims)
    return distribution


def innermost(distribution: Any) -> Any:
    """The distribution under any ``to_event``, ``mask`` and ``expand``."""
    while isinstance(distribution, Independent | MaskedDistribution | ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution
