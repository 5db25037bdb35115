"""Pareto-smoothed importance weights, by ArviZ."""

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
    smoothed, k_hat = (torch.as_tensor(array).to(log_w) for array in _psislw(draws_last))
    return smoothed.movedim(-1, 0), k_hat.reshape(log_w.shape[1:])


def _psislw(log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed log-weights and shapes along the last axis, by whichever ArviZ is installed."""
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):  # 0.x takes log-weights
        return arviz.psislw(log_w.copy())
    from arviz_stats.base import array_stats  # 1.x takes log-likelihoods: the opposite sign

    return array_stats.psislw(-log_w, axis=-1)
