"""The mixtures that nonlinear independent component analysis is judged by."""

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext.data import random_matrix
from pyro_ext.data.arguments import integer, interval
from pyro_ext.data.mixed_sources import MixedSources
from pyro_ext.data.mixing import ExpandedTanh, LeakyReLU, Mixing
from pyro_ext.data.random_stream import COVARIANCE, LOC, MIXING, SCALE, stream
from pyro_ext.data.source_laws import GaussianSources, ModulatedSources, standard_normal


def tcl(
    latent_dim: int = 5,
    num_contexts: int = 20,
    num_layers: int = 2,
    *,
    mixing_seed: int = 0,
    modulator_seed: int = 0,
    scale_range: tuple[float, float] = (0.01, 3.0),
    loc_bound: float = 0.0,
    negative_slope: float = 0.2,
) -> MixedSources:
    r"""Nonstationary sources, mixed by a network of leaky ReLUs and orthogonal matrices.

    .. math::

        s_i \mid u \sim N(\mu_i(u), \sigma_i(u)^2), \quad \sigma_i(u) \sim U(0.01, 3), \qquad
        x = a(\cdots a(s) A_2 \cdots) A_L

    The first layer is the identity: at ``num_layers=1`` the sources are seen as they are, and
    with two the activation comes before the only matrix. If ``loc_bound`` is zero, as published,
    the context modulates :math:`s_i^2` alone: compare the features of an energy-based model with
    :math:`s_i^2`. What an invertible model finds is compared with :math:`s_i` itself.

    Args:
        latent_dim: :math:`D`, of sources and observations.
        num_contexts: how many segments :math:`u`.
        num_layers: :math:`L`.
        mixing_seed: of the matrices, drawn from the Haar measure.
        modulator_seed: of :math:`\mu` and :math:`\sigma`; more contexts begin with the same.
        scale_range: of :math:`\sigma`.
        loc_bound: :math:`\mu_i(u) \sim U(-b, b)`.
        negative_slope: of the leaky ReLU.

    Raises:
        ValueError: if a number is out of its range.

    References:
        Hyvarinen and Morioka, *Unsupervised Feature Extraction by Time-Contrastive Learning and
        Nonlinear ICA*, arXiv 1605.06336; the numbers are those of Khemakhem et al., *ICE-BeeM*,
        arXiv 2002.11537.

    Example:
        >>> problem = tcl(latent_dim=3, num_contexts=10)
        >>> x, sources, context = problem.sample(100)
        >>> x.shape, problem.log_prob(x, context).shape
        (torch.Size([1000, 3]), torch.Size([1000]))
    """
    scale = _scale(num_contexts, latent_dim, modulator_seed, scale_range)
    sources = ModulatedSources(_loc(scale, modulator_seed, loc_bound), scale, standard_normal())
    return MixedSources(sources, _leaky(scale, num_layers, mixing_seed, negative_slope))


def imca(
    latent_dim: int = 5,
    num_contexts: int = 20,
    num_layers: int = 2,
    *,
    mixing_seed: int = 0,
    modulator_seed: int = 0,
    scale_range: tuple[float, float] = (0.01, 3.0),
    max_condition: float = 100.0,
    negative_slope: float = 0.2,
) -> MixedSources:
    r"""Sources that are dependent given the context, modulated one by one; mixed as by :func:`tcl`.

    .. math::

        s \mid u \sim N\Bigl(0, \bigl(\tfrac{1}{2D} \Sigma^{-1} +
        \operatorname{diag} \sigma(u)^{-2}\bigr)^{-1}\Bigr), \qquad \sigma_i(u) \sim U(0.01, 3)

    :math:`\Sigma` is a random correlation matrix, whose eigenvalues are uniform draws over their
    mean: the base measure that does not factorise. Some draws are close to singular, so that a
    combination of the sources is nearly zero in every context: they are refused.

    Args:
        latent_dim: :math:`D`, of sources and observations.
        num_contexts: how many segments :math:`u`.
        num_layers: :math:`L`.
        mixing_seed: of the matrices.
        modulator_seed: of :math:`\sigma` and :math:`\Sigma`; more contexts begin with the same.
        scale_range: of :math:`\sigma`.
        max_condition: the largest condition number of :math:`\Sigma` allowed.
        negative_slope: of the leaky ReLU.

    Raises:
        ValueError: if a number is out of its range, or if :math:`\Sigma` is worse conditioned.

    References:
        Khemakhem et al., *ICE-BeeM: Identifiable Conditional Energy-Based Deep Models Based on
        Nonlinear ICA*, arXiv 2002.11537.

    Example:
        >>> problem = imca(latent_dim=3, num_contexts=10)
        >>> problem.source_law.precision.shape
        torch.Size([10, 3, 3])
    """
    scale = _scale(num_contexts, latent_dim, modulator_seed, scale_range)
    base = _base_precision(scale, modulator_seed, max_condition)
    precision = base / (2 * latent_dim) + torch.diag_embed(scale**-2)
    mixing = _leaky(scale, num_layers, mixing_seed, negative_slope)
    return MixedSources(GaussianSources(precision, scale), mixing)


