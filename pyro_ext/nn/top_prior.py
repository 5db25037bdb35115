"""The law of a flow's last latents."""

import torch
from torch import Tensor, nn


class TopPrior(nn.Module):
    r"""Standardises the channels by a Normal law of their own, which may depend on a context.

    .. math::

        (\mu, \lambda) = b + V u, \qquad \epsilon_{hw} = (z_{hw} - \mu) e^{-\lambda}, \qquad
        \log \Bigl\lvert \frac{\partial \epsilon}{\partial z} \Bigr\rvert = -H W \sum_c \lambda_c

    Starts at :math:`\epsilon = z`.

    Args:
        num_channels: :math:`C`.
        context_dim: numbers in :math:`u`; none if it is zero.

    Example:
        >>> layer = TopPrior(48, context_dim=10)
        >>> z, u = torch.randn(5, 48, 4, 4), torch.randn(3, 1, 10)
        >>> eps, log_det = layer.encode(z, u)
        >>> eps.shape, log_det.shape
        (torch.Size([3, 5, 48, 4, 4]), torch.Size([3, 1]))
    """

    def __init__(self, num_channels: int, context_dim: int = 0):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2 * num_channels))
        self.context = nn.Linear(context_dim, 2 * num_channels, bias=False) if context_dim else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`encode`."""
        return self.encode(z, context)

    def encode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps ``(*batch, C, H, W)``, given ``(*context_batch, U)``, to the latents.

        Returns:
            Latents over the broadcast batch, and the log determinant over the context's.
        """
        loc, log_scale = self._law(context)
        return (z - loc) * (-log_scale).exp(), -self._log_det(z, log_scale)

    def decode(self, eps: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latents back, with the log determinant of this direction."""
        loc, log_scale = self._law(context)
        return loc + log_scale.exp() * eps, self._log_det(eps, log_scale)

    def _law(self, context: Tensor | None) -> tuple[Tensor, ...]:
        law = self.bias
        if self.context is not None and context is not None:
            law = law + self.context(context)
        return law[..., None, None].chunk(2, -3)

    def _log_det(self, z: Tensor, log_scale: Tensor) -> Tensor:
        return z.shape[-2] * z.shape[-1] * log_scale.sum((-3, -2, -1))
