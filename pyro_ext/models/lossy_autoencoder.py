"""The variational lossy autoencoder."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from pyro_ext.distributions.pixel_cnn import PixelCNN
from pyro_ext.models.autoregressive_flow_prior import AutoregressiveFlowPrior
from pyro_ext.models.image_networks import ImageDecoder, ImageEncoder
from pyro_ext.models.posteriors import DiagonalNormal
from pyro_ext.nn.pixel_cnn import PixelCNNNet


class CodeLength(NamedTuple):
    """Bits of each image, by the two parts of its code, ``(batch)``."""

    latent: Tensor  # of z, after bits back: the divergence from the prior
    pixels: Tensor  # of the image, given z

    @property
    def total(self) -> Tensor:
        """Minus the evidence lower bound."""
        return self.latent + self.pixels


class LossyAutoencoder(PyroModule):
    r"""A latent vector for what the pixels of a window cannot tell.

    .. math::

        z_n \sim p(z), \qquad
        x_n \sim \prod_i p\bigl(x_{ni} \mid x_{n, W(i)}, f_\theta(z_n)_i\bigr), \qquad
        q(z_n \mid x_n) = \mathcal N\bigl(g_\phi(x_n)\bigr)

    A decoder that sees all earlier pixels needs no code; one that sees only a window
    :math:`W(i)` leaves to :math:`z` what reaches further, and paints what is near. So the window
    decides what the code keeps. :meth:`model` and :meth:`guide` are ordinary Pyro programs.

    Args:
        image_shape: :math:`(C, H, W)`, height and width divisible by four.
        levels: pixels are integers below it.
        latent_dim: size of :math:`z`.
        window: ``(A, B)``, see :class:`~pyro_ext.nn.PixelCNNNet`; None: all earlier pixels;
            ``(1, 0)``: none.
        prior: a module that returns :math:`p(z)`; an :class:`AutoregressiveFlowPrior` if not given.
        hidden_channels: of encoder and decoder of :math:`z`.
        map_channels: of the image :math:`f(z)` that pixels see.
        decoder: of the pixels, a net with ``context_channels=map_channels``; if not given one
            with the window, of 32 channels and two blocks.

    Raises:
        ValueError: if an argument is out of its range, or decoder and images do not fit.

    References:
        Chen et al., *Variational Lossy Autoencoder*, arXiv 1611.02731.

    Example:
        >>> vae = LossyAutoencoder((1, 8, 8), levels=2, latent_dim=4, window=(3, 2))
        >>> x = torch.randint(2, (5, 1, 8, 8))
        >>> vae.initialize(x).code_length(x).total.shape
        torch.Size([5])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        levels: int = 2,
        latent_dim: int = 64,
        window: tuple[int, int] | None = (7, 4),
        prior: Callable[[], Distribution] | None = None,
        *,
        hidden_channels: int = 32,
        map_channels: int = 4,
        decoder: PixelCNNNet | None = None,
    ):
        super().__init__()
        if decoder is None:
            decoder = _decoder(image_shape, levels, window, map_channels)
        _check_decoder(decoder, image_shape, levels, map_channels)
        self.image_shape, self.levels = torch.Size(image_shape), levels
        self.prior: Any = AutoregressiveFlowPrior(latent_dim) if prior is None else prior
        self.encoder = ImageEncoder(image_shape, levels, 2 * latent_dim, hidden_channels)
        self.posterior = DiagonalNormal(latent_dim)
        self.painter = ImageDecoder(image_shape, latent_dim, map_channels, hidden_channels)
        self.decoder = decoder

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Samples ``z`` and ``x``, which is observed if given.

        Args:
            x: mini-batch ``(batch, C, H, W)`` of integers; none draws ``size`` images.
            size: number of data that the mini-batch stands for; its own length if not given.
        """
        with self._plate(x, size):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor, *, size: int | None = None) -> Tensor:
        """Samples ``z`` given the mini-batch ``x``."""
        with self._plate(x, size):
            return pyro.sample("z", self.encode(x))

    @pyro_method
    def encode(self, x: Tensor) -> Distribution:
        r"""The variational posterior :math:`q(z \mid x)`."""
        return self.posterior(self.encoder(x))

    @pyro_method
    def decode(self, z: Tensor) -> PixelCNN:
        r"""The likelihood :math:`p(x \mid z)`."""
        return PixelCNN(self.decoder, self.painter(z))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> "LossyAutoencoder":
        """Starts all layers from images, in their order; returns the model."""
        self.encoder.initialize(x)
        z = self.encode(x).sample()
        self.decoder.initialize(x, self.painter.initialize(z))
        return self

    @torch.no_grad()
    def code_length(self, x: Tensor, num_samples: int = 1) -> CodeLength:
        r"""Bits of codes with bits back.

        .. math:: \mathbb E_q \log_2 \frac{q(z \mid x)}{p(z)}, \qquad
            -\mathbb E_q \log_2 p(x \mid z)

        Args:
            x: ``(batch, C, H, W)``.
            num_samples: draws of the posterior, of which the mean is taken.
        """
        q = self.encode(x)
        z = q.sample((num_samples,))
        latent = (q.log_prob(z) - self.prior().log_prob(z)).mean(0)
        pixels = -self.decode(z).log_prob(x).mean(0)
        return CodeLength(latent / math.log(2), pixels / math.log(2))

    def _plate(self, x: Tensor | None, size: int | None) -> Any:
        if x is None:
            return pyro.plate("data", size, dim=-1)
        return pyro.plate("data", len(x) if size is None else size, subsample=x, dim=-1)


def _decoder(image_shape: Sequence[int], levels: int, window: Any, channels: int) -> PixelCNNNet:
    head = "bernoulli" if levels == 2 else "logistic"
    sizes = (5, 32, 2, 2, head, window)
    return PixelCNNNet(image_shape, levels, *sizes, context_channels=channels, dropout=0.0)


def _check_decoder(
    decoder: PixelCNNNet, image_shape: Sequence[int], levels: int, channels: int
) -> None:
    shape = torch.Size(image_shape)
    found = (decoder.image_shape, decoder.levels, decoder.context_channels)
    if found != (shape, levels, channels):
        raise ValueError(
            f"The decoder must be of images {tuple(shape)}, {levels} levels and "
            f"context_channels={channels}, got {tuple(found[0])}, {found[1]} and {found[2]}."
        )
