"""Modules whose weights come from outside."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pyro_ext.poutine.lazy_normal import LazyNormal

Places = list[tuple[nn.Module, str, str]]  # part of a module, name therein, name of the weight


def clear_places(module: nn.Module, names: Collection[str]) -> Places:
    """Replaces parameters by placeholders, which take no memory and are NaN.

    Args:
        module: changed in place.
        names: of the parameters.

    Returns:
        Where the weights belong, tied ones in several places.
    """
    owners = {id(p): name for name, p in module.named_parameters() if name in names}
    places = [
        (part, key, owners[id(value)])
        for part in module.modules()
        for key, value in part._parameters.items()
        if id(value) in owners
    ]
    for part, key, _ in places:
        value = part._parameters.pop(key)
        assert value is not None
        placeholder = value.detach().new_full((), math.nan).expand(value.shape)
        part.register_buffer(key, placeholder, persistent=False)
    return places


@contextmanager
def filled(places: Places, weights: dict[str, Tensor]) -> Iterator[None]:
    """Puts weights in their places, with the dtype and on the device of the placeholders.

    There they are parameters, so that a module which asks for its parameters meets them.
    """
    try:
        for part, key, name in places:
            value: Any = _like(weights[name], part._buffers[key])
            part._parameters[key] = value
        yield
    finally:
        for part, key, _ in places:
            part._parameters.pop(key, None)


def _like(weight: Tensor, placeholder: Tensor | None) -> Tensor:
    assert placeholder is not None
    plain = weight.loc if isinstance(weight, LazyNormal) else weight
    is_alike = plain.dtype == placeholder.dtype and plain.device == placeholder.device
    return weight if is_alike else weight.to(placeholder)
