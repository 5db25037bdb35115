"""Restarts."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state


class Restarts(NamedTuple):
    """The best of several restarts, and what all of them scored."""

    model: Any
    seed: int
    scores: dict[int, float]  # by seed


def best_of(
    build: Callable[[], Any],
    fit: Callable[[Any], Any],
    score: Callable[[Any], Any],
    seeds: Iterable[int],
) -> Restarts:
    """Builds and fits a model under each seed, and keeps the one of the largest score.

    Likelihoods of deep models have many optima, and identifiability speaks of the best one. The
    score should be a *held-out likelihood*: never one by the truth, which real data do not
    come with, and which says nothing of how the model would have been chosen without it.

    Each restart has a parameter store of its own, in which no other one's parameters are found
    under the same names, and which is gone afterwards: a model's parameters must be those of a
    module. Generators are left as they were.

    Args:
        build: returns a new model.
        fit: trains it, in place.
        score: a number, the larger the better, such as the mean log likelihood of held-out data;
            without gradients.
        seeds: of the restarts.

    Returns:
        The best model, its seed, and the score of each seed.

    Raises:
        ValueError: if there is no seed, or no score is finite.

    Example:
        >>> found = best_of(lambda: torch.randn(()), lambda x: None, lambda x: -x.abs(), range(3))
        >>> found.scores[found.seed] == max(found.scores.values())
        True
    """
    best, scores = None, {}
    with _generators_kept():
        for seed in seeds:
            pyro.set_rng_seed(seed)
            with pyro.get_param_store().scope():
                model = build()
                fit(model)
                with torch.no_grad():
                    scores[seed] = float(score(model))
            if math.isfinite(scores[seed]) and (best is None or scores[seed] > scores[best[1]]):
                best = model, seed
    if best is None:
        raise ValueError(f"No restart has a finite score: {scores}. Give seeds, and check fit.")
    return Restarts(*best, scores)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Those of torch, on each device, of NumPy and of Python."""
    state = get_rng_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            set_rng_state(state)
