"""Priors over latent vectors: modules that own parameters and return a distribution when called."""

from collections.abc import Sequence

import torch
from pyro.distributions import Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.nn.energy import EnergyNet


class StandardNormalPrior(nn.Module):
    """The fixed prior ``Normal(0, I)``; its buffer follows the device and dtype of the model."""

    loc: torch.Tensor

    def __init__(self, latent_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        """The distribution, with event shape ``(latent_dim,)``."""
        return Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class EnergyInspiredPrior(nn.Module):
    r"""A standard normal reshaped by a learned energy, normalised by its own sampler.

    .. math:: p(z) = \mathrm{SNIS}(\mathcal{N}(0, I), U_\theta, K)

    where :math:`U_\theta` is an :class:`~pyro_ext.nn.EnergyNet` and SNIS is
    :class:`~pyro_ext.distributions.SelfNormalizedImportance`. Its ``log_prob`` is a stochastic
    lower bound, so that an evidence lower bound with this prior stays one.

    Args:
        latent_dim: size of the latent vector :math:`z`.
        hidden_dims: widths of the energy's hidden layers.
        num_proposals: :math:`K`, candidates per draw and per density evaluation.

    Raises:
        ValueError: if a size is not positive.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265.

    Example:
        >>> prior = EnergyInspiredPrior(latent_dim=2, num_proposals=64)
        >>> prior().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, latent_dim: int, hidden_dims: Sequence[int] = (100, 100), num_proposals: int = 1024
    ):
        super().__init__()
        self.energy = EnergyNet(latent_dim, hidden_dims)
        self.proposal = StandardNormalPrior(latent_dim)
        self.num_proposals = num_proposals
        self()  # refuses a bad num_proposals here and now

    def forward(self) -> SelfNormalizedImportance:
        """The distribution, with event shape ``(latent_dim,)``."""
        return SelfNormalizedImportance(self.proposal(), self.energy, self.num_proposals)
