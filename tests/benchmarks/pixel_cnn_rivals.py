"""PixelCNN++ beside its layers in plain torch, with the loss as published.

Weights are normalised by torch's own parametrisation, images are scaled to [-1, 1], and cells of
little probability have a density instead, so that the loss is not exactly a likelihood.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, elu, logsigmoid, pad, softplus
from torch.nn.utils.parametrizations import weight_norm

from pyro_ext.nn import PixelCNNNet

HIDDEN, RESNETS, COMPONENTS, STAGES = 32, 2, 5, 3
ROWS, LEFT = (2, 3), (2, 2)  # kernels of the two streams
DROPOUT, LEVELS = 0.5, 256


def ours(image_shape: tuple[int, int, int]) -> PixelCNNNet:
    """A net of ours, of the size of all here."""
    return PixelCNNNet(image_shape, LEVELS, COMPONENTS, HIDDEN, RESNETS, STAGES, dropout=DROPOUT)


class Conv(nn.Module):
    """Sees the rows above and its own; with an even width, of its own row what lies to the left."""

    def __init__(self, few: int, many: int, kernel: tuple[int, int], stride: int = 1):
        super().__init__()
        height, width = kernel
        left, right = (width // 2, width // 2) if width % 2 else (width - 1, 0)
        self.padding = (left, right, height - 1, 0)
        self.conv = weight_norm(nn.Conv2d(few, many, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, self.padding))


class Double(nn.Module):
    """A transposed convolution, of which the block that begins at each pixel is kept."""

    def __init__(self, channels: int, kernel: tuple[int, int]):
        super().__init__()
        self.left = 1 if kernel == ROWS else 0
        self.conv = weight_norm(nn.ConvTranspose2d(channels, channels, kernel, 2), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, :, self.left : self.left + 2 * x.shape[3]]


class Block(nn.Module):
    """Two convolutions, the second of which is gated, with a short cut of so many channels."""

    def __init__(self, channels: int, kernel: tuple[int, int], short_cut: int):
        super().__init__()
        self.first = Conv(2 * channels, channels, kernel)
        self.second = Conv(2 * channels, 2 * channels, kernel)
        self.short_cut = (
            weight_norm(nn.Conv2d(2 * short_cut, channels, 1)) if short_cut else nn.Identity()
        )

    def forward(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        y = self.first(both_signs(x))
        if a is not None:
            y = y + self.short_cut(both_signs(a))
        y = dropout(both_signs(y), DROPOUT, self.training)
        value, gate = self.second(y).chunk(2, dim=1)
        return x + value * torch.sigmoid(gate)


def both_signs(x: Tensor) -> Tensor:
    return elu(torch.cat([x, -x], dim=1))


def down(x: Tensor) -> Tensor:
    return pad(x[:, :, :-1], (0, 0, 1, 0))


def right(x: Tensor) -> Tensor:
    return pad(x[:, :, :, :-1], (1, 0))


class Plain(nn.Module):
    """The net in plain torch, for one channel or three.

    Args:
        image_shape: ``(C, H, W)``, height and width divisible by four.
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__()
        channels, size = image_shape[0], HIDDEN
        self.above, self.row, self.left = (
            Conv(channels + 1, size, kernel) for kernel in ((2, 3), (1, 3), (2, 1))
        )
        self.rows_down, self.rows_up = paths(ROWS, 0, size)
        self.left_down, self.left_up = paths(LEFT, size, 2 * size)
        self.last = weight_norm(nn.Conv2d(size, COMPONENTS * parameters(channels), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Parameters of the mixtures, given images ``(N, C, H, W)`` in [-1, 1]."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        u, v = down(self.above(x)), down(self.row(x)) + right(self.left(x))
        rows, left = [u], [v]
        for for_rows, for_left in zip(self.rows_down, self.left_down, strict=True):
            u = for_rows(u)
            v = for_left(v, u) if isinstance(for_left, Block) else for_left(v)
            rows.append(u)
            left.append(v)
        u, v = rows.pop(), left.pop()
        for for_rows, for_left in zip(self.rows_up, self.left_up, strict=True):
            if isinstance(for_rows, Block):
                u = for_rows(u, rows.pop())
                v = for_left(v, torch.cat([u, left.pop()], dim=1))
            else:
                u, v = for_rows(u), for_left(v)
        return self.last(elu(v))

    def log_prob(self, images: Tensor) -> Tensor:
        """Of integers, as published, ``(N,)`` in nats."""
        x = (images - 127.5) / 127.5
        outputs = self(x).movedim(1, -1).unflatten(-1, (-1, COMPONENTS))  # (N, H, W, ., M)
        return published(x.movedim(1, -1), outputs).sum((1, 2))


def paths(kernel: tuple[int, int], down: int, up: int) -> tuple[Any, Any]:
    """Layers of a stream on the way down and up, with short cuts of so many channels."""
    size = HIDDEN
    first, last = nn.ModuleList(), nn.ModuleList()
    up = up or size
    for stage in range(STAGES):
        first.extend(Block(size, kernel, down) for _ in range(RESNETS))
        last.extend(Block(size, kernel, up) for _ in range(RESNETS + (stage > 0)))
        if stage + 1 < STAGES:
            first.append(Conv(size, size, kernel, 2))
            last.append(Double(size, kernel))
    return first, last


def parameters(channels: int) -> int:
    """Of a component."""
    return 1 + 2 * channels + channels * (channels - 1) // 2


def published(x: Tensor, outputs: Tensor) -> Tensor:
    """The loss, negated: of pixels ``(N, H, W, C)``, given ``(N, H, W, ., M)``."""
    channels = x.shape[-1]
    logits, means, log_scales, mixed = outputs.split(
        [1, channels, channels, channels * (channels - 1) // 2], dim=-2
    )
    x = x.unsqueeze(-1)
    means = moved(means, mixed.tanh(), x)
    log_scales = log_scales.clamp(min=-7)
    centred, inverse = x - means, torch.exp(-log_scales)
    upper, lower = inverse * (centred + 1 / 255), inverse * (centred - 1 / 255)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    middle = inverse * centred
    density = middle - log_scales - 2 * softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    ends = torch.where(x > 0.999, -softplus(lower), inside)
    log_probs = torch.where(x < -0.999, logsigmoid(upper), ends).sum(-2)
    return torch.logsumexp(log_probs + logits.squeeze(-2).log_softmax(-1), -1)


def moved(means: Tensor, mixed: Tensor, x: Tensor) -> Tensor:
    """Means of the later two of three channels move with the earlier ones."""
    if means.shape[-2] == 1:
        return means
    red, green, blue = means.unbind(-2)
    green = green + mixed[..., 0, :] * x[..., 0, :]
    blue = blue + mixed[..., 1, :] * x[..., 0, :] + mixed[..., 2, :] * x[..., 1, :]
    return torch.stack([red, green, blue], -2)
