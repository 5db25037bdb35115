"""Simulated mixtures of sources, whitened, and what a representation of them scores."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.decomposition import FastICA
from torch import Tensor, nn

from pyro_ext.data.simulate import MixedSources, SourceDraws
from pyro_ext.diagnostics import mean_correlation


class WhitenedSources(NamedTuple):
    """Draws of one problem, whose observations are whitened by those for training."""

    problem: MixedSources
    train: SourceDraws
    validation: SourceDraws
    test: SourceDraws
    nats_of_truth: float  # of the test data, in their own units
    cross_entropy_of_truth: float
    log_det: float  # to be taken off nats of whitened data


def draw(problem: MixedSources, *sizes: int) -> WhitenedSources:
    """Independent data for training, validation and testing, as many of each context."""
    drawn = [problem.sample(size, seed=seed) for seed, size in enumerate(sizes)]
    truth = posterior(problem, drawn[2])
    loc, matrix = whitening(drawn[0].x)
    whitened = [part._replace(x=(part.x - loc) @ matrix) for part in drawn]
    return WhitenedSources(problem, *whitened, *truth, torch.linalg.slogdet(matrix)[1].item())


def posterior(problem: MixedSources, draws: SourceDraws) -> tuple[float, float]:
    """Mean nats of observations, and of their labels given them, under the truth."""
    contexts = range(problem.num_contexts)
    x = draws.x.double()
    given = [problem.log_prob(x, torch.full_like(draws.context, u)) for u in contexts]
    log_probs = torch.stack(given, -1)
    own = log_probs.gather(-1, draws.context.unsqueeze(-1)).squeeze(-1)
    return -own.mean().item(), nn.functional.cross_entropy(log_probs, draws.context).item()


def whitening(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def score(
    represent: Callable[[Tensor], Tensor],
    target: Callable[[Tensor], Tensor],
    data: WhitenedSources,
    weak: bool = False,
) -> float:
    """The mean correlation of test data, matched on the training data."""
    with torch.no_grad():
        (fitted, known), (found, truth) = (
            (represent(part.x), target(part.sources)) for part in (data.train, data.test)
        )
    return mean_correlation(found, truth, fit=(fitted, known), weak=weak).score


def linear(data: WhitenedSources) -> tuple[float, float]:
    """FastICA's components with the sources, and the squares of both."""
    ica = FastICA(whiten="unit-variance", random_state=0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ica.fit(data.train.x.double().numpy())

    def components(x: Tensor) -> Tensor:
        return torch.from_numpy(ica.transform(x.double().numpy()))

    squares = score(lambda x: components(x) ** 2, lambda s: s.double() ** 2, data)
    return score(components, torch.Tensor.double, data), squares
