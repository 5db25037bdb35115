"""An energy that reshapes proposals by self-normalised importance sampling."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext.distributions.proposal_gradients import ProposalGradient, reparameterized
from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.ops.counts import count


class ImportanceSampler(nn.Module):
    r"""Owns an energy, and reshapes the proposals that it is called with.

    .. math:: \pi \mapsto \mathrm{SNIS}(\pi, U_\theta, K)

    The result is a :class:`SelfNormalizedImportance`, built anew at each call: a prior if
    :math:`\pi` is one, a likelihood if :math:`\pi` is a decoder's, a posterior in
    :class:`~pyro_ext.infer.AutoEnergyInspired`.

    Args:
        energy: :math:`U_\theta`, a module from events to energies in nats, such as
            :class:`~pyro_ext.nn.EnergyNet`; any callable will do, but only modules are trained.
        num_proposals: :math:`K \ge 1`, candidates per draw and per density evaluation.
        share_proposals: as in :class:`SelfNormalizedImportance`.
        proposal_gradient: the same; :func:`leave_one_out` for a decoder's discrete distribution.

    Shape:
        Batch and event shape of the result are those of the proposal.

    Raises:
        ValueError: if ``num_proposals < 1`` or the energy cannot be called; when called, as
            :class:`SelfNormalizedImportance`.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.nn import EnergyNet
        >>> sampler = ImportanceSampler(EnergyNet(2, (20, 20)), num_proposals=64)
        >>> density = sampler(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> density.log_prob(density.sample((5,))).shape
        torch.Size([5])
    """

    def __init__(
        self,
        energy: Callable[[Tensor], Tensor],
        num_proposals: int = 1024,
        share_proposals: bool = True,
        *,
        proposal_gradient: ProposalGradient = reparameterized,
    ):
        super().__init__()
        if not callable(energy):
            raise ValueError(
                f"ImportanceSampler takes a callable from events to energies, got {energy!r}."
            )
        self.energy = energy
        self.num_proposals = count(num_proposals, "num_proposals")
        self.share_proposals = share_proposals
        self.proposal_gradient = proposal_gradient

    @property
    def event_shape(self) -> torch.Size | None:
        """That of the energy, where it says so."""
        return getattr(self.energy, "event_shape", None)

    def forward(self, proposal: Distribution) -> SelfNormalizedImportance:
        """The reshaped proposal."""
        return SelfNormalizedImportance(
            proposal,
            self.energy,
            self.num_proposals,
            self.share_proposals,
            proposal_gradient=self.proposal_gradient,
        )
