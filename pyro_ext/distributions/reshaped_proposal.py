"""What samplers that choose among draws of one proposal have in common."""

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_ext.distributions.proposals import apart, padded_batch, tightened, unmoved
from pyro_ext.distributions.stochastic_density import StochasticDensity


class ReshapedProposal(StochasticDensity):
    """Abstract: a sampler that keeps one of several draws of a proposal.

    Attributes:
        proposal: any distribution with the event shape of the result.
        share_proposals: whether one density evaluation uses one set of fresh proposals for all
            values, over which the proposal does not differ.
    """

    proposal: Distribution
    share_proposals: bool

    @constraints.dependent_property
    def support(self):
        """The proposal's support."""
        return self.proposal.support

    @classmethod
    def infer_shapes(cls, **arg_shapes):
        """Not possible: the arguments are a distribution and a callable, not tensors."""
        raise NotImplementedError(f"{cls.__name__} takes its shapes from its proposal.")

    def tight(self, num: int):
        """A copy whose bounds average ``num`` weights, and so do those of a random proposal."""
        new = super().tight(num)
        new.proposal = tightened(self.proposal, num)
        return new

    def separate(self, batch_shape: torch.Size):
        """A copy that shares no proposals between the elements of a larger batch shape."""
        new = super().separate(batch_shape)
        new.proposal = apart(self.proposal, batch_shape)
        return new

    def frozen(self, seed: int):
        """A copy whose ``log_prob`` is a deterministic function; freezes a random proposal too."""
        new = super().frozen(seed)
        new.proposal = unmoved(self.proposal, seed)
        return new

    @property
    def _shared_batch(self) -> torch.Size:
        return padded_batch(self.proposal, self.batch_shape)

    def _fresh_batch(self, value: Tensor) -> torch.Size:
        """Of proposals for values: no more than they need if they share them."""
        is_shared = self.share_proposals or self._seed is not None
        return self._shared_batch if is_shared else self._batch_of(value)

    def _spread(self, value: Tensor) -> Tensor:
        """Values with a dimension for each of the batch's, so that a context lines up."""
        return value.expand(self._batch_of(value, self._shared_batch) + self.event_shape)
