"""Activation normalisation."""

import torch
from torch import Tensor, nn

from pyro_ext.nn.channel_statistics import channel_statistics

LOG_SCALE_FACTOR = 3.0


class ActNorm(nn.Module):
    r"""An affine map of each channel, which starts by standardising a batch of data.

    .. math::

        z_c = (x_c + b_c) e^{3 s_c}, \qquad
        \log \Bigl\lvert \frac{\partial z}{\partial x} \Bigr\rvert = H W \sum_c 3 s_c

    The factor of three speeds up the learning of scales, as published. Until
    :meth:`initialize` is called this is the identity.

    Args:
        num_channels: :math:`C`.

    Attributes:
        bias: :math:`b`, ``(C,)``.
        log_scale: :math:`s`, ``(C,)``.

    References:
        Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*,
        arXiv 1807.03039; the factor and the order of addition are those of the published code.

    Example:
        >>> x = 5 + 3 * torch.randn(64, 2, 8, 8)
        >>> layer = ActNorm(2)
        >>> z = layer.initialize(x)
        >>> torch.allclose(z.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
        True
        >>> z, log_det = layer.encode(x)
        >>> z.shape, log_det.shape, torch.allclose(layer.decode(z)[0], x, atol=1e-4)
        (torch.Size([64, 2, 8, 8]), torch.Size([64]), True)
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`encode`."""
        return self.encode(x)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``x``, ``(N, C, H, W)``, to :math:`z` and the log determinant, ``(N,)``."""
        return (x + _channels(self.bias)) * _channels(self.scale()), self._log_det(x)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``z`` back, with the log determinant of this direction."""
        return z / _channels(self.scale()) - _channels(self.bias), -self._log_det(z)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Standardises the channels of ``x``, which it returns mapped.

        Raises:
            ValueError: if a channel is constant or has one value only.
        """
        mean, std = channel_statistics(x, "ActNorm")
        self.bias.copy_(-mean)
        self.log_scale.copy_(-std.log() / LOG_SCALE_FACTOR)
        return self.encode(x)[0]

    @torch.no_grad()
    def reset(self) -> None:
        """Makes this the identity again."""
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.log_scale)

    def scale(self) -> Tensor:
        """:math:`e^{3 s}`, ``(C,)``."""
        return (LOG_SCALE_FACTOR * self.log_scale).exp()

    def _log_det(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        return (LOG_SCALE_FACTOR * height * width * self.log_scale.sum()).expand(len(x))


def _channels(x: Tensor) -> Tensor:
    return x[:, None, None]
