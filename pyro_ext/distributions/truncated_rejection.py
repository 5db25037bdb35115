"""Truncated rejection sampling as a distribution."""

from collections.abc import Callable

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from pyro_ext.distributions.normalizer import as_normalizer, as_reverse_logit, refuse_training
from pyro_ext.distributions.proposals import (
    check_proposal,
    choose,
    draw_candidates,
    evaluate,
    refuse_bound,
)
from pyro_ext.distributions.rejection import (
    NormalizerEstimate,
    draw_in_rounds,
    estimate_mean,
    first_accepted,
)
from pyro_ext.distributions.rejection_bounds import (
    Auxiliaries,
    GuessedIndex,
    SummedIndex,
    log_index,
)
from pyro_ext.distributions.reshaped_proposal import ReshapedProposal
from pyro_ext.distributions.wrappers import density_kind
from pyro_ext.ops.counts import count
from pyro_ext.ops.truncated_geometric import log_truncated_ratio


class TruncatedRejection(ReshapedProposal):
    r"""Stochastic: truncated rejection sampling (TRS), whose ``log_prob`` is a lower bound.

    Candidates :math:`x_0, x_1, \dots \sim \pi` are tried in turn, and each is accepted with
    probability :math:`a(x) = \mathrm{sigmoid}(\mathrm{logit}(x))`. If :math:`T - 1` of them are
    rejected, another one is returned as it is. The density is

    .. math::

        p(x) = \pi(x) \Bigl( a(x) \frac{1 - (1 - Z)^{T-1}}{Z} + (1 - Z)^{T-1} \Bigr), \qquad
        Z = \mathbb{E}_\pi[a]

    between the proposal (:math:`T=1`) and :math:`\pi(x) a(x) / Z` (:math:`T \to \infty`). There
    are three ways to evaluate it:

    - **By default** :math:`Z` is unknown. The :math:`T - 1` other candidates :math:`y_j \sim \pi`
      are drawn, which of them were tried before :math:`x` is summed out, and so is the point of
      their cyclic order at which the tries began. With :math:`b_j = 1 - a(y_j)`

      .. math::

          W = \pi(x) \bigl( a(x)\, S + P \bigr), \quad
          S = \frac{1}{T-1} \sum_{s=0}^{T-2} \sum_{i=0}^{T-2} \prod_{j=1}^{i} b_{s+j}, \quad
          P = \prod_{j=1}^{T-1} b_j, \quad \mathbb{E}[W] = p(x)

      ``log_prob(x)`` is :math:`\log W` with fresh proposals, a stochastic lower bound;
      ``score_parts(x)`` is :math:`\log W` with those left over from the draw, a stochastic upper
      bound: see :class:`StochasticDensity`. Both approach :math:`\log p(x)` under ``tight(num)``.
    - **With a normalizer** :math:`Z` that is known, by a closed form or from
      :meth:`estimate_normalizer`, ``log_prob`` is the formula above: exact and deterministic, for
      evaluation and MCMC. It is a constant, so that training raises, see below.
    - **With a reverse logit** of :math:`\hat Z`, ``log_prob`` is the bound of the paper, which
      guesses the index by :math:`q(i \mid x) \propto (1 - \hat Z)^i a(x)^{[i < T - 1]}`:

      .. math::

          \log \pi(x) + \mathbb{E}_q \bigl[ [i < T - 1] \log a(x) + i\, e_1 - \log q(i \mid x)
          \bigr], \qquad e_1 = \frac{1}{T-1} \sum_{j=1}^{T-1} \log b_j

      For the same proposals it is below the default, whatever :math:`\hat Z`, and it stays below
      :math:`\log p(x)` under ``tight(num)``. It is here to reproduce the paper.

    Gradients of ``log_prob`` reach the logit, and the proposal through its density and its
    reparameterised samples. As a guide the sampler is trained by the score function of the
    index and, if the proposal has no ``rsample``, of the candidates.

    Args:
        proposal: :math:`\pi`, any distribution with the event shape of the result.
        logit: a callable from ``(..., *event_shape)`` to ``(...)``, high where values shall be
            accepted: minus an energy in nats, with a meaningful constant. It may depend on the
            batch, and then returns ``(..., *batch_shape)``. An attribute ``event_shape`` is
            checked here.
        num_tries: :math:`T \ge 1`, the candidates per draw.
        share_proposals: whether one density evaluation uses one set of fresh proposals for all
            values, over which the proposal does not differ: ``T - 1 + B`` logits instead of
            ``T * B``. See :class:`SelfNormalizedImportance`.
        normalizer: :math:`Z \in (0, 1]`, a number or a tensor that broadcasts to the batch shape.
        reverse_logit: logit of :math:`\hat Z`, a number or a tensor that broadcasts to the batch
            shape; may be learned.
        validate_args: checks arguments, values and the logit's finiteness.

    Shape:
        ``batch_shape`` and ``event_shape`` are the proposal's.

    Raises:
        ValueError: if ``num_tries < 1``; if the event shapes of logit and proposal disagree; if
            the normalizer is outside :math:`(0, 1]`, requires a gradient or is a module (that is
            :class:`LearnedAcceptReject`); if both ways are asked for; later, if the logit returns
            a wrong shape or, when validating, a value that is not finite; if a gradient is asked
            through a proposal that has trainable parameters but no ``rsample``, or, with a
            normalizer, through any trainable parameter.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265; Bauer and
        Mnih, *Resampled Priors for Variational Autoencoders*, arXiv 1810.11428, for the density.

    Example:
        >>> import pyro.distributions as dist
        >>> proposal = dist.Normal(0.0, 1.0)
        >>> d = TruncatedRejection(proposal, lambda x: 3 * x, num_tries=100)
        >>> x = d.sample((3,))
        >>> d.log_prob(x).shape
        torch.Size([3])

        By symmetry half of the proposals is accepted:

        >>> exact = TruncatedRejection(proposal, lambda x: 3 * x, num_tries=100, normalizer=0.5)
        >>> exact.density_kind, exact.log_prob(torch.tensor(0.0))
        ('exact', tensor(-0.9189))
        >>> abs(d.estimate_normalizer(10_000).value - 0.5) < 0.05
        tensor(True)
    """

    def __init__(
        self,
        proposal: Distribution,
        logit: Callable[[Tensor], Tensor],
        num_tries: int,
        share_proposals: bool = True,
        *,
        normalizer: Tensor | float | None = None,
        reverse_logit: Tensor | float | None = None,
        validate_args: bool | None = None,
    ):
        check_proposal("TruncatedRejection", proposal, logit, "logit")
        if normalizer is not None and reverse_logit is not None:
            raise ValueError(
                "TruncatedRejection takes a normalizer, which makes its density exact, or a "
                "reverse_logit, which makes it the paper's bound; got both."
            )
        self.proposal = proposal
        self.logit = logit
        self.num_tries = count(num_tries, "num_tries")
        self.share_proposals = share_proposals
        super().__init__(proposal.batch_shape, proposal.event_shape, validate_args=validate_args)
        self.normalizer = as_normalizer(normalizer, self.batch_shape, self._validate_args)
        self.reverse_logit = as_reverse_logit(reverse_logit, self.batch_shape)

    @property
    def density_kind(self) -> str:  # type: ignore[override]
        """``"exact"`` for one try or a given normalizer, if the proposal is, else ``"lower"``."""
        return density_kind(self.proposal) if self._is_closed else "lower"

    @property
    def is_partly_pathwise(self) -> bool:
        """Whether the proposal is reparameterised and the density a bound."""
        return bool(self.proposal.has_rsample) and not self._is_closed

    @property
    def draw_size(self) -> int:
        """Numbers of all candidates; in closed form the rejected ones are not kept."""
        return self.shape().numel() * (1 if self._is_closed else self.num_tries)

    def simulate(
        self, sample_shape: torch.Size, pathwise: bool
    ) -> tuple[Tensor, Auxiliaries | None]:
        """Draws ``num_tries`` candidates per value and keeps the first accepted."""
        if self._is_closed:
            return self.draw(sample_shape), None
        proposal = self.proposal.expand(self.batch_shape)
        draw = proposal.rsample if pathwise else proposal.sample
        tried = draw(torch.Size((self.num_tries, *sample_shape)))
        logit = self._evaluate(tried)  # (T, *sample, *batch)
        index = first_accepted(logit.detach())
        _, log_q = log_index(logit, index)
        if torch.is_grad_enabled() and not pathwise and density_kind(proposal) == "exact":
            log_q = log_q + proposal.log_prob(tried).sum(0)
        auxiliaries = self._bound_by.of_draw(logit, index)
        return choose(tried, index), auxiliaries._replace(log_q=log_q)

    def draw(self, sample_shape: torch.Size) -> Tensor:
        """Draws values from as many candidates as it takes."""
        proposal = self.proposal.expand(self.batch_shape)
        return draw_in_rounds(proposal, self._evaluate, self.num_tries, sample_shape)

    def draw_auxiliaries(self, value: Tensor, num: int) -> Auxiliaries | None:
        """Draws the ``num_tries - 1`` other candidates, ``num`` times; none in closed form."""
        if self._is_closed:
            return None
        shape = torch.Size((self.num_tries - 1, num))
        others = draw_candidates(self.proposal.expand(self._fresh_batch(value)), shape)
        return self._bound_by.fresh(self._evaluate(others))

    def log_weights(self, value: Tensor, auxiliaries: Auxiliaries | None) -> Tensor:
        r"""Evaluates :math:`\log \pi(x) + \log(a(x) S + P)`, or another of the three formulas."""
        if auxiliaries is None:
            return self.log_closed(value, self.normalizer).unsqueeze(0)
        log_ratio = self._bound_by.log_ratio(self._log_accept(value), auxiliaries)
        return self.proposal.log_prob(value) + log_ratio

    def score_function(self, auxiliaries: Auxiliaries) -> Tensor | float:
        """Log density of candidates and index, up to a constant.

        Raises:
            NotImplementedError: if the proposal is itself a stochastic density.
        """
        refuse_bound(self, self.proposal, "proposal")
        return auxiliaries.log_q

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The exact density, or a stochastic upper bound from the candidates of ``value``.

        Raises:
            AuxiliaryLost: if a bound is needed and this instance did not sample this very tensor.
            NotImplementedError: if the proposal is itself a stochastic density, or if the index
                is guessed and several weights are asked for.
        """
        refuse_bound(self, self.proposal, "proposal")
        if self._is_closed:
            log_prob = self.log_prob(value)
            return ScoreParts(log_prob, log_prob, torch.zeros_like(log_prob))
        if self.reverse_logit is not None and self._num_weights > 1:
            raise NotImplementedError(
                "With reverse_logit there is no tight upper bound: fresh weights are averages "
                "within a logarithm, whose expectation is not the density. Leave out "
                "reverse_logit, whose bounds are looser anyway."
            )
        return super().score_parts(value)

    # What LearnedAcceptReject asks, too.

    def estimate_normalizer(self, num: int, chunk: int = 2**16) -> NormalizerEstimate:
        r"""Estimates :math:`Z`, the acceptance rate, without gradient.

        A draw takes :math:`(1 - (1 - Z)^T) / Z` tries on average.

        Args:
            num: of fresh proposals, at least two.
            chunk: how many of them are scored at a time.

        Returns:
            ``value`` and ``standard_error``, of the batch shape that proposal and logit need.
        """
        num, rows = count(num, "num", minimum=2), count(chunk, "chunk")
        return estimate_mean(self.acceptances, num, rows)

    def acceptances(self, sample_shape: torch.Size) -> Tensor:
        """Acceptance probabilities of fresh proposals, shared over the batch where possible."""
        proposal = self.proposal.expand(self._shared_batch)
        return self._evaluate(draw_candidates(proposal, sample_shape)).sigmoid()

    def log_closed(self, value: Tensor, normalizer: Tensor | float | None) -> Tensor:
        """The log density for a normalizer, which one try does not need.

        Raises:
            ValueError: if a gradient would miss that the normalizer depends on parameters.
        """
        log_pi = self.proposal.log_prob(value)
        if normalizer is None:
            return log_pi
        log_accept = self._log_accept(value)
        normalizer = torch.as_tensor(normalizer, dtype=log_pi.dtype, device=log_pi.device)
        if not normalizer.requires_grad and (log_pi + log_accept).requires_grad:
            refuse_training([self.proposal.log_prob, self._evaluate], value)
        return log_pi + log_truncated_ratio(log_accept, normalizer, self.num_tries)

    @property
    def _is_closed(self) -> bool:
        return self.num_tries == 1 or self.normalizer is not None

    @property
    def _bound_by(self) -> SummedIndex | GuessedIndex:
        if self.reverse_logit is None:
            return SummedIndex()
        return GuessedIndex(self.reverse_logit, self.num_tries)

    def _log_accept(self, value: Tensor) -> Tensor:
        return logsigmoid(self._evaluate(self._spread(value)))

    def _evaluate(self, x: Tensor) -> Tensor:
        return evaluate(
            self.logit, x, self.event_shape, self.batch_shape, "logit", self._validate_args
        )

    def __repr__(self):
        extra = [
            f", {name}={value}"
            for name in ("normalizer", "reverse_logit")
            if (value := getattr(self, name)) is not None
        ]
        return (
            f"TruncatedRejection({self.proposal}, {self.logit}, num_tries={self.num_tries}, "
            f"share_proposals={self.share_proposals}{''.join(extra)})" + self._variant
        )
