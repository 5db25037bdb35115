"""A logit and a running normaliser that reshape one proposal."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext.distributions.learned_accept_reject import LearnedAcceptReject
from pyro_ext.nn.moving_normalizer import MovingNormalizer
from pyro_ext.ops.counts import count


class LearnedAcceptRejectSampler(nn.Module):
    r"""Owns an acceptance logit and a running normaliser, and reshapes one proposal.

    .. math:: \pi \mapsto \mathrm{LARS}(\pi, \mathrm{logit}_\theta, T, \bar Z)

    The result is a :class:`LearnedAcceptReject`, built anew at each call: **not a bound** in
    training mode, and exact in evaluation mode once its ``estimate_normalizer(num)`` was called,
    which is remembered here. The normaliser belongs to one proposal: a prior, but not a decoder's
    likelihood.

    Args:
        logit: a module from events to acceptance logits, such as
            :class:`~pyro_ext.nn.EnergyNet`, whose output is then the logit and *not* an energy:
            high where values are kept. Any callable will do, but only modules are trained.
        num_tries: :math:`T \ge 1`, candidates per draw.
        num_proposals: fresh proposals per evaluation in training.
        decay: of the moving average, :math:`\delta \in [0, 1)`.
        batch_shape: of the proposal.

    Shape:
        Batch and event shape of the result are those of the proposal.

    Raises:
        ValueError: if a size or the decay is out of range, or the logit cannot be called; when
            called, as :class:`LearnedAcceptReject`.

    References:
        Bauer and Mnih, *Resampled Priors for Variational Autoencoders*, arXiv 1810.11428.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.nn import EnergyNet
        >>> sampler = LearnedAcceptRejectSampler(EnergyNet(2, (20, 20)), num_tries=64)
        >>> proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> sampler(proposal).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
        >>> rate = sampler.eval()(proposal).estimate_normalizer(10_000)
        >>> sampler(proposal).density_kind
        'exact'
    """

    def __init__(
        self,
        logit: Callable[[Tensor], Tensor],
        num_tries: int = 100,
        *,
        num_proposals: int = 1024,
        decay: float = 0.99,
        batch_shape: Sequence[int] = (),
    ):
        super().__init__()
        if not callable(logit):
            raise ValueError(
                f"LearnedAcceptRejectSampler takes a callable from events to logits, got {logit!r}."
            )
        self.logit = logit
        self.num_tries = count(num_tries, "num_tries")
        self.num_proposals = count(num_proposals, "num_proposals")
        self.normalizer = MovingNormalizer(batch_shape, decay)

    @property
    def event_shape(self) -> torch.Size | None:
        """That of the logit, where it says so."""
        return getattr(self.logit, "event_shape", None)

    def forward(self, proposal: Distribution) -> LearnedAcceptReject:
        """The reshaped proposal."""
        return LearnedAcceptReject(
            proposal, self.logit, self.num_tries, self.normalizer, num_proposals=self.num_proposals
        )
