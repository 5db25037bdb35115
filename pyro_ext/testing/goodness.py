r"""Do samples follow a density? Pearson's test on atoms, spacings on the rest.

Pyro's ``testing.gof`` sums the chi-squared tail to 100 terms, so that statistics between about
150 and 2000 get a p-value near one: with it, draws of Normal(0, 1) pass as Normal(0, 2). The
tail below is torch's ``gammaincc``; the geometry is Pyro's.
"""

import torch
from pyro.distributions.testing.gof import get_nearest_neighbor_distances, volume_of_sphere
from torch import Tensor

MIN_EXPECTED = 10


@torch.no_grad()
def p_value(draws: Tensor, probs: Tensor, discrete: bool) -> float:
    """Tests draws of shape (N, D) against densities (N,) of a measure that may have atoms.

    Values that repeat are atoms, where ``probs`` is a probability; at the others it is a density.
    """
    values, index, counts = draws.unique(dim=0, return_inverse=True, return_counts=True)
    probs = probs.new_zeros(len(values)).scatter(0, index, probs)
    atomic = torch.full_like(counts, True, dtype=torch.bool) if discrete else counts > 1
    p = pearson(probs[atomic], counts[atomic], len(draws)) if atomic.any() else 1.0
    rest = values[~atomic]
    if len(rest) <= 1000 * draws.shape[1]:
        return p
    return min(p, spacing(rest, probs[~atomic] / (1 - probs[atomic].sum())))


def pearson(probs: Tensor, counts: Tensor, num: int) -> float:
    """Pearson's test; rare values share one cell with everything that was never seen."""
    if probs.sum() > 1 + 1e-6:
        return 0.0
    common = probs * num >= MIN_EXPECTED
    expected = torch.cat([probs[common], (1 - probs[common].sum()).clamp(min=0)[None]]) * num
    seen = torch.cat([counts[common], (num - counts[common].sum())[None]])
    if expected[-1] < MIN_EXPECTED:
        if seen[-1] > 5 * MIN_EXPECTED:
            return 0.0
        expected, seen = expected[:-1], seen[:-1]
    statistic = ((seen - expected) ** 2 / expected).sum()
    return _tail(statistic, max(len(seen) - 1, 1))


def spacing(values: Tensor, density: Tensor) -> float:
    """Expected draws in the ball up to the nearest neighbour are Exponential(1)."""
    num, dim = values.shape
    if dim == 1:
        order = values[:, 0].argsort()
        gaps = values[order, 0].diff()
        volume, density = gaps, density[order]
        density = 2 / (1 / density[1:] + 1 / density[:-1])
    else:
        volume = volume_of_sphere(dim, get_nearest_neighbor_distances(values))
    uniform = (-num * density * volume).exp()
    return uniformity(uniform)


def uniformity(draws: Tensor) -> float:
    """Pearson's test on equal bins of the unit interval."""
    bins = round(len(draws) ** (1 / 3))
    cells = (draws * bins).long().clamp(max=bins - 1)
    expected = len(draws) / bins
    statistic = ((cells.bincount(minlength=bins) - expected) ** 2 / expected).sum()
    return _tail(statistic, bins - 1)


def _tail(statistic: Tensor, degrees: int) -> float:
    half = torch.tensor(degrees / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic.double() / 2))
