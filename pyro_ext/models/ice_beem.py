"""A conditional energy with the noise that it was told from."""

from typing import Any, NamedTuple

import pyro
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from pyro_ext.distributions.noise import check_noise, draw, noise_given
from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.nn.conditional_energy import ConditionalEnergy
from pyro_ext.ops.annealed_importance import annealed_importance
from pyro_ext.ops.counts import count
from pyro_ext.ops.log_weights import effective_sample_size, log_mean_exp
from pyro_ext.ops.pareto_smoothing import pareto_k


class NormalizerEstimate(NamedTuple):
    r"""An estimate of :math:`\log Z(u)`, and how far to trust it; each ``(*batch)``."""

    value: Tensor  # in nats; low by about half of the squared standard error
    standard_error: Tensor  # in nats, by the delta method
    ess: Tensor  # Kish's effective sample size
    pareto_k: Tensor  # above 0.7: do not trust it


class ICEBeeM(PyroModule):
    r"""An identifiable conditional energy-based model, which can be sampled and normalised.

    .. math::

        p(x \mid u) = \frac{e^{-E(x, u)}}{Z(u)}, \qquad
        -E(x, u) = f(x)^\top g(u) + b(x), \qquad x \sim q(x \mid u) \text{ as noise and proposal}

    It is trained by any objective of energies, such as
    ``NoiseContrastive()(model.energy, model.noise)``, best with the loss of
    ``ContextContrastive()(model.energy)`` added; the noise it learned by then is the proposal
    by which it is sampled and normalised. What is identified, up to what the theorem leaves,
    is :meth:`features`; the conditions are on the weights of the contexts.

    :meth:`model` and :meth:`guide` are Pyro programs: the law of :math:`x` is that of
    self-normalised importance sampling with ``num_proposals``, a normalised density near
    :math:`p(x \mid u)`, by which the energy may also be fitted by likelihood or be a part of a
    larger model.

    Args:
        energy: :math:`E`.
        noise: :math:`q`, a distribution, or a callable from contexts to one, best a module.
        num_proposals: of a draw.

    Raises:
        ValueError: if the energy is no ConditionalEnergy, or the noise is not fit.

    References:
        Khemakhem et al., *ICE-BeeM: Identifiable Conditional Energy-Based Deep Models Based on
        Nonlinear ICA*, arXiv 2002.11537. Lawson et al., *Energy-Inspired Models*,
        arXiv 1910.14265, for the samples.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.infer import NoiseContrastive
        >>> noise = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        >>> model = ICEBeeM(ConditionalEnergy(2, 3, num_classes=4), noise)
        >>> x, label = torch.randn(64, 2), torch.randint(4, (64,))
        >>> NoiseContrastive(5)(model.energy, model.noise)(x, label).backward()
        >>> model.sample(label).shape, model.features(x).shape
        (torch.Size([64, 2]), torch.Size([64, 3]))
        >>> model.estimate_log_normalizer(torch.arange(4), 1000).value.shape
        torch.Size([4])
    """

    def __init__(self, energy: ConditionalEnergy, noise: Any, num_proposals: int = 256):
        super().__init__()
        if not isinstance(energy, ConditionalEnergy):
            raise ValueError(f"energy must be a ConditionalEnergy, got {energy!r}.")
        check_noise(noise)
        self.energy, self.noise = energy, noise
        self.num_proposals = count(num_proposals, "num_proposals")

    @pyro_method
    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, size: int | None = None
    ) -> Tensor:
        """Samples ``x`` given contexts, observed if given.

        Args:
            x: mini-batch ``(batch, *event_shape)``.
            context: labels ``(batch)`` or vectors ``(batch, context_dim)``.
            size: number of data that the mini-batch stands for; its own length if not given.
        """
        with _plate(x, context, size):
            return pyro.sample("x", self.density(context), obs=x)

    @pyro_method
    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, size: int | None = None
    ) -> None:
        """Samples nothing: there are no latent variables."""

    def features(self, x: Tensor) -> Tensor:
        """The features, ``(*batch, latent_dim)``."""
        return self.energy.features(x)

    def density(
        self, context: Tensor | None = None, num_proposals: int | None = None
    ) -> SelfNormalizedImportance:
        r"""The law of draws given contexts, whose batch it has: :math:`p(x \mid u)` in the limit.

        Args:
            context: labels or vectors.
            num_proposals: the model's own if not given.
        """
        proposal = noise_given(self.noise, context)
        proposal = proposal.expand(self._batch(context, proposal))
        energy = _Relative(self.energy, proposal, context)
        return SelfNormalizedImportance(
            proposal, energy, self.num_proposals if num_proposals is None else num_proposals
        )

    def sample(
        self,
        context: Tensor | None = None,
        sample_shape: torch.Size | tuple = (),
        num_proposals: int | None = None,
    ) -> Tensor:
        """Draws given contexts, ``(*sample_shape, *batch, *event_shape)``."""
        return self.density(context, num_proposals).sample(torch.Size(sample_shape))

    @torch.no_grad()
    def estimate_log_normalizer(
        self,
        context: Tensor | None = None,
        num_samples: int = 10_000,
        *,
        num_temperatures: int = 1,
        step_size: float = 0.1,
    ) -> NormalizerEstimate:
        r"""Estimates :math:`\log Z(u)` with the noise as proposal.

        .. math:: \log \hat Z(u) = \log \frac1M \sum_m e^{-E(x_m, u)} / q(x_m \mid u)

        Its exponential is unbiased. Noise that knows no context is drawn once for all contexts,
        whose errors then go together. Where :math:`\hat k` or the effective sample size is bad,
        anneal: :func:`~pyro_ext.ops.annealed_importance` from the noise to the energy.

        Args:
            context: labels or vectors.
            num_samples: :math:`M \ge 25`.
            num_temperatures: one for plain importance sampling.
            step_size: of annealing's Hamiltonian moves, in the units of the data.

        Raises:
            ValueError: if there are too few samples.
            ImportError: if ArviZ is not installed.
        """
        shape = torch.Size((count(num_samples, "num_samples", 25),))
        proposal = noise_given(self.noise, context)
        if count(num_temperatures, "num_temperatures") == 1:
            return _summarize(self._log_weights(proposal, context, shape))
        proposal = proposal.expand(self._batch(context, proposal))
        log_w, _, _ = annealed_importance(
            proposal.log_prob,
            lambda x: -self.energy(x, context),
            proposal.sample(shape),
            num_temperatures,
            step_size,
            event_dim=len(proposal.event_shape),
        )
        return _summarize(log_w)

    def _log_weights(self, proposal: Any, context: Tensor | None, shape: torch.Size) -> Tensor:
        """Of draws ``(num_samples)``, each for all contexts if the proposal knows none."""
        if proposal.batch_shape == ():
            shape = shape + tuple(1 for _ in self._batch(context, proposal))
        x, log_q = draw(proposal, shape)
        return -self.energy(x, context) - log_q

    def _batch(self, context: Tensor | None, proposal: Any) -> torch.Size:
        own = self.energy.weights(context).shape[:-1]
        return torch.broadcast_shapes(own, proposal.batch_shape)