def xtanh(
    latent_dim: int = 5,
    num_contexts: int = 40,
    num_layers: int = 3,
    *,
    mixing_seed: int = 0,
    modulator_seed: int = 0,
    scale_range: tuple[float, float] = (0.5, 3.0),
    loc_bound: float = 0.0,
    base_dist: Distribution | None = None,
    repeat_matrix: bool = True,
    slope: float = 0.1,
) -> MixedSources:
    r"""Sources moved and scaled by the context, mixed by a network of expanded tanh.

    .. math::

        s_i = \mu_i(u) + \sigma_i(u)\, \epsilon_i, \quad \sigma_i(u) \sim U(0.5, 3), \qquad
        x = a(\cdots a(s A_1) \cdots) A_L, \quad a(z) = \tanh z + z / 10

    Entries of the matrices are uniform on [-1, 1], their columns are scaled to unit length, and
    only those are taken whose condition number is among the lowest quarter.

    Args:
        latent_dim: :math:`D`, of sources and observations.
        num_contexts: how many segments :math:`u`.
        num_layers: :math:`L`.
        mixing_seed: of the matrices.
        modulator_seed: of :math:`\mu` and :math:`\sigma`; more contexts begin with the same.
        scale_range: of :math:`\sigma`.
        loc_bound: :math:`\mu_i(u) \sim U(-b, b)`; the *uncentred* data of the paper have 5.
        base_dist: of :math:`\epsilon`, a torch law of one number with ``icdf``, such as
            ``Laplace(0.0, 0.5**0.5)`` or :class:`HyperbolicSecant`; the standard normal if omitted.
        repeat_matrix: whether all layers have the same matrix, as published.
        slope: of the line within :math:`a`.

    Raises:
        ValueError: if a number is out of its range, or if ``base_dist`` is no such law.

    References:
        Khemakhem, Kingma, Monti and Hyvarinen, *Variational Autoencoders and Nonlinear ICA: A
        Unifying Framework*, arXiv 1907.04809; the numbers are those of its code.

    Example:
        >>> problem = xtanh(latent_dim=2, base_dist=torch.distributions.Laplace(0.0, 0.5**0.5))
        >>> x, sources, context = problem.sample(5, dtype=torch.double)
        >>> torch.allclose(problem.unmix(x), sources)
        True
    """
    scale = _scale(num_contexts, latent_dim, modulator_seed, scale_range)
    sources = ModulatedSources(_loc(scale, modulator_seed, loc_bound), scale, _base(base_dist))
    rng = stream(mixing_seed, "mixing_seed", MIXING)
    num_layers = integer(num_layers, "num_layers", 1)
    num_drawn = 1 if repeat_matrix else num_layers
    drawn = np.stack([random_matrix.well_conditioned(rng, latent_dim) for _ in range(num_drawn)])
    matrices = torch.from_numpy(drawn).expand(num_layers, -1, -1)
    return MixedSources(sources, Mixing(matrices, ExpandedTanh(_slope(slope, "slope"))))


def _scale(num_contexts: int, dim: int, seed: int, bounds: tuple[float, float]) -> Tensor:
    shape = integer(num_contexts, "num_contexts", 1), integer(dim, "latent_dim", 1)
    rng = stream(seed, "modulator_seed", SCALE)
    return torch.from_numpy(rng.uniform(*interval(bounds, "scale_range"), shape))


def _loc(scale: Tensor, seed: int, bound: float) -> Tensor:
    if not 0 <= bound < float("inf"):
        raise ValueError(f"loc_bound must be a finite number >= 0, got loc_bound={bound!r}.")
    rng = stream(seed, "modulator_seed", LOC)
    return torch.from_numpy(bound * rng.uniform(-1, 1, tuple(scale.shape)))


def _leaky(scale: Tensor, num_layers: int, seed: int, slope: float) -> Mixing:
    dim, rng = scale.shape[1], stream(seed, "mixing_seed", MIXING)
    num_drawn = integer(num_layers, "num_layers", 1) - 1
    matrices = [np.eye(dim), *(random_matrix.orthogonal(rng, dim) for _ in range(num_drawn))]
    return Mixing(torch.from_numpy(np.stack(matrices)), LeakyReLU(_slope(slope, "negative_slope")))


def _slope(slope: float, name: str) -> float:
    if not 0 < slope < float("inf"):
        raise ValueError(f"{name} must be positive, for the mixing to be invertible, got {slope}.")
    return float(slope)


def _base_precision(scale: Tensor, seed: int, max_condition: float) -> Tensor:
    rng = stream(seed, "modulator_seed", COVARIANCE)
    covariance = random_matrix.correlation(rng, scale.shape[1])
    condition = np.linalg.cond(covariance)
    if not condition <= max_condition:
        raise ValueError(
            f"modulator_seed={seed} draws a base covariance of condition number {condition:.3g}, "
            f"above max_condition={max_condition:g}: a combination of the sources is nearly zero. "
            "Take another seed, or raise max_condition."
        )
    return torch.from_numpy(np.linalg.inv(covariance))


def _base(base_dist: Distribution | None) -> Distribution:
    base_dist = standard_normal() if base_dist is None else base_dist
    if not isinstance(base_dist, Distribution):
        raise ValueError(f"base_dist must be a torch law of one number, got {base_dist!r}.")
    if base_dist.batch_shape or base_dist.event_shape:
        raise ValueError(
            "base_dist must be a law of one number, got batch_shape "
            f"{tuple(base_dist.batch_shape)} and event_shape {tuple(base_dist.event_shape)}."
        )
    try:
        base_dist.icdf(torch.tensor(0.5))
    except NotImplementedError as error:
        name = type(base_dist).__name__
        raise ValueError(f"base_dist must have icdf, {name} has none.") from error
    return base_dist
