"""What the energy networks have in common: layers as they start, centring, the check of events."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_ext.ops.counts import count

Norm = Callable[[nn.Module], nn.Module]


def start(layer: nn.Linear | nn.Conv2d, norm: Norm | None = None) -> nn.Module:
    """Makes weights Glorot-uniform and biases zero, as Keras does, then applies ``norm``."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if norm is None:
        return layer
    normed = norm(layer)
    if not isinstance(normed, nn.Module):
        raise ValueError(
            f"norm maps a layer to a module, such as torch.nn.utils.parametrizations."
            f"spectral_norm does, but {norm!r} returned {type(normed).__name__}."
        )
    return normed


def check_center(center: Tensor | None, event_shape: torch.Size) -> Tensor | None:
    """A copy of the center, of the default dtype; a module keeps it as its own buffer.

    Raises:
        ValueError: if it is no finite tensor of the event shape.
    """
    if center is None:
        return None
    if not isinstance(center, Tensor) or center.shape != event_shape:
        shape = tuple(center.shape) if isinstance(center, Tensor) else type(center)
        raise ValueError(
            f"The energy's center has shape {shape}, expected a tensor of the event shape "
            f"{tuple(event_shape)}, such as the data's mean over all other dimensions."
        )
    if not center.isfinite().all():
        raise ValueError("The energy's center is not finite everywhere: does the data hold NaN?")
    return torch.empty(event_shape).copy_(center.detach())


def split_shape(x: Tensor, event_shape: torch.Size, owner: str = "The energy") -> torch.Size:
    """What lies to the left of the event.

    Raises:
        ValueError: if ``x`` is no tensor or does not end in the event shape.
    """
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{owner} takes a tensor of values, got {x!r}. A sampler takes a distribution: put "
            "the energy into one, such as ImportanceSampler(energy)."
        )
    batch_shape = x.shape[: x.dim() - len(event_shape)]
    if x.shape != batch_shape + event_shape:
        raise ValueError(
            f"{owner} takes events of shape {tuple(event_shape)}, got values of shape "
            f"{tuple(x.shape)}."
        )
    return batch_shape


def check_sizes(sizes: int | Sequence[int], name: str) -> list[int]:
    """The sizes as a list of integers; a single one stands for a list of one.

    Raises:
        ValueError: if one is not a positive integer.
    """
    try:
        sizes = list(sizes)  # type: ignore[arg-type]
    except TypeError:
        sizes = [sizes]  # type: ignore[list-item]
    return [count(size, f"each size in {name}={sizes}") for size in sizes]
