"""Images drawn one pixel after another."""

from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from pyro_ext.nn.causal_unet import CausalUNet
from pyro_ext.nn.pixel_cache import folded
from pyro_ext.nn.unet_cache import UNetCache
from pyro_ext.nn.window_cache import WindowCache


class PixelSampler:
    """Fills in images, pixel by pixel.

    Args:
        net: a ``PixelCNNNet``.
        images: ``(B, C, H, W)``, integers.
        features: the context, as the trunk takes it.
    """

    def __init__(self, net: Any, images: Tensor, features: Tensor | None):
        self.net, self.images = net, images
        self.middle = (net.levels - 1) / 2
        kind = UNetCache if isinstance(net.trunk, CausalUNet) else WindowCache
        self.cache: Any = kind(net.trunk, net.prepare(images), features)
        weight, self.bias = folded(net.output)
        self.weight = weight.flatten(1)

    def run(self, uniforms: Tensor, temperature: Any) -> Tensor:
        """The images, drawn.

        Args:
            uniforms: ``(B, H, W, U)``.
            temperature: of the head.
        """
        _, height, width, _ = uniforms.shape
        for row in range(height):
            self.cache.start_row(row)
            for column in range(width):
                outputs = self.outputs(row, column)
                pixel = self.net.head.sample(uniforms[:, row, column], outputs, temperature)
                self.put(row, column, pixel)
        return self.images

    def outputs(self, row: int, column: int) -> Tensor:
        """What the head makes a law of, ``(B, P)``."""
        return linear(self.cache.features(row, column), self.weight, self.bias)

    def select(self, index: Tensor) -> None:
        """Goes on with these members of the batch, of one context each."""
        self.images = self.images[index]
        self.cache.select(index)

    def put(self, row: int, column: int, pixel: Tensor) -> None:
        """Fills in a pixel, ``(B, C)``."""
        self.images[..., row, column] = pixel
        self.cache.put(row, column, pixel / self.middle - 1)


def draw(net: Any, uniforms: Tensor, features: Tensor | None, temperature: Any) -> Tensor:
    """The images ``(B, C, H, W)`` that uniform numbers ``(B, H, W, U)`` stand for."""
    images = uniforms.new_zeros(len(uniforms), *net.image_shape)
    return PixelSampler(net, images, features).run(uniforms, temperature)
