"""Convolutional networks between images and vectors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import elu

from pyro_ext.nn.data_init import start_layers
from pyro_ext.nn.weight_norm_layers import (
    WeightNormConv2d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
)


class ImageEncoder(nn.Module):
    """Integer images to vectors: two halvings and a dense layer, weight-normalised.

    Args:
        image_shape: ``(C, H, W)``, height and width divisible by four.
        levels: of the pixels.
        out_features: of the vectors.
        channels: of the hidden layers, twice as many after a halving.

    Raises:
        ValueError: if height or width is not divisible by four.
    """

    def __init__(self, image_shape: Sequence[int], levels: int, out_features: int, channels: int):
        super().__init__()
        size, height, width = check_quarters(image_shape)
        self.middle = (levels - 1) / 2
        self.layers: Any = nn.ModuleList(
            [
                WeightNormConv2d(size, channels, 3, padding=1),
                WeightNormConv2d(channels, 2 * channels, 4, 2, 1),
                WeightNormConv2d(2 * channels, 2 * channels, 4, 2, 1),
            ]
        )
        flat = 2 * channels * (height // 4) * (width // 4)
        self.last = WeightNormLinear(flat, out_features, init_scale=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors ``(*batch, out_features)`` of integers ``(*batch, C, H, W)``."""
        batch = x.shape[:-3]
        y = x.to(self.last.bias.dtype).reshape(batch.numel(), *x.shape[-3:]) / self.middle - 1
        for layer in self.layers:
            y = elu(layer(y))
        y = self.last(y.flatten(1)).to(self.last.bias.dtype)
        return y.reshape(*batch, y.shape[-1])

    def initialize(self, x: Tensor) -> Tensor:
        """Starts the layers from images, and returns their vectors."""
        return start_layers(self, x)


class ImageDecoder(nn.Module):
    """Vectors to real images: a dense layer and two doublings, weight-normalised.

    Args:
        image_shape: ``(_, H, W)``, height and width divisible by four.
        in_features: of the vectors.
        out_channels: of the images.
        channels: of the hidden layers.
    """

    def __init__(
        self, image_shape: Sequence[int], in_features: int, out_channels: int, channels: int
    ):
        super().__init__()
        _, height, width = check_quarters(image_shape)
        self.small = (2 * channels, height // 4, width // 4)
        self.first = WeightNormLinear(in_features, 2 * channels * (height // 4) * (width // 4))
        self.layers: Any = nn.ModuleList(
            [
                WeightNormConvTranspose2d(2 * channels, 2 * channels, 4, 2, 1),
                WeightNormConvTranspose2d(2 * channels, channels, 4, 2, 1),
            ]
        )
        self.last = WeightNormConv2d(channels, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Images ``(*batch, out_channels, H, W)`` of ``(*batch, in_features)``."""
        batch = z.shape[:-1]
        y = elu(self.first(z.reshape(batch.numel(), z.shape[-1]))).unflatten(-1, self.small)
        for layer in self.layers:
            y = elu(layer(y))
        y = self.last(y).to(self.last.bias.dtype)
        return y.reshape(*batch, *y.shape[1:])

    def initialize(self, z: Tensor) -> Tensor:
        """Starts the layers from vectors, and returns their images."""
        return start_layers(self, z)


def check_quarters(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        ValueError: if height or width is not divisible by four.
    """
    channels, height, width = image_shape
    if height % 4 or width % 4:
        raise ValueError(
            f"Height and width must be divisible by four, got image_shape={tuple(image_shape)}. "
            "Pad the images, or replace encoder and painter."
        )
    return channels, height, width
