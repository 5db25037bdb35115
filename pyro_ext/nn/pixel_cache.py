"""Layers of a PixelCNN that compute one row or one pixel, and remember what they need of others."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, elu_, glu

from pyro_ext.nn.gated_resnet import GatedResnet
from pyro_ext.nn.weight_norm import WeightNorm
from pyro_ext.ops.tracing import is_transformed


def folded(layer: WeightNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of torch's own layer."""
    return layer.weight(), layer.bias


def concat_elu(x: Tensor) -> Tensor:
    """``elu`` of features ``(B, F)`` or ``(B, F, W)`` and of their negatives."""
    return elu_(torch.cat([x, -x], 1))


class RowConv:
    """A convolution of 2x3 pixels, which computes a row of it and remembers the row before."""

    def __init__(self, layer: WeightNorm, stride: int = 1):
        self.weight, self.bias = folded(layer)
        self.stride = stride
        self.last: Tensor | None = None

    def push(self, x: Tensor) -> Tensor:
        """Takes a row ``(B, C, W)``, and returns it with the one before, ``(B, C, 2, W)``."""
        before = torch.zeros_like(x) if self.last is None else self.last
        self.last = x
        return torch.stack([before, x], 2)

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch."""
        self.last = None if self.last is None else self.last[index]

    def __call__(self, pair: Tensor) -> Tensor:
        """The row, ``(B, C', W')``."""
        return conv2d(pair, self.weight, self.bias, self.stride, (0, 1)).squeeze(2)


class RowResnet:
    """A gated residual block of the stream of rows."""

    def __init__(self, block: GatedResnet, context: Tensor | None):
        self.first, self.last = RowConv(block.first.conv), RowConv(block.last.conv)
        self.skip = None if block.skip is None else folded(block.skip)
        self.context = block_context(block, context)  # (B, 2F, 1 or H, 1 or W)

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch."""
        self.first.select(index)
        self.last.select(index)

    def __call__(self, row: int, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """The row of the output, ``(B, F, W)``."""
        c = self.first(self.first.push(concat_elu(x)))
        if self.skip is not None and skip is not None:
            c = c + conv2d(concat_elu(skip).unsqueeze(2), *self.skip).squeeze(2)
        y = self.last(self.last.push(concat_elu(c)))
        if self.context is not None:
            y = y + self.context[:, :, row % self.context.shape[2]]
        return x + glu(y, 1)


class PixelConv:
    """A convolution of 2x2 pixels, which computes a pixel of it.

    The buffer has two rows of inputs, by turns the present one, and a column of zeros on the left.
    What a pixel needs is then a slice of it, which is multiplied where it lies.
    """

    def __init__(self, layer: WeightNorm, image: Tensor, width: int):
        weight, self.bias = folded(layer)  # (C', C, 2, 2)
        channels = weight.shape[1]
        self.buffer = image.new_zeros(len(image), width + 1, 2, channels)
        by_place = weight.permute(3, 2, 1, 0)  # (column, row, C, C')
        self.weights = [  # of even rows, whose slot is the first, and of odd ones
            part.reshape(4 * channels, -1).contiguous() for part in (by_place.flip(1), by_place)
        ]

    def push(self, row: int, column: int, x: Tensor) -> None:
        """Takes the input ``(B, C)`` of a pixel."""
        self.buffer[:, column + 1, row % 2] = x

    def push_elu(self, row: int, column: int, x: Tensor) -> None:
        """Takes the input ``(B, C / 2)`` of a pixel, of which :func:`concat_elu` is to be seen."""
        slot = self.buffer[:, column + 1, row % 2]
        if is_transformed():
            slot.copy_(concat_elu(x))
        else:
            elu_(torch.cat([x, -x], 1, out=slot))

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch."""
        self.buffer = self.buffer[index]

    def __call__(self, row: int, column: int, bias: Tensor | None = None) -> Tensor:
        """The output ``(B, C')`` of a pixel whose input was taken, with another bias if given."""
        seen = self.buffer[:, column : column + 2].flatten(1)
        return torch.addmm(self.bias if bias is None else bias, seen, self.weights[row % 2])


class PixelResnet:
    """A gated residual block of the stream of pixels.

    A skip has a part of rows, known for the whole row, and one of pixels.
    """

    def __init__(self, block: GatedResnet, image: Tensor, width: int, context: Tensor | None):
        self.first = PixelConv(block.first.conv, image, width)
        self.last = PixelConv(block.last.conv, image, width)
        weight, bias = folded(block.skip)  # type: ignore[arg-type]
        weight = weight.unflatten(1, (2, -1, len(weight)))  # (F, sign, row and pixel, F)
        self.of_row, *of_pixel = (part.flatten(1) for part in weight.squeeze((-2, -1)).unbind(2))
        self.of_pixel = [part.T.contiguous() for part in of_pixel]
        self.bias = bias + self.first.bias
        self.context = block_context(block, context)
        self.rows: Any = None

    def start_row(self, skip: Tensor) -> None:
        """Takes the row's part of the skip, ``(B, F, W)``."""
        rows = torch.einsum("oc,bcw->wbo", self.of_row, concat_elu(skip))
        self.rows = rows + self.bias

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch, of one context each."""
        self.first.select(index)
        self.last.select(index)
        self.rows = None if self.rows is None else self.rows[:, index]

    def __call__(self, row: int, column: int, x: Tensor, skip: Any = None) -> Tensor:
        """The output of a pixel, ``(B, F)``."""
        self.first.push_elu(row, column, x)
        c = self.first(row, column, self.rows[column])
        for weight in self.of_pixel:
            c = torch.addmm(c, concat_elu(skip), weight)
        self.last.push_elu(row, column, c)
        y = self.last(row, column)
        if self.context is not None:
            _, _, height, width = self.context.shape
            y = y + self.context[:, :, row % height, column % width]
        return x + glu(y, 1)


def block_context(block: GatedResnet, context: Tensor | None) -> Tensor | None:
    """What a context adds before the gate, ``(B, 2F, 1 or H, 1 or W)``."""
    if block.context is not None:
        return block.context(context)[:, :, None, None]
    return None if block.map is None else block.map(context)
