"""The network of a coupling layer."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.act_norm import ActNorm
from pyro_ext.nn.zero_conv import ZeroConv2d, edge_weights, scaled_conv
from pyro_ext.ops.soft_bound import soft_bound

_START = 0.05


class CouplingNet(nn.Module):
    r"""Three convolutions, 3x3, 1x1 and 3x3, whose output starts at zero.

    .. math::

        h_1 = \mathrm{relu}(n_1(w_1 * \tilde x) + V u), \qquad
        h_2 = \mathrm{relu}(n_2(w_2 * h_1)), \qquad
        y = \mathrm{conv}(h_2), \qquad \tilde x = c \tanh(x / c)

    with an :class:`ActNorm` :math:`n` behind each hidden convolution, folded into its weights, and
    a :class:`ZeroConv2d` at the end. The bound :math:`c` of the input keeps the outputs bounded
    wherever a flow's inverse may lead.

    Args:
        in_channels: channels of :math:`x`.
        out_channels: channels of :math:`y`.
        width: channels of :math:`h`.
        bound: :math:`c`; none if it is None.
        context_dim: numbers in :math:`u`; none if it is zero. :math:`V` starts at zero.
        edge_bias: whether the 3x3 convolutions know the edge, see :class:`ZeroConv2d`.
        compute_dtype: dtype of activations, that of the parameters if None.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H, W)``, in the dtype of the parameters.

    References:
        Kingma and Dhariwal, *Glow*, arXiv 1807.03039, as in the published code, but for the bound
        and the context.

    Example:
        >>> net = CouplingNet(6, 12, width=32, bound=4.0)
        >>> net(torch.randn(2, 6, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        bound: float | None = None,
        context_dim: int = 0,
        edge_bias: bool = False,
        compute_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.bound = bound
        self.compute_dtype = compute_dtype
        self.weights = nn.ParameterList(
            [
                nn.init.normal_(torch.empty(width, in_channels, 3, 3), std=_START),
                nn.init.normal_(torch.empty(width, width, 1, 1), std=_START),
            ]
        )
        self.norms: Any = nn.ModuleList([ActNorm(width), ActNorm(width)])
        self.edge = edge_weights(width) if edge_bias else None
        self.output = ZeroConv2d(width, out_channels, edge_bias)
        self.context = nn.Linear(context_dim, width, bias=False) if context_dim else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Outputs given the kept channels."""
        h = soft_bound(x, self.bound).to(self.compute_dtype or x.dtype)
        first, second = self.norms
        h = scaled_conv(h, self.weights[0], first.scale(), first.bias, self.edge)
        if self.context is not None and context is not None:
            h = h + self.context(context).to(h.dtype)[:, :, None, None]
        h = scaled_conv(h.relu_(), self.weights[1], second.scale(), second.bias)
        return self.output(h.relu_()).to(x.dtype)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Starts the norms so that hidden channels of ``x`` are standardised before the ReLU."""
        h = soft_bound(x, self.bound)
        for weight, norm in zip(self.weights, self.norms, strict=True):
            h = norm.initialize(nn.functional.conv2d(h, weight, padding="same")).relu_()
