"""The one base class of the library: samplers whose marginal density is intractable."""

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pyro_ext.distributions.caller import is_counting_plates, is_mcmc, is_score_parts, is_weighing
from pyro_ext.distributions.parameters import check_expand
from pyro_ext.distributions.wrappers import KeepsScoreParts
from pyro_ext.ops.bounds import iwae
from pyro_ext.ops.counts import count

MOST_NUMBERS = 2**24  # that remembered draws hold on their way
CHUNK = 2**18  # that others hold at a time: a network holds many times more


class AuxiliaryLost(RuntimeError):  # noqa: N818 - a state of the value, named as in the docs
    """A stochastic density was scored as a guide on a value whose auxiliaries are gone."""


class _Draw(NamedTuple):
    """What is remembered of a draw, while its tensor lives."""

    auxiliaries: Any
    with_grad: bool
    version: int  # of the tensor, which operations in place increase


class StochasticDensity(KeepsScoreParts, TorchDistribution):
    r"""Stochastic: a sampler with auxiliaries, whose ``log_prob`` is a random lower bound.

    A sampler that draws auxiliaries :math:`a` on its way to :math:`x` has the density
    :math:`p(x) = \int p(x, a)\, da`, which is seldom tractable. With any conditional
    :math:`r(a \mid x)`, and :math:`W = p(x, a) / r(a \mid x)`,

    .. math::

        a \sim r(a \mid x) &: \quad \mathbb{E}[W] = p(x),
            \qquad \mathbb{E}[\log W] \le \log p(x) \\
        x, a \sim p(x, a) &: \quad \mathbb{E}[1 / W \mid x] = 1 / p(x),
            \qquad \mathbb{E}[\log W \mid x] \ge \log p(x)

    so that one weight serves both sides of an evidence lower bound, if it is fed the right
    auxiliaries:

    - ``log_prob(x)`` draws **fresh** auxiliaries: a stochastic **lower** bound, which is what a
      model or a prior needs.
    - ``score_parts(x)``, which Pyro calls on guide sites, uses **the auxiliaries that produced
      this very tensor** ``x``: a stochastic **upper** bound, which is what a guide needs. If they
      are lost (``x`` was detached, cloned or came from elsewhere) it raises
      :class:`AuxiliaryLost`; it never falls back on fresh ones, which would flip the bound.

    Both stay bounds, and become tighter, when ``num`` weights are averaged: see :meth:`tight`.
    MCMC kernels need a deterministic density: see :meth:`frozen`. The auxiliaries live as long as
    the tensor they produced; copies and pickles of a distribution start without any.

    ``to_event``, ``mask`` and ``expand`` keep both sides apart. Another wrapper on the guide's
    side (``TransformedDistribution``, ``pyro.distributions.Independent`` called by name, a
    mixture) would ask ``log_prob`` where it must ask ``score_parts``, and so would
    :class:`pyro.infer.Importance`: they raise. Two callers cannot be seen: an MCMC kernel whose
    potential is compiled, and inference code that is not Pyro's.

    **Deriving a sampler.** Implement :meth:`simulate`, :meth:`draw_auxiliaries` and
    :meth:`log_weights`; :meth:`score_function` too if :math:`x` is not reparameterised. Let
    parameters broadcast rather than expand them: the base class's ``expand`` copies the instance
    and changes only its ``batch_shape``.

    Attributes:
        density_kind: ``"exact"`` if ``log_prob`` is the normalised log density after all,
            ``"lower"`` if it is a random lower bound on it.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265, for the
        lower bound; Lew, Cusumano-Towner and Mansinghka, *Recursive Auxiliary-Variable
        Inference*, arXiv 2203.02836, for both.
    """

    arg_constraints: dict = {}  # noqa: RUF012 - torch's own convention
    has_rsample = False
    density_kind = "lower"
    _num_weights = 1
    _seed: int | None = None
    _draws: WeakIdKeyDictionary | None = None  # tensor -> the auxiliaries that produced it

    # What a sampler implements.

    @abstractmethod
    def simulate(self, sample_shape: torch.Size, pathwise: bool) -> tuple[Tensor, Any]:
        """Draws values and the auxiliaries on their way, under the caller's grad mode.

        Args:
            sample_shape: of the draws.
            pathwise: whether draws carry gradients along paths, where there are any; then
                :meth:`score_function` is owed for the other choices only. Without, the draws are
                detached, and it is owed for all that was drawn.

        Returns:
            The value of shape ``sample_shape + batch_shape + event_shape``, and auxiliaries that
            :meth:`log_weights` turns into one weight (``num=1``) each.
        """

    @abstractmethod
    def draw_auxiliaries(self, value: Tensor, num: int) -> Any:
        r"""Draws ``num`` fresh auxiliaries from :math:`r(a \mid x)` for each value."""

    @abstractmethod
    def log_weights(self, value: Tensor, auxiliaries: Any) -> Tensor:
        r"""Evaluates :math:`\log p(x, a) - \log r(a \mid x)`.

        Returns:
            Log-weights of shape ``(num, *batch)``, or ``(1, *batch)`` if they do not depend on
            the auxiliaries.
        """

    def score_function(self, auxiliaries: Any) -> Tensor | float:
        """The log density whose gradient the sampling of ``(value, auxiliaries)`` is owed.

        Zero, the default, means that sampling is fully reparameterised.
        """
        return 0.0

    @property
    def is_partly_pathwise(self) -> bool:
        """Whether draws have a path, though some choice on their way is discrete."""
        return False

    @property
    def has_path(self) -> bool:
        """Whether draws have a path, wholly or in part."""
        return bool(self.has_rsample or self.is_partly_pathwise)

    @property
    def draw_size(self) -> int:
        """Numbers that one draw of the whole batch holds in memory on its way."""
        return self.shape().numel()

    def draw(self, sample_shape: torch.Size) -> Tensor:
        """Draws values whose auxiliaries nobody wants."""
        return self.simulate(sample_shape, pathwise=False)[0]

    # What Pyro calls.

    def __call__(self, sample_shape=torch.Size()) -> Tensor:
        """Draws values as ``pyro.sample`` does: with a path, as far as there is one."""
        if not self.has_path:
            return self.sample(sample_shape)
        return self._remember(*self.simulate(torch.Size(sample_shape), pathwise=True))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws values without gradient; their auxiliaries live as long as the returned tensor.

        Draws that would fill the memory on their way, a million points of a thousand candidates
        each, are made in chunks and without auxiliaries.
        """
        sample_shape = torch.Size(sample_shape)
        if sample_shape.numel() > 1 and sample_shape.numel() * self.draw_size > MOST_NUMBERS:
            return self._sample_in_chunks(sample_shape)
        value, auxiliaries = self.simulate(sample_shape, pathwise=False)
        return self._remember(value.detach(), auxiliaries)

    @torch.no_grad()
    def _sample_in_chunks(self, sample_shape: torch.Size) -> Tensor:
        rows = max(1, CHUNK // self.draw_size)
        total = sample_shape.numel()
        sizes = [min(rows, total - start) for start in range(0, total, rows)]
        return torch.cat([self.draw(torch.Size([n])) for n in sizes]).reshape(
            self.shape(sample_shape)
        )

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws values with a pathwise gradient, where the sampler has one."""
        if not self.has_rsample:
            raise NotImplementedError(
                f"{type(self).__name__} makes a discrete choice, so it has no pathwise gradient. "
                "Use sample(); score_parts() gives Pyro the score-function gradient, and "
                "pyro.sample adds the path, as far as there is one."
            )
        return self._remember(*self.simulate(torch.Size(sample_shape), pathwise=True))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Stochastic lower bound on :math:`\log p(x)` in nats, from fresh auxiliaries.

        Raises:
            ValueError: if an MCMC kernel asks and the density is not frozen.
            AuxiliaryLost: if code of Pyro's asks on behalf of a guide, which needs the other side.
        """
        if self.density_kind != "exact":
            self._check_caller(value)
        if self._validate_args:
            self._validate_sample(value)
        if torch.is_grad_enabled() and self._find(value) is not None and is_counting_plates():
            with torch.no_grad():
                return self.log_prob(value)
        with nullcontext() if self._seed is None else _seeded(self._seed, value.device):
            auxiliaries = self.draw_auxiliaries(value, self._num_weights)
            log_w = self.log_weights(value, auxiliaries)
        return self._bound(value, log_w)

    def score_parts(self, value: Tensor) -> ScoreParts:
        r"""Stochastic upper bound on :math:`\log p(x)`, from the auxiliaries that made ``value``.

        Raises:
            AuxiliaryLost: if this instance did not sample this very tensor, or sampled it under
                ``torch.no_grad()`` and is now asked for a gradient.
        """
        auxiliaries = self._recall(value)
        log_w = self.log_weights(value, auxiliaries)
        if self._num_weights > 1:  # fresh ones even if frozen, or it were no bound
            fresh = self.draw_auxiliaries(value, self._num_weights - 1)
            log_w = torch.cat([log_w, self.log_weights(value, fresh)])
        upper = self._bound(value, log_w)
        score: Any = self.score_function(auxiliaries)
        return ScoreParts(upper, score, upper)

    # Variants of the same density.

    def tight(self, num: int):
        r"""A copy whose bounds average ``num`` weights; both approach :math:`\log p(x)`.

        Cost and memory of a density evaluation grow with ``num``; the sampler stays the same.

        Raises:
            ValueError: if ``num < 1``.
        """
        new = copy.copy(self)
        new._num_weights = count(num, "num")
        return new

    def frozen(self, seed: int):
        """A copy whose ``log_prob`` is a deterministic function: same noise at each evaluation.

        For NUTS, plots, optimisers with line search. The noise is the same for all values of a
        batch element where a sampler's auxiliaries do not depend on the value; else it goes by
        their place in the batch. Sampling stays random, and the global random state is left
        alone. Under ``torch.func.vmap`` pass ``randomness="same"``.
        """
        new = copy.copy(self)
        new._seed = int(seed)
        return new

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger ``batch_shape``; parameters broadcast."""
        batch_shape = torch.Size(batch_shape)
        check_expand(self, batch_shape)
        new = copy.copy(self) if _instance is None else _instance
        new.__dict__.update(self.__getstate__(), _batch_shape=batch_shape)
        return new

    def separate(self, batch_shape: torch.Size):
        """A copy that shares no auxiliaries between the elements of a larger ``batch_shape``."""
        return self.expand(batch_shape)

    def _bound(self, value: Tensor, log_w: Tensor) -> Tensor:
        return iwae(log_w).expand(self._batch_of(value))

    def _batch_of(self, value: Tensor, batch_shape: torch.Size | None = None) -> torch.Size:
        """Batch shape of values, broadcast with one of ours."""
        batch = value.shape[: value.dim() - self.event_dim]
        own = self.batch_shape if batch_shape is None else batch_shape
        return torch.broadcast_shapes(batch, own)

    @property
    def _variant(self) -> str:
        """What ``repr`` shows of :meth:`tight` and :meth:`frozen`."""
        tight = f".tight({self._num_weights})" if self._num_weights > 1 else ""
        return tight + ("" if self._seed is None else f".frozen({self._seed})")

    def _check_caller(self, value: Tensor) -> None:
        name = type(self).__name__
        if self._seed is None and is_mcmc():
            raise ValueError(
                f"MCMC needs a deterministic density, but log_prob of {name} is random. Put "
                ".frozen(seed) at the model's site, best after .tight(num)."
            )
        if is_score_parts() or (self._find(value) is not None and is_weighing()):
            raise AuxiliaryLost(
                f"A guide's site was scored with log_prob of {name}, a lower bound where an upper "
                "one is needed. Wrap the density with its own methods to_event, mask and expand "
                "only (to transform it, transform what it is made of: its proposal), and weigh "
                "its draws with MultiSampleELBO.log_weights."
            )

    def _remember(self, value: Tensor, auxiliaries: Any) -> Tensor:
        if self._draws is None:
            self._draws = WeakIdKeyDictionary()
        self._draws[value] = _Draw(auxiliaries, torch.is_grad_enabled(), _version(value))
        return value

    def _find(self, value: Tensor) -> _Draw | None:
        draws: Any = self._draws or {}
        draw = draws.get(detach_provenance(value))
        return None if draw is None or draw.version != _version(value) else draw

    def _recall(self, value: Tensor) -> Any:
        draw = self._find(value)
        if draw is None:
            raise AuxiliaryLost(
                f"This {type(self).__name__} did not sample this very tensor of shape "
                f"{tuple(value.shape)}, so the auxiliaries that a guide's density needs are lost: "
                "the value was detached, cloned, changed, came from elsewhere, or is one of more "
                "draws than are remembered. Score the "
                "tensor that sample() returned, on the instance that returned it, with an "
                "objective that keeps it: Trace_ELBO or TraceGraph_ELBO to train, MultiSampleELBO "
                "to evaluate; not ReweightedWakeSleep."
            )
        if torch.is_grad_enabled() and not draw.with_grad:
            raise AuxiliaryLost(
                f"This {type(self).__name__} sampled the value under torch.no_grad(), so the "
                "gradient of its auxiliaries is lost. Sample and score it in the same grad mode."
            )
        return draw.auxiliaries

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_draws"}


def _version(value: Tensor) -> int:
    value = detach_provenance(value)
    return 0 if value.is_inference() else value._version


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Runs its body on a random stream of its own; leaves the global streams alone."""
    gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpu):
        torch.default_generator.manual_seed(seed)
        if gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
