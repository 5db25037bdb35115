"""Draws chosen by their importance weights."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_ext.ops.pareto_smoothing import pareto_smoothed

Variables = dict[str, np.ndarray]


def chosen_draws(log_w: Tensor) -> Tensor:
    """Indices of as many draws, by Pareto-smoothed weights of each datum.

    Args:
        log_w: ``(num_draws, *plates)``.

    Returns:
        Indices ``(num_draws, *plates)``.
    """
    smoothed, _ = pareto_smoothed(log_w)
    probs = smoothed.reshape(len(log_w), -1).softmax(0)
    return torch.multinomial(probs.mT, len(log_w), replacement=True).mT.reshape(log_w.shape)


def pick(
    values: np.ndarray, index: np.ndarray, dims: list[str], plates: tuple[str, ...], name: str
) -> np.ndarray:
    """The chosen draws of a variable.

    Args:
        values: ``(chains, draws, *dims)``.
        index: ``(chains, draws, *plates)``.
        dims: names of the variable's dimensions.
        plates: names of the plates, each of whose data has draws of its own.
        name: of the variable.

    Raises:
        ValueError: if the variable is not one of each datum.
    """
    if not set(plates) <= set(dims):
        raise ValueError(
            f"'{name}' is one variable of all data, but draws are resampled for each datum of "
            f"{list(plates)}: their joint weight would be degenerate. Leave resample=None, or "
            f"declare '{name}' by these plates."
        )
    axes = [2 + dims.index(plate) for plate in plates]
    front = list(range(2, 2 + len(plates)))
    moved = np.moveaxis(values, axes, front)
    shaped = index.reshape(index.shape + (1,) * (moved.ndim - index.ndim))
    return np.moveaxis(np.take_along_axis(moved, shaped, 1), front, axes)


def resampled(
    groups: dict[str, Variables], plates: tuple[str, ...], dims: Mapping[str, list[str]]
) -> dict[str, Variables]:
    """Groups of draws with those chosen by ``log_weight``, one chain at a time.

    The sums ``lp`` and ``log_q`` are of no draw any more if data have draws of their own, and are
    left out.
    """
    weights = torch.as_tensor(groups["sample_stats"]["log_weight"])
    index = torch.stack([chosen_draws(log_w) for log_w in weights]).numpy()
    stats = dict(groups["sample_stats"])
    for name in ("lp", "log_q") if plates else ():
        del stats[name]
    return {
        group: {
            name: pick(values, index, list(dims.get(name, [])), plates, name)
            for name, values in variables.items()
        }
        for group, variables in {**groups, "sample_stats": stats}.items()
    }
