"""Conditions on the contexts: how many there are, and how they differ."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext.diagnostics.identifiability_report import MET, VIOLATED, WEAK, Condition
from pyro_ext.ops.affine_rank import AffineRank

MOST = 4096  # distinct contexts that are looked at


def distinct(contexts: Tensor) -> Tensor:
    """The distinct labels ``(K,)`` or vectors ``(K, U)``.

    Raises:
        ValueError: if they are no contexts.
    """
    if not isinstance(contexts, Tensor) or not contexts.numel():
        raise ValueError(
            "contexts must be a tensor of labels (N), or of vectors (N, context_dim), got "
            f"{contexts!r}."
        )
    if not contexts.isfinite().all():
        raise ValueError("contexts hold NaN or infinite numbers: drop these rows of the data.")
    is_vector = contexts.is_floating_point() and contexts.dim() > 0
    rows = contexts.reshape(-1, contexts.shape[-1]) if is_vector else contexts.flatten()
    return rows.unique(dim=0)


def thin(contexts: Tensor) -> Tensor:
    """Not too many of them, evenly spaced."""
    if len(contexts) <= MOST:
        return contexts
    return contexts[torch.linspace(0, len(contexts) - 1, MOST, device=contexts.device).long()]


def check_number(contexts: Tensor, required: int, formula: str) -> Condition:
    """Whether there are enough of them."""
    text = f"{len(contexts)} distinct, {required} needed ({formula})"
    if len(contexts) >= required:
        return Condition("contexts", MET, text)
    advice = "; take fewer latents or statistics, or split the data into more contexts"
    return Condition("contexts", VIOLATED, text + advice)


def check_labels(module: Any, contexts: Tensor) -> list[Condition]:
    """Whether each label of a table occurs, and is trained that is."""
    num_classes = getattr(module, "num_classes", 0)
    if not num_classes or contexts.is_floating_point() or len(contexts) == num_classes:
        return []
    missing = sorted(set(range(num_classes)) - set(contexts.tolist()))
    named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    text = f"{len(missing)} of {num_classes} never occur ({named}): their rows stay as they started"
    return [Condition("labels", WEAK, text)]


def check_variability(seen: AffineRank, required: int) -> Condition:
    """Whether natural parameters differ in every direction."""
    text = f"rank {seen.rank} of {required} of the differences of natural parameters"
    if seen.rank == required:
        return Condition(
            "variability", MET, f"{text}, condition number {seen.condition_number:.1e}"
        )
    constant = (seen.spread == 0).nonzero().flatten().tolist()
    why = f"; constant over contexts: {constant[:8]}" if constant else ""
    return Condition("variability", VIOLATED, text + why)
