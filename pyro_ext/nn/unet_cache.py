"""A causal U-net that computes one pixel after another."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, elu, pad

from pyro_ext.nn.causal_unet import CausalUNet, pyramid
from pyro_ext.nn.pixel_cache import PixelConv, PixelResnet, RowConv, RowResnet, folded


class UNetCache:
    """Features of pixels in their order, each in the time that one pixel of a pass takes.

    A resolution is at work in every second row and pixel of the one above it. The stream of rows
    runs once for each row, the stream of pixels once for each pixel.

    Args:
        trunk: the net, in evaluation mode.
        image: ``(B, C, H, W)``, which is filled in from outside, as prepared for the net.
        context: as the net takes it.
    """

    def __init__(self, trunk: CausalUNet, image: Tensor, context: Tensor | None):
        width = image.shape[-1]
        self.image = pad(image, (1, 1, 2, 0))  # two rows above, a pixel on either side
        self.start = StartCache(trunk, self.image)
        contexts = pyramid(context, len(trunk.encoders))
        stages: Any = zip(trunk.encoders, reversed(trunk.decoders), contexts, strict=True)
        self.stages = [
            Stage(encoder, decoder, image, width >> k, part)
            for k, (encoder, decoder, part) in enumerate(stages)
        ]
        for stage, (above, left) in zip(self.stages, trunk.halvings, strict=False):
            stage.halve_row = RowConv(above.conv, 2)
            stage.halve_pixel = PixelConv(left.conv, image, stage.width)
        for stage, (above, left) in zip(reversed(self.stages[1:]), trunk.doublings, strict=True):
            stage.double_row, stage.double_pixel = Doubling(above), Doubling(left)

    def put(self, row: int, column: int, pixel: Tensor) -> None:
        """Fills in a pixel, ``(B, C)``."""
        self.image[:, : pixel.shape[1], row + 2, column + 1] = pixel

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch, of one context each."""
        self.image = self.image[index]
        self.start.select(self.image, index)
        for stage in self.stages:
            stage.select(index)

    def start_row(self, row: int) -> None:
        """Runs the stream of rows."""
        x, depth = self.start.row(row), depth_of(row, 0, len(self.stages))
        for k, stage in enumerate(self.stages[: depth + 1]):
            x = stage.encode_row(row >> k, x)
        for k in range(depth, -1, -1):
            self.stages[k].decode_row(row >> k, self.stages[k - 1] if k else None)

    def features(self, row: int, column: int) -> Tensor:
        """Runs the stream of pixels at the next pixel, ``(B, F)``."""
        x, depth = self.start.pixel(row, column), depth_of(row, column, len(self.stages))
        for k, stage in enumerate(self.stages[: depth + 1]):
            x = stage.encode_pixel(row >> k, column >> k, x)
        for k in range(depth, -1, -1):
            x = self.stages[k].decode_pixel(
                row >> k, column >> k, self.stages[k - 1] if k else None
            )
        return elu(x)


def depth_of(row: int, column: int, stages: int) -> int:
    """The lowest resolution at work."""
    depth = 0
    while depth + 1 < stages and (row | column) % 2 ** (depth + 1) == 0:
        depth += 1
    return depth


class Doubling:
    """A transposed convolution of a row, ``(B, F, W)`` to ``(B, F, 2, 2 * W)``."""

    def __init__(self, layer: Any):
        self.weight, self.bias = folded(layer.conv)
        self.side = layer.side

    def __call__(self, x: Tensor) -> Tensor:
        """The two rows."""
        y = conv_transpose2d(x.unsqueeze(2), self.weight, self.bias, 2)
        return y[..., self.side : self.side + 2 * x.shape[-1]]


