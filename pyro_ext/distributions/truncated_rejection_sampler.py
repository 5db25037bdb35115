"""A logit that reshapes proposals by truncated rejection."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext.distributions.truncated_rejection import TruncatedRejection
from pyro_ext.ops.counts import count


class TruncatedRejectionSampler(nn.Module):
    r"""Owns an acceptance logit, and reshapes the proposals that it is called with.

    .. math:: \pi \mapsto \mathrm{TRS}(\pi, \mathrm{logit}_\theta, T)

    The result is a :class:`TruncatedRejection`, built anew at each call: a prior if :math:`\pi` is
    one, a likelihood if :math:`\pi` is a decoder's, a posterior in
    :class:`~pyro_ext.infer.AutoEnergyInspired`.

    Args:
        logit: a module from events to acceptance logits, such as
            :class:`~pyro_ext.nn.EnergyNet`, whose output is then the logit and *not* an energy:
            high where values are kept. Any callable will do, but only modules are trained.
        num_tries: :math:`T \ge 1`, candidates per draw.
        share_proposals: as in :class:`TruncatedRejection`.
        learn_reverse: whether to learn a ``reverse_logit``, which starts at zero: the paper's
            bound instead of the default, which is tighter.

    Shape:
        Batch and event shape of the result are those of the proposal.

    Raises:
        ValueError: if ``num_tries < 1`` or the logit cannot be called; when called, as
            :class:`TruncatedRejection`.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.nn import EnergyNet
        >>> sampler = TruncatedRejectionSampler(EnergyNet(2, (20, 20)), num_tries=64)
        >>> density = sampler(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> density.log_prob(density.sample((5,))).shape
        torch.Size([5])
    """

    def __init__(
        self,
        logit: Callable[[Tensor], Tensor],
        num_tries: int = 100,
        share_proposals: bool = True,
        *,
        learn_reverse: bool = False,
    ):
        super().__init__()
        if not callable(logit):
            raise ValueError(
                f"TruncatedRejectionSampler takes a callable from events to logits, got {logit!r}."
            )
        self.logit = logit
        self.num_tries = count(num_tries, "num_tries")
        self.share_proposals = share_proposals
        self.reverse_logit = nn.Parameter(torch.zeros(())) if learn_reverse else None

    @property
    def event_shape(self) -> torch.Size | None:
        """That of the logit, where it says so."""
        return getattr(self.logit, "event_shape", None)

    def forward(self, proposal: Distribution) -> TruncatedRejection:
        """The reshaped proposal."""
        return TruncatedRejection(
            proposal,
            self.logit,
            self.num_tries,
            self.share_proposals,
            reverse_logit=self.reverse_logit,
        )
