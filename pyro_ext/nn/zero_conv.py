"""A convolution that starts at zero."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from pyro_ext.nn.act_norm import LOG_SCALE_FACTOR


class ZeroConv2d(nn.Module):
    r"""A 3x3 convolution whose output starts at zero and grows by a learned scale.

    .. math:: y_k = (w_k * x + v_k * e + b_k) e^{3 s_k}, \qquad w, v, b, s = 0 \text{ at first}

    where :math:`e` is one in the padding around the image and zero inside, so that the layer knows
    the edge.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        edge_bias: whether there is a :math:`v`.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H, W)``, in the dtype of the input.

    References:
        Kingma and Dhariwal, *Glow*, arXiv 1807.03039, as in the published code.

    Example:
        >>> bool(ZeroConv2d(3, 4)(torch.randn(2, 3, 8, 8)).any())
        False
    """

    def __init__(self, in_channels: int, out_channels: int, edge_bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.log_scale = nn.Parameter(torch.zeros(out_channels))
        self.edge = edge_weights(out_channels) if edge_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolved and scaled."""
        scale = (LOG_SCALE_FACTOR * self.log_scale).exp()
        return scaled_conv(x, self.weight, scale, self.bias, self.edge)


def edge_weights(out_channels: int) -> nn.Parameter:
    """Weights of the edge, ``(out_channels, 1, 3, 3)``, that start at zero."""
    return nn.Parameter(torch.zeros(out_channels, 1, 3, 3))


def scaled_conv(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, edge: Tensor | None = None
) -> Tensor:
    """Convolves, adds the biases and scales the channels, at the cost of the convolution alone."""
    weight = (weight * scale[:, None, None, None]).to(x.dtype)
    y = conv2d(x, weight, (bias * scale).to(x.dtype), padding="same")
    return y if edge is None else y + _edge_map(edge, scale, x)


def _edge_map(edge: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """What the padding adds to each pixel, ``(1, out_channels, H, W)``."""
    inside = edge.new_zeros(1, 1, *x.shape[-2:])
    return conv2d(pad(inside, (1, 1, 1, 1), value=1.0), edge * scale[:, None, None, None]).to(
        x.dtype
    )
