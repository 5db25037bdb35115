"""Priors over latent vectors: modules that own parameters and return a distribution when called."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from pyro_ext.distributions.importance_sampler import ImportanceSampler
from pyro_ext.distributions.proposals import tightened
from pyro_ext.nn.energy import EnergyNet
from pyro_ext.ops.counts import count


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
    r"""A standard normal reshaped by a learned sampler, which also normalises it.

    .. math:: p(z) = \mathrm{sampler}_\theta\bigl(\mathcal{N}(0, I)\bigr)

    Its ``log_prob`` is a stochastic lower bound, so that an evidence lower bound with this prior
    stays one; only the learned accept/reject sampler gives no bound while it is trained.

    Args:
        latent_dim: size of the latent vector :math:`z`.
        hidden_dims: widths of the energy's hidden layers, if no sampler is given.
        num_proposals: :math:`K`, candidates per draw and per density evaluation, if no sampler is
            given.
        sampler: a module that owns the parameters and maps a proposal to a distribution:
            :class:`~pyro_ext.distributions.ImportanceSampler` (the default, with an
            :class:`~pyro_ext.nn.EnergyNet`),
            :class:`~pyro_ext.distributions.TruncatedRejectionSampler`,
            :class:`~pyro_ext.distributions.HamiltonianSampler`,
            :class:`~pyro_ext.distributions.LearnedAcceptRejectSampler`.

    Raises:
        ValueError: if a size is not positive, or the sampler's events are no vectors of
            ``latent_dim``.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265.

    Example:
        >>> prior = EnergyInspiredPrior(latent_dim=2, num_proposals=64)
        >>> prior().sample((3,)).shape
        torch.Size([3, 2])
        >>> from pyro_ext.distributions import HamiltonianSampler
        >>> prior = EnergyInspiredPrior(2, sampler=HamiltonianSampler(EnergyNet(2, (20, 20))))
        >>> prior().rsample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dims: Sequence[int] = (100, 100),
        num_proposals: int = 1024,
        *,
        sampler: Callable[[Distribution], Distribution] | None = None,
    ):
        super().__init__()
        if sampler is None:
            sampler = ImportanceSampler(EnergyNet(latent_dim, hidden_dims), num_proposals)
        self.proposal = StandardNormalPrior(latent_dim)
        self.sampler = sampler
        self.num_weights = 1
        self._check(latent_dim)

    def forward(self) -> Distribution:
        """The distribution, with event shape ``(latent_dim,)``."""
        made = self.sampler(self.proposal())
        return made if self.num_weights == 1 else tightened(made, self.num_weights)

    def tight(self, num: int) -> "EnergyInspiredPrior":
        """A module whose density averages ``num`` weights, for evaluation; it shares parameters.

        Args:
            num: at least one.

        Raises:
            ValueError: if ``num < 1``.

        Example:
            >>> prior = EnergyInspiredPrior(latent_dim=2, num_proposals=64)
            >>> prior.tight(10)().log_prob(torch.zeros(5, 2)).shape
            torch.Size([5])
        """
        new = copy.copy(self)
        new.num_weights = count(num, "num")
        return new

    def _check(self, latent_dim: int) -> None:
        is_made = callable(self.sampler) and not isinstance(self.sampler, type)
        made: Any = self() if is_made else None
        if not isinstance(made, Distribution) or made.shape() != (latent_dim,):
            raise ValueError(
                f"sampler must map a proposal over vectors of size {latent_dim} to a distribution "
                f"over such vectors, but {self.sampler!r} returned {made!r}. Pass a module such as "
                f"ImportanceSampler(EnergyNet({latent_dim}))."
            )