class Stage:
    """Both streams at one resolution."""

    halve_row: Any = None
    halve_pixel: Any = None
    double_row: Any = None
    double_pixel: Any = None

    def __init__(self, encoder: Any, decoder: Any, image: Tensor, width: int, context: Any):
        self.width = width
        self.encode_rows = [RowResnet(above, context) for above, _ in encoder]
        self.decode_rows = [RowResnet(above, context) for above, _ in decoder]
        options = (image, width, context)
        self.encode_pixels = [PixelResnet(left, *options) for _, left in encoder]
        self.decode_pixels = [PixelResnet(left, *options) for _, left in decoder]
        self.is_lowest = len(self.encode_rows) == len(self.decode_rows)
        self.rows: list[Tensor] = []
        self.pixels: list[Tensor] = []
        self.doubled_rows: Any = None  # (B, F, 2, W), of the resolution below
        self.doubled_pixels: Any = None  # (B, F, 2, W), likewise

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch."""
        rows, pixels = self.encode_rows + self.decode_rows, self.encode_pixels + self.decode_pixels
        for part in [*rows, *pixels, self.halve_row, self.halve_pixel]:
            if part is not None:
                part.select(index)
        if self.doubled_rows is not None:
            self.doubled_rows = self.doubled_rows[index]
        if self.doubled_pixels is not None:
            self.doubled_pixels = self.doubled_pixels[index]

    def encode_row(self, row: int, x: Tensor) -> Any:
        """Runs the blocks of a row on the way down, and halves it, every second one."""
        self.rows = [x]
        for rows, pixels in zip(self.encode_rows, self.encode_pixels, strict=True):
            self.rows.append(rows(row, self.rows[-1]))
            pixels.start_row(self.rows[-1])
        return self._halve(self.halve_row, self.rows[-1], row)

    def _halve(self, halve: RowConv | None, x: Tensor, row: int) -> Tensor | None:
        if halve is None:
            return None
        pair = halve.push(x)
        return halve(pair) if row % 2 == 0 else None

    def decode_row(self, row: int, finer: "Stage | None") -> None:
        """Runs the blocks of a row on the way up, and doubles it for the finer stage."""
        skips = list(self.rows)
        x = skips.pop() if self.is_lowest else self.doubled_rows[:, :, row % 2]
        for rows, pixels in zip(self.decode_rows, self.decode_pixels, strict=True):
            x = rows(row, x, skips.pop())
            pixels.start_row(x)
        if finer is not None:
            finer.doubled_rows = self.double_row(x)

    def encode_pixel(self, row: int, column: int, x: Tensor) -> Any:
        """Runs the blocks of a pixel on the way down, and halves it where it is a corner."""
        self.pixels = [x]
        for pixels in self.encode_pixels:
            self.pixels.append(pixels(row, column, self.pixels[-1]))
        if self.halve_pixel is None:
            return None
        self.halve_pixel.push(row, column, self.pixels[-1])
        return self.halve_pixel(row, column) if (row | column) % 2 == 0 else None

    def decode_pixel(self, row: int, column: int, finer: "Stage | None") -> Tensor:
        """Runs the blocks of a pixel on the way up, and doubles it for the finer stage."""
        skips = list(self.pixels)
        x = skips.pop() if self.is_lowest else self.doubled_pixels[:, :, row % 2, column]
        for pixels in self.decode_pixels:
            x = pixels(row, column, x, skips.pop())
        if finer is not None:
            if finer.doubled_pixels is None:
                finer.doubled_pixels = x.new_empty(*x.shape, 2, finer.width)
            block = self.double_pixel(x.unsqueeze(2))
            finer.doubled_pixels[..., 2 * column : 2 * column + 2] = block
        return x


class StartCache:
    """The first features of a row and of a pixel; those that see no pixel are zero."""

    def __init__(self, trunk: CausalUNet, image: Tensor):
        self.image = image
        self.above = folded(trunk.start.above.conv)
        self.of_row = folded(trunk.start.row.conv)
        weight, self.bias = folded(trunk.start.left.conv)
        self.of_left = weight.flatten(1).T.contiguous()  # (C * 2, F)
        self.terms: Any = None

    def select(self, image: Tensor, index: Tensor) -> None:
        """Goes on with these members of the batch."""
        self.image = image
        self.terms = None if self.terms is None else self.terms[index]

    def row(self, row: int) -> Tensor:
        """The stream of rows at its start, ``(B, F, W)``."""
        seen = self.image[:, :, row : row + 2]  # the two rows above
        above = conv2d(seen, *self.above).squeeze(2)
        terms = conv2d(seen[:, :, 1:], *self.of_row).squeeze(2)
        self.terms = torch.zeros_like(terms) if row == 0 else terms
        return torch.zeros_like(above) if row == 0 else above

    def pixel(self, row: int, column: int) -> Tensor:
        """The stream of pixels at its start, ``(B, F)``."""
        x = self.terms[..., column]
        if column == 0:
            return x
        seen = self.image[:, :, row + 1 : row + 3, column].flatten(1)
        return x + torch.addmm(self.bias, seen, self.of_left)
