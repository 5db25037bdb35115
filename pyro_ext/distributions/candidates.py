"""The candidates of a sampler that draws several and keeps one."""

from collections.abc import Callable

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_ext.distributions.wrappers import density_kind


class Candidates(TorchDistribution):
    r"""Independent draws from one proposal, as one event.

    .. math:: p(x_1, \dots, x_K) = \prod_k \pi(x_k)

    Args:
        proposal: :math:`\pi`.
        num_proposals: :math:`K`.
        batch_shape: the proposal's is expanded to it.

    Shape:
        Events are ``(num_proposals, *proposal.event_shape)``.

    Raises:
        ValueError: if the proposal's own density is only a bound.
    """

    arg_constraints: dict = {}  # noqa: RUF012 - torch's own convention

    def __init__(self, proposal: Distribution, num_proposals: int, batch_shape: torch.Size):
        refuse_bound(proposal)
        self.proposal = proposal.expand(batch_shape)
        self.num_proposals = num_proposals
        event_shape = torch.Size((num_proposals, *proposal.event_shape))
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the proposal has."""
        return bool(self.proposal.has_rsample)

    @constraints.dependent_property
    def support(self):
        """The proposal's, for each candidate."""
        return constraints.independent(self.proposal.support, 1)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return Candidates(self.proposal, self.num_proposals, torch.Size(batch_shape))

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws with a path."""
        return self._draw(self.proposal.rsample, sample_shape)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws without a path from the proposal."""
        return self._draw(self.proposal.sample, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of all candidates, in nats."""
        return self._log_probs(value).sum(-1)

    def _log_probs(self, value: Tensor) -> Tensor:
        """Log densities ``(*batch, num_proposals)`` of the candidates."""
        return self.proposal.log_prob(value.movedim(-self.event_dim, 0)).movedim(0, -1)

    def _draw(self, draw: Callable[[torch.Size], Tensor], sample_shape: torch.Size) -> Tensor:
        draws = draw(torch.Size((self.num_proposals, *sample_shape)))
        return draws.movedim(0, -self.event_dim)


class CandidatesAround(Candidates):
    r"""A given candidate at a given place, among independent draws from one proposal.

    .. math:: p(x_1, \dots, x_K \mid i, x) = \delta_x(x_i) \prod_{k \ne i} \pi(x_k)

    Args:
        proposal: :math:`\pi`.
        num_proposals: :math:`K`.
        index: :math:`i`, of shape ``(*batch)``.
        value: :math:`x`, of shape ``(*batch, *proposal.event_shape)``. It keeps its gradient in
            all draws.

    Raises:
        ValueError: as :class:`Candidates`.
    """

    def __init__(self, proposal: Distribution, num_proposals: int, index: Tensor, value: Tensor):
        batch = value.shape[: value.dim() - len(proposal.event_shape)]
        shape = torch.broadcast_shapes(proposal.batch_shape, index.shape, batch)
        super().__init__(proposal, num_proposals, shape)
        self.index, self.value = index, value

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        index = self.index.expand(batch_shape)
        return CandidatesAround(self.proposal, self.num_proposals, index, self.value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the others, in nats; minus infinity without the given one in its place."""
        others = torch.where(self._is_given, 0.0, self._log_probs(value)).sum(-1)
        chosen = choose(value, self.index, self.event_dim)
        return others + Delta(self.value, event_dim=self.event_dim - 1).log_prob(chosen)

    @property
    def _is_given(self) -> Tensor:
        places = torch.arange(self.num_proposals, device=self.index.device)
        return self.index.unsqueeze(-1) == places  # (*batch, K)

    def _draw(self, draw: Callable[[torch.Size], Tensor], sample_shape: torch.Size) -> Tensor:
        is_given = self._is_given[(...,) + (None,) * (self.event_dim - 1)]
        given = self.value.unsqueeze(-self.event_dim)
        return torch.where(is_given, given, super()._draw(draw, sample_shape))


def choose(candidates: Tensor, index: Tensor, event_dim: int) -> Tensor:
    """The candidate at ``index (*batch)``, of candidates along the first event dimension."""
    index = index[(...,) + (None,) * event_dim]
    missing = candidates.dim() - index.dim()
    candidates, index = candidates[(None,) * -missing], index[(None,) * missing]
    return candidates.take_along_dim(index, -event_dim).squeeze(-event_dim)


def refuse_bound(proposal: Distribution) -> None:
    """Raises if the proposal's own density is only a bound."""
    if density_kind(proposal) != "exact":
        raise ValueError(
            f"Draws from the proposal {type(proposal).__name__} cannot be sites of their own, "
            "since its density is only a bound. Leave the site single, or take a proposal with "
            "an exact density."
        )
