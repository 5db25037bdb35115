"""How a coupling moves one half of the channels, given what a network made of the other half."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (h, x) -> moved x, log det (N,)

START = 2.0


class CouplingLaw(NamedTuple):
    """An invertible map of ``x`` given ``h``, which has ``num_outputs`` channels for each of x."""

    num_outputs: int
    bound: float | None  # c: the network sees c tanh(x / c)
    apply: Rule
    undo: Rule


def law(name: str) -> CouplingLaw:
    """The law of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in _LAWS:
        raise ValueError(f"coupling is one of {', '.join(_LAWS)}, got {name!r}.")
    return _LAWS[name]


def _add(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return x + h, x.new_zeros(len(x))


def _subtract(h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return z - h, z.new_zeros(len(z))


def _scale(h: Tensor, x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    shift, log_scale = _halves(h, floor)
    return (x + shift) * log_scale.exp(), log_scale.flatten(1).sum(1)


def _unscale(h: Tensor, z: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    shift, log_scale = _halves(h, floor)
    return z * (-log_scale).exp() - shift, -log_scale.flatten(1).sum(1)


def _halves(h: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    shift, logit = h.chunk(2, 1)
    if not floor:
        return shift, logsigmoid(logit + START)
    return shift, torch.log(floor + (1 - floor) * torch.sigmoid(logit + START))


def _affine(floor: float, bound: float | None) -> CouplingLaw:
    return CouplingLaw(2, bound, partial(_scale, floor=floor), partial(_unscale, floor=floor))


_LAWS = {
    "additive": CouplingLaw(1, None, _add, _subtract),
    "affine": _affine(0.0, None),
    "affine_bounded": _affine(0.5, 4.0),
}
