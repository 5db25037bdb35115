"""Pareto-smoothed importance weights and the shape of their tail, by ArviZ."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_ext.ops.backend import import_arviz


def pareto_smoothed(log_w: Tensor) -> tuple[Tensor, Tensor]:
    r"""Replaces the largest weights by quantiles of a generalised Pareto distribution.

    Args:
        log_w: finite log-weights in nats, particles leftmost.

    Returns:
        Normalised smoothed log-weights ``(K, *plates)`` and the tail's shape :math:`\hat k`
        ``(*plates)``, without gradient, on the device and with the dtype of ``log_w``.

    Raises:
        ImportError: if ArviZ is not installed.

    References:
        Vehtari et al., *Pareto Smoothed Importance Sampling*, arXiv 1507.02646.

    Example:
        >>> smoothed, k_hat = pareto_smoothed(torch.randn(100, 3))
        >>> smoothed.shape, k_hat.shape
        (torch.Size([100, 3]), torch.Size([3]))
    """
    draws_last = log_w.detach().movedim(0, -1).double().cpu().numpy()
    with np.errstate(over="ignore"):  # of weights whose reciprocals are then zero, as they ought
        arrays = _psislw(draws_last)
    smoothed, k_hat = (torch.as_tensor(array).to(log_w) for array in arrays)
    return smoothed.movedim(-1, 0), k_hat.reshape(log_w.shape[1:])


def _psislw(log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed log-weights and shapes along the last axis, by whichever ArviZ is installed."""
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):  # 0.x takes log-weights
        return arviz.psislw(log_w.copy())
    from arviz_stats.base import array_stats  # 1.x takes log-likelihoods: the opposite sign

    return array_stats.psislw(-log_w, axis=-1)


def pareto_k(log_w: Tensor) -> Tensor:
    r"""Shape :math:`\hat k` of the generalised Pareto tail of importance weights, by ArviZ.

    .. math:: P(w > t) \propto t^{-1/k} \quad (t \to \infty)

    Below 0.5 the weights have a finite variance; above 0.7 an average over them is not to be
    trusted at any practical number of particles. It does not change when a constant is added to
    ``log_w``. If the largest fifth of the weights (of many: the largest :math:`3 \sqrt K`) are
    equal to rounding error there is no tail: they give :math:`-\infty`. Without a finite maximum,
    as where all weights are zero, it is NaN.

    Args:
        log_w: log-weights in nats, particles leftmost.

    Shape:
        ``(K, *plates) -> (*plates)``, on the device and with the dtype of ``log_w``, which must
        be floating-point.

    Raises:
        ValueError: if ``log_w`` is no tensor, or has fewer than 25 particles, too few to see a
            tail of five.

    References:
        Vehtari et al., *Pareto Smoothed Importance Sampling*, arXiv 1507.02646.

    Example:
        >>> log_w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> bool(pareto_k(log_w) < 0.7)
        True
    """
    if not isinstance(log_w, Tensor):
        raise ValueError(
            f"pareto_k needs a tensor with particles leftmost, got {type(log_w).__name__}. Of "
            "ArviZ's data: torch.as_tensor(data.sample_stats['log_weight'].values[0])."
        )
    if log_w.shape[0] < 25:
        raise ValueError(
            f"pareto_k fits the largest fifth of the weights and needs at least 25 particles, got "
            f"{log_w.shape[0]}. Draw more particles."
        )
    top = log_w.detach().amax(0)
    log_w = log_w.detach().where(top.isfinite(), 0.0)
    _, k_hat = pareto_smoothed(log_w)
    k_hat = k_hat.masked_fill(_has_no_tail(log_w), -math.inf)
    return k_hat.masked_fill(~top.isfinite(), math.nan)


def _has_no_tail(log_w: Tensor) -> Tensor:
    """Whether the weights from which ArviZ fits the tail, and its threshold, are all equal."""
    num_particles, top = len(log_w), log_w.amax(0)
    tail = math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))
    rounding = 100 * torch.finfo(log_w.dtype).eps * top.abs().clamp(min=1)
    return (log_w >= top - rounding).sum(0) > tail
