"""Arguments of distributions, as tensors of one shape."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution


def broadcast(*arguments: float | Tensor) -> tuple[Tensor, ...]:
    """Broadcasts numbers and tensors; numbers take dtype and device of the first real tensor.

    As torch's own ``broadcast_all``, without copying a number from the host to a device, and
    integer tensors become real ones.

    Raises:
        ValueError: if an argument is neither a number nor a tensor.

    Example:
        >>> [x.shape for x in broadcast(torch.zeros(3), 0.5)]
        [torch.Size([3]), torch.Size([3])]
    """
    for argument in arguments:
        if not isinstance(argument, (Tensor, int, float)):
            raise ValueError(f"An argument must be a number or a tensor, got {argument!r}.")
    like = _first_real([x for x in arguments if isinstance(x, Tensor)])
    return torch.broadcast_tensors(*(_as_real(x, like) for x in arguments))


def _first_real(tensors: list[Tensor]) -> Tensor:
    """A tensor that numbers are to be like."""
    real = [x for x in tensors if x.is_floating_point()]
    device = tensors[0].device if tensors else None
    return real[0] if real else torch.empty((), device=device)


def _as_real(argument: float | Tensor, like: Tensor) -> Tensor:
    if not isinstance(argument, Tensor):
        return like.new_full((), argument)
    return argument if argument.is_floating_point() else argument.to(like.dtype)


def check_order(low: float | Tensor, high: float | Tensor, validate_args: bool) -> None:
    """Refuses limits that are not in order: numbers always, tensors if validating.

    Raises:
        ValueError: unless ``low < high``.

    Example:
        >>> check_order(0.0, -20.0, True)
        Traceback (most recent call last):
        ...
        ValueError: low must be less than high, got 0.0 and -20.0. They are limits ...
    """
    numbers = not (isinstance(low, Tensor) or isinstance(high, Tensor))
    if (numbers or validate_args) and not bool(torch.as_tensor(low < high).all()):
        raise ValueError(
            f"low must be less than high, got {low} and {high}. They are limits of the logarithm, "
            "such as -20 and 0."
        )


def expanded(old: Any, batch_shape: Any, instance: Any, *names: str) -> Any:
    """A copy of a distribution with a larger batch shape: what its ``expand`` returns.

    Args:
        old: the distribution.
        batch_shape: of the copy.
        instance: an empty one to fill, or None.
        names: of its parameters.

    Raises:
        ValueError: if the batch shape is not a larger one.
    """
    batch_shape = torch.Size(batch_shape)
    check_expand(old, batch_shape)
    new = old._get_checked_instance(type(old), instance)
    for name in names:
        setattr(new, name, getattr(old, name).expand(batch_shape))
    Distribution.__init__(new, batch_shape, old.event_shape, validate_args=False)
    new._validate_args = old._validate_args
    return new


def check_expand(distribution: Distribution, batch_shape: torch.Size) -> None:
    """Refuses batch shapes that a distribution cannot be expanded to.

    Raises:
        ValueError: if it cannot.

    Example:
        >>> check_expand(torch.distributions.Normal(torch.zeros(3, 1), 1.0), torch.Size([2, 3, 4]))
    """
    shape = distribution.batch_shape
    pairs = zip(reversed(shape), reversed(batch_shape), strict=False)
    if len(shape) > len(batch_shape) or any(old not in (1, new) for old, new in pairs):
        raise ValueError(
            f"{type(distribution).__name__} of batch shape {tuple(shape)} cannot be expanded to "
            f"{tuple(batch_shape)}."
        )


def temperature_like(parameter: Tensor, value: float | Tensor) -> Tensor:
    """A number or a tensor, with the dtype and on the device of a parameter.

    Example:
        >>> temperature_like(torch.zeros(3, dtype=torch.float64), 0.5)
        tensor(0.5000, dtype=torch.float64)
    """
    return value.to(parameter) if isinstance(value, Tensor) else parameter.new_full((), value)
