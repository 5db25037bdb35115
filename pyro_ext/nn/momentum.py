"""Networks that guess a momentum from a position."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_ext.nn.energy_parts import check_sizes, start

MIN_SCALE = 1e-5
UNIT_RAW_SCALE = math.log(math.expm1(1 - MIN_SCALE))  # whose softplus completes a scale of one


class MomentumNet(nn.Module):
    r"""A multilayer perceptron that maps events to diagonal normals of the events' shape.

    .. math::

        r(\rho \mid x) = \mathcal{N}\bigl(\rho; \mu(x), \operatorname{diag} \sigma(x)^2\bigr),
        \qquad \sigma = 10^{-5} + \mathrm{softplus}(s)

    with :math:`(\mu, s)` the output of affine layers and activations between them. Weights start
    Glorot-uniform, those of the last layer at zero, so that it starts as :math:`\mathcal{N}(0, I)`.

    Args:
        event_shape: shape of one event; an integer stands for a vector.
        hidden_dims: widths of the hidden layers; none makes location and :math:`s` affine.
        activation: builds the activations. It should be smooth where the position is trained.

    Shape:
        ``(..., *event_shape) -> (..., *event_shape), (..., *event_shape)``: location and scale.

    Raises:
        ValueError: if a size is not positive, or, later, if a value does not have the event shape.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265: the published code's reverse
        momentum, whose scale is bounded by :math:`10^{-5}` with a maximum instead of a sum.

    Example:
        >>> net = MomentumNet(2, hidden_dims=(20, 20))
        >>> loc, scale = net(torch.zeros(5, 2))
        >>> loc.shape, scale[0]
        (torch.Size([5, 2]), tensor([1., 1.], grad_fn=<SelectBackward0>))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_dims: Sequence[int] = (100, 100),
        activation: Callable[[], nn.Module] = nn.Tanh,
    ):
        super().__init__()
        self.event_shape = torch.Size(check_sizes(event_shape, "event_shape"))
        size = self.event_shape.numel()
        dims = [size, *check_sizes(hidden_dims, "hidden_dims"), 2 * size]
        self.layers = nn.Sequential(*_alternate(dims, activation))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale for events, over any dimensions to their left."""
        batch_shape = x.shape[: x.dim() - len(self.event_shape)]
        if x.shape != batch_shape + self.event_shape:
            raise ValueError(
                f"MomentumNet takes events of shape {tuple(self.event_shape)}, got values of "
                f"shape {tuple(x.shape)}."
            )
        loc, raw = self.layers(x.reshape(*batch_shape, self.event_shape.numel())).chunk(2, -1)
        scale = MIN_SCALE + softplus(raw + UNIT_RAW_SCALE)
        return loc.reshape(x.shape), scale.reshape(x.shape)


def _alternate(dims: list[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(dims):
        layers += [start(nn.Linear(fan_in, fan_out)), activation()]
    return layers[:-1]
