"""Convolutions that see no later pixel."""

from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_ext.nn.weight_norm_layers import WeightNormConv2d, WeightNormConvTranspose2d

ABOVE, LEFT = (2, 3), (2, 2)  # kernels of the two streams: rows above; and pixels to the left


class CausalConv2d(nn.Module):
    r"""A convolution of a pixel and of what lies above it, or above and to the left.

    The kernel's last row is the pixel's own. With an odd width it reaches to both sides, as in
    the stream of rows; else to the left alone, up to the pixel. What lies outside of the image is
    zero. A stream that is shifted by one row or pixel before sees no present pixel.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: height and width.
        stride: of both.
        init_scale: standard deviation of the outputs of a start from data.

    Example:
        >>> import torch
        >>> layer = CausalConv2d(3, 8, (2, 3))
        >>> layer(torch.zeros(5, 3, 7, 9)).shape
        torch.Size([5, 8, 7, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = LEFT,
        stride: int = 1,
        init_scale: float = 1.0,
    ):
        super().__init__()
        height, width = kernel_size
        side = (width - 1) // 2 if width % 2 else 0
        self.padding = (side or width - 1, side, height - 1, 0)
        sizes = (in_channels, out_channels, kernel_size)
        self.conv = WeightNormConv2d(*sizes, stride, init_scale=init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Convolved; with a stride of two, at every second row and column from the first."""
        return self.conv(pad(x, self.padding))


class CausalConvTranspose2d(nn.Module):
    """Doubles height and width: each pixel makes the 2x2 block that begins at its place.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: ``(2, 3)`` or ``(2, 2)``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int] = LEFT):
        super().__init__()
        self.side = (kernel_size[1] - 1) // 2 if kernel_size[1] % 2 else 0
        self.conv = WeightNormConvTranspose2d(in_channels, out_channels, kernel_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', 2 * H, 2 * W)``."""
        width = 2 * x.shape[-1]
        return self.conv(x)[..., self.side : self.side + width]


def shift_down(x: Tensor) -> Tensor:
    """Moves all rows down by one; the first is zero."""
    return pad(x, (0, 0, 1, 0))[..., :-1, :]


def shift_right(x: Tensor) -> Tensor:
    """Moves all columns to the right by one; the first is zero."""
    return pad(x, (1, 0))[..., :-1]
