"""Multilayer perceptrons, and the scales that their outputs stand for."""

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_ext.nn.energy_parts import Norm, start

MIN_SCALE = 1e-5
UNIT_RAW_SCALE = math.log(math.expm1(1 - MIN_SCALE))  # whose softplus completes a scale of one


def perceptron(
    dims: list[int], activation: Callable[[], nn.Module], norm: Norm | None = None
) -> nn.Sequential:
    """Affine layers that start Glorot-uniform, with activations between them.

    Args:
        dims: sizes of input, hidden layers and output.
        activation: builds the activations.
        norm: of the hidden layers; the last one stays free.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(dims[:-1]):
        layers += [start(nn.Linear(fan_in, fan_out), norm), activation()]
    return nn.Sequential(*layers, start(nn.Linear(dims[-2], dims[-1])))


def positive(raw: Tensor) -> Tensor:
    """Scales, of one where the raw numbers are zero."""
    return MIN_SCALE + softplus(raw + UNIT_RAW_SCALE)
