"""The hard concrete law of a gate: a stretched and clipped sigmoid of a logistic variable."""

import math

import torch
from torch import Tensor
from torch.nn.functional import hardtanh, logsigmoid

from pyro_ext.ops.quadrature import stretched_nodes

Number = float | Tensor


def check_stretch(low: float, high: float) -> None:
    r"""Refuses limits that do not enclose the unit interval.

    Args:
        low: :math:`\gamma`.
        high: :math:`\zeta`.

    Raises:
        ValueError: unless :math:`\gamma < 0` and :math:`\zeta > 1`, both finite.

    Example:
        >>> check_stretch(0.0, 1.1)
        Traceback (most recent call last):
        ...
        ValueError: The stretch must satisfy low < 0 and high > 1, finite, got (0.0, 1.1). ...
    """
    if not (-math.inf < low < 0 and 1 < high < math.inf):
        raise ValueError(
            f"The stretch must satisfy low < 0 and high > 1, finite, got ({low}, {high}). Without "
            "it the gate is never exactly zero or one; the usual limits are (-0.1, 1.1)."
        )


def check_temperature(temperature: float) -> None:
    r"""Refuses a temperature outside :math:`(0, 1)`.

    Args:
        temperature: :math:`\beta`.

    Raises:
        ValueError: unless :math:`0 < \beta < 1`.

    Example:
        >>> check_temperature(1.5)
        Traceback (most recent call last):
        ...
        ValueError: temperature must lie strictly between 0 and 1, got 1.5. ...
    """
    if not 0 < temperature < 1:
        raise ValueError(
            f"temperature must lie strictly between 0 and 1, got {temperature}. From 1 upwards the "
            "gate has a mode in the middle and hardly closes; the usual value is 2/3."
        )


def edges(temperature: Number, low: float, high: float) -> tuple[Number, Number]:
    r"""Where the logistic variable makes the gate zero, and where it makes it one.

    .. math:: t_0 = \beta \log(-\gamma / \zeta), \qquad
        t_1 = \beta \log \frac{1 - \gamma}{\zeta - 1}

    The gate is 0 for :math:`L \le t_0` and 1 for :math:`L \ge t_1`.

    Args:
        temperature: :math:`\beta`, a number or a tensor.
        low: :math:`\gamma < 0`.
        high: :math:`\zeta > 1`.

    Example:
        >>> [round(t, 4) for t in edges(2 / 3, -0.1, 1.1)]
        [-1.5986, 1.5986]
    """
    return temperature * math.log(-low / high), temperature * math.log((1 - low) / (high - 1))


def prob_zero(log_alpha: Tensor, temperature: Number, low: float, high: float) -> Tensor:
    r"""Probability that the gate is exactly zero.

    .. math:: P(z = 0) = \sigma(\beta \log(-\gamma / \zeta) - \log\alpha)

    Args:
        log_alpha: :math:`\log\alpha`, the location of the logistic variable.
        temperature: :math:`\beta \in (0, 1)`, a number or a tensor.
        low: :math:`\gamma < 0`.
        high: :math:`\zeta > 1`.

    Shape:
        That of ``log_alpha`` and ``temperature``, broadcast; so for all functions here.

    Example:
        >>> prob_zero(torch.tensor([-4.0, 0.0, 4.0]), 2 / 3, -0.1, 1.1)
        tensor([0.9169, 0.1682, 0.0037])
    """
    return torch.sigmoid(edges(temperature, low, high)[0] - log_alpha)


def prob_nonzero(log_alpha: Tensor, temperature: Number, low: float, high: float) -> Tensor:
    r"""Probability that the gate is not zero: the expected :math:`L_0` norm of a gate.

    .. math:: P(z \ne 0) = \sigma(\log\alpha - \beta \log(-\gamma / \zeta))

    Precise where it is small. Arguments as in :func:`prob_zero`.

    Example:
        >>> prob_nonzero(torch.tensor([-4.0, 0.0, 4.0]), 2 / 3, -0.1, 1.1)
        tensor([0.0831, 0.8318, 0.9963])
    """
    return torch.sigmoid(log_alpha - edges(temperature, low, high)[0])


def prob_one(log_alpha: Tensor, temperature: Number, low: float, high: float) -> Tensor:
    r"""Probability that the gate is exactly one.

    .. math:: P(z = 1) = \sigma\Bigl(\log\alpha - \beta \log \frac{1 - \gamma}{\zeta - 1}\Bigr)

    Arguments as in :func:`prob_zero`.

    Example:
        >>> prob_one(torch.tensor([-4.0, 0.0, 4.0]), 2 / 3, -0.1, 1.1)
        tensor([0.0037, 0.1682, 0.9169])
    """
    return torch.sigmoid(log_alpha - edges(temperature, low, high)[1])


