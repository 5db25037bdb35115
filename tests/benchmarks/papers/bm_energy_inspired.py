"""1910.14265: the SNIS prior against the Gaussian prior of a VAE, at equal steps on equal data.

``python tests/benchmarks/papers/bm_energy_inspired.py --budget small|paper`` needs MNIST in
``PYRO_EXT_DATA``. The small budget is 6,000 steps; the paper's model, not its 10^7 steps.
"""

import argparse
import sys
from pathlib import Path

import pyro
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import record

from pyro_ext.demo import build, judge, paired_difference, read_images, train

BUDGETS = {
    "small": {"steps": 6_000, "seeds": [0, 1], "num_test": 1_000, "judges": 200},
    "paper": {"steps": 100_000, "seeds": [0, 1, 2], "num_test": 10_000, "judges": 1_000},
}


def compare(images, device, steps, seed, judges):
    """One seed: train and judge both priors; yields a row each, then their paired difference."""
    bounds = {}
    for prior in ("normal", "snis"):
        pyro.set_rng_seed(seed)
        vae = build(images, prior, num_proposals=1024, small=False).to(device)
        fit = train(vae, images, steps, seed=seed, label=f"seed {seed}, {prior}")
        verdict = judge(vae, images.test.to(device), judges, label="judge")
        bounds[prior] = verdict.bound
        yield {
            "prior": prior,
            "seed": seed,
            f"IWAE-{judges} bound (nats)": round(verdict.bound.mean().item(), 3),
            "mean ESS": round(verdict.ess.mean().item(), 1),
            "share with k-hat > 0.7": round((verdict.pareto_k > 0.7).float().mean().item(), 3),
            "training CPU (s)": round(fit.cpu_seconds, 1),
        }
    mean, error = paired_difference(bounds["snis"], bounds["normal"])
    yield {
        "prior": "snis - normal",
        "seed": seed,
        f"IWAE-{judges} bound (nats)": round(mean, 3),
        "standard error of the paired difference (nats)": round(error, 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    budget = BUDGETS[options.budget]
    torch.set_num_threads(1)
    images = read_images("mnist", budget["num_test"])

    def measure():
        for seed in budget["seeds"]:
            yield from compare(images, options.device, budget["steps"], seed, budget["judges"])

    settings = {
        "budget": options.budget,
        "device": options.device,
        "data": "MNIST, binarised anew per batch",
        "model": "784-300-300-50, tanh",
        "num_proposals": 1024,
        "energy": "50-100-100-1, tanh",
        "batch size": 128,
        "optimiser": "Adam 2e-3, cosine",
        "training particles": 1,
        **budget,
    }
    record("energy_inspired_mnist", "SNIS prior against Gaussian prior, MNIST", settings, measure)


if __name__ == "__main__":
    main()
