"""The latents that a multi-scale flow leaves behind at a level."""

import torch
from torch import Tensor, nn

from pyro_ext.nn.zero_conv import ZeroConv2d
from pyro_ext.ops.soft_bound import soft_bound


class GaussianSplit(nn.Module):
    r"""Standardises half of the channels by a Normal law that the other half predicts.

    .. math::

        (\mu, \lambda) = \mathrm{conv}(z_1), \qquad \epsilon = (z_2 - \mu) e^{-\lambda}, \qquad
        \log \Bigl\lvert \frac{\partial \epsilon}{\partial z_2} \Bigr\rvert = -\sum_i \lambda_i

    So the learned prior :math:`\mathcal N(z_2; \mu, e^{\lambda})` of a level is a part of the
    transform, and the flow's base is standard Normal throughout. Starts at
    :math:`\epsilon = z_2`.

    Args:
        num_channels: :math:`C`, even; the first half is kept.
        bound: :math:`c`, so that the convolution sees :math:`c \tanh(z_1 / c)`; none if None.
        edge_bias: whether the convolution knows the edge of the image.

    References:
        Kingma and Dhariwal, *Glow*, arXiv 1807.03039, as in the published code, but for the bound.

    Example:
        >>> layer = GaussianSplit(12)
        >>> kept, eps, log_det = layer.encode(torch.randn(5, 12, 8, 8))
        >>> kept.shape, eps.shape, layer.decode(kept, eps)[0].shape
        (torch.Size([5, 6, 8, 8]), torch.Size([5, 6, 8, 8]), torch.Size([5, 12, 8, 8]))
    """

    def __init__(self, num_channels: int, bound: float | None = None, edge_bias: bool = False):
        super().__init__()
        self.bound = bound
        self.prior = ZeroConv2d(num_channels // 2, num_channels, edge_bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`encode`."""
        return self.encode(x)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps ``(N, C, H, W)`` to the kept half, the latents and the log determinant ``(N,)``."""
        kept, left = x.chunk(2, 1)
        loc, log_scale = self._law(kept)
        return kept, (left - loc) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)

    def decode(self, kept: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Joins the kept half and the latents, with the log determinant of this direction."""
        loc, log_scale = self._law(kept)
        x = torch.cat([kept, loc + log_scale.exp() * eps], 1)
        return x, log_scale.flatten(1).sum(1)

    def _law(self, kept: Tensor) -> tuple[Tensor, ...]:
        return self.prior(soft_bound(kept, self.bound)).chunk(2, 1)
