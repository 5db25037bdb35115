"""Self-normalised importance sampling as a distribution."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints

from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.distributions.wrappers import density_kind
from pyro_ext.ops.counts import count


class _Others(NamedTuple):
    """What the density needs of the candidates that were not chosen."""

    log_sum: Tensor | None  # (num, *batch): log of their summed weights; None if there are none
    log_q: Tensor | float = 0.0  # (*batch): log density of the whole draw, up to a constant


class SelfNormalizedImportance(StochasticDensity):
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

    Gradients of ``log_prob`` reach the energy, and the proposal through its density and its
    reparameterised samples. As a guide the sampler is trained by the score function of the
    candidates and of the index.

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
        validate_args: checks arguments, values and the energy's finiteness.

    Shape:
        ``batch_shape`` and ``event_shape`` are the proposal's.

    Raises:
        ValueError: if ``num_proposals < 1``; if the energy's and the proposal's event shapes
            disagree; later, if the energy returns a wrong shape or, when validating, a value
            that is not finite; if a gradient is asked through a proposal that has trainable
            parameters but no ``rsample``.

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
        validate_args: bool | None = None,
    ):
        _check_proposal(proposal, energy)
        self.proposal = proposal
        self.energy = energy
        self.num_proposals = count(num_proposals, "num_proposals")
        self.share_proposals = share_proposals
        super().__init__(proposal.batch_shape, proposal.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        """The proposal's support."""
        return self.proposal.support

    @property
    def density_kind(self) -> str:  # type: ignore[override]
        """``"exact"`` for a single candidate from an exact proposal, else ``"lower"``."""
        return self._proposal_kind if self.num_proposals == 1 else "lower"

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: the arguments are a distribution and a callable, not tensors."""
        raise NotImplementedError("SelfNormalizedImportance takes its shapes from its proposal.")

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
        index = index.unsqueeze(0)
        log_q = log_w.gather(0, index).squeeze(0) - log_w.logsumexp(0)
        if torch.is_grad_enabled() and not pathwise:
            log_q = log_q + proposal.log_prob(candidates).sum(0)
        return _choose(candidates, index), _Others(_log_sum_others(log_w, index), log_q)

    def draw_auxiliaries(self, value: Tensor, num: int) -> _Others:
        """Draws the ``num_proposals - 1`` other candidates, ``num`` times."""
        if self.num_proposals == 1:
            return _Others(None)
        shared = self.share_proposals or self._seed is not None
        batch_shape = self._shared_batch if shared else self._batch_of(value, self.batch_shape)
        proposal = self.proposal.expand(batch_shape)
        draw = proposal.rsample if proposal.has_rsample else proposal.sample
        others = draw(torch.Size((num, self.num_proposals - 1)))
        if not proposal.has_rsample:
            _refuse_biased_gradient(proposal, others)
        return _Others(self._log_weight(others).logsumexp(1))

    def log_weights(self, value: Tensor, auxiliaries: _Others) -> Tensor:
        r"""Evaluates :math:`\log \pi(x) - \log \frac1K (1 + \sum_j w(x_j) / w(x))`."""
        log_pi = self.proposal.log_prob(value)
        if auxiliaries.log_sum is None:
            return log_pi.unsqueeze(0)
        value = value.expand(self._batch_of(value, self._shared_batch) + self.event_shape)
        log_w = self._log_weight(value)  # (*batch)
        ratio = _align(auxiliaries.log_sum, log_w.dim()) - log_w  # (num, *batch)
        log_total = torch.logaddexp(torch.zeros_like(ratio), ratio)
        return log_pi - log_total + math.log(self.num_proposals)

    def score_function(self, auxiliaries: _Others) -> Tensor | float:
        """Log density of candidates and index, up to a constant."""
        return auxiliaries.log_q

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Stochastic upper bound, from the candidates that ``value`` was chosen from.

        Raises:
            AuxiliaryLost: if this instance did not sample this very tensor.
            NotImplementedError: if the proposal is itself a stochastic density.
        """
        if self._proposal_kind != "exact":
            raise NotImplementedError(
                f"A guide needs an upper bound, but the proposal {type(self.proposal).__name__} of "
                "this SelfNormalizedImportance only has a lower bound for a candidate. "
                "Use a proposal with an exact density on the guide's side."
            )
        return super().score_parts(value)

    def frozen(self, seed: int):
        """A copy whose ``log_prob`` is a deterministic function; freezes a random proposal too."""
        new = super().frozen(seed)
        if self._proposal_kind != "exact":
            new.proposal = self.proposal.frozen(seed)  # type: ignore[attr-defined]
        return new

    @property
    def _proposal_kind(self) -> str:
        return density_kind(self.proposal)

    @property
    def _shared_batch(self) -> torch.Size:
        """The proposal's batch shape with a dimension for each of ours, so that both line up."""
        missing = len(self.batch_shape) - len(self.proposal.batch_shape)
        return torch.Size((1,) * missing) + self.proposal.batch_shape

    def _batch_of(self, value: Tensor, batch_shape: torch.Size) -> torch.Size:
        return torch.broadcast_shapes(value.shape[: value.dim() - self.event_dim], batch_shape)

    def _log_weight(self, x: Tensor) -> Tensor:
        energy = _evaluate(self.energy, x, self.event_shape)
        expected = x.shape[: x.dim() - self.event_dim]
        if energy.shape not in (expected, torch.broadcast_shapes(expected, self.batch_shape)):
            raise ValueError(
                f"The energy returned shape {tuple(energy.shape)} for values of shape "
                f"{tuple(x.shape)}, expected {tuple(expected)}: it maps (..., *event_shape) to "
                f"(...) with event_shape {tuple(self.event_shape)}. Sum or squeeze its output, or "
                "let proposal.to_event(n) turn the proposal's last dimensions into its event."
            )
        if self._validate_args and not torch._is_all_true(torch.isfinite(energy)):
            bad = (~torch.isfinite(energy)).sum().item()
            raise ValueError(
                f"The energy is not finite at {bad} of {energy.numel()} values. Bound the energy, "
                "lower the learning rate, or keep forbidden values out of the proposal's support."
            )
        return -energy

    def __repr__(self):
        return (
            f"SelfNormalizedImportance({self.proposal}, {self.energy}, "
            f"num_proposals={self.num_proposals}, share_proposals={self.share_proposals})"
            + (f".tight({self._num_weights})" if self._num_weights > 1 else "")
            + ("" if self._seed is None else f".frozen({self._seed})")
        )


