"""Mixtures of rounded logistic laws, over the channels of a pixel."""

import torch
from torch import Tensor

from pyro_ext.ops.discretized_logistic import discretized_logistic_log_prob, round_logistic


def mixture_log_prob(
    value: Tensor, logits: Tensor, loc: Tensor, scale: Tensor, coefficients: Tensor, levels: int
) -> Tensor:
    """Exact log probability of integers.

    Args:
        value: ``(*batch, C)``.
        logits: ``(*batch, M)``.
        loc: ``(*batch, C, M)``, in units of a level.
        scale: ``(*batch, C, M)``.
        coefficients: ``(*batch, C * (C - 1) / 2, M)``.
        levels: of each channel.

    Returns:
        ``(*batch)``.
    """
    value = value.to(loc.dtype).unsqueeze(-1)
    loc = loc + _shifts(value - (levels - 1) / 2, coefficients)
    of_channels = discretized_logistic_log_prob(value, loc, scale, levels).sum(-2)
    return (of_channels + logits.log_softmax(-1)).logsumexp(-1)


def _shifts(centred: Tensor, coefficients: Tensor) -> Tensor:
    """What earlier channels ``(*batch, C, 1)`` add to the locations of each, ``(*batch, C, M)``."""
    channels, num = centred.shape[-2], coefficients.shape[-1]
    batch = torch.broadcast_shapes(centred.shape[:-2], coefficients.shape[:-2])
    shifts, start = [coefficients.new_zeros(*batch, num)], 0
    for k in range(1, channels):
        of_channel = coefficients[..., start : start + k, :] * centred[..., :k, :]
        shifts.append(of_channel.sum(-2).expand(*batch, num))
        start += k
    return torch.stack(shifts, -2)


def sample_mixture(
    choice: Tensor,
    uniform: Tensor,
    logits: Tensor,
    loc: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    levels: int,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    r"""The integers that uniform numbers stand for.

    Args:
        choice: ``(*batch, M)``, in :math:`(0, 1)`; the component is chosen by Gumbel's trick.
        uniform: ``(*batch, C)``, one of each channel.
        logits: ``(*batch, M)``, and so on as in :func:`mixture_log_prob`.
        loc: locations.
        scale: scales.
        coefficients: of earlier channels.
        levels: of each channel.
        temperature: divides logits and multiplies scales; a number or ``(*batch)``.

    Returns:
        ``(*batch, C)``.
    """
    gumbel = -(-choice.clamp_min(torch.finfo(choice.dtype).tiny).log()).log()
    if isinstance(temperature, Tensor):
        temperature = temperature.unsqueeze(-1)
    index = (logits + temperature * gumbel).argmax(-1, keepdim=True).unsqueeze(-2)

    def chosen(x: Tensor) -> Tensor:
        rows = index.expand(*index.shape[:-2], x.shape[-2], 1)
        return x.expand(*index.shape[:-2], *x.shape[-2:]).gather(-1, rows).squeeze(-1)

    loc, scale, coefficients = chosen(loc), chosen(scale) * temperature, chosen(coefficients)
    values: list[Tensor] = []
    start = 0
    for k in range(uniform.shape[-1]):
        mean = loc[..., k]
        for j, earlier in enumerate(values):
            mean = mean + coefficients[..., start + j] * (earlier - (levels - 1) / 2)
        values.append(round_logistic(uniform[..., k], mean, scale[..., k], levels))
        start += k
    return torch.stack(values, -1)
