"""Self-normalised importance sampling as a distribution."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.nn.functional import logsigmoid

from pyro_ext.distributions import proposals as parts
from pyro_ext.distributions.proposal_gradients import (
    ProposalGradient,
    leave_one_out,
    reparameterized,
    straight_through,
)
from pyro_ext.distributions.reshaped_proposal import ReshapedProposal
from pyro_ext.distributions.wrappers import density_kind
from pyro_ext.ops.counts import count
from pyro_ext.ops.leave_one_out import scored, self_normalized


class _Others(NamedTuple):
    """What the density needs of the candidates that were not chosen."""

    log_sum: Tensor | None  # (num, *batch): log of their summed weights; None if there are none
    log_q: Tensor | float = 0.0  # (*batch): log density of the whole draw, up to a constant
    log_w: Tensor | None = None  # (num, K - 1, *batch): their weights, if fresh and scored
    score: Tensor | None = None  # (num, K - 1, *batch): their owed log densities


class SelfNormalizedImportance(ReshapedProposal):
    r"""Stochastic: self-normalised importance sampling (SNIS), whose ``log_prob`` is a lower bound.

    .. math::

        x_1, \dots, x_K \sim \pi, \qquad
        i \sim \mathrm{Categorical}\Bigl(\tfrac{w(x_k)}{\sum_j w(x_j)}\Bigr), \qquad
        x = x_i, \qquad w(x) = e^{-U(x)}

    An energy :math:`U` reshapes a proposal :math:`\pi` into a normalised density between the
    proposal (:math:`K=1`) and the energy-based model :math:`\pi(x) w(x) / Z` (:math:`K \to
    \infty`, with a gap of order :math:`1/K`):

    .. math::

        p(x) = \mathbb{E}_{x_{2:K} \sim \pi}[W], \qquad
        W = \pi(x)\, \frac{w(x)}{\frac{1}{K} \bigl( w(x) + \sum_{j=2}^K w(x_j) \bigr)}

    ``log_prob(x)`` is :math:`\log W` with fresh proposals, a stochastic lower bound;
    ``score_parts(x)`` is :math:`\log W` at the candidates that produced ``x``, a stochastic upper
    bound: see :class:`StochasticDensity`. A constant added to the energy
    changes nothing.

    Gradients of ``log_prob`` reach the energy, and the proposal through its density and through
    the fresh candidates, as ``proposal_gradient`` says. As a guide the sampler is trained along
    the paths of reparameterised candidates and by the score function of the index,
    :math:`\log \bar w_i`, alone; if the proposal has no path, by the score function of candidates
    and index. Both are unbiased, the first with far less variance. See :meth:`expectation` for a
    mean over the index, without any score.

    Args:
        proposal: :math:`\pi`, any distribution with the event shape of the result. It must cover
            what the result shall cover.
        energy: :math:`U`, a callable from ``(..., *event_shape)`` to ``(...)`` in nats, which
            leaves its argument alone; probable values have a low energy. It may depend on the
            batch, and then returns ``(..., *batch_shape)``. An attribute ``event_shape`` is
            checked here.
        num_proposals: :math:`K \ge 1`, the candidates per draw.
        share_proposals: whether one density evaluation uses one set of fresh proposals for all
            values, over which the proposal does not differ: ``K + B`` instead of ``K * B``
            energies. The mean over a batch then carries the noise of one estimate of the
            normaliser, however large the batch: train so, but evaluate with ``tight(num)``, in
            several batches or with ``False``. The draws of ``sample`` never share.
        proposal_gradient: how ``log_prob`` trains the proposal through the fresh candidates:
            :func:`reparameterized`, :func:`leave_one_out` for those without a path, or the biased
            :func:`stop_gradient` and :func:`straight_through`. Draws do not depend on it.
        validate_args: checks arguments, values and the energy's finiteness.

    Shape:
        ``batch_shape`` and ``event_shape`` are the proposal's.

    Raises:
        ValueError: if ``num_proposals < 1``; if the energy's and the proposal's event shapes
            disagree; later, if the energy returns a wrong shape or, when validating, a value
            that is not finite; if a gradient is asked through a proposal that has trainable
            parameters but no ``rsample``, unless ``proposal_gradient`` provides for it.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models: Learning with
        Sampler-Induced Distributions*, arXiv 1910.14265.

    Example:
        >>> import pyro.distributions as dist
        >>> proposal = dist.Normal(0.0, 1.0)
        >>> d = SelfNormalizedImportance(proposal, lambda x: (x - 1) ** 2, num_proposals=100)
        >>> x = d.sample((3,))
        >>> d.log_prob(x).shape, d.tight(1000).frozen(0).log_prob(x).shape
        (torch.Size([3]), torch.Size([3]))

        Maximum likelihood; the distribution may stay while its energy is trained:

        >>> from pyro_ext.nn import EnergyNet
        >>> x, energy = torch.randn(128, 2) / 2, EnergyNet(2, (20, 20))
        >>> d = SelfNormalizedImportance(dist.Normal(torch.zeros(2), 1.0).to_event(1), energy, 256)
        >>> optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     (-d.log_prob(x).mean()).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        proposal: Distribution,
        energy: Callable[[Tensor], Tensor],
        num_proposals: int,
        share_proposals: bool = True,
        *,
        proposal_gradient: ProposalGradient = reparameterized,
        validate_args: bool | None = None,
    ):
        parts.check_proposal("SelfNormalizedImportance", proposal, energy)
        if not callable(proposal_gradient) or proposal_gradient is straight_through:
            raise ValueError(
                "proposal_gradient is a function such as leave_one_out, or straight_through() with "
                f"its temperature in parentheses, got {proposal_gradient!r}."
            )
        self.proposal = proposal
        self.energy = energy
        self.num_proposals = count(num_proposals, "num_proposals")
        self.share_proposals = share_proposals
        self.proposal_gradient = proposal_gradient
        super().__init__(proposal.batch_shape, proposal.event_shape, validate_args=validate_args)

    @property
    def density_kind(self) -> str:  # type: ignore[override]
        """``"exact"`` for a single candidate from an exact proposal, else ``"lower"``."""
        return self._proposal_kind if self.num_proposals == 1 else "lower"

    @property
    def is_partly_pathwise(self) -> bool:
        """Whether the proposal is reparameterised; the index never is."""
        return bool(self.proposal.has_rsample)

    @property
    def draw_size(self) -> int:
        """Numbers of all candidates."""
        return self.num_proposals * self.shape().numel()

    def simulate(self, sample_shape: torch.Size, pathwise: bool) -> tuple[Tensor, _Others]:
        """Draws ``num_proposals`` candidates per value and keeps one by its weight."""
        proposal = self.proposal.expand(self.batch_shape)
        draw = proposal.rsample if pathwise else proposal.sample
        candidates = draw(torch.Size((self.num_proposals, *sample_shape)))
        log_w = self._log_weight(candidates)  # (K, *sample, *batch)
        index = Categorical(logits=log_w.detach().movedim(0, -1), validate_args=False).sample()
        log_q = parts.choose(log_w, index) - log_w.logsumexp(0)
        if torch.is_grad_enabled() and not pathwise and self._proposal_kind == "exact":
            log_q = log_q + proposal.log_prob(candidates).sum(0)
        others = _Others(_log_sum_others(log_w, index), log_q)
        return parts.choose(candidates, index), others

    def draw_auxiliaries(self, value: Tensor, num: int) -> _Others:
        """Draws the ``num_proposals - 1`` other candidates, ``num`` times."""
        if self.num_proposals == 1:
            return _Others(None)
        shape = torch.Size((num, self.num_proposals - 1))
        proposal = self.proposal.expand(self._fresh_batch(value))
        others, score = self.proposal_gradient(proposal, shape)
        log_w = self._log_weight(others)
        if score is None:
            return _Others(log_w.logsumexp(1))
        return _Others(log_w.logsumexp(1), log_w=log_w.detach(), score=score)

    def log_weights(self, value: Tensor, auxiliaries: _Others) -> Tensor:
        r"""Evaluates :math:`\log \pi(x) - \log \frac1K (1 + \sum_j w(x_j) / w(x))`."""
        log_pi = self.proposal.log_prob(value)
        if auxiliaries.log_sum is None:
            return log_pi.unsqueeze(0)
        log_w = self._log_weight(self._spread(value))  # (*batch)
        log_share = logsigmoid(log_w - parts.align(auxiliaries.log_sum, log_w.dim()))
        if auxiliaries.log_w is not None and auxiliaries.score is not None:
            fresh = (auxiliaries.log_w, auxiliaries.score)
            log_pi = log_pi + scored(log_w, *(parts.align(x, log_w.dim(), 2) for x in fresh))
        return log_pi + log_share + math.log(self.num_proposals)  # (num, *batch)

    def score_function(self, auxiliaries: _Others) -> Tensor | float:
        """Log density of the index, and of candidates without a path, up to a constant.

        Raises:
            NotImplementedError: if the proposal is itself a stochastic density.
        """
        parts.refuse_bound(self, self.proposal, "proposal")
        return auxiliaries.log_q

    def expectation(
        self, function: Callable[[Tensor], Tensor], sample_shape: torch.Size | tuple = ()
    ) -> Tensor:
        r"""Estimates :math:`\mathbb{E}[f(x)]` by the mean over all choices of the index.

        .. math:: \sum_{k=1}^K \bar w_k f(x_k), \qquad \bar w_k = w(x_k) / \sum_j w(x_j)

        Unbiased for every :math:`K`, and less noisy than :math:`f` of a draw, for :math:`K`
        evaluations of :math:`f`. Its gradient is that of the expectation: candidates and weights
        are differentiated, and the proposal as ``proposal_gradient`` says.

        Args:
            function: :math:`f`, from ``(..., *event_shape)`` to ``(..., *rest)``.
            sample_shape: of independent estimates.

        Shape:
            ``(*sample_shape, *batch_shape, *rest)``.

        Raises:
            ValueError: if the function does not keep the dimensions on the left.

        Example:
            >>> import pyro.distributions as dist
            >>> d = SelfNormalizedImportance(dist.Normal(0.0, 1.0), torch.square, 100)
            >>> d.expectation(torch.square, (5,)).shape
            torch.Size([5])
        """
        shape = torch.Size((self.num_proposals, *sample_shape))
        proposal = self.proposal.expand(self.batch_shape)
        candidates, score = self.proposal_gradient(proposal, shape)
        return self_normalized(self._log_weight(candidates), function(candidates), score)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Stochastic upper bound, from the candidates that ``value`` was chosen from.

        Raises:
            AuxiliaryLost: if this instance did not sample this very tensor.
            NotImplementedError: if the proposal is itself a stochastic density, or if several
                weights are to be averaged under :func:`leave_one_out`, for which a draw's own
                weight has no place.
        """
        is_scored = self.proposal_gradient is leave_one_out and torch.is_grad_enabled()
        if is_scored and self._num_weights > 1:
            raise NotImplementedError(
                "A tight upper bound has no leave_one_out gradient. On the guide's side leave out "
                "tight(num), take another proposal_gradient, or evaluate under torch.no_grad()."
            )
        return super().score_parts(value)

    @property
    def _proposal_kind(self) -> str:
        return density_kind(self.proposal)

    def _log_weight(self, x: Tensor) -> Tensor:
        finite = self._validate_args
        return -parts.evaluate(self.energy, x, self.event_shape, self.batch_shape, finite=finite)

    def __repr__(self):
        gradient = self.proposal_gradient
        name = getattr(gradient, "__name__", gradient)
        return (
            f"SelfNormalizedImportance({self.proposal}, {self.energy}, "
            f"num_proposals={self.num_proposals}, share_proposals={self.share_proposals}"
            + ("" if gradient is reparameterized else f", proposal_gradient={name}")
            + ")"
            + self._variant
        )


def _log_sum_others(log_w: Tensor, index: Tensor) -> Tensor | None:
    """Sums the weights ``(K, *batch)`` but the chosen one; None if there is no other."""
    if log_w.shape[0] == 1:
        return None
    return log_w.scatter(0, index.unsqueeze(0), -math.inf).logsumexp(0, keepdim=True)
