"""1910.14265: energy-inspired densities of three toy targets in the plane, and what bounds them.

``python tests/benchmarks/papers/bm_eim_toys.py --budget small|paper`` needs no data.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from tqdm import trange

sys.path.insert(0, str(Path(__file__).parents[1]))
from race import cosine
from record import record

from pyro_ext.data.simulate import Checkerboard, NineGaussians, TwoRings
from pyro_ext.distributions import (
    HamiltonianSampler,
    ImportanceSampler,
    LearnedAcceptRejectSampler,
    TruncatedRejection,
    TruncatedRejectionSampler,
)
from pyro_ext.nn import EnergyNet

# target and its expected log density under itself, by quadrature (tests/data/test_simulate.py)
TARGETS: dict[str, tuple[Callable, float]] = {
    "nine Gaussians": (NineGaussians, -0.4299),
    "two rings": (TwoRings, -1.5137),
    "checkerboard": (Checkerboard, -2.0794),
}
CANDIDATES, BATCH, NARROW = 1024, 128, 0.01
BUDGETS: dict[str, dict[str, Any]] = {
    "small": {"SNIS": 14_000, "HIS": 2_000, "TRS": 4_000, "LARS": 3_000, "narrow SNIS": 2_000},
    "paper": dict.fromkeys(["SNIS", "HIS", "TRS", "LARS", "narrow SNIS"], 1_000_000),
}


class Job(NamedTuple):
    """What is trained: a sampler on a proposal of some variance, for a target."""

    target: str
    sampler: str
    make: Callable[[nn.Module], nn.Module]
    judge: Callable[[nn.Module, Any, Any, float], dict[str, float]]
    steps: str
    learning_rate: float = 2e-2
    particles: int = 1
    variance: float = 1.0


def steep() -> EnergyNet:
    """Weights three times those of torch, with biases, so that units start all over the plane.

    From the flat start of Glorot's weights without biases the inner ring is missed for good.
    """
    energy = EnergyNet(2, (20, 20))
    for layer in energy.layers:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -3 * bound, 3 * bound)
            nn.init.uniform_(layer.bias, -bound, bound)
    return energy


def train(sampler: nn.Module, proposal: Any, target: Any, job: Job, steps: int) -> None:
    """Maximum likelihood, or maximum bound."""
    adam = torch.optim.Adam(sampler.parameters(), lr=job.learning_rate, fused=True)
    factor = cosine(steps)
    for step in trange(steps, desc=f"{job.sampler}, {job.target}", mininterval=5):
        adam.param_groups[0]["lr"] = job.learning_rate * factor(step)
        adam.zero_grad()
        density = sampler(proposal)
        density = density.tight(job.particles) if job.particles > 1 else density
        (-density.log_prob(target.sample((BATCH,))).mean()).backward()
        adam.step()


def expect(log_prob: Callable, target: Any, ceiling: float, samples: Tensor) -> float:
    """Expected log density of the target's samples: the ceiling minus the divergence.

    Groups of samples, ``(groups, size, 2)``, have candidates of their own.
    """
    gaps = torch.stack([(log_prob(x) - target.log_prob(x)).mean() for x in samples])
    return ceiling + gaps.mean().item()


def judge_snis(sampler: Any, proposal: Any, target: Any, ceiling: float) -> dict[str, float]:
    density = sampler(proposal)
    return {
        "log density (nats)": expect(
            density.tight(500).log_prob, target, ceiling, target.sample((15, 1_000))
        ),
        "bound (nats)": expect(density.log_prob, target, ceiling, target.sample((200, 100))),
    }


def judge_his(sampler: Any, proposal: Any, target: Any, ceiling: float) -> dict[str, float]:
    density = sampler(proposal)
    return {
        "log density (nats)": expect(
            density.tight(1_000).log_prob, target, ceiling, target.sample((20, 50))
        ),
        "bound (nats)": expect(density.log_prob, target, ceiling, target.sample((10, 1_000))),
    }


def judge_lars(sampler: Any, proposal: Any, target: Any, ceiling: float) -> dict[str, float]:
    density = sampler.eval()(proposal)
    rate = density.estimate_normalizer(5_000_000).value.item()
    log_density = expect(density.log_prob, target, ceiling, target.sample((20, 1_000)))
    return {"log density (nats)": log_density, "acceptance rate Z": rate}


def judge_trs(sampler: Any, proposal: Any, target: Any, ceiling: float) -> dict[str, float]:
    """Exact density beside our bound, and the paper's bound beside its closed form."""
    rate, loose = acceptance(sampler.logit, proposal)
    samples = target.sample((400, 50))

    def variant(**options) -> float:
        density = TruncatedRejection(proposal, sampler.logit, CANDIDATES, **options)
        return expect(density.log_prob, target, ceiling, samples)

    exact, bound = variant(normalizer=rate), variant()
    reverse = math.log(loose) - math.log1p(-loose)
    return {
        "log density (nats)": exact,
        "bound (nats)": bound,
        "gap of the bound (nats)": exact - bound,
        "paper's bound (nats)": variant(reverse_logit=reverse),
        "its closed form (nats)": variant(normalizer=loose),
        "acceptance rate Z": rate,
        "Z~ of the closed form": loose,
    }


