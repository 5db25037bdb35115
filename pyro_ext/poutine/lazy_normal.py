"""Normal weights that are not drawn until somebody looks at them."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_ext.distributions.log_variance_normal import LogVarianceNormal
from pyro_ext.poutine.tensor_metadata import METADATA
from pyro_ext.poutine.weight_state import Rule, Step, WeightState


class LazyNormal(Tensor):
    r"""A weight drawn from independent normals, which is not drawn until it is needed.

    .. math:: w = \mu + \sigma \odot \epsilon, \qquad \epsilon \sim N(0, I)

    It has the shape, dtype and device of a draw, but no storage. A function of torch that meets it
    looks for a rule: views stay lazy, linear maps may compute the law of their output instead of
    a draw of the weight. All other functions :meth:`force` **one** draw, which all later uses
    share, with whatever is changed in it in place. What goes around ``__torch_function__`` raises.
    Users meet it inside of :func:`local_reparameterization` and its like, as the value of sample
    sites.

    Args:
        law: of the weight, independent normals.
        name: of the sample site, for messages.
        rules: what to do, by function; with none, any use is a draw.

    Attributes:
        loc: the mean.
        steps: what has been done to the whole weight.

    Example:
        >>> from pyro.distributions import Normal
        >>> weight = LazyNormal(Normal(torch.zeros(2, 3), 1.0))
        >>> weight.shape, weight.is_drawn
        (torch.Size([2, 3]), False)
        >>> bool((weight + 0 == weight + 0).all()), weight.is_drawn  # one draw
        (True, True)
    """

    loc: Tensor
    state: WeightState
    steps: tuple[Step, ...]

    @staticmethod
    def __new__(cls, law: Normal, *args, _loc: Tensor | None = None, **kwargs):
        """A tensor without storage."""
        loc = law.loc if _loc is None else _loc
        return torch.Tensor._make_wrapper_subclass(
            cls, loc.shape, dtype=loc.dtype, device=loc.device
        )

    def __init__(
        self,
        law: Normal,
        name: str = "",
        rules: Mapping[Any, Rule] | None = None,
        *,
        _loc: Tensor | None = None,
        _source: "LazyNormal | None" = None,
        _step: Step | None = None,
    ):
        self.loc = law.loc if _loc is None else _loc
        self.state = WeightState(law, name, rules or {}) if _source is None else _source.state
        self.steps = () if _source is None or _step is None else (*_source.steps, _step)
        self._source = _source
        self._value: Tensor | None = None

    def derive(self, step: Step) -> "LazyNormal":
        """A lazy function of this weight."""
        step = step if torch.is_grad_enabled() else step.detached()
        loc = step.value(self.loc)
        view = LazyNormal(self.state.law, _loc=loc, _source=self, _step=step)
        self.state.views.append(weakref.ref(view))
        return view

    @property
    def scale(self) -> Tensor:
        """The standard deviation of each element."""
        scale = self.state.law.scale
        for step in self.steps:
            scale = step.scale(scale)
        return scale

    @property
    def variance(self) -> Tensor:
        """The variance of each element."""
        variance = _variance(self.state.law)
        for step in self.steps:
            variance = step.variance(variance)
        return variance

    @property
    def is_drawn(self) -> bool:
        """Whether there is a draw already."""
        return self.state.value is not None

    def force(self) -> Tensor:
        """The draw, a plain tensor; the same at every call."""
        value = self.state.draw()
        if self._source is None:
            return value
        if self._value is None:
            self._value = self.steps[-1].value(self._source.force())
        return self._value

    def draw_apart(self) -> Tensor:
        """The draw if there is one, and otherwise another, which leaves the weight lazy."""
        if self.is_drawn:
            return self.force()
        value = self.state.fresh_draw()
        for step in self.steps:
            value = step.value(value)
        return value

    def integrate_out(self) -> bool:
        """Marks all elements as used by a linear map; whether none was used or drawn before."""
        if self.is_drawn:
            return False
        state = self.state
        if state.used is False and self.loc.numel() == state.law.loc.numel():
            state.used = True
            return True
        used, index = _mask(state), self._index()
        if bool(used[index].any()):
            state.warn("meets a second linear map")
            return False
        used[index] = True
        state.used = used
        return True

    def _index(self) -> Tensor:
        """Where the elements are in the whole weight."""
        shape = self.state.law.loc.shape
        index = torch.arange(shape.numel(), device="cpu").reshape(shape)
        for step in self.steps:
            index = step.value(index) if step.is_view else index
        return index

    def __repr__(self, *, tensor_contents=None):
        """Shows no draw."""
        return f"LazyNormal(name={self.state.name!r}, shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        undrawn = (weight for weight in lazies((args, kwargs)) if not weight.is_drawn)
        weight = next(undrawn, None)
        rule = None if weight is None else weight.state.rules.get(func)
        result = NotImplemented if rule is None else rule(func, *args, **kwargs)
        return func(*forced(args), **forced(kwargs)) if result is NotImplemented else result

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise RuntimeError(
            f"{func} has met a lazy weight below Python, where gradients would be lost. Call "
            ".force() on the weight, or leave its site out of sites=."
        )


def _variance(law: Normal) -> Tensor:
    is_known = isinstance(law, LogVarianceNormal)
    return law.variance if is_known else law.scale * law.scale  # the gradient of a square is slow


def _mask(state: WeightState) -> Tensor:
    if isinstance(state.used, Tensor):
        return state.used
    return torch.full((state.law.loc.numel(),), state.used, dtype=torch.bool, device="cpu")


def lazies(arguments: Any) -> Any:
    """The lazy weights among nested arguments."""
    if isinstance(arguments, LazyNormal):
        yield arguments
    elif isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from lazies(argument)
    elif isinstance(arguments, dict):
        yield from lazies(list(arguments.values()))


def forced(arguments: Any) -> Any:
    """Nested arguments with draws in the place of lazy weights."""
    if isinstance(arguments, LazyNormal):
        return arguments.force()
    if isinstance(arguments, list | tuple) and any(True for _ in lazies(arguments)):
        return type(arguments)(forced(argument) for argument in arguments)
    if isinstance(arguments, dict):
        return {key: forced(value) for key, value in arguments.items()}
    return arguments
