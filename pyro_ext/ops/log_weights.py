"""Functions of unnormalised log importance weights ``log_w``, particles leftmost."""

import math

import torch
from torch import Tensor


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    r"""Logarithm of the mean of exponentials, without overflow.

    .. math:: \log \frac{1}{K} \sum_{k=1}^K e^{\ell_k}

    Args:
        log_w: log-weights :math:`\ell` in nats.
        dim: the dimension to reduce.

    Shape:
        ``(K, *plates) -> (*plates)`` for ``dim=0``.

    Raises:
        ValueError: if the reduced dimension is empty.

    Example:
        >>> log_mean_exp(torch.tensor([1000.0, 1000.0]))
        tensor(1000.)
    """
    num_particles = log_w.shape[dim]
    if num_particles == 0:
        raise ValueError(
            f"log_mean_exp needs at least one particle, but dimension {dim} of the log-weights "
            f"of shape {tuple(log_w.shape)} is empty."
        )
    return log_w.logsumexp(dim) - math.log(num_particles)


def effective_sample_size(log_w: Tensor, dim: int = 0) -> Tensor:
    r"""Kish's effective sample size of importance weights.

    .. math:: \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2} \in [1, K]

    It does not change when a constant is added to ``log_w``.

    Args:
        log_w: log-weights :math:`\log w` in nats.
        dim: the particle dimension.

    Shape:
        ``(K, *plates) -> (*plates)`` for ``dim=0``.

    References:
        Kish, *Survey Sampling* (1965).

    Example:
        >>> effective_sample_size(torch.zeros(5))
        tensor(5.)
    """
    return torch.exp(2 * log_w.logsumexp(dim) - (2 * log_w).logsumexp(dim))
