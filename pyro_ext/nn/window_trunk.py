"""Features of the pixels in a window."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import elu, pad

from pyro_ext.nn.gated_resnet import GatedResnet
from pyro_ext.nn.weight_norm_layers import WeightNormConv2d


class WindowTrunk(nn.Module):
    r"""Features of each pixel that depend on a window of earlier ones alone.

    The window of :math:`A \times B` is the block of ``B`` rows directly above a pixel, ``A`` wide,
    and the :math:`\lceil (A - 1) / 2 \rceil` pixels to its left. One convolution reads it, and
    blocks of 1x1 convolutions make features of it, so that the window is exact however many they
    are.

    Args:
        in_channels: of the input.
        channels: of all features.
        num_resnets: blocks.
        window: ``(A, B)``.
        context_dim: numbers in a context, the same at all pixels; none if it is zero.
        map_channels: of a context that is an image; none if it is zero.
        rate: of dropout.

    References:
        Chen et al., *Variational Lossy Autoencoder*, arXiv 1611.02731.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_resnets: int,
        window: tuple[int, int],
        context_dim: int = 0,
        map_channels: int = 0,
        rate: float = 0.0,
    ):
        super().__init__()
        width, height = window
        self.reach, self.height = width // 2, height  # of odd and even widths alike
        self.above = WeightNormConv2d(in_channels, channels, (height, width)) if height else None
        self.left = WeightNormConv2d(in_channels, channels, (1, self.reach)) if self.reach else None
        self.sides = (self.reach, width - 1 - self.reach)
        self.context: Any = nn.Linear(context_dim, channels) if context_dim else None
        self.map = WeightNormConv2d(map_channels, channels, 1) if map_channels else None
        self.blocks: Any = nn.ModuleList(
            GatedResnet(channels, (1, 1), 0, context_dim, map_channels, rate)
            for _ in range(num_resnets)
        )
        self.channels = channels

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Features of ``(N, in_channels, H, W)``."""
        y = self.start(x, context)
        if self.above is not None:
            y = y + self.above(pad(x, (*self.sides, self.height, 0))[..., :-1, :])
        if self.left is not None:
            y = y + self.left(pad(x, (self.reach, 0))[..., :-1])
        for block in self.blocks:
            y = block(y, None, context)
        return elu(y)

    def start(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Features of the context alone, ``(N, channels, H, W)``."""
        shape = (len(x), self.channels, *x.shape[-2:])
        if self.map is not None:
            return self.map(context)
        if self.context is not None:
            return self.context(context)[:, :, None, None].expand(shape)
        return x.new_zeros(shape)
