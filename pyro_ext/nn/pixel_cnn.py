"""PixelCNN++."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_ext.nn.causal_unet import CausalUNet
from pyro_ext.nn.context_features import as_dtype, as_features
from pyro_ext.nn.data_init import start_layers
from pyro_ext.nn.image_batch import flat, joint_batch
from pyro_ext.nn.pixel_cnn_checks import (
    check_config,
    check_integers,
    check_pixels,
    check_uniforms,
)
from pyro_ext.nn.pixel_completion import complete
from pyro_ext.nn.pixel_heads import BernoulliHead, CategoricalHead, LogisticHead, PixelHead
from pyro_ext.nn.pixel_sampler import PixelSampler, draw
from pyro_ext.nn.weight_norm_layers import WeightNormConv2d
from pyro_ext.nn.window_trunk import WindowTrunk

_OUTPUT = 0.1


class PixelCNNNet(nn.Module):
    r"""PixelCNN++: the law of each pixel, given all pixels before it.

    .. math:: \log P(x) = \sum_i \log P(x_i \mid x_1, \dots, x_{i - 1}, h)

    Pixels are ordered from left to right, row after row; the channels of a pixel are one step. See
    :class:`~pyro_ext.distributions.PixelCNN` for the distribution.

    Args:
        image_shape: :math:`(C, H, W)`, any.
        levels: :math:`L`: pixels are integers from zero to :math:`L - 1`.
        num_components: of the mixture of logistic laws.
        hidden_channels: of all features.
        num_resnets: gated residual blocks of each stage.
        stages: resolutions, each half of the one before.
        head: ``"logistic"``; ``"bernoulli"``, of two levels; ``"categorical"``, any law.
        window: ``(A, B)``: a pixel sees the ``B`` rows of ``A`` pixels right above it, and
            :math:`\lceil (A - 1) / 2 \rceil` pixels to its left, and no more; instead of all
            earlier ones. There are no stages then.
        num_classes: labels as context: integers below it.
        context_dim: vectors as context: numbers in each.
        context_channels: images ``(context_channels, H, W)`` as context, which all pixels see as
            they are at their own place. One of the three, or none.
        dropout: rate, in training mode.
        compute_dtype: dtype of all but the last layer and the law, the parameters' if None. Draws
            are computed in the parameters' dtype, and so differ by what it rounds.

    Raises:
        ValueError: if an argument is out of its range; later, if images or contexts do not fit.

    References:
        Salimans et al., *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
        Likelihood and Other Modifications*, arXiv 1701.05517; Chen et al., *Variational Lossy
        Autoencoder*, arXiv 1611.02731, for the window.

    Example:
        >>> net = PixelCNNNet((1, 8, 8), levels=17, hidden_channels=8, num_resnets=1, stages=2)
        >>> images = torch.randint(17, (10, 1, 8, 8))
        >>> net.initialize(images).log_prob_map(images).shape
        torch.Size([10, 8, 8])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        levels: int = 256,
        num_components: int = 10,
        hidden_channels: int = 160,
        num_resnets: int = 5,
        stages: int = 3,
        head: str = "logistic",
        window: tuple[int, int] | None = None,
        num_classes: int = 0,
        context_dim: int = 0,
        context_channels: int = 0,
        *,
        dropout: float = 0.5,
        compute_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "image_shape": tuple(image_shape),
            "levels": levels,
            "num_components": num_components,
            "hidden_channels": hidden_channels,
            "num_resnets": num_resnets,
            "stages": stages,
            "head": head,
            "window": None if window is None else tuple(window),
            "num_classes": num_classes,
            "context_dim": context_dim,
            "context_channels": context_channels,
            "dropout": dropout,
            "compute_dtype": compute_dtype,
        }
        check_config(**self.config)
        self.image_shape = torch.Size(image_shape)
        self.levels, self.compute_dtype = levels, compute_dtype
        self.num_classes, self.context_dim = num_classes, context_dim
        self.context_channels = context_channels
        channels = self.image_shape[0]
        options: dict[str, Any] = {
            "context_dim": num_classes + context_dim,
            "map_channels": context_channels,
            "rate": dropout,
        }
        sizes = (channels + 1, hidden_channels, num_resnets)
        self.multiple = 1 if window is not None else 2 ** (stages - 1)
        self.trunk: Any = (
            CausalUNet(*sizes, stages, **options)
            if window is None
            else WindowTrunk(*sizes, window, **options)
        )
        self.head: Any = _head(head, channels, levels, num_components)
        outputs = self.head.num_outputs
        self.output = WeightNormConv2d(hidden_channels, outputs, 1, init_scale=_OUTPUT)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob_map`, summed over pixels, ``(*batch)`` in nats."""
        return self.log_prob_map(x, context).sum((-2, -1))

    def log_prob_map(
        self, x: Tensor, context: Tensor | None = None, temperature: float | Tensor = 1.0
    ) -> Tensor:
        """Log probability of each pixel given those before it, in nats.

        Args:
            x: integers ``(*batch, C, H, W)``.
            context: labels ``(*context_batch)``, vectors ``(*context_batch, U)`` or images
                ``(*context_batch, U, H, W)``.
            temperature: divides logits and multiplies scales; a number or ``(*batch)``.

        Returns:
            ``(*batch, H, W)`` over the broadcast batch.
        """
        outputs = self.outputs(x, context).movedim(-3, -1)
        if isinstance(temperature, Tensor):
            temperature = temperature[..., None, None]
        return self.head.log_prob(x.movedim(-3, -1), outputs, temperature)

    def outputs(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What the head makes laws of, ``(*batch, P, H, W)``."""
        check_pixels(x, self.image_shape)
        features, kept = self.features_of(context)
        batch = joint_batch(x.shape[:-3], features, kept)
        x = flat(x, batch, 3)
        if features is not None:
            features = flat(features, batch, kept)
        outputs = self.run(self.prepare(x), features)
        return outputs.reshape(*batch, *outputs.shape[1:])

    def run(self, x: Tensor, features: Tensor | None) -> Tensor:
        """Outputs ``(N, P, H, W)`` of what :meth:`prepare` made of images."""
        dtype = self.compute_dtype or x.dtype
        _, height, width = self.image_shape
        with torch.autocast(x.device.type, dtype, enabled=dtype != x.dtype):
            y = self.trunk(x, features)[..., :height, :width]
        with torch.autocast(x.device.type, enabled=False):
            return self.output(y.to(x.dtype))

    def context_batch(self, context: Tensor | None) -> torch.Size:
        """The batch shape of a context.

        Raises:
            ValueError: if the net cannot take it.
        """
        features, kept = self.features_of(context)
        return torch.Size() if features is None else features.shape[:-kept]

    def prepare(self, x: Tensor) -> Tensor:
        """Pixels in [-1, 1] and a channel of ones, with zeros where the image has to be larger."""
        scaled = 2 * x.to(self.output.bias.dtype) / (self.levels - 1) - 1
        scaled = torch.cat([scaled, torch.ones_like(scaled[:, :1])], 1)
        return pad(scaled, (0, -x.shape[-1] % self.multiple, 0, -x.shape[-2] % self.multiple))

    def features_of(self, context: Tensor | None) -> tuple[Tensor | None, int]:
        """The context as the trunk takes it, and how many of its last dimensions are an event."""
        like = self.output.bias
        if not self.context_channels:
            return as_features(context, self.num_classes, self.context_dim, like), 1
        shape = (self.context_channels, *self.image_shape[1:])
        if context is None or context.shape[-3:] != shape:
            got = None if context is None else tuple(context.shape)
            raise ValueError(f"This network needs a context of shape (..., {shape}), got {got}.")
        height, width = (-size % self.multiple for size in shape[1:])
        return pad(as_dtype(context, like.dtype), (0, width, 0, height)), 3

    @torch.no_grad()
    def decode(
        self,
        uniforms: Tensor,
        context: Tensor | None = None,
        temperature: float | Tensor = 1.0,
    ) -> Tensor:
        r"""The images that uniform numbers stand for, one pixel after another.

        Each pixel takes the time that it takes in one pass over the image, as what it needs of
        earlier ones is remembered. Dropout is off.

        Args:
            uniforms: ``(*batch, H, W, U)`` of :attr:`num_uniforms`.
            context: as of :meth:`log_prob_map`.
            temperature: divides logits and multiplies scales; a number or ``(*batch)``.

        Returns:
            Integers as real numbers, ``(*batch, C, H, W)``.
        """
        inputs, batch = self.decode_inputs(uniforms, context, temperature)
        with _exactly(uniforms):
            images = draw(self, *inputs)
        return images.clone().reshape(*batch, *self.image_shape)

    def decode_inputs(
        self, uniforms: Tensor, context: Tensor | None, temperature: float | Tensor
    ) -> tuple[tuple[Tensor, Tensor | None, Any], torch.Size]:
        """Uniform numbers, features and temperature of :meth:`decode` in one batch; its shape."""
        check_uniforms(uniforms, self.image_shape, self.num_uniforms)
        features, kept = self.features_of(context)
        batch = joint_batch(uniforms.shape[:-3], features, kept)
        if features is not None:
            features = flat(features, batch, kept)
        if isinstance(temperature, Tensor):
            temperature = flat(temperature, batch, 0)
        return (flat(uniforms, batch, 3), features, temperature), batch

    @torch.no_grad()
    def complete(
        self, observed: Tensor, mask: Tensor, context: Tensor | None, num_particles: int
    ) -> tuple[Tensor, Tensor]:
        """Draws the pixels that were not observed, by sequential Monte Carlo.

        Args:
            observed: ``(*batch, C, H, W)``, of which only the observed pixels are read.
            mask: ``(*batch, H, W)``, which are observed; the batches broadcast.
            context: as of :meth:`log_prob_map`.
            num_particles: images for each.

        Returns:
            Images ``(num_particles, *batch, C, H, W)`` and log weights ``(num_particles, *batch)``.
        """
        features, kept = self.features_of(context)
        batch = joint_batch(
            torch.broadcast_shapes(observed.shape[:-3], mask.shape[:-2]), features, kept
        )
        many = (num_particles, *batch)
        if features is not None:
            features = flat(features, many, kept)
        like = self.output.bias
        observed = flat(observed.to(like), many, 3)
        mask = flat(mask, many, 2)
        with _exactly(observed):
            sampler = PixelSampler(self, torch.zeros_like(observed), features)
            images, log_weights = complete(sampler, observed, mask, num_particles)
        return images.clone().reshape(*many, *self.image_shape), log_weights.clone().reshape(many)

    @property
    def num_uniforms(self) -> int:
        """Uniform numbers that a pixel stands for."""
        return self.head.num_uniforms

    def initialize(self, x: Tensor, context: Tensor | None = None) -> "PixelCNNNet":
        """Starts lengths and biases of all layers from images, in the order of layers.

        Args:
            x: integers ``(N, C, H, W)``, some hundreds.
            context: as of :meth:`log_prob_map`.

        Raises:
            ValueError: if the images are all the same, or no integers within the range.
        """
        check_integers(x, self.levels)
        start_layers(self, x, context)
        return self


@contextmanager
def _exactly(like: Tensor) -> Iterator[None]:
    """In the parameters' dtype; and in inference mode, as it is of less work for each product."""
    with torch.autocast(like.device.type, enabled=False), torch.inference_mode():
        yield


def _head(name: str, channels: int, levels: int, num_components: int) -> PixelHead:
    if name == "bernoulli":
        return BernoulliHead(channels)
    if name == "categorical":
        return CategoricalHead(channels, levels)
    return LogisticHead(channels, levels, num_components)
