"""What samplers that choose among draws of a proposal have in common."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext.distributions.wrappers import density_kind

REMEDY = "or SelfNormalizedImportance with proposal_gradient=leave_one_out"


def check_proposal(owner: str, proposal: Any, function: Any, role: str = "energy") -> None:
    """Refuses what is no distribution, no callable, or what disagrees about the event shape."""
    if not isinstance(proposal, Distribution) or not callable(function):
        raise ValueError(
            f"{owner} takes a distribution as proposal and a callable as {role}, got "
            f"{proposal!r} and {function!r}."
        )
    check_event(proposal, role, function)


def check_event(
    source: Distribution, role: str, function: Any, source_role: str = "proposal"
) -> None:
    """Refuses a function that says it is defined on other events than those of a distribution."""
    declared = getattr(function, "event_shape", None)
    declared = source.event_shape if declared is None else declared
    declared = torch.Size([declared] if isinstance(declared, int) else declared)
    if declared != source.event_shape:
        raise ValueError(
            f"The {role} is defined on events of shape {tuple(declared)}, but the {source_role} "
            f"{source} draws events of shape {tuple(source.event_shape)}. Make them agree; its "
            "to_event(n) turns batch dimensions into event dimensions."
        )


def tightened(part: Any, num: int) -> Any:
    """A part whose density, if it is stochastic, averages at least ``num`` weights."""
    if density_kind(part) == "exact":
        return part
    return _stochastic(part, "tight").tight(max(num, part._num_weights))


def unmoved(part: Any, seed: int) -> Any:
    """A part whose density, if it is stochastic, is frozen; not by the seed of what it is in."""
    if density_kind(part) == "exact":
        return part
    return _stochastic(part, "frozen").frozen(seed + 1)


def separated(part: Any, values: Tensor) -> Any:
    """A part that shares nothing between the rows of values ``(num, *batch, *event)``."""
    if density_kind(part) == "exact" or len(values) == 1:
        return part
    own = part.batch_shape
    ones = (1,) * (values.dim() - len(part.event_shape) - len(own) - 1)
    return apart(part, torch.Size((len(values), *ones, *own)))


def apart(part: Any, batch_shape: torch.Size) -> Any:
    """A part of a larger batch shape, with proposals of its own for each element of the batch."""
    method = "expand" if density_kind(part) == "exact" else "separate"
    return getattr(_stochastic(part, method), method)(batch_shape)


def _stochastic(part: Any, method: str) -> Any:
    if not hasattr(part, method):
        raise ValueError(
            f"{part} wraps a stochastic density, and has no {method}(). Wrap it by its own methods "
            "to_event, mask and expand only; to transform it, transform what it is made of."
        )
    return part


def evaluate(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    event_shape: torch.Size,
    batch_shape: torch.Size,
    role: str = "energy",
    finite: bool | None = False,
) -> Tensor:
    """Evaluates an energy or a logit, and refuses results of a wrong kind or shape.

    Args:
        function: maps ``(..., *event_shape)`` to ``(...)`` or ``(..., *batch_shape)``.
        x: the values.
        event_shape: of the values.
        batch_shape: that the result may depend on.
        role: what the messages call it.
        finite: whether to look for numbers that are not finite.
    """
    result = _call(function, x, event_shape, role)
    expected = x.shape[: x.dim() - len(event_shape)]
    if result.shape != expected and result.shape != torch.broadcast_shapes(expected, batch_shape):
        raise ValueError(
            f"The {role} returned shape {tuple(result.shape)} for values of shape "
            f"{tuple(x.shape)}, expected {tuple(expected)}: it maps (..., *event_shape) to "
            f"(...) with event_shape {tuple(event_shape)}. Sum or squeeze its output, or "
            "let proposal.to_event(n) turn the proposal's last dimensions into its event."
        )
    if finite and not torch._is_all_true(torch.isfinite(result)):
        bad = (~torch.isfinite(result)).sum().item()
        raise ValueError(
            f"The {role} is not finite at {bad} of {result.numel()} values. Bound the {role}, "
            "lower the learning rate, or keep forbidden values out of the proposal's support."
        )
    return result


def _call(
    function: Callable[[Tensor], Tensor], x: Tensor, event_shape: torch.Size, role: str
) -> Tensor:
    try:
        result = function(x)
    except RuntimeError as error:
        if re.search("shape|size", str(error)) is None:
            raise
        raise ValueError(
            f"The {role} cannot score values of shape {tuple(x.shape)} with event shape "
            f"{tuple(event_shape)}: {error}. It must accept the proposal's events, and any "
            "dimensions to the left of them."
        ) from error
    if not isinstance(result, Tensor) or not result.is_floating_point():
        kind = result.dtype if isinstance(result, Tensor) else type(result)
        raise ValueError(f"The {role} must return a tensor of floating-point numbers, got {kind}.")
    return result


def refuse_biased_gradient(source: Distribution, values: Tensor, role: str, remedy: str) -> None:
    """Raises if the distribution of draws without a path depends on trainable parameters."""
    if torch.is_grad_enabled() and source.log_prob(values).requires_grad:
        raise ValueError(
            f"The {role} {source} has trainable parameters but no reparameterised samples, so that "
            "the gradient of the bound would be biased. Detach them, evaluate under "
            f"torch.no_grad(), use one with rsample, {remedy}."
        )


def refuse_bound(owner: Distribution, proposal: Distribution, role: str) -> None:
    """Raises if the density of draws has no more than a lower bound."""
    if density_kind(proposal) != "exact":
        raise NotImplementedError(
            f"The draws of this {type(owner).__name__} shall be scored, by an upper bound as in a "
            f"guide or by leave_one_out, but its {role} {type(proposal).__name__} only has a lower "
            f"bound. Use a {role} with an exact density."
        )


def draw_candidates(
    source: Distribution, sample_shape: torch.Size, role: str = "proposal", remedy: str = REMEDY
) -> Tensor:
    """Draws with a path, or without one if no gradient is lost."""
    if source.has_rsample:
        return source.rsample(sample_shape)
    draws = source.sample(sample_shape)
    refuse_biased_gradient(source, draws[(slice(1),) * len(sample_shape)], role, remedy)
    return draws


def padded_batch(proposal: Distribution, batch_shape: torch.Size) -> torch.Size:
    """The proposal's batch shape with a dimension for each of another, so that both line up."""
    missing = len(batch_shape) - len(proposal.batch_shape)
    return torch.Size((1,) * missing) + proposal.batch_shape


def choose(candidates: Tensor, index: Tensor) -> Tensor:
    """The candidate of ``(K, *batch, *event)`` at ``index (*batch)``."""
    index = index.reshape((1, *index.shape) + (1,) * (candidates.dim() - index.dim() - 1))
    return candidates.gather(0, index.expand(1, *candidates.shape[1:])).squeeze(0)


def others(rows: Tensor, index: Tensor) -> Tensor:
    """The rows of ``(K, *batch)`` but the one at ``index (*batch)``, ``(K - 1, *batch)``."""
    places = torch.arange(len(rows) - 1, device=rows.device).reshape(-1, *(1,) * index.dim())
    return rows.gather(0, places + (places >= index).to(places.dtype))


def align(rows: Tensor, batch_dim: int, num_rows: int = 1) -> Tensor:
    """Inserts dimensions so that ``(*rows, *shared)`` broadcasts against ``(*batch)``."""
    missing = batch_dim - (rows.dim() - num_rows)
    return rows.reshape(rows.shape[:num_rows] + (1,) * missing + rows.shape[num_rows:])
