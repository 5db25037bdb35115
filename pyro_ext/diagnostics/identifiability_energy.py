"""Conditions on a conditional energy whose features are to be identified."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext.diagnostics.effective_rank import effective_rank
from pyro_ext.diagnostics.identifiability_contexts import (
    check_labels,
    check_number,
    check_variability,
    thin,
)
from pyro_ext.diagnostics.identifiability_decoder import evaluating
from pyro_ext.diagnostics.identifiability_report import (
    MET,
    UNCHECKED,
    VIOLATED,
    WEAK,
    Condition,
    IdentifiabilityReport,
    promised,
)
from pyro_ext.ops.affine_rank import affine_rank


@torch.no_grad()
def energy_report(
    energy: Any, contexts: Tensor, data: Tensor | None, tolerance: float
) -> IdentifiabilityReport:
    """All conditions on an energy, and on its features of data."""
    with evaluating(energy):
        weights = energy.weights(thin(contexts))
        features = None if data is None else _features(energy, data)
    required = weights.shape[-1]
    seen = affine_rank(weights, tolerance)
    formula = f"one more than {required} statistics"
    conditions = [
        check_number(contexts, required + 1, formula),
        *check_labels(energy, contexts),
        check_variability(seen, required),
        *_check_features(energy, features, data, tolerance),
    ]
    is_strong = energy.positive or energy.augment
    return IdentifiabilityReport(
        conditions=tuple(conditions),
        promise=promised(conditions, "permutation" if is_strong else "linear"),
        num_contexts=len(contexts),
        required_contexts=required + 1,
        rank=seen.rank,
        required_rank=required,
        condition_number=seen.condition_number,
        effective_rank=None if features is None else _effective_rank(features, tolerance),
    )


def _features(energy: Any, data: Tensor) -> Tensor:
    if not isinstance(data, Tensor) or data.dim() < 2 or len(data) < 2:
        raise ValueError("data must be a tensor (N, ...) of two events or more.")
    if not data.isfinite().all():
        raise ValueError("data hold NaN or infinite numbers: drop these rows, or fill them in.")
    return energy.features(data)


def _check_features(
    energy: Any, features: Tensor | None, data: Tensor | None, tolerance: float
) -> list[Condition]:
    if features is None or data is None:
        return [Condition("features", UNCHECKED, "no data given"), _form(energy)]
    return [
        *_check_data(data),
        _check_size(features, data),
        _check_rank(features, tolerance),
        *([_check_sign(features)] if energy.positive else []),
        _form(energy),
    ]


def _check_data(data: Tensor) -> list[Condition]:
    columns = data.flatten(1)
    constant = (columns == columns[:1]).all(0).nonzero().flatten().tolist()
    if not constant:
        return []
    text = f"{len(constant)} of {columns.shape[1]} columns are constant ({constant[:8]})"
    return [Condition("data", WEAK, text)]


def _check_size(features: Tensor, data: Tensor) -> Condition:
    num, size = features.shape[-1], data[0].numel()
    status = MET if num <= size else VIOLATED
    return Condition("dimensions", status, f"{num} features of events of {size} numbers")


def _check_rank(features: Tensor, tolerance: float) -> Condition:
    seen, num = affine_rank(features, tolerance), features.shape[-1]
    effective = _effective_rank(features, tolerance)
    text = f"rank {seen.rank} of {num} on data, effective rank {effective:.1f}"
    if seen.rank < num:
        return Condition("features", VIOLATED, f"{text}: some are functions of others")
    if effective < num / 2:
        return Condition("features", WEAK, f"{text}: they almost collapse")
    return Condition("features", MET, text)


def _effective_rank(features: Tensor, tolerance: float) -> float:
    """Of the features that are not constant."""
    varied = features[:, affine_rank(features, tolerance).spread > 0]
    return effective_rank(varied) if varied.numel() else 0.0


def _check_sign(features: Tensor) -> Condition:
    lowest = float(features.min())
    text = f"smallest feature {lowest:.2g}; whether they reach the axes is unchecked"
    return Condition("non-negative", MET if lowest >= 0 else VIOLATED, text)


def _form(energy: Any) -> Condition:
    if energy.augment:
        text = "squares of features are statistics too; that features are onto is unchecked"
        return Condition("form", MET, text)
    if energy.positive:
        return Condition("form", MET, "features are not negative")
    text = "features of either sign, without squares, are known up to an affine map only"
    return Condition("form", WEAK, text)
