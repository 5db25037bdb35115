"""Log normalisers of energies of one or two numbers, against quadrature."""

from itertools import product

import torch
from torch import Tensor

from pyro_ext.data.simulate import MixedSources
from pyro_ext.models import ICEBeeM

BOUND, NUM_POINTS = 15.0, {1: 20_001, 2: 1_001}


@torch.no_grad()
def normalizer_errors(model: ICEBeeM, problem: MixedSources) -> dict[str, float]:
    """The largest errors over contexts, of four ways to the log normaliser, in nats.

    Args:
        model: whose energy was fitted to observations of the problem as they are.
        problem: of one source or of two.
    """
    contexts = torch.arange(problem.num_contexts)
    grid, log_cell = quadrature(problem.latent_dim)
    energies = torch.stack([-model.energy(grid, u.expand(len(grid))) for u in contexts])
    exact = energies.logsumexp(-1) + log_cell
    truth = torch.stack([problem.log_prob(grid, u.expand(len(grid))) for u in contexts])
    mass = (truth + log_cell).exp()
    divergence = (mass * (truth - energies + exact.unsqueeze(-1))).sum(-1)
    importance = model.estimate_log_normalizer(contexts, 200_000)
    annealed = model.estimate_log_normalizer(contexts, 50_000, num_temperatures=5, step_size=0.2)
    return {
        "error of learned log Z": largest(model.energy.log_normalizer(contexts) - exact),
        "error of importance sampling": largest(importance.value - exact),
        "error of annealing": largest(annealed.value - exact),
        "standard error of log Z": importance.standard_error.max().item(),
        "k-hat": importance.pareto_k.max().item(),
        "divergence from the truth": divergence.max().item(),
    }


def quadrature(dim: int) -> tuple[Tensor, float]:
    """The points of the midpoint rule and the log size of a cell."""
    axis = torch.linspace(-BOUND, BOUND, NUM_POINTS[dim])
    points = torch.tensor(list(product(axis.tolist(), repeat=dim)))
    return points, dim * (axis[1] - axis[0]).log().item()


def largest(errors: Tensor) -> float:
    return errors.abs().max().item()
