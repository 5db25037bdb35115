"""Invertible networks that mix sources."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Activation(Protocol):
    """An increasing function of each coordinate, with its inverse."""

    def __call__(self, value: Tensor) -> Tensor:
        """The function."""
        ...

    def inverse(self, value: Tensor) -> Tensor:
        """Its inverse."""
        ...

    def log_slope(self, value: Tensor) -> Tensor:
        """The log of the derivative."""
        ...


@dataclass(frozen=True)
class LeakyReLU:
    """The identity above zero, a line of slope ``slope`` below."""

    slope: float

    def __call__(self, value: Tensor) -> Tensor:
        """The function."""
        return torch.where(value > 0, value, self.slope * value)

    def inverse(self, value: Tensor) -> Tensor:
        """Its inverse."""
        return torch.where(value > 0, value, value / self.slope)

    def log_slope(self, value: Tensor) -> Tensor:
        """The log of the derivative."""
        return math.log(self.slope) * (value <= 0).to(value.dtype)


@dataclass(frozen=True)
class ExpandedTanh:
    r"""The hyperbolic tangent plus a line, :math:`\tanh x + a x`."""

    slope: float

    def __call__(self, value: Tensor) -> Tensor:
        """The function."""
        return value.tanh() + self.slope * value

    def inverse(self, value: Tensor) -> Tensor:
        """One more step from the root, for its gradient."""
        root = self._root(value.detach())
        return root + (value - self(root)) * (-self.log_slope(root)).exp()

    def _root(self, value: Tensor) -> Tensor:
        """By Newton's method: from below it only rises, as the function is concave above zero."""
        size, rises = value.abs(), True
        root = torch.maximum(size / (1 + self.slope), (size - 1) / self.slope)
        while rises:
            higher = root + (size - self(root)) * (-self.log_slope(root)).exp()
            rises = bool((higher > root).any())
            root = torch.where(higher > root, higher, root)
        return root.copysign(value)

    def log_slope(self, value: Tensor) -> Tensor:
        """The log of the derivative."""
        return torch.log1p(self.slope - value.tanh().square())


class Mixing:
    r"""Linear maps with an activation between each two.

    .. math:: h(s) = a(\cdots a(a(s A_1) A_2) \cdots) A_L

    Args:
        matrices: :math:`A_1, \dots, A_L`, invertible, ``(L, D, D)``.
        activation: :math:`a`.
    """

    def __init__(self, matrices: Tensor, activation: Activation) -> None:
        self.matrices = matrices
        self.activation = activation

    def __call__(self, sources: Tensor) -> Tensor:
        """Mixes: ``(..., D) -> (..., D)``."""
        first, *others = self.matrices.to(sources)
        x = sources @ first
        for matrix in others:
            x = self.activation(x) @ matrix
        return x

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The sources, and the log determinant of the Jacobian of :math:`h` at them."""
        matrices = self.matrices.to(x)
        log_det = torch.linalg.slogdet(matrices).logabsdet.sum().expand(x.shape[:-1])
        first, *others = matrices
        for matrix in reversed(others):
            x = self.activation.inverse(_divide(x, matrix))
            log_det = log_det + self.activation.log_slope(x).sum(-1)
        return _divide(x, first), log_det


def _divide(x: Tensor, matrix: Tensor) -> Tensor:
    """Solves ``y @ matrix = x`` for ``y``."""
    return torch.linalg.solve(matrix, x.unsqueeze(-2), left=False).squeeze(-2)
