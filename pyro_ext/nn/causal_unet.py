"""The two streams of a PixelCNN++."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, elu

from pyro_ext.nn.causal_conv import (
    ABOVE,
    LEFT,
    CausalConv2d,
    CausalConvTranspose2d,
    shift_down,
    shift_right,
)
from pyro_ext.nn.gated_resnet import GatedResnet


class Streams(NamedTuple):
    """Features of the rows above each pixel, and of these and the pixels to its left."""

    above: Tensor  # (N, F, H, W)
    left: Tensor  # (N, F, H, W)


class CausalUNet(nn.Module):
    r"""Features of each pixel that depend on the earlier ones alone, at several resolutions.

    Two streams of gated residual blocks, one of the rows above a pixel and one that sees the pixels
    to its left too; down to a lower resolution at each stage, and up again with short cuts from
    the way down.

    Args:
        in_channels: of the input.
        channels: :math:`F`, of all features.
        num_resnets: blocks of each stage.
        stages: resolutions; height and width are divisible by :math:`2^{stages - 1}`.
        **options: of each :class:`GatedResnet`: ``context_dim``, ``map_channels``, ``rate``.

    Shape:
        ``(N, in_channels, H, W) -> (N, channels, H, W)``.

    References:
        Salimans et al., *PixelCNN++*, arXiv 1701.05517, as in the published code.
    """

    def __init__(
        self, in_channels: int, channels: int, num_resnets: int, stages: int, **options: Any
    ):
        super().__init__()
        self.start = Start(in_channels, channels)
        sizes = [num_resnets] + [num_resnets + 1] * (stages - 1)
        self.encoders: Any = nn.ModuleList(
            _blocks(channels, num_resnets, 0, 1, options) for _ in range(stages)
        )
        self.decoders: Any = nn.ModuleList(_blocks(channels, num, 1, 2, options) for num in sizes)
        self.halvings: Any = nn.ModuleList(_halving(channels) for _ in range(stages - 1))
        self.doublings: Any = nn.ModuleList(_doubling(channels) for _ in range(stages - 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Features of each pixel."""
        contexts = pyramid(context, len(self.encoders))
        streams = self.start(x)
        stack = [streams]
        for k, blocks in enumerate(self.encoders):
            for above, left in blocks:
                streams = _step(above, left, streams, contexts[k])
                stack.append(streams)
            if k < len(self.halvings):
                streams = Streams(*(f(y) for f, y in zip(self.halvings[k], streams, strict=True)))
                stack.append(streams)
        streams = stack.pop()
        for k, blocks in enumerate(self.decoders):
            for above, left in blocks:
                streams = _step(above, left, streams, contexts[-1 - k], stack.pop())
            if k < len(self.doublings):
                streams = Streams(*(f(y) for f, y in zip(self.doublings[k], streams, strict=True)))
        return elu(streams.left)


class Start(nn.Module):
    """The first features: shifted, so that none sees its own pixel."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.above = CausalConv2d(in_channels, channels, (2, 3))
        self.row = CausalConv2d(in_channels, channels, (1, 3))
        self.left = CausalConv2d(in_channels, channels, (2, 1))

    def forward(self, x: Tensor) -> Streams:
        """Features of ``(N, in_channels, H, W)``."""
        above = shift_down(self.above(x))
        return Streams(above, shift_down(self.row(x)) + shift_right(self.left(x)))


def _step(
    above: GatedResnet,
    left: GatedResnet,
    streams: Streams,
    context: Tensor | None,
    skip: Streams | None = None,
) -> Streams:
    rows = above(streams.above, None if skip is None else skip.above, context)
    seen = rows if skip is None else torch.cat([rows, skip.left], 1)
    return Streams(rows, left(streams.left, seen, context))


def _blocks(channels: int, num: int, above: int, left: int, options: dict) -> nn.ModuleList:
    """Pairs of blocks, with skips of so many times the channels."""
    pairs = (
        (
            GatedResnet(channels, ABOVE, above * channels, **options),
            GatedResnet(channels, LEFT, left * channels, **options),
        )
        for _ in range(num)
    )
    return nn.ModuleList(nn.ModuleList(pair) for pair in pairs)


def _halving(channels: int) -> nn.ModuleList:
    return nn.ModuleList(CausalConv2d(channels, channels, kernel, 2) for kernel in (ABOVE, LEFT))


def _doubling(channels: int) -> nn.ModuleList:
    return nn.ModuleList(CausalConvTranspose2d(channels, channels, k) for k in (ABOVE, LEFT))


def pyramid(context: Tensor | None, stages: int) -> Sequence[Tensor | None]:
    """A context at each stage: vectors are the same at all, images are averaged over 2x2 pixels."""
    if context is None or context.dim() < 4:
        return [context] * stages
    maps = [context]
    for _ in range(stages - 1):
        maps.append(avg_pool2d(maps[-1], 2))
    return maps
