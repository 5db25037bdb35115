"""MNIST for perceptrons, and their errors."""

import os

import torch
from torch import Tensor, nn

from pyro_ext.data import load

Images = tuple[Tensor, Tensor, Tensor, Tensor]
HELD_OUT = 5_000


def read(held_out: bool) -> Images:
    """Pixels in [0, 255] to train and to judge by, and the labels of both.

    Args:
        held_out: whether to judge by the last 5,000 training images, which then take no part.
    """
    arrays = load("mnist", root=os.environ["PYRO_EXT_DATA"])
    x, test = (torch.as_tensor(arrays[f"x_{p}"]).flatten(1).float() for p in ("train", "test"))
    y, labels = (torch.as_tensor(arrays[f"y_{p}"]).long() for p in ("train", "test"))
    if held_out:
        x, test, y, labels = x[:-HELD_OUT], x[-HELD_OUT:], y[:-HELD_OUT], y[-HELD_OUT:]
    return x, test, y, labels


@torch.no_grad()
def error(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """In per cent."""
    return round(100 * (network(x).argmax(1) != y).double().mean().item(), 2)
