"""Streams of random numbers that share nothing with each other."""

import numpy as np

from pyro_ext.data.arguments import integer

DATA, MIXING, LOC, SCALE, COVARIANCE = range(5)


def stream(seed: int, name: str, *purpose: int) -> np.random.Generator:
    """A generator for one purpose: streams of one seed and two purposes are independent.

    So a mixing matrix of seed 0 is not made of the numbers that the data of seed 0 are made of.

    Args:
        seed: a non-negative integer.
        name: the argument's name, for the message.
        *purpose: what the numbers are for.

    Raises:
        ValueError: if the seed is none.
    """
    return np.random.default_rng([integer(seed, name, 0), *purpose])
