"""Energy functions of images."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_ext.nn.energy_parts import Norm, check_center, check_sizes, split_shape, start


class ConvEnergyNet(nn.Module):
    r"""A convolutional network :math:`U(x)` that maps images to energies.

    .. math::

        h_0 = x - c, \qquad h_l = \sigma(\mathrm{conv}_l(h_{l-1})), \qquad
        U(x) = w^\top \mathrm{flatten}(h_L) + b, \qquad p(x) \propto e^{-U(x)} \pi(x)

    Kernels are 4 by 4, each layer halves height and width (rounded up, padded with zeros as
    TensorFlow's ``SAME``), weights start Glorot-uniform and biases at zero. The output is not
    bounded. With three layers of 32 channels this is the published energy, but for :math:`\sigma`:
    that is ReLU there, whose second derivative vanishes, so that a sampler that follows the
    energy's gradient (:class:`~pyro_ext.distributions.HamiltonianSampler`) would not learn from
    its curvature. The default is its smooth neighbour; pass ``torch.nn.ReLU`` for the published
    one with the other samplers.

    A ``norm`` holds the convolutions down and leaves the output layer free, as in
    :class:`EnergyNet`, which says what it costs. Of a convolution,
    :func:`torch.nn.utils.parametrizations.spectral_norm` normalises the kernel as a matrix, and
    since a pixel lies in up to four windows the layer is then 2-Lipschitz.

    Args:
        event_shape: shape :math:`(C, H, W)` of an image.
        hidden_channels: channels of the convolutions, one or more.
        activation: builds :math:`\sigma`.
        center: :math:`c`, subtracted from each image, usually the data's mean; copied.
        norm: maps each convolution to a module with the same forward.

    Shape:
        ``(..., C, H, W) -> (...)``, in nats.

    Raises:
        ValueError: if the event shape has not three sizes, a size is not positive, or there is no
            convolution; if ``center`` or, later, a value does not have the event shape; if
            ``norm`` returns no module.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265: the published code's energies.

    Example:
        >>> data = torch.rand(6, 1, 28, 28)
        >>> energy = ConvEnergyNet((1, 28, 28), center=data.mean(0))
        >>> energy(data).shape, energy(data.reshape(3, 2, 1, 28, 28)).shape
        (torch.Size([6]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_channels: Sequence[int] = (32, 32, 32),
        activation: Callable[[], nn.Module] = nn.SiLU,
        center: Tensor | None = None,
        norm: Norm | None = None,
    ):
        super().__init__()
        self.event_shape = _check_image(event_shape)
        hidden_channels = check_sizes(hidden_channels, "hidden_channels")
        if not hidden_channels:
            raise ValueError("ConvEnergyNet needs a convolution, but hidden_channels is empty.")
        self.layers = nn.Sequential(
            *_halve(self.event_shape, hidden_channels, activation, norm),
            nn.Flatten(),
            start(nn.Linear(_num_features(self.event_shape, hidden_channels), 1)),
        )
        self.center: Tensor | None
        self.register_buffer("center", check_center(center, self.event_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Energies of images, over any dimensions to their left."""
        batch_shape = split_shape(x, self.event_shape)
        x = x if self.center is None else x - self.center
        return self.layers(x.reshape(batch_shape.numel(), *self.event_shape)).reshape(batch_shape)


def _halve(
    event_shape: torch.Size,
    hidden_channels: list[int],
    activation: Callable[[], nn.Module],
    norm: Norm | None,
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels, height, width = event_shape
    for fan_in, fan_out in pairwise([channels, *hidden_channels]):
        layers += _same_padding(height, width)
        layers += [start(nn.Conv2d(fan_in, fan_out, 4, stride=2, padding=1), norm), activation()]
        height, width = (height + 1) // 2, (width + 1) // 2
    return layers


def _same_padding(height: int, width: int) -> list[nn.Module]:
    """What padding by one on each side lacks: at odd sizes one more row or column at the end."""
    odd = (0, width % 2, 0, height % 2)
    return [nn.ZeroPad2d(odd)] if any(odd) else []


def _num_features(event_shape: torch.Size, hidden_channels: list[int]) -> int:
    shrink = 2 ** len(hidden_channels)
    _, height, width = event_shape
    return hidden_channels[-1] * math.ceil(height / shrink) * math.ceil(width / shrink)


def _check_image(event_shape: Sequence[int]) -> torch.Size:
    if isinstance(event_shape, int) or len(event_shape) != 3:
        raise ValueError(
            f"ConvEnergyNet takes images of shape (C, H, W), got event_shape={event_shape!r}. "
            "A single channel needs its dimension too: (1, H, W)."
        )
    return torch.Size(check_sizes(event_shape, "event_shape"))
