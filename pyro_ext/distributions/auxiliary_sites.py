r"""Samplers spelt out: their auxiliaries one by one, forwards and backwards.

Forwards, :math:`p(a)\, p(x \mid a)`, the value is drawn from the auxiliaries, and backwards,
:math:`r(a \mid x)`, the auxiliaries are drawn given a value. Both ask for their draws by calling
``sample(name, distribution)``, with the same names.
"""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from pyro_ext.distributions.candidate_index import CandidateIndex
from pyro_ext.distributions.candidates import Candidates, CandidatesAround, choose
from pyro_ext.distributions.hamiltonian_importance import HamiltonianImportance
from pyro_ext.distributions.phase import Phase, PhaseAround
from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.distributions.semi_implicit import SemiImplicit
from pyro_ext.distributions.truncated_rejection import TruncatedRejection
from pyro_ext.distributions.wrappers import IndependentDensity, MaskedDensity

Sample = Callable[[str, Any], Tensor]


@singledispatch
def forwards(density: Any, sample: Sample) -> Any:
    """Draws the auxiliaries; returns the distribution of the value given them."""
    raise ValueError(_no_auxiliaries(density))


@singledispatch
def backwards(density: Any, value: Tensor, sample: Sample) -> None:
    """Draws the auxiliaries given a value."""
    raise ValueError(_no_auxiliaries(density))


# Self-normalised importance sampling.


@forwards.register
def _(density: SelfNormalizedImportance, sample: Sample) -> Any:
    candidates, energy = _score(density, density.num_proposals, density.energy, sample)
    return _choose(density, candidates, -energy, sample)


@backwards.register
def _(density: SelfNormalizedImportance, value: Tensor, sample: Sample) -> None:
    uniform = density.proposal.log_prob(value).new_zeros(density.num_proposals)  # its dtype
    _surround(density, value, uniform, sample)


# Truncated rejection.


@forwards.register
def _(density: TruncatedRejection, sample: Sample) -> Any:
    candidates, logit = _score(density, density.num_tries, density.logit, sample)
    return _choose(density, candidates, _first(logsigmoid(logit), logsigmoid(-logit)), sample)


@backwards.register
def _(density: TruncatedRejection, value: Tensor, sample: Sample) -> None:
    if density.reverse_logit is None:
        raise ValueError(
            "To name the auxiliaries of TruncatedRejection, its index has to be guessed. Give it a "
            "reverse_logit, a number or, to learn it, a parameter."
        )
    logit = _repeat(density.logit(value), density.num_tries)
    guess = _repeat(torch.as_tensor(density.reverse_logit).to(logit), density.num_tries)
    _surround(density, value, _first(logsigmoid(logit), logsigmoid(-guess)), sample)


def _first(log_accept: Tensor, log_reject: Tensor) -> Tensor:
    """Log probabilities ``(*batch, T)`` of the first accepted; the last is accepted anyway."""
    rejected = pad(log_reject[..., :-1], (1, 0)).cumsum(-1)
    return rejected + pad(log_accept[..., :-1], (0, 1))


def _repeat(logit: Tensor, num: int) -> Tensor:
    return logit.unsqueeze(-1).expand(*logit.shape, num)


# Hamiltonian importance sampling.


@forwards.register
def _(density: HamiltonianImportance, sample: Sample) -> Any:
    phase = sample("phase", Phase(density, density.batch_shape))
    return Delta(phase.select(-1 - density.event_dim, 0), event_dim=density.event_dim)


@backwards.register
def _(density: HamiltonianImportance, value: Tensor, sample: Sample) -> None:
    sample("phase", PhaseAround(density, value))


# Semi-implicit distributions.


@forwards.register
def _(density: SemiImplicit, sample: Sample) -> Any:
    given = density.conditional(sample("mixing", density.mixing.expand(density.batch_shape)))
    return given.expand(torch.broadcast_shapes(given.batch_shape, density.batch_shape))


@backwards.register
def _(density: SemiImplicit, value: Tensor, sample: Sample) -> None:
    reverse = density.mixing if density.reverse is None else density.reverse(value)
    batch = torch.broadcast_shapes(reverse.batch_shape, density.batch_shape)
    sample("mixing", reverse.expand(batch))


# What to_event and mask make of them.


@forwards.register
def _(density: IndependentDensity, sample: Sample) -> Any:
    num = density.reinterpreted_batch_ndims
    return forwards(density.base_dist, lambda name, fn: sample(name, fn.to_event(num))).to_event(
        num
    )


@backwards.register
def _(density: IndependentDensity, value: Tensor, sample: Sample) -> None:
    num = density.reinterpreted_batch_ndims
    backwards(density.base_dist, value, lambda name, fn: sample(name, fn.to_event(num)))


@forwards.register
def _(density: MaskedDensity, sample: Sample) -> Any:
    mask = density._mask
    return forwards(density.base_dist, lambda name, fn: sample(name, fn.mask(mask))).mask(mask)


@backwards.register
def _(density: MaskedDensity, value: Tensor, sample: Sample) -> None:
    backwards(density.base_dist, value, lambda name, fn: sample(name, fn.mask(density._mask)))


def _no_auxiliaries(density: Any) -> str:
    return (
        f"{type(density).__name__} has no auxiliaries that could be sites of their own. Leave its "
        "site single: give sites= the names of the others."
    )


def _score(
    density: Any, num: int, function: Callable[[Tensor], Tensor], sample: Sample
) -> tuple[Tensor, Tensor]:
    """Draws candidates ``(*batch, K, *event)``, and evaluates a function ``(*batch, K)``."""
    candidates = sample("candidates", Candidates(density.proposal, num, density.batch_shape))
    rows = candidates.movedim(-1 - density.event_dim, 0)  # as functions of the batch want them
    return candidates, function(rows).movedim(0, -1)


def _surround(density: Any, value: Tensor, logits: Tensor, sample: Sample) -> None:
    """Draws an index, and other candidates around the value."""
    num = logits.shape[-1]
    index = sample("index", CandidateIndex(logits, density.batch_shape))
    sample("candidates", CandidatesAround(density.proposal, num, index, value))


def _choose(density: Any, candidates: Tensor, logits: Tensor, sample: Sample) -> Delta:
    """Draws an index; returns the candidate there."""
    index = sample("index", CandidateIndex(logits, density.batch_shape))
    chosen = choose(candidates, index, 1 + density.event_dim)
    zeros = logits.new_zeros(chosen.shape[: chosen.dim() - density.event_dim])
    return Delta(chosen, zeros, density.event_dim)
