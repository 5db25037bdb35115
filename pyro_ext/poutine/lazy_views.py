"""Functions of a lazy weight that are lazy weights themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ext.poutine.lazy_normal import LazyNormal, lazies
from pyro_ext.poutine.weight_state import Step

ARRANGED = (
    "clone contiguous detach expand expand_as flatten movedim moveaxis narrow permute ravel "
    "reshape select squeeze swapaxes swapdims t transpose unflatten unsqueeze view view_as"
)
CAST = "bfloat16 double float half to type_as"
SPLIT = "chunk hsplit split split_with_sizes tensor_split unbind vsplit unsafe_chunk unsafe_split"
LIKE = "empty_like full_like ones_like rand_like randn_like zeros_like new_empty new_ones new_zeros"


def overloads(names: str) -> list[Any]:
    """Functions of these names in torch and of tensors."""
    places: tuple[Any, ...] = (torch, Tensor)
    found = [getattr(place, name, None) for name in names.split() for place in places]
    return [function for function in found if function is not None]


def arranged(func: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """The rule of views: one function of mean, standard deviation and draws."""
    if not isinstance(weight, LazyNormal) or _has_lazy(args, kwargs):
        return NotImplemented
    view = weight.derive(Step.view(_function(func, args, kwargs)))
    if view.numel() > weight.numel():  # repeated elements are not independent
        return NotImplemented
    return weight if view.shape == weight.shape and func in RESHAPE else view


def cast(func: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """The rule of conversions of dtype and device."""
    if not isinstance(weight, LazyNormal) or _has_lazy(args, kwargs):
        return NotImplemented
    return weight.derive(Step.view(_function(func, args, kwargs), is_view=False))


def item(func: Any, weight: Any, index: Any) -> Any:
    """The rule of indexing: with integers and slices, each element is taken at most once."""
    indices = index if isinstance(index, tuple) else (index,)
    if all(i is None or i is Ellipsis or type(i) in (int, slice) for i in indices):
        return arranged(func, weight, index)
    return NotImplemented


def split(func: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """The rule of functions with several views as result."""
    if not isinstance(weight, LazyNormal) or _has_lazy(args, kwargs):
        return NotImplemented
    whole = _function(func, args, kwargs)

    def part(i: int) -> Callable[[Any], Any]:
        return lambda value: whole(value)[i]

    return tuple(weight.derive(Step.view(part(i))) for i in range(len(whole(weight.loc))))


def iterate(func: Any, weight: Any) -> Any:
    """The rule of iteration along the first dimension."""
    return iter(split(torch.unbind, weight))


def like(func: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """The rule of functions that look at the shape alone."""
    return func(weight.loc, *args, **kwargs)


def negative(func: Any, weight: LazyNormal) -> Any:
    """The rule of the minus sign."""
    return weight.derive(Step(torch.neg, unchanged, unchanged))


def product(func: Any, weight: Any, other: Any, **kwargs: Any) -> Any:
    """The rule of products with constants and masks, and of quotients by them."""
    if not isinstance(weight, LazyNormal):
        if func not in COMMUTATIVE:
            return NotImplemented
        weight, other = other, weight
    if kwargs or isinstance(other, LazyNormal) or not fits(weight, other):
        return NotImplemented
    size = other.abs() if isinstance(other, Tensor) else abs(other)
    by = [_function(func, (factor,), {}) for factor in (other, size, size * size)]
    return weight.derive(Step(by[0], by[1], by[2]))


def same(func: Any, weight: Any, other: Any) -> Any:
    """The rule of comparisons of a weight with itself, as Pyro's validation makes them."""
    if weight is other:
        return func(weight.loc, weight.loc)
    return NotImplemented


def fits(weight: LazyNormal, other: Any) -> bool:
    """Whether an elementwise function has one result for each element of the weight."""
    if not isinstance(other, Tensor):
        return True
    return torch.broadcast_shapes(weight.shape, other.shape) == weight.shape


def unchanged(value: Any) -> Any:
    """What a shift does to standard deviations."""
    return value


def _function(func: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
    return lambda value: func(value, *args, **kwargs)


def _has_lazy(args: Any, kwargs: Any) -> bool:
    return any(True for _ in lazies((args, kwargs)))


RESHAPE = set(overloads("expand expand_as flatten reshape view view_as"))
MULTIPLY = overloads("mul multiply __mul__ __rmul__")
DIVIDE = overloads("div divide true_divide __truediv__")
COMMUTATIVE = set(MULTIPLY)
ATTRIBUTES = [getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH")]

VIEWS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(overloads(ARRANGED), arranged),
    **dict.fromkeys(ATTRIBUTES, arranged),
    **dict.fromkeys(overloads(CAST), cast),
    **dict.fromkeys(overloads(SPLIT), split),
    **dict.fromkeys(overloads(LIKE), like),
    **dict.fromkeys(overloads("neg negative __neg__"), negative),
    **dict.fromkeys(MULTIPLY + DIVIDE, product),
    **dict.fromkeys(overloads("eq __eq__"), same),
    Tensor.__getitem__: item,
    Tensor.__iter__: iterate,
}
