"""1910.14265: SNIS densities of three toy targets in the plane, beside what no model can exceed.

``python tests/benchmarks/papers/bm_energy_inspired_toys.py --budget small|paper`` needs no data.
"""

import argparse
import sys
from pathlib import Path
from time import process_time

import pyro
import pyro.distributions as dist
import torch
from tqdm import trange

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import record

from pyro_ext.data.simulate import Checkerboard, NineGaussians, TwoRings
from pyro_ext.distributions import SelfNormalizedImportance
from pyro_ext.nn import EnergyNet

# target, its expected log density under itself by quadrature (tests/data/test_simulate.py), steps
TARGETS = {
    "nine Gaussians": (NineGaussians, -0.4299, 15_000),
    "two rings": (TwoRings, -1.5137, 40_000),
    "checkerboard": (Checkerboard, -2.0794, 40_000),
}
BUDGETS = {"small": {"scale": 1, "seeds": [0, 1]}, "paper": {"scale": 25, "seeds": [0, 1, 2]}}


def fit(target, steps, device):
    """Maximum likelihood of the paper's energy on the paper's proposal."""
    proposal = dist.Normal(torch.zeros(2, device=device), 1.0).to_event(1)
    energy = EnergyNet(2, (20, 20)).to(device)
    density = SelfNormalizedImportance(proposal, energy, 1024, validate_args=False)
    optimizer = torch.optim.Adam(energy.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, desc=type(target).__name__):
        optimizer.zero_grad()
        (-density.log_prob(target.sample((128,))).mean()).backward()
        optimizer.step()
        schedule.step()
    return density


@torch.no_grad()
def score(density, target, groups=40, size=1_000):
    """Mean log density of fresh samples; groups have candidates of their own."""
    tight = density.tight(20)
    means = torch.stack([tight.log_prob(target.sample((size,))).mean() for _ in range(groups)])
    return means.mean().item(), (means.std() / groups**0.5).item()


def rows(budget, device):
    for name, (make, ceiling, steps) in TARGETS.items():
        for seed in budget["seeds"]:
            pyro.set_rng_seed(seed)
            target, start = make(device=device), process_time()
            density = fit(target, steps * budget["scale"], device)
            seconds = process_time() - start
            mean, error = score(density, target)
            proposal = density.proposal.log_prob(target.sample((100_000,))).mean().item()
            yield {
                "target": name,
                "seed": seed,
                "steps": steps * budget["scale"],
                "log density (nats)": round(mean, 4),
                "standard error (nats)": round(error, 4),
                "ceiling (nats)": ceiling,
                "proposal alone (nats)": round(proposal, 3),
                "training CPU (s)": round(seconds, 1),
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "budget": options.budget,
        "device": options.device,
        "energy": "2-20-20-1, tanh",
        "proposal": "Normal(0, I)",
        "num_proposals": 1024,
        "batch size": 128,
        "optimiser": "Adam 5e-3, cosine",
        "log density": "tight(20) on 40 groups of 1,000 fresh samples",
    }
    record(
        "energy_inspired_toys",
        "SNIS densities of toy targets in the plane",
        settings,
        lambda: rows(BUDGETS[options.budget], options.device),
    )


if __name__ == "__main__":
    main()
