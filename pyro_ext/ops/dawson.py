r"""Dawson's function and its integral on the half line, as two polynomials.

With :math:`D(x) = e^{-x^2} \int_0^x e^{t^2} dt` and

.. math::

    K(u) = \int_0^u \frac{D(\sqrt v)}{\sqrt v} \, dv
        = \int_0^1 \frac{1 - e^{-u (1 - t^2)}}{1 - t^2} \, dt

both :math:`\log((e^{2 K(u)} - 1) / u)` and :math:`(8 + u) K'(u)` are smooth in
:math:`y = (u - 8) / (u + 8) \in [-1, 1]`: 40 terms give them to 1e-13, 20 terms to 1e-7.
"""

import math

import numpy as np
import torch
from numpy.polynomial import chebyshev, legendre
from torch import Tensor
from torch.nn.functional import softplus

CENTRE = 8.0
FAR = 60.0  # from where the asymptotic series is exact to rounding


def integral(log_u: Tensor) -> Tensor:
    r"""Computes :math:`K(u)`.

    Args:
        log_u: :math:`\log u`, any number.

    Shape:
        Any, kept.

    Example:
        >>> integral(torch.tensor([0.005, 0.5, 50.0]).log())
        tensor([0.0050, 0.4267, 2.9327])
    """
    growth = _polynomial(share(log_u), _GROWTH).add_(log_u)
    return softplus(growth, threshold=50.0).div_(2)


def share(log_u: Tensor) -> Tensor:
    r"""Computes :math:`u / (8 + u) = (1 + y) / 2`.

    Args:
        log_u: :math:`\log u`, any number.

    Shape:
        Any, kept.

    Example:
        >>> share(torch.tensor([0.0, 8.0]).log())
        tensor([0.0000, 0.5000])
    """
    return log_u.sub(math.log(CENTRE)).sigmoid_()


def scaled_slope(share: Tensor) -> Tensor:
    r"""Computes :math:`(8 + u) K'(u)`, where :math:`K'(u) = D(\sqrt u) / \sqrt u`.

    Args:
        share: :math:`u / (8 + u)`.

    Shape:
        Any, kept.

    Example:
        >>> scaled_slope(torch.tensor([0.0, 1.0]))
        tensor([8.0000, 0.5000])
    """
    return _polynomial(share, _SLOPE)


def _polynomial(share: Tensor, table: dict[bool, list[float]]) -> Tensor:
    """Horner's rule."""
    y = share.mul(2).sub_(1)
    first, *rest = table[y.dtype == torch.float64]
    total = torch.full_like(y, first)
    for coefficient in rest:
        total.mul_(y).add_(coefficient)
    return total


def _near(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K and its derivative by quadrature."""
    nodes, weights = legendre.leggauss(128)
    gap = 1 - ((1 + nodes) / 2) ** 2
    missing = -np.expm1(-u[:, None] * gap)
    return (missing / gap) @ weights / 2, (1 - missing) @ weights / 2


def _far(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K and its derivative by their asymptotic series."""
    k = np.arange(1, 25)
    terms = np.cumprod((k - 0.5) / u[:, None], axis=1)
    constant = np.euler_gamma + 2 * math.log(2)
    return (np.log(u) + constant - (terms / k).sum(1)) / 2, (1 + terms.sum(1)) / (2 * u)


def _tables() -> list[dict[bool, list[float]]]:
    """Coefficients of both polynomials, highest first, by whether they serve float64."""
    points = chebyshev.chebpts1(64)
    u = CENTRE * (1 + points) / (1 - points)
    near = u < FAR
    value, slope = (
        np.where(near, a, b)
        for a, b in zip(_near(np.where(near, u, 1.0)), _far(np.where(near, FAR, u)), strict=True)
    )
    targets = np.log(np.expm1(2 * value) / u), (CENTRE + u) * slope
    series = [chebyshev.chebfit(points, target, 63) for target in targets]
    return [
        {
            double: chebyshev.cheb2poly(s[:terms])[::-1].tolist()
            for double, terms in ((False, 20), (True, 40))
        }
        for s in series
    ]


_GROWTH, _SLOPE = _tables()
