"""Gauss-Legendre quadrature between two limits, as tensors."""

import math

import numpy as np
import torch
from torch import Tensor

NUM_NODES = 32
_NODES, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(NUM_NODES))
_MANY = [part.tolist() for part in np.polynomial.legendre.leggauss(4 * NUM_NODES)]
REACH = 24.0  # of standard logistic noise; the rest has a probability of 8e-11


def gauss_legendre(lower: float, upper: float, like: Tensor) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights of the 32-point Gauss-Legendre rule.

    .. math:: \int_l^u f(x) \, dx \approx \sum_{i=1}^{32} w_i f(x_i)

    Exact for polynomials up to degree 63.

    Args:
        lower: :math:`l`.
        upper: :math:`u`.
        like: a tensor whose dtype and device the results have.

    Shape:
        ``(32,)`` each.

    Example:
        >>> x, w = gauss_legendre(0.0, math.pi, torch.zeros((), dtype=torch.float64))
        >>> round(float((w * x.sin()).sum()), 12)
        2.0
    """
    half, middle = (upper - lower) / 2, (upper + lower) / 2
    return half * like.new_tensor(_NODES) + middle, half * like.new_tensor(_WEIGHTS)


def stretched_nodes(low: float, high: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""A rule for functions on :math:`(0, 1)` whose singularities lie at two points outside.

    .. math::

        \int_0^1 f(z) \, dz \approx \sum_i w_i f(z_i), \qquad
        z_i = l + (h - l)\, \sigma(t_i)

    with Gauss-Legendre nodes :math:`t_i` on the logit scale, where logarithms of :math:`z - l`
    and :math:`h - z` are smooth however close to 0 and 1 the two points are.

    Args:
        low: :math:`l < 0`.
        high: :math:`h > 1`.
        like: a tensor whose dtype and device the results have.

    Returns:
        The nodes :math:`z_i`, their weights :math:`w_i` and the logits :math:`t_i`.

    Shape:
        ``(32,)`` each.

    Example:
        >>> z, w, _ = stretched_nodes(-0.1, 1.1, torch.zeros(()))
        >>> (w * (z + 0.1).log()).sum()
        tensor(-0.6649)
    """
    lower, upper = math.log(-low / high), math.log((1 - low) / (high - 1))
    logits, weights = gauss_legendre(lower, upper, like)
    share = torch.sigmoid(logits)
    return low + (high - low) * share, (high - low) * share * (1 - share) * weights, logits


def logistic_nodes(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    r"""A rule for functions of standard logistic noise between two limits.

    .. math::

        \int_l^u f(t)\, \sigma(t) \sigma(-t) \, dt \approx \sum_i w_i f(t_i)

    Gauss-Legendre, where the noise has its mass: 24 from zero, or from the limit beyond.

    Args:
        lower: :math:`l`.
        upper: :math:`u > l`.

    Shape:
        ``(128, *shape)`` each, where ``shape`` is that of both limits.

    Example:
        >>> _, w = logistic_nodes(torch.tensor(-100.0), torch.tensor([0.0, 100.0]))
        >>> w.sum(0)
        tensor([0.5000, 1.0000])
    """
    start = torch.maximum(lower, (upper - 2 * REACH).clamp(max=-REACH))
    stop = torch.minimum(upper, (lower + 2 * REACH).clamp(min=REACH))
    shape = (-1, *(1,) * start.dim())
    nodes, weights = (start.new_tensor(part).reshape(shape) for part in _MANY)
    half = (stop - start) / 2
    t = (stop + start) / 2 + half * nodes
    return t, half * weights * torch.sigmoid(t) * torch.sigmoid(-t)
