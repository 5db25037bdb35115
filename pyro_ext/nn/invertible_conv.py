"""Learned permutations of channels."""

import torch
from torch import Tensor, nn

from pyro_ext.ops.invertible_matrix import LU, PLAIN, rotation


class InvertibleConv1x1(nn.Module):
    r"""An invertible 1x1 convolution, which mixes the channels of each pixel.

    .. math::

        z_{hw} = W x_{hw}, \qquad W = L U, \qquad
        \log \Bigl\lvert \frac{\partial z}{\partial x} \Bigr\rvert = H W \sum_c \log U_{cc}

    Starts as a random rotation. :math:`L` is unit lower triangular, :math:`\operatorname{diag} U`
    positive: a rotation with its rows permuted and flipped has such factors, so that no
    permutation and no signs need to be kept. All is in one parameter, and no buffer can be lost.
    The inverse is computed in float64, whatever the parameter's dtype.

    Args:
        num_channels: :math:`C`.
        lu: whether :math:`W` is made of its factors; otherwise it is the parameter itself, and
            each call computes its determinant, in float64.

    Attributes:
        matrix: the parameter ``(C, C)``. With ``lu``, :math:`L` below the diagonal, :math:`U`
            above it and :math:`\log U_{cc}` on it.

    References:
        Kingma and Dhariwal, *Glow*, arXiv 1807.03039.

    Example:
        >>> layer = InvertibleConv1x1(12)
        >>> x = torch.randn(5, 12, 8, 8)
        >>> z, log_det = layer.encode(x)
        >>> torch.allclose(layer.decode(z)[0], x, atol=1e-5), bool(log_det.abs().max() < 1e-3)
        (True, True)
    """

    def __init__(self, num_channels: int, lu: bool = True):
        super().__init__()
        self.form = LU if lu else PLAIN
        start = self.form.start(rotation(num_channels))
        self.matrix = nn.Parameter(start.to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`encode`."""
        return self.encode(x)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``x``, ``(N, C, H, W)``, to :math:`z` and the log determinant, ``(N,)``."""
        return mix_channels(x, self.weight()), self._log_det(x)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``z`` back, with the log determinant of this direction."""
        return mix_channels(z, self.form.invert(self.matrix)), -self._log_det(z)

    def initialize(self, x: Tensor) -> Tensor:
        """Mixes ``x``; needs no data."""
        return self.encode(x)[0]

    def weight(self) -> Tensor:
        """:math:`W`, ``(C, C)``."""
        return self.form.compose(self.matrix)

    def _log_det(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        return (height * width * self.form.log_abs_det(self.matrix)).expand(len(x))


def mix_channels(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiplies the channels of ``(N, C, H, W)`` by a matrix; the result is channels-last."""
    if not x.numel():
        return x  # of which torch's product makes an error
    return nn.functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
