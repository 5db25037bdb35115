r"""How the proposal of a sampler is trained through the candidates that a density draws afresh.

A proposal gradient is a function from a proposal and a ``sample_shape`` to a pair: candidates of
shape ``(*sample_shape, *batch_shape, *event_shape)``, and the log density ``(*sample_shape,
*batch_shape)`` of the choices on their way that have no path, or None. What has a path is
differentiated along it; for the rest

.. math:: \sum_j (L - L_{-j}) \, \nabla \log \pi(x_j)

is added, where :math:`L_{-j}` is the bound with :math:`\log w(x_j)` replaced by the mean of the
other fresh candidates'. A user's own function of this form is as good as these.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, OneHotCategorical
from torch.nn.functional import one_hot

from pyro_ext.distributions.proposals import draw_candidates
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.distributions.wrappers import density_kind

Candidates = tuple[Tensor, Tensor | None]
ProposalGradient = Callable[[Distribution, torch.Size], Candidates]


def reparameterized(proposal: Distribution, sample_shape: torch.Size) -> Candidates:
    r"""Differentiates along the paths of reparameterised candidates: unbiased.

    Raises:
        ValueError: if the proposal has trainable parameters but no ``rsample``.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.distributions import SelfNormalizedImportance
        >>> loc = torch.zeros((), requires_grad=True)
        >>> d = SelfNormalizedImportance(dist.Normal(loc, 1.0), torch.square, 8)  # the default
        >>> d.log_prob(torch.tensor(0.5)).backward()
    """
    return draw_candidates(proposal, sample_shape), None


def stop_gradient(proposal: Distribution, sample_shape: torch.Size) -> Candidates:
    r"""Treats candidates as constants: **biased**, though without variance of its own.

    The proposal learns from the density of the value alone, as if it were the whole model, and
    not from what it does to the normaliser.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265: an option of the published code.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.distributions import SelfNormalizedImportance
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> proposal, energy = dist.Bernoulli(logits=logits).to_event(1), lambda x: x.sum(-1)
        >>> d = SelfNormalizedImportance(proposal, energy, 8, proposal_gradient=stop_gradient)
        >>> d.log_prob(torch.ones(3)).backward()
    """
    return proposal.sample(sample_shape), None


def straight_through(temperature: float = 0.7) -> ProposalGradient:
    r"""Binary or one-hot candidates with the path of relaxed ones: **biased**.

    .. math::

        x = 1[\ell + g > 0], \qquad
        \frac{\partial x}{\partial \ell}
            := \frac{\partial}{\partial \ell}\, \sigma\bigl((\ell + g) / \tau\bigr), \qquad
        g \sim \mathrm{Logistic}(0, 1)

    with logits :math:`\ell`; for one-hot candidates, Gumbel noise, the largest component and the
    softmax. The energy must be differentiable where no candidate ever is. The bias falls with the
    temperature while the variance rises.

    Args:
        temperature: :math:`\tau > 0`.

    Raises:
        ValueError: if the temperature is not positive; when used, unless the proposal is a
            ``Bernoulli`` or a ``OneHotCategorical``, with any ``to_event``, or a
            :class:`ModelMarginal` whose site has such a distribution.

    References:
        Jang, Gu and Poole, *Categorical Reparameterization with Gumbel-Softmax*,
        arXiv 1611.01144. Lawson et al., arXiv 1910.14265, whose published code has this
        temperature.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.distributions import SelfNormalizedImportance
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> proposal, energy = dist.Bernoulli(logits=logits).to_event(1), lambda x: x.sum(-1)
        >>> relaxed = straight_through(temperature=0.5)
        >>> d = SelfNormalizedImportance(proposal, energy, 8, proposal_gradient=relaxed)
        >>> d.log_prob(torch.ones(3)).backward()
    """
    if not temperature > 0:
        raise ValueError(f"straight_through needs a temperature > 0, got {temperature!r}.")
    return partial(_straight_through, temperature=temperature)


def leave_one_out(proposal: Distribution, sample_shape: torch.Size) -> Candidates:
    r"""The score function of each candidate, with a baseline from the others: unbiased.

    .. math::

        \sum_j (L - L_{-j}) \, \nabla \log \pi(x_j), \qquad
        \log \hat w_{-j} = \frac{1}{K - 2} \sum_{k \ne j} \log w(x_k)

    where :math:`L` is the whole bound, averaged weights included, and :math:`L_{-j}` has
    :math:`\hat w_{-j}` in the place of :math:`w(x_j)`. With two proposals there is no other, and
    the value's own weight takes its place. A proposal that is itself a sampler is charged with
    the choices that have no path, and keeps the paths of the others. It holds ``K`` numbers per
    value, even where proposals are shared.

    The gradient is that of the mean of ``log_prob``. Inside of a nonlinear function of it, as in
    ``MultiSampleELBO`` with several particles, it is biased.

    References:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives*, arXiv 1602.06725.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.distributions import SelfNormalizedImportance
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> proposal, energy = dist.Bernoulli(logits=logits).to_event(1), lambda x: x.sum(-1)
        >>> d = SelfNormalizedImportance(proposal, energy, 8, proposal_gradient=leave_one_out)
        >>> d.log_prob(torch.ones(3)).backward()
    """
    if not torch.is_grad_enabled():
        return proposal.sample(sample_shape), None
    candidates, score = _draw_and_score(proposal, sample_shape)
    return candidates, score if isinstance(score, Tensor) and score.requires_grad else None


def _draw_and_score(proposal: Any, sample_shape: torch.Size) -> tuple[Tensor, Any]:
    """Candidates, with paths if their density is a bound, and what is owed for the rest."""
    kind = density_kind(proposal)
    if kind == "exact":
        candidates = proposal.sample(sample_shape)
        return candidates, proposal.log_prob(candidates)
    if kind == "estimate":
        raise ValueError(
            f"leave_one_out needs the density of candidates, but {proposal} only has an estimate "
            "that bounds nothing. Use TruncatedRejection, or estimate the normaliser first."
        )
    if isinstance(proposal, StochasticDensity):
        candidates, auxiliaries = proposal.simulate(sample_shape, pathwise=proposal.has_path)
        return candidates, proposal.score_function(auxiliaries)
    candidates = proposal(sample_shape)
    return candidates, proposal.score_parts(candidates).score_function


def _straight_through(
    proposal: Distribution, sample_shape: torch.Size, temperature: float
) -> Candidates:
    if hasattr(proposal, "draw_conditional"):  # of a program's site, given latents
        return _relax(proposal.draw_conditional(sample_shape), torch.Size(), temperature), None
    return _relax(proposal, sample_shape, temperature), None


def _relax(proposal: Distribution, sample_shape: torch.Size, temperature: float) -> Tensor:
    base = proposal
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Bernoulli | OneHotCategorical):
        raise ValueError(
            f"straight_through takes a Bernoulli or OneHotCategorical proposal, with any to_event, "
            f"got {proposal}. Use leave_one_out, which takes any proposal."
        )
    logits = base.logits
    noise = torch.rand(sample_shape + logits.shape, dtype=logits.dtype, device=logits.device)
    noise = noise.clamp(min=torch.finfo(noise.dtype).tiny)
    if isinstance(base, Bernoulli):
        noisy = logits + noise.log() - (-noise).log1p()
        hard, soft = (noisy > 0).to(noisy.dtype), (noisy / temperature).sigmoid()
    else:
        noisy = logits - (-noise.log()).log()
        hard = one_hot(noisy.argmax(-1), noisy.shape[-1]).to(noisy.dtype)
        soft = (noisy / temperature).softmax(-1)
    return hard + (soft - soft.detach())
