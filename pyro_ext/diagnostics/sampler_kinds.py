"""What there is to measure of each kind of sampler."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_ext.distributions.hamiltonian_importance import HamiltonianImportance
from pyro_ext.distributions.learned_accept_reject import LearnedAcceptReject
from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.distributions.truncated_rejection import TruncatedRejection
from pyro_ext.ops.log_weights import effective_sample_size

NUM_MOMENTA = 100  # fresh ones, for each draw of Hamiltonian importance sampling


class Kind(NamedTuple):
    """What there is to say about one kind of sampler."""

    measure: Callable[[int], dict[str, Tensor]]  # num -> statistics of as many draws, (num, *batch)
    summary: str  # with the statistics' names in braces, for their means
    size: int = 0  # numbers that measuring one draw of the whole batch holds in memory


@singledispatch
def kind_of(density: Any) -> Kind:
    """What there is to measure of a density: nothing but its gap, if its kind is not known."""
    return Kind(lambda num: {}, f"nothing else is known of a {type(density).__name__}")


@kind_of.register
def _importance(density: SelfNormalizedImportance) -> Kind:
    def measure(num: int) -> dict[str, Tensor]:
        log_w = -density.energy(_candidates(density, density.num_proposals, num))
        return {
            "effective_proposals": effective_sample_size(log_w),
            "largest_share": log_w.softmax(0).amax(0),
        }

    return Kind(
        measure,
        f"{{effective_proposals:.3g}} of {density.num_proposals} proposals count, the largest "
        "holds {largest_share:.1%} of the weight",
        size=density.num_proposals * density.shape().numel(),
    )


@kind_of.register(LearnedAcceptReject)
@kind_of.register(TruncatedRejection)
def _rejection(density: Any) -> Kind:
    def measure(num: int) -> dict[str, Tensor]:
        logit = density.logit(_candidates(density, density.num_tries, num))
        rejected = logsigmoid(-logit[:-1]).cumsum(0).exp()  # (T - 1, num, *batch)
        return {
            "acceptance_rate": logit.sigmoid().mean(0),
            "tries": 1 + rejected.sum(0),
            "forced": rejected[-1] if len(rejected) else torch.ones_like(logit[0]),
        }

    return Kind(
        measure,
        "it accepts {acceptance_rate:.1%} of its proposals, needs "
        f"{{tries:.3g}} of {density.num_tries} tries, and is forced to take the last in "
        "{forced:.1%} of draws",
        size=density.num_tries * density.shape().numel(),
    )


@kind_of.register
def _hamiltonian(density: HamiltonianImportance) -> Kind:
    def measure(num: int) -> dict[str, Tensor]:
        shape = torch.Size((num,))
        start, value = (
            d.expand(density.batch_shape).sample(shape) for d in (density.base_dist, density)
        )
        log_w = density.log_weights(value, density.draw_auxiliaries(value, NUM_MOMENTA))
        return {
            "effective_momenta": effective_sample_size(log_w),
            "potential_change": density.potential(value) - density.potential(start),
        }

    return Kind(
        measure,
        f"{{effective_momenta:.3g}} of {NUM_MOMENTA} momenta count, and the dynamics change the "
        "potential by {potential_change:.3g} nats",
        size=NUM_MOMENTA * density.draw_size,
    )


def _candidates(density: Any, num_candidates: int, num: int) -> Tensor:
    """Of shape ``(num_candidates, num, *batch, *event)``."""
    return density.proposal.expand(density.batch_shape).sample(torch.Size((num_candidates, num)))
