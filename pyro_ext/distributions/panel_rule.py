"""Quadrature of a smooth positive function between two limits, and between one and any point."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_NODES, _WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(8))
NUM_NODES = len(_NODES)


class PanelRule(NamedTuple):
    """Eight Gauss-Legendre nodes in each of equal panels."""

    low: float
    high: float
    num_panels: int

    @property
    def width(self) -> float:
        """Of a panel."""
        return (self.high - self.low) / self.num_panels

    def nodes(self) -> Tensor:
        """All nodes in float64, ``(num_panels * 8,)``."""
        left = self.low + self.width * torch.arange(self.num_panels, dtype=torch.float64)
        unit = (1 + _NODES.to(left)) / 2
        return (left.unsqueeze(-1) + self.width * unit).flatten()

    def log_weights(self) -> Tensor:
        """Logarithms of all weights in float64, ``(num_panels * 8,)``."""
        return (_WEIGHTS.log() + math.log(self.width / 2)).repeat(self.num_panels)

    def panel(self, x: Tensor) -> Tensor:
        """The panel that a point lies in; of NaN any."""
        return (
            ((x.nan_to_num() - self.low) / self.width).floor().clamp(0, self.num_panels - 1).long()
        )

    def left(self, panel: Tensor, like: Tensor) -> Tensor:
        """Where a panel begins."""
        return self.low + self.width * panel.to(like)

    def between(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes and weights of the eight-point rule between points, ``(8, ...)`` each."""
        half = (stop - start) / 2
        shape = (-1, *(1,) * half.dim())
        nodes, weights = (part.to(half).reshape(shape) for part in (_NODES, _WEIGHTS))
        return start + half * (1 + nodes), half * weights
