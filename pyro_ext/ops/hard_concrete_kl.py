"""Divergences between hard concrete laws, and between the logistic laws inside them."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_ext.ops.hard_concrete import Number, edges


def hard_concrete_kl(
    log_alpha: Tensor, other: Tensor, temperature: Number, low: float, high: float
) -> Tensor:
    r"""Kullback-Leibler divergence of hard concrete laws with one temperature and stretch.

    .. math::

        \mathrm{KL} = P_0 g_0^- + P_1 g_1^+ + (1 - P_0 - P_1)
        \Bigl( \frac{g_0 + g_1}{2} + 2 (r \coth r - 1) \Bigr), \qquad r = \frac{g_1 - g_0}{4}

    where :math:`P_0, P_1` are the atoms of the first law, :math:`g_0^-` and :math:`g_1^+` the log
    ratios of the atoms' probabilities, and :math:`g_0, g_1` those of the densities at the edges.
    In between the density ratio is the square of a linear function of the first law's cdf, which
    is integrated here without the cancellation of its primitive.

    Exactly zero between equals; rounding in float32 is about 1e-7.

    Args:
        log_alpha: :math:`\log\alpha` of the first law.
        other: :math:`\log\alpha` of the second law.
        temperature: :math:`\beta`, common.
        low: :math:`\gamma`, common.
        high: :math:`\zeta`, common.

    Shape:
        That of the tensors, broadcast.

    Example:
        >>> hard_concrete_kl(torch.tensor([-4.0, 0.0, 2.0]), torch.tensor(0.5), 2 / 3, -0.1, 1.1)
        tensor([1.8121, 0.0411, 0.3227])
    """
    start, stop = edges(temperature, low, high)
    left, right = start - log_alpha, stop - log_alpha
    zero, not_zero = _log_sigmoids(left)
    not_one, one = _log_sigmoids(right)
    other_zero, other_not_zero = _log_sigmoids(start - other)
    other_not_one, other_one = _log_sigmoids(stop - other)
    gap_zero, gap_one = zero - other_zero, one - other_one
    first = gap_zero + not_zero - other_not_zero
    last = gap_one + not_one - other_not_one
    inside = (not_zero + not_one).exp() * -torch.expm1(left - right)
    middle = (first + last) / 2 + 2 * coth_excess((last - first) / 4)
    return zero.exp() * gap_zero + one.exp() * gap_one + inside * middle


def logistic_kl(loc: Tensor, other: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence of logistic laws of unit scale.

    .. math:: d \coth(d / 2) - 2, \qquad d = \mu_p - \mu_q

    An upper bound on :func:`hard_concrete_kl`: clipping loses information.

    Args:
        loc: :math:`\mu_p`.
        other: :math:`\mu_q`.

    Example:
        >>> logistic_kl(torch.tensor([-4.0, 0.0, 2.0]), torch.tensor(0.5))
        tensor([2.6011, 0.0415, 0.3617])
    """
    return 2 * coth_excess((loc - other) / 2)


def coth_excess(x: Tensor) -> Tensor:
    r"""Computes :math:`x \coth x - 1`, smoothly through zero.

    Example:
        >>> coth_excess(torch.tensor([0.0, 1.0, 100.0]))
        tensor([ 0.0000,  0.3130, 99.0000])
    """
    small = x.abs() < 0.02
    away = x.masked_fill(small, 1.0)
    square = x.masked_fill(~small, 0.0).square()
    series = square * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
    return torch.where(small, series, away / away.tanh() - 1)


def _log_sigmoids(x: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities to be below and above."""
    below = logsigmoid(x)
    return below, below - x
