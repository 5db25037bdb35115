"""Functions of many draws of weights at once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.utils._pytree import tree_map

from pyro_ext.poutine.lazy_normal import LazyNormal
from pyro_ext.poutine.weight_state import WeightState

Weights = dict[str, Tensor]


def batched_call(
    call: Callable[[Weights], Any], weights: Weights, shapes: dict[str, torch.Size]
) -> Any:
    """Calls a function for each draw of its weights.

    Args:
        call: a function of weights with the given shapes. Its results have one dimension of data.
        weights: of shape ``(K, 1, ..., *shape)``, where the ones stand for plates, or ``shape``.
        shapes: of one draw.

    Returns:
        The results, ``(K, ..., *result)``, such that the dimension of data is in the place of the
        last plate.

    Raises:
        ValueError: if weights were drawn inside of a plate of data.
    """
    batches = _batches(weights, shapes)
    if not any(batches.values()):
        return call(weights)
    batch = torch.broadcast_shapes(*batches.values())
    if math.prod(batch) > batch[0]:
        raise ValueError(
            f"The weights have batch shape {tuple(batch)}, but only the first of these dimensions "
            "may have more than one element. Draw weights outside of plates."
        )
    num_draws = batch[0]
    flat = {
        name: _Parts.of(w, num_draws if math.prod(batches[name]) > 1 else 1, shapes[name])
        for name, w in weights.items()
    }
    tensors = {name: parts.tensors for name, parts in flat.items()}
    in_dims = {name: parts.in_dims for name, parts in flat.items()}

    def one(tensors: dict[str, Any]) -> Any:
        return call({name: flat[name].build(tensors[name]) for name in flat})

    results = _map(one, tensors, in_dims, num_draws)
    return tree_map(lambda x: x.unflatten(0, _left(batch)), results)


def draws_of(weights: Weights, shapes: dict[str, torch.Size]) -> torch.Size:
    """What stands left of the dimension of data in results of :func:`batched_call`."""
    return _left(torch.broadcast_shapes(*_batches(weights, shapes).values()))


def _left(batch: torch.Size) -> torch.Size:
    return batch[:1] + batch[1:-1]


def _batches(weights: Weights, shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    return {n: _plain(w).shape[: _plain(w).dim() - len(shapes[n])] for n, w in weights.items()}


def _map(one: Callable[[Any], Any], tensors: Any, in_dims: Any, num_draws: int) -> Any:
    """Vectorised, or one after the other for functions that torch cannot vectorise."""
    if num_draws > 1:
        try:
            return torch.vmap(one, in_dims=(in_dims,), randomness="different")(tensors)
        except RuntimeError as error:
            if not any(words in str(error) for words in ("vmap", "Batching rule")):
                raise
    draws = [
        {
            n: tuple(x if d is None else x[k] for x, d in zip(xs, in_dims[n], strict=True))
            for n, xs in tensors.items()
        }
        for k in range(num_draws)
    ]
    return tree_map(lambda *xs: torch.stack(xs), *[one(draw) for draw in draws])


class _Parts(NamedTuple):
    """A weight as plain tensors: a draw, or mean and standard deviation if it is lazy."""

    tensors: tuple[Tensor, ...]
    in_dims: Any
    state: WeightState | None

    @classmethod
    def of(cls, weight: Tensor, num_draws: int, shape: torch.Size) -> "_Parts":
        full = (num_draws, *shape) if num_draws > 1 else shape
        in_dim = 0 if num_draws > 1 else None
        if isinstance(weight, LazyNormal) and weight.integrate_out():
            pair = weight.loc.reshape(full), weight.scale.reshape(full)
            return cls(pair, (in_dim, in_dim), weight.state)
        value = weight.force() if isinstance(weight, LazyNormal) else weight
        return cls((value.reshape(full),), (in_dim,), None)

    def build(self, tensors: tuple[Tensor, ...]) -> Tensor:
        if self.state is None:
            return tensors[0]
        loc, scale = tensors
        law = Normal(loc, scale, validate_args=False)
        return LazyNormal(law, self.state.name, self.state.rules)


def _plain(weight: Tensor) -> Tensor:
    return weight.loc if isinstance(weight, LazyNormal) else weight
