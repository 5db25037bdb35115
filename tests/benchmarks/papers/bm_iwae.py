"""1509.00519 and 1810.04152: one and several particles, pathwise and doubly reparameterised.

``python tests/benchmarks/papers/bm_iwae.py --budget small|paper`` needs static MNIST in
``PYRO_EXT_DATA``. All rivals of a seed train for equal CPU time on one thread, from equal weights
and batches, and are judged by one bound; copies of their weights are judged at equal steps too.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from race import Runner, batches, equal_steps, judge, paired, race
from record import record

from pyro_ext.demo import Images, read_images
from pyro_ext.infer import MultiSampleELBO, dreg, pathwise
from pyro_ext.models import VariationalAutoencoder

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "CPU seconds per run": 75,
        "seeds": [0, 1],
        "test images": 1_000,
        "judges": 500,
        "repeated gradients": 200,
    },
    "paper": {
        "CPU seconds per run": 3_600,
        "seeds": [0, 1, 2],
        "test images": 10_000,
        "judges": 5_000,
        "repeated gradients": 1_000,
    },
}
BATCH, LEARNING_RATE = 20, 1e-3
RIVALS: list[tuple[int, Any]] = [
    (num, gradient) for num in (1, 5, 50) for gradient in (pathwise, dreg)
]
Rival = tuple[int, Any]


def build(images: Images, seed: int) -> VariationalAutoencoder:
    pyro.set_rng_seed(seed)
    mean = images.train.mean(0)
    return VariationalAutoencoder(mean.numel(), 50, (200, 200), data_mean=mean)


def compare(images: Images, budget: dict, seed: int) -> Iterator[dict]:
    """Two rows for each rival of one seed: at equal CPU time and at equal steps."""
    runners = {
        rival: Runner(
            build(images, seed),
            MultiSampleELBO(rival[0], gradient=rival[1], max_plate_nesting=1),
            batches(images.train, BATCH, seed),
            learning_rate=LEARNING_RATE,
        )
        for rival in RIVALS
    }
    race(list(runners.values()), budget["CPU seconds per run"], f"seed {seed}")
    steps = {rival: runner.steps for rival, runner in runners.items()}
    modules = {rival: runner.vae for rival, runner in runners.items()}
    noise = {rival: signal_to_noise(modules[RIVALS[0]], rival, images, budget) for rival in RIVALS}
    yield from rows("CPU time", seed, steps, modules, images, budget, noise)
    equal = equal_steps(list(runners.values()))
    modules = {rival: runner.at(equal) for rival, runner in runners.items()}
    yield from rows("steps", seed, dict.fromkeys(RIVALS, equal), modules, images, budget, {})


def rows(equal: str, seed: int, steps, modules, images: Images, budget, noise) -> Iterator[dict]:
    bounds = {rival: judge(vae, images.test, budget["judges"]) for rival, vae in modules.items()}
    for rival in RIVALS:
        row = {
            "at equal": equal,
            "seed": seed,
            "K": rival[0],
            "gradient": rival[1].__name__,
            "steps": steps[rival],
            "test bound (nats)": round(bounds[rival].mean().item(), 3),
            **gains(rival, bounds),
        }
        if rival in noise:
            row["signal-to-noise of the encoder"] = round(noise[rival], 3)
        yield row


def gains(rival: Rival, bounds: dict[Rival, Tensor]) -> dict[str, float]:
    """What more particles and the other gradient gain, with standard errors over images."""
    num, gradient = rival
    row: dict[str, float] = {}
    if num > 1:
        gain, error = paired(bounds[rival], bounds[1, gradient])
        row |= {"minus K=1": gain, "error of minus K=1": error}
    if gradient is dreg:
        gain, error = paired(bounds[rival], bounds[num, pathwise])
        row |= {"minus pathwise": gain, "error of minus pathwise": error}
    return row


def signal_to_noise(vae, rival: Rival, images: Images, budget: dict) -> float:
    """Mean over the encoder's parameters of a gradient's absolute mean by standard deviation.

    Parameters whose gradient does not vary, those of constant pixels, do not count.
    """
    repeats, x = budget["repeated gradients"], next(batches(images.train, BATCH, seed=1_000))
    elbo = MultiSampleELBO(rival[0], gradient=rival[1], max_plate_nesting=1)
    total = square = torch.zeros(())
    for _ in range(repeats):
        vae.zero_grad()
        elbo.loss_and_grads(vae.model, vae.guide, x)
        gradient = torch.cat([p.grad.double().flatten() for p in vae.encoder.parameters()])
        total, square = total + gradient, square + gradient**2
    mean = total / repeats
    variance = (square / repeats - mean**2).clamp(min=0) * repeats / (repeats - 1)
    moves = variance > 1e-12 * square / repeats
    return (mean[moves].abs() / variance[moves].sqrt()).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--seed", type=int, nargs="+", help="instead of the budget's")
    options = parser.parse_args()
    budget = dict(BUDGETS[options.budget])
    budget["seeds"] = options.seed or budget["seeds"]
    torch.set_num_threads(1)
    images = read_images("static_mnist", budget["test images"])

    def measure():
        with pyro.validation_enabled(False):
            return [row for seed in budget["seeds"] for row in compare(images, budget, seed)]

    settings = {
        "budget": options.budget,
        "device": "cpu",
        "data": "static MNIST, the first test images",
        "model": "784-200-200-50, tanh, one stochastic layer",
        "batch size": BATCH,
        "optimiser": f"one fused Adam {LEARNING_RATE:g}, constant",
        "turns": "rivals train in turns of 3 CPU seconds; validation off",
        "bound": f"IWAE-{budget['judges']} on test images; errors are standard errors of the mean "
        "of paired differences",
        "signal-to-noise": "at the last weights of K=1 pathwise, one batch; pure noise would have "
        f"{(2 / torch.pi / budget['repeated gradients']) ** 0.5:.3f}",
        **budget,
    }
    record("iwae_mnist", "IWAE against DReG gradients at equal CPU time", settings, measure)


if __name__ == "__main__":
    main()
