"""Log-weights of more particles than fit in memory at once."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.infer.particle_elbo import ParticleELBO
from pyro_ext.infer.particle_traces import ParticleTraces, random_sites, trace_weights
from pyro_ext.ops.counts import count
from pyro_ext.poutine.cut_messenger import innermost
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

LARGEST_TENSOR = 2**26  # bytes; a run needs a few of them


def draw_log_weights(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    num_particles: int,
    chunk_size: int | None = None,
    max_plate_nesting: float = math.inf,
) -> Tensor:
    """Log-weights in nats on the CPU, of particles that share a subsample and nothing else.

    Args:
        model: a Pyro model.
        guide: its guide.
        args: their arguments.
        kwargs: their keyword arguments.
        num_particles: in total.
        chunk_size: particles per run; if not given, one if a stochastic density shares proposals
            between them, else what keeps the largest tensor of a run below ``LARGEST_TENSOR``,
            by one more run of one particle.
        max_plate_nesting: as in :class:`~pyro_ext.infer.MultiSampleELBO`.

    Shape:
        ``(num_particles, *plates)``, the plates being those common to all sites.

    Raises:
        ValueError: if ``chunk_size < 1``, or as :class:`~pyro_ext.infer.MultiSampleELBO` does.
    """
    with SharedSubsampleMessenger():
        weights = _JointWeights(1, max_plate_nesting)
        if chunk_size is None:
            chunk_size = _chunk_size(weights, model, guide, args, kwargs)
        num_runs = math.ceil(num_particles / count(chunk_size, "chunk_size"))
        size = math.ceil(num_particles / num_runs)  # of equal runs, whose surplus is cut off
        weights = _JointWeights(size, weights.max_plate_nesting)
        runs = (weights.log_weights(model, guide, args, kwargs) for _ in range(num_runs))
        return _join(runs, num_particles)


class _JointWeights(ParticleELBO):
    """Log-weights of particles that share no draw: where bounds are nested, of all data at once."""

    has_path, has_score = False, True

    def __init__(self, num_particles: int, max_plate_nesting: float = math.inf):
        self.num_outer = num_particles
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=True)

    def log_weights(self, model, guide, args, kwargs) -> Tensor:
        """Of shape ``(num_particles, *plates)``."""
        return _stack(self.draw_particles(model, guide, args, kwargs).runs)


def _stack(runs: list[ParticleTraces]) -> Tensor:
    parts = [trace_weights(*run.traces, run.particle_dim).log_w for run in runs]
    return torch.stack(parts) if runs[0].particle_dim is None else parts[0]


def _join(runs: Iterable[Tensor], num_particles: int) -> Tensor:
    """Copies ``(size, *plates)`` of each run into one ``(num_particles, *plates)`` on the CPU."""
    done, joined = 0, torch.empty(0)
    with tqdm(total=num_particles, desc="particles", delay=5) as progress:
        for log_w in runs:
            if done == 0:
                joined = torch.empty((num_particles, *log_w.shape[1:]), dtype=log_w.dtype)
            log_w = log_w[: num_particles - done]
            joined[done : done + len(log_w)] = log_w
            done += len(log_w)
            progress.update(len(log_w))
    return joined


def _chunk_size(weights: _JointWeights, model, guide, args, kwargs) -> int:
    with _LargestTensor() as largest:
        runs = weights.draw_particles(model, guide, args, kwargs).runs
        _stack(runs)
    sites = [site for trace in runs[0].traces for site in random_sites(trace)]
    if any(_shares_noise(innermost(site["fn"])) for site in sites):
        return 1
    return max(1, LARGEST_TENSOR // max(1, largest.nbytes))


def _shares_noise(distribution: Any) -> bool:
    """Whether one evaluation of a density uses the same random numbers for all values."""
    if not isinstance(distribution, StochasticDensity) or distribution.density_kind == "exact":
        return False
    is_estimate = distribution.density_kind == "estimate"
    return is_estimate or getattr(distribution, "share_proposals", False)


class _LargestTensor(TorchFunctionMode):
    """Measures the largest tensor that a torch function returns inside the context, in bytes."""

    nbytes = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor):
                self.nbytes = max(self.nbytes, each.numel() * each.element_size())
        return result
