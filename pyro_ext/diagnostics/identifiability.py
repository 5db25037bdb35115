"""Whether a conditional model can be identified."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_ext.diagnostics.identifiability_contexts import distinct
from pyro_ext.diagnostics.identifiability_energy import energy_report
from pyro_ext.diagnostics.identifiability_prior import prior_report
from pyro_ext.diagnostics.identifiability_report import IdentifiabilityReport
from pyro_ext.ops.counts import count

OF_PRIOR = (
    "latent_dim",
    "num_statistics",
    "is_monotone",
    "condition",
    "natural_parameters",
    "statistics",
    "log_normalizer",
)
OF_ENERGY = ("features", "weights", "augment", "positive")


def check_identifiability(
    prior: Any,
    contexts: Tensor,
    likelihood: Any = None,
    decoder: Callable[[Tensor], Tensor] | None = None,
    *,
    data: Tensor | None = None,
    num_draws: int = 256,
    tolerance: float = 1e-5,
) -> IdentifiabilityReport:
    r"""Checks the conditions under which latents, or features, are what they are.

    For :math:`x = f(z) + \epsilon` with a prior of natural parameters :math:`\lambda(u)`, of
    :math:`n` coordinates with :math:`k` statistics, the first theorem of iVAE wants
    :math:`n k + 1` contexts with

    .. math::

        \operatorname{rank} \bigl(\lambda(u_1) - \lambda(u_0), \dots,
            \lambda(u_{nk}) - \lambda(u_0)\bigr) = n k

    statistics that are linearly independent on every set, an injective :math:`f`, and noise whose
    characteristic function vanishes almost nowhere. It promises :math:`T(z)` up to an affine map,
    which is a permutation of coordinates unless the only statistic is monotone.

    For an energy :math:`-f(x)^\top g(u)` the theorems of ICE-BeeM want the same of :math:`g`, that
    is one context more than there are statistics, and features that do not collapse; they promise
    a permutation if features are not negative or their squares are statistics too.

    Checked before training these are conditions on the design, after it conditions on what was
    learned. Not checked: that :math:`f` is smooth, which the sharper theorems want and
    networks of rectifiers are not; and since it cannot be, that the model is the one which made
    the data, that the posterior is in the guide's family (see :func:`importance_diagnostics`),
    and that training found the optimum.

    Args:
        prior: an :class:`~pyro_ext.distributions.IdentifiablePrior`, an
            :class:`~pyro_ext.distributions.IMCAPrior` or another object with ``latent_dim``,
            ``num_statistics``, ``is_monotone``, ``condition(context)``,
            ``natural_parameters(context) -> (B, n, k)``, ``statistics(z) -> (..., n, k)`` and
            ``log_normalizer(natural_parameters) -> (B)``. Or an energy, such as
            :class:`~pyro_ext.nn.ConditionalEnergy`: ``features(x) -> (B, d)``, ``weights(context)
            -> (B, d)``, or twice as many with the weights of squares, and flags ``augment`` and
            ``positive``.
        contexts: those of the training data, labels ``(N)`` or vectors ``(N, context_dim)``.
        likelihood: the observation's distribution or its class; ``Delta`` if there is no noise.
        decoder: :math:`f`, from latents ``(S, n)`` to data ``(S, ...)``, the mean of the
            likelihood; or to the likelihood itself, such as an ``IdentifiableVAE``'s ``decode``.
            A module is evaluated with dropout off. Injectivity is looked at near each draw of the
            prior, and by a search for other latents with the same image.
        data: events, for the features of an energy.
        num_draws: of the prior, at which decoder and statistics are looked at.
        tolerance: of singular values, below which fraction of the largest they count as zero.

    Raises:
        ValueError: if an argument is not as described, or contexts or data hold NaN.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA*, arXiv 1907.04809, and
        *ICE-BeeM*, arXiv 2002.11537.

    Example:
        >>> import torch
        >>> from pyro_ext.distributions import GaussianFamily, IdentifiablePrior
        >>> prior = IdentifiablePrior(5, num_classes=4, family=GaussianFamily(("scale",)))
        >>> report = check_identifiability(prior, torch.arange(4))
        >>> report.rank, report.required_contexts, report.is_identifiable
        (3, 6, False)
        >>> report
        identifiability: not promised
          violated  contexts     4 distinct, 6 needed (n k + 1, n = 5, k = 1); ...
          violated  variability  rank 3 of 5 of the differences of natural parameters
          met       modulation   contexts ... nats apart in a coordinate
          met       statistics   smallest over largest singular value of statistics 1.0e+00
          unchecked noise        no likelihood given; ...
          unchecked injective    no decoder given
    """
    count(num_draws, "num_draws", 32)
    seen = distinct(contexts)
    if _has(prior, OF_ENERGY):
        return energy_report(prior, seen, data, tolerance)
    if not _has(prior, OF_PRIOR):
        raise ValueError(
            f"A prior has {', '.join(OF_PRIOR)}, an energy {', '.join(OF_ENERGY)}; got "
            f"{type(prior).__name__} with neither. Pass IdentifiablePrior or ConditionalEnergy."
        )
    return prior_report(prior, seen, likelihood, decoder, num_draws, tolerance)


def _has(thing: Any, names: tuple[str, ...]) -> bool:
    return all(hasattr(thing, name) for name in names)
