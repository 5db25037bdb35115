"""What a network costs: parameters, operations, time."""

from time import perf_counter

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

TURN = 10  # calls in a row


def num_parameters(network: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def num_nonzero(network: nn.Module) -> int:
    """The number of parameters that are not zero."""
    return sum(int((parameter != 0).sum()) for parameter in network.parameters())


@torch.no_grad()
def num_flops(network: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Operations for the batch, two for a multiplication and its addition, as torch counts."""
    with FlopCounterMode(display=False) as counter:
        network(*example)
    return counter.get_total_flops()


@torch.no_grad()
def latencies(
    networks: list[nn.Module], example: tuple[Tensor, ...], seconds: float = 0.5
) -> list[float]:
    """Median wall-clock milliseconds for the batch, of networks that take turns.

    Args:
        networks: to be timed.
        example: the batch.
        seconds: about how long to measure.
    """
    times: list[list[float]] = [[] for _ in networks]
    start = perf_counter()
    while perf_counter() - start < seconds or len(times[0]) < TURN:
        for network, taken in zip(networks, times, strict=True):
            _milliseconds(network, example)  # the other one has had the caches
            taken += [_milliseconds(network, example) for _ in range(TURN)]
    return [sorted(taken)[len(taken) // 2] for taken in times]


def _milliseconds(network: nn.Module, example: tuple[Tensor, ...]) -> float:
    _wait(example)
    start = perf_counter()
    network(*example)
    _wait(example)
    return 1e3 * (perf_counter() - start)


def _wait(example: tuple[Tensor, ...]) -> None:
    if example[0].is_cuda:
        torch.cuda.synchronize(example[0].device)
