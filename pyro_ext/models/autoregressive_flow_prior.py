"""An autoregressive flow as a prior over latent vectors."""

from collections.abc import Sequence
from typing import Any

from pyro.distributions import TransformedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from pyro_ext.distributions.autoregressive_shift import AutoregressiveShift
from pyro_ext.models.priors import StandardNormalPrior
from pyro_ext.ops.counts import count


class AutoregressiveFlowPrior(nn.Module):
    r"""A standard normal moved by autoregressive shifts, each in the other order of coordinates.

    .. math:: p(z) = \mathcal N(\epsilon; 0, I), \qquad z = f_T \circ \dots \circ f_1(\epsilon)

    With :math:`q(z \mid x)` as a posterior, the bound is that of the plain prior
    with :math:`f^{-1}(z)` of the posterior, an inverse autoregressive flow; at the same cost the
    generator is deeper. The density takes one pass of each network, a draw one for each coordinate.

    Args:
        latent_dim: :math:`D \ge 2`, size of :math:`z`.
        num_transforms: :math:`T`.
        hidden_dims: widths of each network's hidden layers, at least ``latent_dim``.

    Raises:
        ValueError: if a size is too small.

    References:
        Chen et al., *Variational Lossy Autoencoder*, arXiv 1611.02731, equations 12 to 14.

    Example:
        >>> prior = AutoregressiveFlowPrior(4, num_transforms=2)
        >>> prior().log_prob(prior().sample((5,))).shape
        torch.Size([5])
    """

    def __init__(
        self, latent_dim: int, num_transforms: int = 4, hidden_dims: Sequence[int] | None = None
    ):
        super().__init__()
        self.base = StandardNormalPrior(latent_dim)
        self.transforms: Any = nn.ModuleList(
            AutoregressiveShift(latent_dim, hidden_dims, reverse=k % 2 == 1)
            for k in range(count(num_transforms, "num_transforms"))
        )

    def forward(self) -> Distribution:
        """The distribution, with event shape ``(latent_dim,)``."""
        return TransformedDistribution(self.base(), list(self.transforms))
