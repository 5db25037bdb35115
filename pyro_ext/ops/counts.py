"""Checks of integer arguments."""

import operator
from typing import Any


def count(value: Any, name: str, minimum: int = 1) -> int:
    """Returns ``value`` as an integer of at least ``minimum``.

    Args:
        value: an integer of any kind (NumPy's too), but no boolean.
        name: the argument's name, for the message.
        minimum: the smallest integer allowed.

    Raises:
        ValueError: if it is not one.

    Example:
        >>> count(3, "num_particles")
        3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {name}={value!r}.")
    return number
