"""Semi-implicit distributions: mixtures over a variable that nobody integrates out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_ext.distributions.proposals import draw_candidates
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.distributions.wrappers import density_kind

REMEDY = "or sum it out (MixtureSameFamily)"


class _Mixed(NamedTuple):
    r"""Values of the mixing variable, and what was made from them."""

    psi: Tensor  # (num, *batch, *mixing_event)
    given: Any  # q(x | psi), of batch shape (num, *batch)
    reverse: Any = None  # r(psi | x), if already at hand
    log_q: Tensor | float = 0.0  # (*batch): log density of the choices without a path


class SemiImplicit(StochasticDensity):
    r"""Stochastic: a mixture over a continuous variable, whose ``log_prob`` is a lower bound.

    .. math::

        \psi \sim q(\psi), \qquad x \sim q(x \mid \psi), \qquad
        q(x) = \int q(x \mid \psi)\, q(\psi)\, d\psi

    The conditional must have a density; its parameters may be any function of :math:`\psi`, such
    as a network, so that the marginal :math:`q(x)` is flexible, correlated, with several modes,
    and known by draws only. With a reverse density :math:`r(\psi \mid x)`,

    .. math:: W = \frac{q(x \mid \psi)\, q(\psi)}{r(\psi \mid x)}

    which is :math:`q(x \mid \psi)` by default, where :math:`r(\psi \mid x) = q(\psi)`. Averages of
    such weights are the bounds of the papers below. With :math:`\psi_0` the one that produced
    :math:`x` and :math:`\psi_1, \dots, \psi_K` fresh ones,

    .. math::

        \texttt{tight(K + 1).score\_parts(x)} &= \log \frac{1}{K + 1} \sum_{k=0}^K W(x, \psi_k) \\
        \texttt{tight(K).log\_prob(x)} &= \log \frac1K \sum_{k=1}^K W(x, \psi_k)

    the first a stochastic upper bound, which a guide needs: semi-implicit variational inference
    (SIVI), and with a learned ``reverse`` importance-weighted hierarchical variational inference
    (IWHVI), which needs far fewer weights. The second is the lower bound that an
    implicit prior needs (doubly semi-implicit). The default ``num = 1`` of both is loose; where
    the marginal is the posterior of :math:`\psi`, one weight is exact.

    Draws are reparameterised if both parts are. If only the conditional is, for a mixing variable
    that is discrete, draws in a guide have a path given :math:`\psi` and a score function for
    :math:`\psi`.

    Args:
        mixing: :math:`q(\psi)`, with an exact density.
        conditional: :math:`\psi \mapsto q(x \mid \psi)`, a callable from ``(..., *mixing_event)``
            to a distribution of batch shape ``(...)``, whose event is that of the result. It
            is called once at construction, on a draw, to learn the shapes and the support,
            which must not depend on :math:`\psi`. It may depend on the batch.
        reverse: :math:`x \mapsto r(\psi \mid x)`, a callable from ``(..., *event_shape)`` to a
            distribution of batch shape ``(...)``, whose event is that of ``mixing`` and which
            covers it. Trained by the very bounds that it tightens.
        validate_args: checks values.

    Shape:
        ``batch_shape`` is that of ``mixing`` broadcast with that of ``conditional``, and
        ``event_shape`` that of ``conditional``. Each batch element has a :math:`\psi` of its own.

    Raises:
        ValueError: if the arguments are no distribution and callables that return distributions
            of the shapes above with exact densities; later, if a gradient is asked through fresh
            :math:`\psi` that have trainable parameters but no ``rsample``.

    References:
        Yin and Zhou, *Semi-Implicit Variational Inference*, arXiv 1805.11183. Molchanov,
        Kharitonov, Sobolev and Vetrov, *Doubly Semi-Implicit Variational Inference*, arXiv
        1810.02789. Sobolev and Vetrov, *Importance Weighted Hierarchical Variational Inference*,
        arXiv 1905.03290.

    Example:
        >>> import pyro.distributions as dist
        >>> wide = SemiImplicit(dist.Normal(0.0, 1.0), lambda psi: dist.Normal(psi, 1.0))
        >>> x, upper = wide.tight(10).rsample_and_log_prob((1000,))
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x)
        >>> bool(wide.tight(10).log_prob(x).mean() < exact.mean() < upper.mean())
        True

        A network makes a ring of a normal:

        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 2))
        >>> mixing = dist.Normal(torch.zeros(5), 1.0).to_event(1)
        >>> ring = SemiImplicit(mixing, lambda psi: dist.Normal(net(psi), 0.1).to_event(1))
        >>> ring.batch_shape, ring.event_shape
        (torch.Size([]), torch.Size([2]))
    """

    def __init__(
        self,
        mixing: Distribution,
        conditional: Callable[[Tensor], Distribution],
        reverse: Callable[[Tensor], Distribution] | None = None,
        *,
        validate_args: bool | None = None,
    ):
        _check_arguments(mixing, conditional, reverse)
        self.mixing = mixing
        self.conditional = conditional
        self.reverse = reverse
        probe = self._probe()
        self._support = probe.support
        self._is_pathwise_given = bool(probe.has_rsample)
        self._own_batch = probe.batch_shape
        super().__init__(probe.batch_shape, probe.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        """The conditional's support."""
        return self._support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether both parts are reparameterised."""
        return bool(self.mixing.has_rsample) and self._is_pathwise_given

    @property
    def is_partly_pathwise(self) -> bool:
        """Whether draws have a path from a mixing variable that has none."""
        return self._is_pathwise_given and not self.mixing.has_rsample

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: the arguments are a distribution and callables, not tensors."""
        raise NotImplementedError("SemiImplicit takes its shapes from its parts.")

    @property
    def draw_size(self) -> int:
        """Numbers of a value and of its mixing variable."""
        return self.shape().numel() + self.batch_shape.numel() * self.mixing.event_shape.numel()

    def simulate(self, sample_shape: torch.Size, pathwise: bool) -> tuple[Tensor, _Mixed]:
        """Draws the mixing variable and, given it, the value."""
        mixing = self.mixing.expand(self.batch_shape)
        psi = _draw(mixing, sample_shape, pathwise)
        given = self._given(psi)
        value = _draw(given, torch.Size(), pathwise)
        log_q: Any = 0.0
        if torch.is_grad_enabled() and not (pathwise and mixing.has_rsample):
            log_q = mixing.log_prob(psi)
        if torch.is_grad_enabled() and not (pathwise and given.has_rsample):
            log_q = log_q + given.log_prob(value)
        one = given.expand(torch.Size((1, *given.batch_shape)))
        return value, _Mixed(psi.unsqueeze(0), one, log_q=log_q)

    def draw_auxiliaries(self, value: Tensor, num: int) -> _Mixed:
        """Draws fresh mixing variables, from the reverse density or else their own."""
        reverse = None if self.reverse is None else self._reversed(value)
        source = self.mixing.expand(self._fresh_batch(value)) if reverse is None else reverse
        psi = draw_candidates(source, torch.Size([num]), "distribution of the mixing", REMEDY)
        return _Mixed(psi, self._given(psi), reverse)

    def log_weights(self, value: Tensor, auxiliaries: _Mixed) -> Tensor:
        r"""Evaluates :math:`\log q(x \mid \psi) + \log q(\psi) - \log r(\psi \mid x)`."""
        log_w = auxiliaries.given.log_prob(value)
        if self.reverse is None:
            return log_w
        made = auxiliaries.reverse
        reverse = self._reversed(value) if made is None else made
        psi = auxiliaries.psi
        return log_w + self.mixing.log_prob(psi) - reverse.log_prob(psi)

    def score_function(self, auxiliaries: _Mixed) -> Tensor | float:
        """Log density of what was drawn without a path."""
        return auxiliaries.log_q

    def _fresh_batch(self, value: Tensor) -> torch.Size:
        """One mixing variable for each value, or as many for any values if frozen."""
        batch = self._batch_of(value)
        if self._seed is None:
            return batch
        return torch.Size((1,) * (len(batch) - len(self._own_batch))) + self._own_batch

    def _probe(self) -> Any:
        """The conditional of one draw for each batch element."""
        mixing = self.mixing
        with torch.no_grad():
            probe = _exact(self.conditional(mixing.sample()), "conditional")
            if probe.batch_shape == mixing.batch_shape:
                return probe
            batch_shape = torch.broadcast_shapes(mixing.batch_shape, probe.batch_shape)
            return self._given(mixing.expand(batch_shape).sample())

    def _given(self, psi: Tensor) -> Any:
        given = self.conditional(psi)
        expected = psi.shape[: psi.dim() - len(self.mixing.event_shape)]
        if given.batch_shape != expected:
            raise ValueError(
                f"conditional made a distribution of batch shape {tuple(given.batch_shape)} and "
                f"event shape {tuple(given.event_shape)} from a mixing variable of shape "
                f"{tuple(psi.shape)}, expected batch shape {tuple(expected)}: it maps (..., "
                "*mixing_event) to batch shape (...), where mixing_event is "
                f"{tuple(self.mixing.event_shape)}. Let .to_event(n) turn dimensions "
                "into its event, or those of mixing into the event of mixing."
            )
        return given

    def _reversed(self, value: Tensor) -> Any:
        reverse: Any = self.reverse
        made = _exact(reverse(value), "reverse")
        batch = self._batch_of(value)
        if (
            made.event_shape != self.mixing.event_shape
            or torch.broadcast_shapes(made.batch_shape, batch) != batch
        ):
            raise ValueError(
                f"reverse made a distribution of batch shape {tuple(made.batch_shape)} and event "
                f"shape {tuple(made.event_shape)} from values of shape {tuple(value.shape)}, "
                f"expected batch shape {tuple(batch)} and the event shape of mixing, "
                f"{tuple(self.mixing.event_shape)}. Use .to_event(n), or change its output."
            )
        return made.expand(batch)

    def __repr__(self):
        return f"SemiImplicit({self.mixing}, {self.conditional}, {self.reverse})" + self._variant


def _check_arguments(mixing: Any, conditional: Any, reverse: Any) -> None:
    _exact(mixing, "mixing", "be")
    if not callable(conditional) or not (reverse is None or callable(reverse)):
        raise ValueError(
            "SemiImplicit takes callables that return distributions as conditional and, unless it "
            f"is None, as reverse, got {conditional!r} and {reverse!r}."
        )


def _exact(distribution: Any, name: str, verb: str = "return") -> Any:
    if not isinstance(distribution, Distribution) or density_kind(distribution) != "exact":
        raise ValueError(
            f"{name} must {verb} a distribution with an exact density, got {distribution!r}. Put "
            "what has none into the function that makes the conditional's parameters."
        )
    return distribution


def _draw(source: Any, sample_shape: torch.Size, pathwise: bool) -> Tensor:
    return (source.rsample if pathwise and source.has_rsample else source.sample)(sample_shape)
