"""Standard Normal variables between two limits, from logarithms alone."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import log_ndtr, ndtri

from pyro_ext.ops.log1mexp import log1mexp

HALF_LOG_TAU = math.log(2 * math.pi) / 2


def log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    r"""Log probability of a standard Normal between two limits, in either tail.

    .. math:: \log(\Phi(b) - \Phi(a))

    Args:
        lower: :math:`a`.
        upper: :math:`b > a`.

    Shape:
        Those of both, broadcast.

    Example:
        >>> log_normal_mass(torch.tensor([-1.0, 9.0]), torch.tensor([1.0, 40.0]))
        tensor([ -0.3817, -43.6281])
    """
    flip = lower + upper > 0
    left = torch.where(flip, -upper, lower)
    right = torch.where(flip, -lower, upper)
    log_right = log_ndtr(right)
    return log_right + log1mexp(log_ndtr(left) - log_right)


def truncated_normal(logistic: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    r"""Maps standard logistic noise monotonically to a standard Normal between two limits.

    .. math:: x = \Phi^{-1}\bigl((1 - u) \Phi(a) + u \Phi(b)\bigr), \qquad u = \sigma(L)

    Computed in the tail where the probability is the smaller, so that intervals far out are no
    harder than others; the gradient is that of the implicit function.

    Args:
        logistic: :math:`L`, noise, or the logit of a probability.
        lower: :math:`a`.
        upper: :math:`b > a`.

    Shape:
        Those of all, broadcast.

    Example:
        >>> truncated_normal(torch.tensor(0.0), torch.tensor([-1.0, 30.0]), torch.tensor(40.0))
        tensor([ 0.2002, 30.0231])
    """
    log_u, log_rest = logsigmoid(logistic), logsigmoid(-logistic)
    below = torch.logaddexp(log_rest + log_ndtr(lower), log_u + log_ndtr(upper))
    above = torch.logaddexp(log_rest + log_ndtr(-lower), log_u + log_ndtr(-upper))
    flip = below > above
    x = _tail_quantile(torch.where(flip, above, below))
    x = torch.where(flip, -x, x)
    return torch.maximum(torch.minimum(x, upper), lower)


def far_limit(distance: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""A Normal variable far beyond a limit, cut off there: almost an exponential one.

    With :math:`y` the way from the limit, :math:`D` the signed distance of the limit from the
    location, :math:`\epsilon = (s / D)^2` and :math:`\delta = s^2 / D` the mean of :math:`|y|`:

    .. math::

        p(t) \propto e^{-t - \epsilon t^2 / 2}, \quad t = |y / \delta| \ge 0, \qquad
        K(k) = \log \mathbb{E}[e^{k y}] = -\log(1 - k \delta)
        + G\bigl(\epsilon (1 - k \delta)^{-2}\bigr) - G(\epsilon)

    where :math:`G(q) = -q + \tfrac52 q^2 - \tfrac{37}3 q^3 + O(q^4)`.

    Args:
        distance: :math:`D`, with :math:`|D| > 40 s`; positive where :math:`y > 0`.
        scale: :math:`s > 0`.

    Returns:
        The entropy, :math:`K(1)`, and :math:`K(2) - 2 K(1)`, the log of one plus the squared
        coefficient of variation of :math:`e^y`, good to 1e-9, however small.

    Example:
        >>> far_limit(torch.tensor(-5.0, dtype=torch.float64), torch.tensor(1e-4))[2]
        tensor(4.0000e-18, dtype=torch.float64)
    """
    mean = scale.square() / distance
    q = (scale / distance).square()
    entropy = 1 + mean.abs().log() - 2 * q + 7.5 * q**2 - 148 / 3 * q**3
    one, two = 1 - mean, 1 - 2 * mean
    first = -one.log() + _far_rest(q / one**2, -1) - _far_rest(q, -1)
    share = mean**2 * (6 - 12 * mean + 4 * mean**2) / (one * two) ** 2
    higher = _far_rest(q / two**2, 0) - 2 * _far_rest(q / one**2, 0) + _far_rest(q, 0)
    return entropy, first, (mean**2 / two).log1p() - q * share + higher


def _far_rest(q: Tensor, first: float) -> Tensor:
    return first * q + 2.5 * q**2 - 37 / 3 * q**3


def _tail_quantile(log_p: Tensor) -> Tensor:
    """Inverts ``log_ndtr`` below one half: a guess, and two of Newton's steps."""
    with torch.no_grad():
        x = _guess(log_p)
        x = x - (log_ndtr(x) - log_p) / _slope(x)
        value, slope = log_ndtr(x), _slope(x)
    return x + (log_p - value) / slope


def _guess(log_p: Tensor) -> Tensor:
    """The quantile, or its asymptotic form where the probability underflows."""
    floor = math.log(torch.finfo(log_p.dtype).tiny) + 5
    square = -2 * log_p.clamp(max=floor)
    far = -(square - (square * math.tau).log()).sqrt()
    return torch.where(log_p < floor, far, ndtri(log_p.clamp(min=floor).exp()))


def _slope(x: Tensor) -> Tensor:
    """Derivative of ``log_ndtr`` at ``x <= 0``."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(-x / math.sqrt(2))
