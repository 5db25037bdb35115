r"""Score functions with leave-one-out baselines, as zeros that carry a gradient.

.. math:: \sum_j (L - L_{-j}) \, \nabla s_j

is the gradient of the mean of :math:`L` that the choices with log densities :math:`s_j` are owed;
the baseline :math:`L_{-j}` depends on the other choices only.
"""

import math

import torch
from torch import Tensor


def scored(log_w: Tensor, log_w_others: Tensor, score: Tensor) -> Tensor:
    r"""A zero whose gradient is owed to the choices of fresh candidates.

    Args:
        log_w: log-weight of the values, ``(*batch)``.
        log_w_others: of the fresh candidates, ``(num, K - 1, *shared)``, broadcastable.
        score: the owed log densities, ``(num, K - 1, *shared)``.

    Returns:
        Zeros ``(*batch)``, to be added to every row of the bound's log-weights ``(num, *batch)``.
    """
    with torch.no_grad():
        factors = _factors(log_w, log_w_others)
    return (factors * (score - score.detach())).sum((0, 1))


def scored_rows(log_w: Tensor, score: Tensor) -> Tensor:
    r"""Log-weights ``(num, *batch)``, such that their mean is differentiated by scores too.

    .. math:: \sum_s (L - L_{-s}) \, \nabla \log r(a_s)

    with :math:`L_{-s}` the bound of the other weights, zero if there are none.
    """
    with torch.no_grad():
        num = log_w.shape[0]
        factors = log_w.logsumexp(0, keepdim=True) - math.log(num)
        if num > 1:
            factors = factors - (_log_sum_others(log_w, 0) - math.log(num - 1))
    return log_w + (factors * (score - score.detach())).sum(0)


def self_normalized(log_w: Tensor, values: Tensor, score: Tensor | None) -> Tensor:
    r"""The mean of values by their normalised weights, and the gradient of its expectation.

    Args:
        log_w: log-weights ``(K, *batch)`` of candidates.
        values: :math:`f(x_k)`, ``(K, *batch, *rest)``.
        score: owed log densities ``(K, *batch)``, if any.
    """
    if values.shape[: log_w.dim()] != log_w.shape:
        raise ValueError(
            f"The function returned shape {tuple(values.shape)}, expected {tuple(log_w.shape)} and "
            "any dimensions to the right: it maps (..., *event_shape) to (..., *rest)."
        )
    right = (...,) + (None,) * (values.dim() - log_w.dim())
    weights = log_w.softmax(0)[right]
    mean = (weights * values).sum(0)
    if score is None:
        return mean
    with torch.no_grad():
        factors = weights * (values - _mean_of_others(weights, values))
    return mean + (factors * (score - score.detach())[right]).sum(0)


def _mean_of_others(weights: Tensor, values: Tensor) -> Tensor:
    """For each candidate the normalised mean of all others, zero if they weigh nothing."""
    total, weight = (_sum_others(x) for x in (weights * values, weights))
    return torch.where(weight > 0, total / weight, 0.0)


def _sum_others(x: Tensor) -> Tensor:
    none = torch.zeros_like(x[:1])
    before, after = torch.cat([none, x[:-1]]), torch.cat([x[1:], none])
    return before.cumsum(0) + after.flip(0).cumsum(0).flip(0)


def _factors(log_w: Tensor, log_w_others: Tensor) -> Tensor:
    r""":math:`L - L_{-j}` for each fresh candidate, ``(num, K - 1, *batch)``."""
    num_others = log_w_others.shape[1] - 1
    total = log_w_others.sum(1, keepdim=True) - log_w_others
    instead = total / num_others if num_others else log_w
    base = torch.logaddexp(log_w, _log_sum_others(log_w_others, 1))  # without candidate j
    bounds = -torch.logaddexp(base, log_w_others)[:, :1]  # (num, 1, *batch)
    without = -torch.logaddexp(base, instead)
    other_rows = _log_sum_others(bounds, 0)
    return bounds.logsumexp(0) - torch.logaddexp(other_rows, without)


def _log_sum_others(log_w: Tensor, dim: int) -> Tensor:
    """For each place along a dimension the log of the sum of all others; -inf if there is none."""
    none = torch.full_like(log_w.narrow(dim, 0, 1), -math.inf)
    size = log_w.shape[dim]
    before = torch.cat([none, log_w.narrow(dim, 0, size - 1)], dim).logcumsumexp(dim)
    after = torch.cat([log_w.narrow(dim, 1, size - 1), none], dim)
    return torch.logaddexp(before, after.flip(dim).logcumsumexp(dim).flip(dim))
