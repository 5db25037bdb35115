"""A window's features, one pixel after another."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, elu, glu, pad

from pyro_ext.nn.pixel_cache import block_context, concat_elu, folded
from pyro_ext.nn.window_trunk import WindowTrunk


class WindowCache:
    """As ``UNetCache``, of a :class:`WindowTrunk`.

    Args:
        trunk: in evaluation mode.
        image: ``(B, C, H, W)``, which is filled in from outside, as prepared for the net.
        context: as the net takes it.
    """

    def __init__(self, trunk: WindowTrunk, image: Tensor, context: Tensor | None):
        self.sides, self.reach, self.height = trunk.sides, trunk.reach, trunk.height
        self.image = pad(image, (self.reach, trunk.sides[1], trunk.height, 0))
        self.above = None if trunk.above is None else folded(trunk.above)
        self.left: Any = None
        if trunk.left is not None:
            weight, bias = folded(trunk.left)
            self.left = bias, weight.flatten(1).T.contiguous()
        self.begin = trunk.start(image, context)
        self.blocks = [PointResnet(block, context) for block in trunk.blocks]
        self.terms = self.begin[:, :, 0]

    def put(self, row: int, column: int, pixel: Tensor) -> None:
        """Fills in a pixel, ``(B, C)``."""
        self.image[:, : pixel.shape[1], row + self.height, column + self.reach] = pixel

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch, of one context each."""
        self.image, self.terms = self.image[index], self.terms[index]

    def start_row(self, row: int) -> None:
        """Reads the rows above."""
        self.terms = self.begin[:, :, row]
        if self.above is not None:
            seen = self.image[:, :, row : row + self.height]
            self.terms = self.terms + conv2d(seen, *self.above).squeeze(2)

    def features(self, row: int, column: int) -> Tensor:
        """Features of the next pixel, ``(B, F)``."""
        x = self.terms[..., column]
        if self.left is not None:
            bias, weight = self.left
            seen = self.image[:, :, row + self.height, column : column + self.reach]
            x = x + torch.addmm(bias, seen.flatten(1), weight)
        for block in self.blocks:
            x = block(row, column, x)
        return elu(x)


class PointResnet:
    """A gated residual block of 1x1 convolutions, at a pixel."""

    def __init__(self, block: Any, context: Tensor | None):
        self.first, self.last = (
            (bias, weight.flatten(1).T.contiguous())
            for weight, bias in (folded(block.first.conv), folded(block.last.conv))
        )
        self.context = block_context(block, context)

    def __call__(self, row: int, column: int, x: Tensor) -> Tensor:
        """The output of a pixel, ``(B, F)``."""
        (bias, weight), (last_bias, last_weight) = self.first, self.last
        c = torch.addmm(bias, concat_elu(x), weight)
        y = torch.addmm(last_bias, concat_elu(c), last_weight)
        if self.context is not None:
            _, _, height, width = self.context.shape
            y = y + self.context[:, :, row % height, column % width]
        return x + glu(y, 1)
