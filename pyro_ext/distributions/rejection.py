"""Accepting and rejecting candidates: the moves of a truncated rejection sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext.distributions.proposals import choose


class NormalizerEstimate(NamedTuple):
    r"""An estimate of :math:`Z = \mathbb{E}_\pi[a]` and its standard error."""

    value: Tensor
    standard_error: Tensor


def first_accepted(logit: Tensor) -> Tensor:
    """Index of the first accepted try of ``(T, *batch)``; the last one is accepted anyway."""
    accepted = _accepts(logit)
    accepted[-1] = True
    return accepted.byte().argmax(0)


@torch.no_grad()
def draw_in_rounds(
    proposal: Any, score: Callable[[Tensor], Tensor], num_tries: int, sample_shape: torch.Size
) -> Tensor:
    """Draws by rejection without keeping the rejected; later rounds only serve who is left.

    A round never holds more numbers than the result does, and makes the more tries per row the
    fewer rows are left.
    """
    rows = sample_shape.numel()
    value = proposal.sample(torch.Size([rows]))  # what those get who are never accepted
    pending = value.new_ones((rows, *proposal.batch_shape), dtype=torch.bool)
    while num_tries > 1 and bool(pending.any()):
        left = pending.reshape(rows, -1).any(-1).nonzero().squeeze(-1)
        tries = min(num_tries - 1, rows // len(left))
        _serve(value, pending, left, proposal.sample(torch.Size([tries, len(left)])), score)
        num_tries -= tries
    return value.reshape(sample_shape + value.shape[1:])


def _serve(
    value: Tensor,
    pending: Tensor,
    left: Tensor,
    candidates: Tensor,
    score: Callable[[Tensor], Tensor],
) -> None:
    accepted = _accepts(score(candidates))  # (tries, left, *batch)
    hit = accepted.any(0) & pending[left]
    chosen = choose(candidates, accepted.byte().argmax(0))
    wide = hit.reshape(hit.shape + (1,) * (value.dim() - hit.dim()))
    value[left] = torch.where(wide, chosen, value[left])
    pending[left] &= ~hit


def _accepts(logit: Tensor) -> Tensor:
    return torch.rand_like(logit) < logit.sigmoid()


@torch.no_grad()
def estimate_mean(draw: Callable[[torch.Size], Tensor], num: int, rows: int) -> NormalizerEstimate:
    """Mean of ``num`` draws along their first dimension, ``rows`` at a time, in double precision.

    Args:
        draw: maps a sample shape to numbers of that shape and batch.
        num: at least two.
        rows: drawn at a time.
    """
    total: Any = 0.0
    squares: Any = 0.0
    for start in range(0, num, rows):
        numbers = draw(torch.Size([min(rows, num - start)]))
        total = total + numbers.double().sum(0)
        squares = squares + numbers.double().square().sum(0)
    mean = total / num
    variance = (squares / num - mean.square()).clamp(min=0) * num / (num - 1)
    error = (variance / num).sqrt()
    return NormalizerEstimate(mean.to(numbers.dtype), error.to(numbers.dtype))
