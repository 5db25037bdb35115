"""Bounds on a log evidence as pure functions of ``log_w (K, *plates)``.

A bound from above has an attribute ``upper = True``: an objective minimises it. All bounds can be
pickled and differentiated twice, and reduce the particles on the left only.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_ext.ops.counts import count
from pyro_ext.ops.log_weights import log_mean_exp

Bound = Callable[[Tensor], Tensor]


def iwae(log_w: Tensor) -> Tensor:
    r"""Importance-weighted lower bound on the log evidence.

    .. math::

        \mathcal{L}_K = \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    Its expectation increases with :math:`K`, from the evidence lower bound at :math:`K=1` to
    :math:`\log p(x)`. A user's own bound is a function of the same form.

    Args:
        log_w: log-weights :math:`\log w_k` in nats, particles leftmost.

    Shape:
        ``(K, *plates) -> (*plates)``: one bound per datum.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.

    Example:
        >>> import torch
        >>> iwae(torch.tensor([[0.0, -1.0], [0.0, -3.0]]))
        tensor([ 0.0000, -1.5662])
    """
    return log_mean_exp(log_w, 0)


def renyi(alpha: float) -> Bound:
    r"""Rényi bound of order :math:`\alpha`.

    .. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}

    The order 0 is :func:`iwae`; larger ones lie lower. A negative order bounds the evidence from
    above as :math:`K \to \infty` and is :func:`cubo` of :math:`1 - \alpha`, but is maximised here,
    as in the paper: with few particles it lies below its limit. A zero weight makes the bound of
    an order above 1 minus infinity, without a gradient. Rounding errors grow like
    :math:`1 / |1 - \alpha|`.

    Args:
        alpha: :math:`\alpha`, finite, not 1.

    Shape:
        The bound: ``(K, *plates) -> (*plates)``, nats to nats.

    Raises:
        ValueError: if ``alpha`` is 1 or not a finite number.

    References:
        Li and Turner, *Rényi Divergence Variational Inference*, arXiv 1602.02311.

    Example:
        >>> renyi(0.5)(torch.tensor([0.0, -2.0]))
        tensor(-0.7598)
    """
    order = _number(alpha, "alpha", -math.inf, math.inf)
    if order == 1:
        raise ValueError(
            "renyi is not defined for alpha=1. Its limit is the evidence lower bound, the mean of "
            "log_w: use ciwae(1)."
        )
    return partial(_power_mean, power=1 - order)


def cubo(n: float) -> Bound:
    r"""Chi upper bound of order :math:`n`.

    .. math:: \mathrm{CUBO}_n = \frac{1}{n} \log \frac{1}{K} \sum_k w_k^n

    It is to be minimised, ``cubo(n).upper`` is true. **The estimate is biased low**: only as
    :math:`K \to \infty` does it bound the evidence from above. With one particle it is a lower
    bound, so choose :math:`K` large and see that the value has stopped to grow with it.

    Args:
        n: :math:`n \ge 1`, a real number. The order 1 is the value of :func:`iwae`, whose limit is
            the evidence whatever the guide; 2 makes the variance of the weights small.

    Shape:
        The bound: ``(K, *plates) -> (*plates)``, nats to nats.

    Raises:
        ValueError: if ``n`` is not a finite number of at least 1.

    References:
        Dieng, Tran, Ranganath, Paisley and Blei, *Variational Inference via chi Upper Bound
        Minimization*, arXiv 1611.00328.

    Example:
        >>> cubo(2)(torch.tensor([0.0, -2.0]))
        tensor(-0.3375)
    """
    return _upper(partial(_power_mean, power=_number(n, "n", 1.0, math.inf)))


def tvo(partitions: int | Sequence[float], upper: bool = False) -> Bound:
    r"""Thermodynamic variational objective: a Riemann sum of the evidence's path integral.

    .. math::

        \log p(x) = \int_0^1 \mathbb{E}_{\pi_\beta}[\log w] \,d\beta, \qquad
        \pi_\beta \propto q\, w^\beta, \qquad
        \mathrm{TVO} = \sum_{p=1}^{P} (\beta_p - \beta_{p-1})\,
            \frac{\sum_k w_k^\beta \log w_k}{\sum_k w_k^\beta}

    with :math:`\beta = \beta_{p-1}` in the lower sum, :math:`\beta = \beta_p` in the upper one.

    For any weights the lower sum is at most :func:`iwae`, and the upper sum at least that:
    the integrand is the slope of :math:`\log \frac{1}{K} \sum_k w_k^\beta`, which is convex in
    :math:`\beta` and rises from 0 to :func:`iwae`. So the lower sum is a lower bound for every
    :math:`K`; the upper sum is an upper bound **only as** :math:`K \to \infty`, since :func:`iwae`
    itself lies below the evidence. One partition is the evidence lower bound.

    A zero weight makes the lower sum minus infinity, as it does the evidence lower bound, its first
    term; the upper sum leaves that particle out. If all weights are zero the result is not a
    number.

    Args:
        partitions: :math:`P \ge 1` equal parts, or the points :math:`\beta_0 = 0 < \dots < 1`.
        upper: the right sum, to be minimised; its attribute ``upper`` is true.

    Shape:
        The bound: ``(K, *plates) -> (*plates)``, nats to nats.

    Raises:
        ValueError: if ``partitions`` is neither.

    References:
        Masrani, Le and Wood, *The Thermodynamic Variational Objective*, arXiv 1907.00031. Their
        gradient is a covariance, which needs no reparameterisation; the gradient here is up to
        the objective.

    Example:
        >>> log_w = torch.tensor([0.0, -2.0])
        >>> tvo(2)(log_w), iwae(log_w), tvo([0, 0.1, 1], upper=True)(log_w)
        (tensor(-0.7689), tensor(-0.5662), tensor(-0.3046))
    """
    points = _points(partitions)
    ends = points[1:] if upper else points[:-1]
    widths = [high - low for low, high in pairwise(points)]
    bound = partial(_riemann_sum, terms=tuple(zip(ends, widths, strict=True)))
    return _upper(bound) if upper else bound


def ciwae(beta: float) -> Bound:
    r"""Combination of the evidence lower bound and the importance-weighted one.

    .. math:: \beta\, \frac{1}{K} \sum_k \log w_k + (1 - \beta) \log \frac{1}{K} \sum_k w_k

    ``ciwae(0)`` is :func:`iwae`, ``ciwae(1)`` the evidence lower bound. A zero weight makes it
    minus infinity for every :math:`\beta > 0`.

    Args:
        beta: :math:`\beta \in [0, 1]`.

    Shape:
        The bound: ``(K, *plates) -> (*plates)``, nats to nats.

    Raises:
        ValueError: if ``beta`` is not in the unit interval.

    References:
        Rainforth et al., *Tighter Variational Bounds are Not Necessarily Better*, arXiv 1802.04537.

    Example:
        >>> ciwae(0.5)(torch.tensor([0.0, -2.0]))
        tensor(-0.7831)
    """
    share = _number(beta, "beta", 0.0, 1.0)
    if share in (0, 1):  # zero times an infinite bound is not a number
        return tvo(1) if share else iwae
    return partial(_combination, share=share)


def _power_mean(log_w: Tensor, power: float) -> Tensor:
    return log_mean_exp(power * log_w, 0) / power


def _riemann_sum(log_w: Tensor, terms: Sequence[tuple[float, float]]) -> Tensor:
    total: Any = sum(width * _tempered_mean(log_w, beta) for beta, width in terms)
    return total


def _tempered_mean(log_w: Tensor, beta: float) -> Tensor:
    """The mean of ``log_w`` under weights proportional to ``w^beta``, where ``0^0 = 1``."""
    tempered = beta * log_w if beta else torch.zeros_like(log_w)
    weights = (tempered - log_mean_exp(tempered, 0)).exp()
    return (weights * log_w.where(weights > 0, torch.zeros_like(log_w))).mean(0)


def _combination(log_w: Tensor, share: float) -> Tensor:
    return share * log_w.mean(0) + (1 - share) * iwae(log_w)


def _upper(bound: Any) -> Bound:
    bound.upper = True
    return bound


def _points(partitions: Any) -> list[float]:
    try:
        points = [float(point) for point in partitions]
    except (TypeError, ValueError):
        number = count(partitions, "partitions")
        return [index / number for index in range(number + 1)]
    ends = (points[:1], points[-1:])
    if ends != ([0.0], [1.0]) or not all(low < high for low, high in pairwise(points)):
        raise ValueError(
            "partitions must be a number of equal parts or points that increase from 0 to 1, such "
            f"as [0, 0.1, 1], got {partitions!r}."
        )
    return points


def _number(value: float, name: str, low: float, high: float) -> float:
    if isinstance(value, Tensor) and value.dim() > 0:
        raise ValueError(
            f"{name} must be a number, got a tensor of shape {tuple(value.shape)}. If log-"
            "weights were meant, make the bound first: renyi(0.5), cubo(2) or ciwae(0.5)."
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (low <= number <= high and math.isfinite(number)):
        raise ValueError(
            f"{name} must be a finite number in [{low:g}, {high:g}], got {name}={value!r}."
        )
    return number
