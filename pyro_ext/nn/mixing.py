"""Networks of semi-implicit distributions: from noise to locations, and back to the noise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_ext.nn.energy_parts import check_sizes
from pyro_ext.nn.perceptron import perceptron, positive

Activation = Callable[[], nn.Module]


class MixingNet(nn.Module):
    r"""A multilayer perceptron :math:`\psi(\epsilon)` from noise to locations.

    Weights start Glorot-uniform, those of the last layer multiplied by ``gain``.

    Args:
        noise_dim: size of :math:`\epsilon`.
        output_dim: size of :math:`\psi`.
        hidden_dims: widths of the hidden layers; none makes the map affine.
        gain: how far locations spread at first.
        activation: builds the activations.

    Shape:
        ``(..., noise_dim) -> (..., output_dim)``.

    Raises:
        ValueError: if a size is not positive.

    Example:
        >>> MixingNet(3, 2, (20,))(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        noise_dim: int,
        output_dim: int,
        hidden_dims: Sequence[int] = (50, 50),
        gain: float = 1.0,
        activation: Activation = nn.Tanh,
    ):
        super().__init__()
        self.layers = perceptron(_sizes(noise_dim, hidden_dims, output_dim), activation)
        with torch.no_grad():
            self.layers[-1].weight.mul_(gain)  # type: ignore[operator]

    def forward(self, noise: Tensor) -> Tensor:
        """Locations."""
        return self.layers(noise)


class ReverseNet(nn.Module):
    r"""A multilayer perceptron from values to diagonal normals of the noise behind them.

    .. math::

        r(\epsilon \mid z) = \mathcal{N}\bigl(\epsilon; \mu(z), \operatorname{diag} \sigma(z)^2
        \bigr), \qquad \sigma = 10^{-5} + \mathrm{softplus}(s)

    It starts as :math:`\mathcal{N}(0, I)`, whatever the value.

    Args:
        input_dim: size of :math:`z`.
        noise_dim: size of :math:`\epsilon`.
        hidden_dims: widths of the hidden layers; none makes location and :math:`s` affine.
        activation: builds the activations.

    Shape:
        ``(..., input_dim) -> (..., noise_dim), (..., noise_dim)``: location and scale.

    Raises:
        ValueError: if a size is not positive.

    Example:
        >>> loc, scale = ReverseNet(2, 3, (20,))(torch.zeros(5, 2))
        >>> loc.shape, scale.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        input_dim: int,
        noise_dim: int,
        hidden_dims: Sequence[int] = (50, 50),
        activation: Activation = nn.Tanh,
    ):
        super().__init__()
        self.layers = perceptron(_sizes(input_dim, hidden_dims, 2 * noise_dim), activation)
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale."""
        loc, raw = self.layers(x).chunk(2, -1)
        return loc, positive(raw)


def _sizes(input_dim: int, hidden_dims: Sequence[int], output_dim: int) -> list[int]:
    return check_sizes([input_dim, *check_sizes(hidden_dims, "hidden_dims"), output_dim], "sizes")
