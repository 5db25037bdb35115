"""Checks of what a simulation is asked for."""

import math
import operator
from typing import Any


def integer(value: Any, name: str, minimum: int) -> int:
    """Returns ``value`` as an integer of at least ``minimum``.

    Raises:
        ValueError: if it is not one.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {name}={value!r}.")
    return number


def interval(value: tuple[float, float], name: str) -> tuple[float, float]:
    """Returns ``value`` as two positive numbers, the larger last.

    Raises:
        ValueError: if they are not.
    """
    try:
        low, high = (float(number) for number in value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise ValueError(f"{name} must be two numbers 0 < low < high, got {name}={value!r}.")
    return low, high
