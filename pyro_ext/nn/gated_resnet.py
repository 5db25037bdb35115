"""Residual blocks with gates."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu_, glu

from pyro_ext.nn.causal_conv import CausalConv2d
from pyro_ext.nn.element_dropout import element_dropout
from pyro_ext.nn.weight_norm_layers import WeightNormConv2d

_OUTPUT, _CONTEXT = 0.1, 0.05


class GatedResnet(nn.Module):
    r"""A residual block of two convolutions with a gate at its end.

    .. math::

        c = f\bigl(W_1 * f(x) + W_a f(a)\bigr), \qquad (u, v) = W_2 * c + V h, \qquad
        y = x + u \odot \sigma(v)

    with :math:`f(x) = \mathrm{elu}([x, -x])`, which doubles the channels.

    Args:
        channels: of :math:`x` and :math:`y`.
        kernel_size: of the causal convolutions.
        skip_channels: of :math:`a`; none if it is zero.
        context_dim: numbers in :math:`h`, the same at all pixels; none if it is zero.
        map_channels: of an :math:`h` that is an image; none if it is zero.
        rate: of dropout between the convolutions, element by element.

    References:
        Salimans et al., *PixelCNN++*, arXiv 1701.05517, as in the published code.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: tuple[int, int],
        skip_channels: int = 0,
        context_dim: int = 0,
        map_channels: int = 0,
        rate: float = 0.0,
    ):
        super().__init__()
        wide = 2 * channels
        self.rate = rate
        self.first = CausalConv2d(wide, channels, kernel_size)
        self.last = CausalConv2d(wide, wide, kernel_size, init_scale=_OUTPUT)
        self.skip = WeightNormConv2d(2 * skip_channels, channels, 1) if skip_channels else None
        self.context: Any = _linear(context_dim, wide) if context_dim else None
        self.map = (
            WeightNormConv2d(map_channels, wide, 1, init_scale=_OUTPUT) if map_channels else None
        )

    def forward(
        self, x: Tensor, skip: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """The block's output, ``(N, channels, H, W)``."""
        c = self.first(concat_elu(x))
        if self.skip is not None and skip is not None:
            c = c + self.skip(concat_elu(skip))
        c = element_dropout(concat_elu(c), self.rate, self.training)
        y = self._gate(c, context)
        return x + glu(y, 1)

    def _gate(self, c: Tensor, context: Tensor | None) -> Tensor:
        y = self.last(c)
        if self.context is not None:
            return y + self.context(context)[:, :, None, None]
        return y if self.map is None else y + self.map(context)


def concat_elu(x: Tensor) -> Tensor:
    """``elu`` of a tensor and of its negative, side by side."""
    return elu_(torch.cat([x, -x], 1))


def _linear(context_dim: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(context_dim, out_features, bias=False)
    nn.init.normal_(layer.weight, std=_CONTEXT)
    return layer