def _plate(x: Tensor | None, context: Tensor | None, size: int | None) -> Any:
    """The plate of a mini-batch that stands for ``size`` data."""
    lengths = {len(given) for given in (x, context) if given is not None}
    if not lengths:
        raise ValueError("The model needs data or contexts, to know how many data there are.")
    if len(lengths) > 1:
        raise ValueError(f"There are {len(x)} data, but {len(context)} contexts.")  # type: ignore
    num = lengths.pop()
    if size is not None and size < num:
        raise ValueError(f"A mini-batch of {num} cannot stand for size={size} data.")
    return pyro.plate("data", size or num, subsample=torch.arange(num), dim=-1)


class _Relative:
    """An energy relative to a proposal, as importance sampling has it."""

    def __init__(self, energy: ConditionalEnergy, proposal: Any, context: Tensor | None):
        self.energy, self.proposal, self.context = energy, proposal, context
        self.event_shape = energy.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x, self.context) + self.proposal.log_prob(x)


def _summarize(log_w: Tensor) -> NormalizerEstimate:
    """Of log-weights ``(num_samples, *batch)``."""
    value = log_mean_exp(log_w)
    error = (log_w - value).exp().std(0) / len(log_w) ** 0.5
    return NormalizerEstimate(value, error, effective_sample_size(log_w), pareto_k(log_w))
