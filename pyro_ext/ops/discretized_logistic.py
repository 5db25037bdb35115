"""Logistic laws, rounded."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_ext.ops.log1mexp import log1mexp


def discretized_logistic_log_prob(value: Tensor, loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    r"""Exact log probability of a logistic law that was rounded to integers and clipped.

    .. math::

        P(x) = \sigma(t_+) - \sigma(t_-), \qquad t_\pm = \frac{x - \mu \pm \frac12}{s}, \qquad
        \log P(x) = -\log(1 + e^{-t_+}) - \log(1 + e^{t_-}) + \log(1 - e^{-1/s})

    and at the ends, where what lies beyond is clipped, :math:`\log \sigma(t_+)` at zero and
    :math:`\log \sigma(-t_-)` at :math:`L - 1`. The sum over all values is one, at any number of
    levels; no threshold and no density stand in for the probability of a cell.

    Args:
        value: :math:`x`, integers from zero to ``levels - 1``.
        loc: :math:`\mu`, in units of a level.
        scale: :math:`s > 0`, likewise.
        levels: :math:`L \ge 2`.

    Shape:
        Broadcast.

    References:
        Salimans et al., *PixelCNN++*, arXiv 1701.05517, for the law; the published code replaces
        small differences by a density.

    Example:
        >>> x, loc, scale = torch.arange(256), torch.tensor(100.0), torch.tensor(3.0)
        >>> discretized_logistic_log_prob(x, loc, scale, levels=256).exp().sum()
        tensor(1.0000)
    """
    centre = value - loc
    upper, lower = (centre + 0.5) / scale, (centre - 0.5) / scale
    inside = log1mexp(-1 / scale) - softplus(-upper) - softplus(lower)
    ends = torch.where(value <= 0, -softplus(-upper), -softplus(lower))
    return torch.where((value > 0) & (value < levels - 1), inside, ends)


def round_logistic(uniform: Tensor, loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    r"""The integer that a uniform number stands for: :math:`\mu + s\, \mathrm{logit}(u)`, rounded.

    Halves are rounded up, as rounding them to even numbers would draw these too often; and the
    location is rounded first, so that a scale may be smaller than what the location's dtype tells
    apart.

    Args:
        uniform: :math:`u \in [0, 1)`.
        loc: :math:`\mu`.
        scale: :math:`s`.
        levels: :math:`L`; what lies beyond is clipped.
    """
    level = loc.round()
    beyond = (loc - level) + scale * logit_of_uniform(uniform) + 0.5
    return (level + beyond.floor()).clamp(0, levels - 1)


def logit_of_uniform(uniform: Tensor) -> Tensor:
    r"""A standard logistic number: :math:`\log u - \log(1 - u)`.

    Random numbers are zero once in many millions; they count as half of the least other one.

    Args:
        uniform: :math:`u \in [0, 1)`.
    """
    return torch.logit(uniform.clamp_min(torch.finfo(uniform.dtype).eps / 4))
