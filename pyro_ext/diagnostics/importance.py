"""How far importance weights can be trusted."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_ext.diagnostics.backend import import_arviz


def pareto_k(log_w: Tensor) -> Tensor:
    r"""Shape :math:`\hat k` of the generalised Pareto tail of importance weights, by ArviZ.

    .. math:: P(w > t) \propto t^{-1/k} \quad (t \to \infty)

    Below 0.5 the weights have a finite variance; above 0.7 an average over them is not to be
    trusted at any practical number of particles. It does not change when a constant is added to
    ``log_w``. Equal weights have no tail: they give :math:`-\infty`.

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
    draws_last = log_w.detach().movedim(0, -1).double().cpu().numpy()
    k_hat = torch.as_tensor(_psislw(draws_last), dtype=log_w.dtype, device=log_w.device)
    equal = (log_w == log_w[0]).all(0)
    return k_hat.reshape(log_w.shape[1:]).masked_fill(equal, -math.inf)


def _psislw(log_w: np.ndarray) -> np.ndarray:
    """Pareto shapes along the last axis, by whichever ArviZ is installed."""
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):  # 0.x takes log-weights
        return arviz.psislw(log_w.copy())[1]
    from arviz_stats.base import array_stats  # 1.x takes log-likelihoods: the opposite sign

    return array_stats.psislw(-log_w, axis=-1)[1]
