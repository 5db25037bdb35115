"""Coupling layers of vectors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.energy_parts import check_sizes
from pyro_ext.nn.perceptron import perceptron
from pyro_ext.ops.counts import count
from pyro_ext.ops.soft_bound import soft_bound


class VectorCoupling(nn.Module):
    r"""Moves one part of a vector by what a network makes of the other part.

    .. math::

        z_1 = x_1, \qquad (t, h) = f(x_1), \qquad z_2 = (x_2 + t)\, e^s, \qquad
        s = c \tanh(h / c), \qquad
        \log \Bigl\lvert \frac{\partial z}{\partial x} \Bigr\rvert = \sum_i s_i

    The identity at the start. Log scales are bounded, and smoothly: with wide bounds a chain of
    such layers overflows in the first steps of training.

    Args:
        dim: size of the vector, at least two.
        num_kept: size of :math:`x_1`.
        hidden_dims: widths of the hidden layers of :math:`f`.
        max_log_scale: :math:`c`.
        activation: of :math:`f`.

    Raises:
        ValueError: if a size is out of its range.

    Example:
        >>> layer = VectorCoupling(5, 2)
        >>> x = torch.randn(7, 5)
        >>> z, log_det = layer.encode(x)
        >>> torch.allclose(layer.decode(z)[0], x, atol=1e-6), log_det.shape
        (True, torch.Size([7]))
    """

    def __init__(
        self,
        dim: int,
        num_kept: int,
        hidden_dims: Sequence[int] = (64, 64),
        max_log_scale: float = 2.0,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        super().__init__()
        if not 0 < max_log_scale < math.inf:
            raise ValueError(f"max_log_scale must be positive and finite, got {max_log_scale}.")
        self.num_kept, self.max_log_scale = count(num_kept, "num_kept"), max_log_scale
        self.num_moved = count(dim - num_kept, "dim - num_kept")
        hidden = check_sizes(hidden_dims, "hidden_dims")
        self.net: Any = perceptron([num_kept, *hidden, 2 * self.num_moved], activation)
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``x``, ``(..., dim)``, to :math:`z` and the log determinant, ``(...)``."""
        kept, moved = self._split(x)
        shift, log_scale = self._move(kept)
        return torch.cat([kept, (moved + shift) * log_scale.exp()], -1), log_scale.sum(-1)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``z`` back, with the log determinant of this direction."""
        kept, moved = self._split(z)
        shift, log_scale = self._move(kept)
        return torch.cat([kept, moved * (-log_scale).exp() - shift], -1), -log_scale.sum(-1)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([self.num_kept, self.num_moved], -1)

    def _move(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.net(kept).chunk(2, -1)
        return shift, soft_bound(raw, self.max_log_scale)
