"""Energy functions as networks."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class EnergyNet(nn.Module):
    r"""A multilayer perceptron :math:`U(x)` that maps events to energies.

    .. math:: U(x) = f_L(\dots \sigma(f_1(x - c)) \dots), \qquad p(x) \propto e^{-U(x)} \pi(x)

    with affine layers :math:`f_l`, whose weights start Glorot-uniform and whose biases start at
    zero, and an output that is not bounded.

    Args:
        event_shape: shape of one event; an integer stands for a vector.
        hidden_dims: widths of the hidden layers; none makes the energy affine.
        activation: builds :math:`\sigma`. Smooth ones suit samplers that use the energy's gradient.
        center: :math:`c`, subtracted from each event, usually the data's mean.

    Shape:
        ``(..., *event_shape) -> (...)``, in nats.

    Raises:
        ValueError: if a size is not positive, or if ``center`` or, later, a value does not have
            the event shape.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265: the published code's energies.

    Example:
        >>> energy = EnergyNet(2, hidden_dims=(20, 20))
        >>> energy(torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_dims: Sequence[int] = (100, 100),
        activation: Callable[[], nn.Module] = nn.Tanh,
        center: Tensor | None = None,
    ):
        super().__init__()
        self.event_shape = torch.Size(
            [event_shape] if isinstance(event_shape, int) else event_shape
        )
        dims = [math.prod(self.event_shape), *hidden_dims, 1]
        if min(dims) < 1:
            raise ValueError(f"EnergyNet needs positive sizes, got layers of {dims}.")
        self.layers = nn.Sequential(*_alternate(dims, activation))
        self.center: Tensor | None
        self.register_buffer("center", _check_center(center, self.event_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Energies of events, over any dimensions to their left."""
        batch_shape = x.shape[: x.dim() - len(self.event_shape)]
        if x.shape != batch_shape + self.event_shape:
            raise ValueError(
                f"EnergyNet takes events of shape {tuple(self.event_shape)}, got values of shape "
                f"{tuple(x.shape)}."
            )
        x = x if self.center is None else x - self.center
        return self.layers(x.reshape(*batch_shape, -1)).squeeze(-1)


def _alternate(dims: list[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(dims):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return layers[:-1]


def _check_center(center: Tensor | None, event_shape: torch.Size) -> Tensor | None:
    if center is None:
        return None
    if not isinstance(center, Tensor) or center.shape != event_shape:
        shape = tuple(center.shape) if isinstance(center, Tensor) else type(center)
        raise ValueError(
            f"EnergyNet's center has shape {shape}, expected a tensor of the event shape "
            f"{tuple(event_shape)}."
        )
    return center