def _check_proposal(proposal: Distribution, energy: Callable) -> None:
    if not isinstance(proposal, Distribution) or not callable(energy):
        raise ValueError(
            "SelfNormalizedImportance takes a distribution as proposal and a callable as energy, "
            f"got {proposal!r} and {energy!r}."
        )
    declared = getattr(energy, "event_shape", proposal.event_shape)
    declared = torch.Size([declared] if isinstance(declared, int) else declared)
    if declared != proposal.event_shape:
        raise ValueError(
            f"The energy is defined on events of shape {tuple(declared)}, but the proposal "
            f"{proposal} draws events of shape {tuple(proposal.event_shape)}. Make them agree; "
            "proposal.to_event(n) turns batch dimensions into event dimensions."
        )


def _evaluate(energy: Callable[[Tensor], Tensor], x: Tensor, event_shape: torch.Size) -> Tensor:
    try:
        result = energy(x)
    except RuntimeError as error:
        if re.search("shape|size", str(error)) is None:
            raise
        raise ValueError(
            f"The energy cannot score values of shape {tuple(x.shape)} with event shape "
            f"{tuple(event_shape)}: {error}. It must accept the proposal's events, and any "
            "dimensions to the left of them."
        ) from error
    if not isinstance(result, Tensor) or not result.is_floating_point():
        kind = result.dtype if isinstance(result, Tensor) else type(result)
        raise ValueError(f"The energy must return a tensor of floating-point numbers, got {kind}.")
    return result


def _refuse_biased_gradient(proposal: Distribution, others: Tensor) -> None:
    if torch.is_grad_enabled() and proposal.log_prob(others).requires_grad:
        raise ValueError(
            f"The proposal {proposal} has trainable parameters but no reparameterised samples, so "
            "the gradient of the bound with respect to them would be biased. Detach them, use a "
            "proposal with rsample, or evaluate under torch.no_grad()."
        )


def _choose(candidates: Tensor, index: Tensor) -> Tensor:
    """Gathers ``candidates (K, *batch, *event)`` at ``index (1, *batch)``."""
    index = index.reshape(index.shape + (1,) * (candidates.dim() - index.dim()))
    return candidates.gather(0, index.expand(1, *candidates.shape[1:])).squeeze(0)


def _log_sum_others(log_w: Tensor, index: Tensor) -> Tensor | None:
    """Sums the weights ``(K, *batch)`` but the chosen one; None if there is no other."""
    if log_w.shape[0] == 1:
        return None
    return log_w.scatter(0, index, -math.inf).logsumexp(0, keepdim=True)


def _align(log_sum: Tensor, batch_dim: int) -> Tensor:
    """Inserts dimensions so that ``(num, *shared)`` broadcasts against ``(*batch)``."""
    missing = batch_dim - (log_sum.dim() - 1)
    return log_sum.reshape(log_sum.shape[:1] + (1,) * missing + log_sum.shape[1:])