def acceptance(logit: Callable[[Tensor], Tensor], proposal: Any) -> tuple[float, float]:
    """Quadrature of Z = E[a] and of 1 - exp E[log(1 - a)], which replaces it in the paper's bound.

    The latter is at the best index distribution.
    """
    axis = torch.linspace(-6, 6, 1_201)
    grid = torch.cartesian_prod(axis, axis)
    weight = proposal.log_prob(grid).double().softmax(0)
    score = torch.cat([logit(part) for part in grid.split(2**16)]).double()
    log_reject = (weight * nn.functional.logsigmoid(-score)).sum()
    return (weight * score.sigmoid()).sum().item(), -log_reject.expm1().item()


def jobs() -> Iterator[Job]:
    def snis(energy: nn.Module) -> nn.Module:
        return ImportanceSampler(energy, CANDIDATES)

    def his(energy: nn.Module) -> nn.Module:
        return HamiltonianSampler(energy, 5, 0.1, 0.995)

    def lars(logit: nn.Module) -> nn.Module:
        return LearnedAcceptRejectSampler(logit, CANDIDATES, num_proposals=CANDIDATES)

    def trs(logit: nn.Module) -> nn.Module:
        return TruncatedRejectionSampler(logit, CANDIDATES)

    def trs_of_paper(logit: nn.Module) -> nn.Module:
        return TruncatedRejectionSampler(logit, CANDIDATES, learn_reverse=True)

    for target in TARGETS:
        yield Job(target, "SNIS", snis, judge_snis, "SNIS")
    for target in ("nine Gaussians", "two rings"):
        yield Job(target, "TRS", trs, judge_trs, "TRS")
        yield Job(target, "TRS, trained on the paper's bound", trs_of_paper, judge_trs, "TRS")
        yield Job(target, "LARS", lars, judge_lars, "LARS")
    yield Job("nine Gaussians", "HIS", his, judge_his, "HIS", 1e-2, 8, NARROW)
    yield Job("nine Gaussians", "SNIS", snis, judge_snis, "narrow SNIS", variance=NARROW)


def rows(budget: dict[str, int], seeds: list[int], device: str) -> Iterator[dict[str, Any]]:
    """One row for each job: means over the seeds, and each seed's log density."""
    for job in jobs():
        results = [run(job, budget[job.steps], seed, device) for seed in seeds]
        means = {key: statistics.fmean(one[key] for one in results) for key in results[0]}
        row = {
            "target": job.target,
            "proposal variance": job.variance,
            "sampler": job.sampler,
            "steps": budget[job.steps],
            **{key: round(value, 4) for key, value in means.items()},
            "of each seed (nats)": [round(one["log density (nats)"], 3) for one in results],
            "ceiling (nats)": TARGETS[job.target][1],
        }
        print(row, flush=True)
        yield row


def run(job: Job, steps: int, seed: int, device: str) -> dict[str, float]:
    pyro.set_rng_seed(seed)
    make, ceiling = TARGETS[job.target]
    target = make(device=device)
    proposal = dist.Normal(torch.zeros(2, device=device), job.variance**0.5).to_event(1)
    sampler, start = job.make(steep()).to(device), process_time()
    train(sampler, proposal, target, job, steps)
    seconds = process_time() - start
    with torch.no_grad():
        verdict = job.judge(sampler, proposal, target, ceiling)
    return {**verdict, "training CPU (s)": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)

    def measure() -> list[dict[str, Any]]:
        with pyro.validation_enabled(False):
            return list(rows(BUDGETS[options.budget], options.seed, options.device))

    settings = {
        "budget": options.budget,
        "device": options.device,
        "seeds": options.seed,
        "energy and acceptance logit": "2-20-20-1, tanh, steep at the start",
        "proposal": "Normal(0, variance)",
        "candidates of SNIS, TRS and LARS": CANDIDATES,
        "HIS": "five steps, trained on its 8-sample bound",
        "batch size": BATCH,
        "optimiser": "fused Adam 2e-2 (HIS 1e-2), cosine",
        "log density": "of SNIS tight(500); of HIS tight(1000), a bound still; of TRS with Z by "
        "quadrature; of LARS with Z from five million proposals",
        "closed form": "the density with 1 - exp E[log(1 - a)] in the place of Z = E[a]: the "
        "paper's bound at its best index distribution, in expectation",
    }
    record("eim_toys", "Energy-inspired densities of toy targets", settings, measure)


if __name__ == "__main__":
    main()
