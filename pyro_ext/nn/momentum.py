"""Networks that guess a momentum from a position."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_ext.nn.energy_parts import check_sizes, split_shape
from pyro_ext.nn.perceptron import perceptron, positive


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
        self.layers = perceptron(dims, activation)
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale for events, over any dimensions to their left."""
        batch_shape = split_shape(x, self.event_shape, "MomentumNet")
        loc, raw = self.layers(x.reshape(*batch_shape, self.event_shape.numel())).chunk(2, -1)
        return loc.reshape(x.shape), positive(raw).reshape(x.shape)
