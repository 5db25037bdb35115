"""Means and standard deviations of channels, to start a network from data."""

import torch
import torch.distributed
from torch import Tensor

_CONSTANT = 1e-6


def channel_statistics(x: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of each channel, over all else and over all processes.

    The standard deviation is the biased one, :math:`\sqrt{\frac1n \sum_i (x_i - \bar x)^2}`,
    computed in float64. Where ``torch.distributed`` runs, each process must call this at the same
    place, and all get the statistics of the data of all of them.

    Args:
        x: ``(N, C, H, W)``.
        owner: whose data they are, for messages.

    Returns:
        Two tensors ``(C,)`` in the dtype of ``x``.

    Raises:
        ValueError: if a channel has fewer than two values, is constant or is not finite.
    """
    values = x.detach().movedim(1, 0).flatten(1).double()  # (C, N * H * W)
    count, total = _over_processes(values.new_tensor(float(values.shape[1])), values.sum(1))
    if count < 2:
        raise ValueError(f"{owner} needs two values or more in each channel, got one: {x.shape}.")
    mean = total / count
    (squares,) = _over_processes((values - mean.unsqueeze(1)).square().sum(1))
    std = (squares / count).sqrt()
    _check(mean, std, owner)
    return mean.to(x.dtype), std.to(x.dtype)


def _over_processes(*totals: Tensor) -> tuple[Tensor, ...]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for total in totals:
            torch.distributed.all_reduce(total)
    return totals


def _check(mean: Tensor, std: Tensor, owner: str) -> None:
    if not bool(std.isfinite().all()):
        raise ValueError(f"{owner} cannot start from data that are not finite.")
    constant = (std <= _CONSTANT * mean.abs()).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"{owner} cannot start from constant channels: {constant} of {len(std)}. Start from "
            "images that differ, and add noise to quantised ones, as Dequantized does."
        )
