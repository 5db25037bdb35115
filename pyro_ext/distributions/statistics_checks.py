"""What a family of statistics has to be, for its quadrature to be exact."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pyro_ext.distributions.panel_rule import PanelRule

LOST = 1e-9  # the most mass that a window may leave out
MAX_STATISTICS = 10  # all of their corners are looked at


def _tabulate(family: Any, rule: PanelRule) -> tuple[Tensor, Tensor]:
    nodes = rule.nodes()
    with torch.no_grad():
        return family.statistics(nodes), family.log_base(nodes) + rule.log_weights()


def check_window(low: float, high: float) -> None:
    """Refuses limits that are infinite or not in order."""
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"low and high must be finite and in order, got {low} and {high}. For the whole line "
            "give a window wide enough, and unbounded=True."
        )


def check_limits(limits: Any, num: int) -> tuple[tuple[float, float], ...]:
    """The limits of each statistic."""
    try:
        pairs = [tuple(map(float, pair)) for pair in limits]
    except TypeError:
        pairs = [tuple(map(float, limits))] * num
    if num > MAX_STATISTICS:
        raise ValueError(
            f"A family has at most {MAX_STATISTICS} statistics, all corners of whose limits are "
            f"checked; got {num}."
        )
    finite = all(len(pair) == 2 and -math.inf < pair[0] < pair[1] < math.inf for pair in pairs)
    if not num or len(pairs) != num or not finite:
        raise ValueError(
            f"limits must be one pair of finite numbers in order, or one for each of {num} "
            f"statistics, of which there must be one; got {limits!r}."
        )
    return tuple((pair[0], pair[1]) for pair in pairs)


def check_table(family: Any, rule: PanelRule) -> tuple[Tensor, Tensor]:
    """Statistics at the nodes, and the log base measure times the weight, all finite."""
    try:
        statistics, base = _tabulate(family, rule)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            "statistics and log_base must map a tensor of values to one of the same shape, but "
            f"evaluating them failed: {error}"
        ) from error
    shape = (len(rule.nodes()), family.num_statistics)
    if statistics.shape != shape or base.shape != shape[:1]:
        raise ValueError("statistics and log_base must keep the shape of the tensor of values.")
    if not (statistics.isfinite().all() and base.isfinite().all()):
        raise ValueError(
            f"statistics and log_base must be finite between {rule.low} and {rule.high}, but one "
            "is not. Move the limits inwards."
        )
    return statistics, base


def _corners(family: Any) -> Tensor:
    corners = list(itertools.product(*family.limits))
    return torch.tensor(corners, dtype=torch.float64)


def check_corners(family: Any) -> None:
    """Refuses a rule that is not exact, or a window too narrow, at the corners of the limits."""
    corners, rule = _corners(family), family.rule
    coarse = family.log_masses(corners)
    statistics, base = _tabulate(family, rule._replace(num_panels=2 * rule.num_panels))
    errors = (corners @ statistics.mT + base).logsumexp(-1) - coarse.logsumexp(-1)
    if not bool((errors.abs() < 1e-6).all()):
        raise ValueError(
            f"With {rule.num_panels} panels the log normaliser is wrong by "
            f"{errors.abs().max():.1g} at natural parameters "
            f"{corners[errors.abs().argmax()].tolist()}. Raise num_panels or draw the limits "
            "closer."
        )
    if family.unbounded:
        _check_ends(family, corners, coarse)


def _check_ends(family: Any, corners: Tensor, log_masses: Tensor) -> None:
    """Bounds the tail by an exponential that falls as the density does in the last panels."""
    rule = family.rule
    density = log_masses.log_softmax(-1) - rule.log_weights()
    for outer, inner in ((0, 16), (-1, -17)):
        fall = (density[:, inner] - density[:, outer]) / (2 * rule.width)
        lost = torch.where(fall > 0, (density[:, outer] - fall.log()).exp(), math.inf)
        if bool((lost > LOST).any()):
            raise ValueError(
                f"Outside of the window from {rule.low} to {rule.high} there is mass at natural "
                f"parameters {corners[lost.argmax()].tolist()}. Widen it, draw the limits closer, "
                "or give a log_base that falls faster."
            )
