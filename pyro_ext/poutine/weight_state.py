"""What all views of one lazy weight share."""

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

Function = Callable[[Any], Any]
Rule = Callable[..., Any]


class Step(NamedTuple):
    """An affine function that acts on elements of a weight, or arranges them.

    Args:
        value: the function, of draws and of means.
        scale: what it does to standard deviations.
        variance: what it does to variances.
        is_view: whether it selects and arranges elements, instead of changing them in place.
    """

    value: Function
    scale: Function
    variance: Function
    is_view: bool = False

    def detached(self) -> "Step":
        """The same without gradient."""
        value, scale, variance = map(_detached, self[:3])
        return Step(value, scale, variance, self.is_view)

    @classmethod
    def view(cls, function: Function, is_view: bool = True) -> "Step":
        """The same function of all three."""
        return cls(function, function, function, is_view)


def _detached(function: Function) -> Function:
    return lambda value: function(value).detach()


class WeightState:
    """What all views of one weight share: its one draw, and which elements are integrated out.

    Args:
        law: of the whole weight.
        name: of the sample site, for messages.
        rules: what to do in functions of torch, by function.
    """

    def __init__(self, law: Normal, name: str, rules: Mapping[Any, Rule]):
        self.law, self.name, self.rules = law, name, rules
        self.value: Tensor | None = None
        self.views: list[weakref.ref] = []
        self.has_grad = torch.is_grad_enabled()
        self.used: Tensor | bool = False  # a mask if only parts are
        self.is_warned = False

    def draw(self) -> Tensor:
        """The one draw, of the weight and of all its views, as if all had always been plain."""
        if self.value is None:
            if self.used is not False and not self.is_warned:
                self.warn("is drawn after a linear map has integrated it out")
            with torch.set_grad_enabled(self.has_grad):
                self.value = self.fresh_draw()
                for reference in self.views:
                    if (view := reference()) is not None:
                        view.force()
        return self.value

    def fresh_draw(self) -> Tensor:
        """Another draw."""
        loc, scale = self.law.loc, self.law.scale
        return loc + scale * torch.randn_like(loc)

    def warn(self, what: str) -> None:
        """Says that the law of what is computed is only right one output at a time."""
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"Weight '{self.name}' {what}, in a backward pass, as torch.utils.checkpoint makes "
                "it: the noise of the forward pass is lost. Take weight_sampling() around what is "
                "recomputed, or leave the site out of sites=."
            )
        self.is_warned = True
        warnings.warn(
            f"Weight '{self.name}' {what}, so that the noise of its uses is not that of one and "
            "the same weight. Leave it out of sites=, or use flipout() or weight_sampling(), for "
            "the exact law; use MeanFieldELBO() to leave densities of weights alone.",
            UserWarning,
            stacklevel=2,
        )