def gate(logistic: Tensor, temperature: Number, low: float, high: float) -> Tensor:
    r"""The gate that a logistic variable opens: a stretched sigmoid, clipped.

    .. math:: z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, \sigma(L / \beta)))

    With :math:`L = \log\alpha +` :func:`logistic_noise` it is a draw of the hard concrete law,
    whose gradient is zero where the gate is exactly 0 or 1.

    Args:
        logistic: :math:`L`.
        temperature: :math:`\beta \in (0, 1)`, a number or a tensor.
        low: :math:`\gamma < 0`.
        high: :math:`\zeta > 1`.

    Example:
        >>> gate(torch.tensor([-2.0, 0.0, 2.0]), 2 / 3, -0.1, 1.1)
        tensor([0.0000, 0.5000, 1.0000])
    """
    return clip(torch.sigmoid(logistic / temperature), low, high)


def clip(share: Tensor, low: float, high: float) -> Tensor:
    r"""Stretches a number between 0 and 1, and clips it to that interval again.

    .. math:: z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, s))

    Args:
        share: :math:`s`.
        low: :math:`\gamma < 0`.
        high: :math:`\zeta > 1`.

    Example:
        >>> clip(torch.tensor([0.0, 0.25, 1.0]), -0.1, 1.1)
        tensor([0.0000, 0.2000, 1.0000])
    """
    return hardtanh(torch.add(share.new_full((), low), share, alpha=high - low), 0.0, 1.0)


def paper_gate(log_alpha: Tensor, temperature: Number, low: float, high: float) -> Tensor:
    r"""The published gate at test time, neither mean nor median.

    .. math:: \hat z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, \sigma(\log\alpha)))

    The temperature has no influence. Arguments as in :func:`prob_zero`.

    Example:
        >>> paper_gate(torch.tensor([-4.0, -1.0, 4.0]), 2 / 3, -0.1, 1.1)
        tensor([0.0000, 0.2227, 1.0000])
    """
    return gate(log_alpha, 1.0, low, high)


def median_gate(log_alpha: Tensor, temperature: Number, low: float, high: float) -> Tensor:
    r"""The median of the gate: zero where it is more often zero than not.

    .. math:: \hat z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, \sigma(\log\alpha / \beta)))

    Arguments as in :func:`prob_zero`.

    Example:
        >>> median_gate(torch.tensor([-4.0, -1.0, 4.0]), 2 / 3, -0.1, 1.1)
        tensor([0.0000, 0.1189, 1.0000])
    """
    return gate(log_alpha, temperature, low, high)


def mean_gate(log_alpha: Tensor, temperature: Number, low: float, high: float) -> Tensor:
    r"""The mean of the gate, by quadrature.

    .. math:: \mathbb{E}[z] = \int_0^1 P(z > x) \, dx, \qquad
        P(z > x) = \sigma\Bigl(\log\alpha - \beta \log \frac{x - \gamma}{\zeta - x}\Bigr)

    To rounding in float64 at the usual stretch, and positive however small. Arguments as in
    :func:`prob_zero`.

    Example:
        >>> mean_gate(torch.tensor([-4.0, 0.0, 4.0]), 2 / 3, -0.1, 1.1)
        tensor([0.0236, 0.5000, 0.9764])
    """
    _, weights, logits = stretched_nodes(low, high, log_alpha)
    if isinstance(temperature, Tensor):
        temperature = temperature.unsqueeze(-1)
    return torch.sigmoid(log_alpha.unsqueeze(-1) - temperature * logits) @ weights


def logistic_log_density(logistic: Tensor) -> Tensor:
    r"""Log density of a standard logistic variable.

    .. math:: \log f(x) = \log \sigma(x) + \log \sigma(-x)

    Example:
        >>> logistic_log_density(torch.tensor([0.0, 50.0]))
        tensor([ -1.3863, -50.0000])
    """
    return logsigmoid(logistic) + logsigmoid(-logistic)


def logistic_noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    r"""Standard logistic noise, finite in every precision.

    .. math:: L = 2 \tanh^{-1}(v), \qquad v = 2 u - 1 + \epsilon / 2

    where :math:`u` is uniform on the multiples of :math:`\epsilon / 2` below one. Then :math:`v` is
    exact, symmetric about zero and never :math:`\pm 1`, so that nothing has to be clamped: in
    float32 the noise ends at :math:`\pm 17.3`, beyond which lies a mass of 6e-8. Shorter formats
    are drawn in float32 and rounded.

    Args:
        shape: of the noise.
        like: a tensor whose dtype and device the noise has.

    Example:
        >>> logistic_noise((2, 3), torch.zeros(())).shape
        torch.Size([2, 3])
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    noise = torch.empty(shape, dtype=dtype, device=like.device).uniform_(-1.0, 1.0)
    noise.add_(torch.finfo(dtype).eps / 2).atanh_().mul_(2.0)
    return noise.to(like.dtype)
