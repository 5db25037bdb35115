"""Learned accept/reject sampling as a distribution."""

from collections.abc import Callable

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_ext.distributions.caller import is_mcmc
from pyro_ext.distributions.rejection import NormalizerEstimate
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.distributions.truncated_rejection import TruncatedRejection
from pyro_ext.distributions.wrappers import density_kind
from pyro_ext.nn.moving_normalizer import MovingNormalizer
from pyro_ext.ops.counts import count


class LearnedAcceptReject(StochasticDensity):
    r"""Stochastic, and **not a bound** in training: rejection with a running normaliser (LARS).

    The sampler and the density are those of :class:`TruncatedRejection`,

    .. math::

        p(x) = \pi(x) \Bigl( a(x) \frac{1 - (1 - Z)^{T-1}}{Z} + (1 - Z)^{T-1} \Bigr), \qquad
        Z = \mathbb{E}_\pi[a], \quad a(x) = \mathrm{sigmoid}(\mathrm{logit}(x))

    with an estimate of :math:`Z` in its place. In training, the mean :math:`\hat Z` of :math:`a`
    over fresh proposals is smoothed by a :class:`~pyro_ext.nn.MovingNormalizer`,

    .. math::

        \bar Z \leftarrow \delta \bar Z + (1 - \delta) \hat Z, \qquad
        Z = \hat Z + \mathrm{sg}(\bar Z - \hat Z)

    whose value lags behind, and whose gradient is that of the current estimate alone. An estimate
    within a logarithm bounds nothing: an evidence lower bound with this prior may exceed the
    evidence. In evaluation the stored :math:`\bar Z` is used. :meth:`estimate_normalizer` replaces
    it by the mean over many proposals; from then on, until it is trained again, the density is
    deterministic and taken to be exact: guides and MCMC are allowed. It has no gradient with
    respect to parameters then: evaluate under ``torch.no_grad()``. Parameters that are changed
    without training, by loading others, need another estimate.

    Args:
        proposal: :math:`\pi`, as in :class:`TruncatedRejection`; the same one at each call.
        logit: maps ``(..., *event_shape)`` to ``(...)`` or, if the proposal has a batch that it
            depends on, to ``(..., *batch_shape)``, as in :class:`TruncatedRejection`.
        num_tries: :math:`T \ge 1`, the candidates per draw.
        normalizer: remembers :math:`\bar Z`. Its mode, not the logit's, tells training from
            evaluation; a module that owns both keeps them in step.
        num_proposals: behind :math:`\hat Z`, drawn at each evaluation of the density in training,
            times the ``num`` of ``tight(num)``.
        validate_args: checks arguments, values and the logit's finiteness.

    Shape:
        ``batch_shape`` and ``event_shape`` are the proposal's, and so is the normaliser's batch
        shape.

    Raises:
        ValueError: if a count is less than one; if the event shapes of logit and proposal
            disagree; if the normaliser is no :class:`~pyro_ext.nn.MovingNormalizer`; later, if
            the normaliser has another batch shape; if an MCMC kernel asks for an estimate; if a
            gradient with respect to trainable parameters is asked in evaluation.

    References:
        Bauer and Mnih, *Resampled Priors for Variational Autoencoders*, arXiv 1810.11428; Lawson,
        Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265, whose published
        code has this estimator.

    Example:
        >>> import pyro.distributions as dist
        >>> normalizer = MovingNormalizer()
        >>> d = LearnedAcceptReject(dist.Normal(0.0, 1.0), lambda x: 3 * x, 100, normalizer)
        >>> d.density_kind, d.log_prob(torch.zeros(3)).shape
        ('estimate', torch.Size([3]))
        >>> _ = normalizer.eval()
        >>> abs(d.estimate_normalizer(10_000).value - 0.5) < 0.05
        tensor(True)
        >>> d.density_kind
        'exact'
    """

    def __init__(
        self,
        proposal: Distribution,
        logit: Callable[[Tensor], Tensor],
        num_tries: int,
        normalizer: MovingNormalizer,
        *,
        num_proposals: int = 1024,
        validate_args: bool | None = None,
    ):
        if not isinstance(normalizer, MovingNormalizer):
            raise ValueError(
                f"LearnedAcceptReject takes a MovingNormalizer, got {normalizer!r}. A known "
                "normaliser belongs to TruncatedRejection."
            )
        self.rejection = TruncatedRejection(proposal, logit, num_tries, validate_args=validate_args)
        self.normalizer = normalizer
        self.num_proposals = count(num_proposals, "num_proposals")
        super().__init__(proposal.batch_shape, proposal.event_shape, validate_args=validate_args)

    @property
    def proposal(self) -> Distribution:
        """What is tried."""
        return self.rejection.proposal

    @property
    def logit(self) -> Callable[[Tensor], Tensor]:
        """What accepts it."""
        return self.rejection.logit

    @property
    def num_tries(self) -> int:
        """How often it is tried."""
        return self.rejection.num_tries

    @constraints.dependent_property
    def support(self):
        """The proposal's support."""
        return self.proposal.support

    @property
    def density_kind(self) -> str:  # type: ignore[override]
        """``"estimate"``; that of the proposal for one try or a normaliser from many proposals."""
        if self.num_tries == 1 or self.normalizer.is_exact:
            return density_kind(self.proposal)
        return "estimate"

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: the arguments are a distribution and a callable, not tensors."""
        raise NotImplementedError("LearnedAcceptReject takes its shapes from its proposal.")

    def estimate_normalizer(self, num: int, chunk: int = 2**16) -> NormalizerEstimate:
        """Stores the mean acceptance of many proposals, which makes the density exact.

        Args:
            num: of fresh proposals, at least two.
            chunk: how many of them are scored at a time.

        Returns:
            ``value`` and ``standard_error``, which are stored.

        Raises:
            ValueError: in training mode, or if no proposal is accepted.
        """
        if self.normalizer.training:
            raise ValueError(
                "The normaliser is in training mode, where the next update would overwrite the "
                "estimate. Call eval() on it, or on the module that owns it, first."
            )
        estimate = self.rejection.estimate_normalizer(num, chunk)
        estimate = NormalizerEstimate(*(self._trim(part) for part in estimate))
        self.normalizer.store(*estimate, num)
        return estimate

    def simulate(self, sample_shape: torch.Size, pathwise: bool) -> tuple[Tensor, None]:
        """Draws values from as many candidates as it takes."""
        return self._expanded.draw(sample_shape), None

    def draw_auxiliaries(self, value: Tensor, num: int) -> Tensor | None:
        """The normaliser: in training from fresh proposals, which are remembered unless frozen."""
        if self.num_tries == 1:
            return None
        if not self.normalizer.training:
            return self.normalizer.value
        shape = torch.Size([num * self.num_proposals])
        current = self._trim(self.rejection.acceptances(shape).mean(0))
        return self.normalizer(current) if self._seed is None else self.normalizer.smooth(current)

    def log_weights(self, value: Tensor, auxiliaries: Tensor | None) -> Tensor:
        """The log density for a normaliser; a log-weight only if that is exact."""
        return self._expanded.log_closed(value, auxiliaries).unsqueeze(0)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The exact density.

        Raises:
            NotImplementedError: if the density is an estimate, or the proposal's is not exact.
        """
        if self.density_kind != "exact":
            raise NotImplementedError(
                f"A guide needs an upper bound on its density, but this LearnedAcceptReject has "
                f"{self._remedy}, and a proposal with an exact density; or use "
                "TruncatedRejection, which has an upper bound."
            )
        log_prob = self.log_prob(value)
        return ScoreParts(log_prob, log_prob, torch.zeros_like(log_prob))

    def tight(self, num: int):
        """A copy whose estimates average ``num`` sets of proposals."""
        new = super().tight(num)
        new.rejection = self.rejection.tight(num)
        return new

    def frozen(self, seed: int):
        """A copy that always uses the same proposals and remembers nothing."""
        new = super().frozen(seed)
        new.rejection = self.rejection.frozen(seed)
        return new

    def _check_caller(self, value: Tensor) -> None:
        if self.density_kind == "estimate" and is_mcmc():
            raise ValueError(
                f"MCMC needs a density, but this LearnedAcceptReject has {self._remedy}."
            )
        super()._check_caller(value)

    def _trim(self, mean: Tensor) -> Tensor:
        """Without the dimensions of size one that an expansion put to the left."""
        superfluous = mean.dim() - self.normalizer.value.dim()
        is_padded = superfluous > 0 and mean.shape[:superfluous].numel() == 1
        return mean.reshape(mean.shape[superfluous:]) if is_padded else mean

    @property
    def _remedy(self) -> str:
        return (
            "a running estimate of its normaliser, with which it is no density. Call eval() on "
            "the normaliser, then estimate_normalizer(num)"
        )

    @property
    def _expanded(self) -> TruncatedRejection:
        return self.rejection.expand(self.batch_shape)

    def __repr__(self):
        return (
            f"LearnedAcceptReject({self.proposal}, {self.logit}, num_tries={self.num_tries}, "
            f"normalizer={self.normalizer}, num_proposals={self.num_proposals})" + self._variant
        )
