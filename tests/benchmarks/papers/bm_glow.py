"""1807.03039: Glow on CIFAR-10 beside its peers, at equal time, and whether its samples are finite.

``python tests/benchmarks/papers/bm_glow.py --budget small|paper`` needs CIFAR-10, of which small
takes the subset, in ``PYRO_EXT_DATA``. All rivals of a seed train in turns, small for equal CPU
time on one thread, paper for equal time on a GPU if there is one, from equal images. Those of ours
draw at every tenth step (paper: hundredth), peers at the end: a likelihood does not show that the
inverse explodes. ``--held-out`` judges on the last training images, which are then no part of
training, and records nothing.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import glow_rivals as rivals
from glow_rivals import Rival, Size
from race import race
from record import record

from pyro_ext.data.load import load

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "cifar10_mini",
        "depth": 8,
        "width": 128,
        "CPU seconds of training": 60,
        "batch size": 32,
        "warm-up steps": 100,
        "steps between checks of samples": 10,
    },
    "paper": {
        "data": "cifar10",
        "depth": 32,
        "width": 512,
        "seconds of training": 1_200,
        "batch size": 64,
        "warm-up steps": 500,
        "steps between checks of samples": 100,
    },
}
LEVELS, LEARNING_RATE, STARTED_FROM, DRAWS, HELD_OUT = 3, 1e-3, 256, 64, 500
BF16 = torch.bfloat16
MAIN = "ours, bf16 nets"
SEEDS = {MAIN: [0, 1, 2]}
OURS: dict[str, Callable[[Size], Rival]] = {
    MAIN: partial(rivals.ours, compute_dtype=BF16),
    "ours, fp32": rivals.ours,
    "ours, bf16 nets, edge bias": partial(rivals.ours, compute_dtype=BF16, edge_bias=True),
    "ours, bf16 nets, additive": partial(rivals.ours, compute_dtype=BF16, coupling="additive"),
    "ours, bf16 nets, invertible": partial(rivals.ours, compute_dtype=BF16, memory="invertible"),
    "as published": partial(rivals.ours, coupling="affine", edge_bias=True),
    "as published, bf16 nets": partial(
        rivals.ours, coupling="affine", edge_bias=True, compute_dtype=BF16
    ),
}
PEERS: dict[str, Callable[[Size], Rival]] = {
    "normflows": rivals.normflows,
    "normflows, actnorm in nets": partial(rivals.normflows, net_actnorm=True),
    "normflows, actnorm in nets, bf16 autocast": partial(
        rivals.normflows, net_actnorm=True, bf16=True
    ),
    "nflows": rivals.nflows,
}
RUNS = {**OURS, **PEERS}
LEFT_OUT = ("ours, bf16 nets, invertible", "as published, bf16 nets")
CHOSEN = {
    "small": [name for name in RUNS if name not in LEFT_OUT],
    "paper": [MAIN, "ours, bf16 nets, invertible", "normflows, actnorm in nets, bf16 autocast"],
}


class Images(NamedTuple):
    """Integers, on the device of the run."""

    train: Tensor  # (N, 3, 32, 32)
    test: Tensor  # (M, 3, 32, 32)


class Health(NamedTuple):
    """Of draws at temperature one."""

    checks: int = 0
    failures: int = 0  # with a draw that is not finite
    draws: int = 0
    finite: int = 0
    largest: float = 0.0  # absolute value of a finite pixel

    def add(self, images: Tensor) -> "Health":
        is_finite = images.flatten(1).isfinite().all(1)
        finite = int(is_finite.sum())
        largest = images[is_finite].abs().max().item() if finite else 0.0
        return Health(
            self.checks + 1,
            self.failures + (finite < len(images)),
            self.draws + len(images),
            self.finite + finite,
            max(self.largest, largest),
        )

    def row(self) -> dict[str, float]:
        return {
            "checks of samples": self.checks,
            "checks with one not finite": self.failures,
            "finite samples (%)": round(100 * self.finite / max(self.draws, 1), 2),
            "largest pixel drawn": round(self.largest, 1),
        }


class Trainer:
    """One rival in training; neither checks nor judgements count as its time."""

    def __init__(self, name: str, images: Images, budget: dict, seed: int):
        self.name, self.seed, self.train = name, seed, images.train
        self.device, self.warm_up = images.train.device, budget["warm-up steps"]
        self.generator = torch.Generator(self.device).manual_seed(seed)
        pyro.set_rng_seed(seed)
        self.rival = RUNS[name](Size(budget["depth"], LEVELS, budget["width"]))
        self.rival.net.to(self.device)
        self.rival.start(self.batch(STARTED_FROM))
        self.batch_size = budget["batch size"]
        self.every = budget["steps between checks of samples"]
        self.adamax = torch.optim.Adamax(self.rival.net.parameters(), lr=LEARNING_RATE)
        self.unit = "CPU second" if self.device.type == "cpu" else "second"
        self.steps, self.cpu_seconds, self.health = 0, 0.0, Health()

    def batch(self, size: int) -> Tensor:
        """Images with noise, in [-1/2, 1/2)."""
        options: dict[str, Any] = {"generator": self.generator, "device": self.device}
        chosen = self.train[torch.randint(len(self.train), (size,), **options)]
        return (chosen + torch.rand(chosen.shape, **options)) / 256 - 0.5

    def advance(self, seconds: float) -> None:
        """Trains for so many seconds."""
        end = self.cpu_seconds + seconds
        while self.cpu_seconds < end:
            start = self.clock()
            self.step()
            self.cpu_seconds += self.clock() - start
            if self.name in OURS and self.steps % self.every == 0:
                self.check()

    def step(self) -> None:
        rate = LEARNING_RATE * min(1.0, (self.steps + 1) / self.warm_up)
        for group in self.adamax.param_groups:
            group["lr"] = rate
        self.adamax.zero_grad()
        (-self.rival.log_prob(self.batch(self.batch_size)).mean()).backward()
        self.adamax.step()
        self.steps += 1

    def check(self) -> None:
        with torch.no_grad():
            self.health = self.health.add(self.rival.sample(DRAWS))

    def clock(self) -> float:
        if self.device.type == "cpu":
            return process_time()
        torch.cuda.synchronize(self.device)
        return perf_counter()

    @torch.no_grad()
    def judge(self, images: Tensor) -> Tensor:
        """Bits per dimension of each image, ``(M,)``, with the same noise for all rivals."""
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
        x = (images + noise.to(images.device)) / 256 - 0.5
        nats = torch.cat([-self.rival.log_prob(part) for part in x.split(100)])
        return nats / (math.log(2) * x[0].numel()) + 8


def compare(names: list[str], images: Images, budget: dict, seed: int) -> Iterator[dict]:
    """A row for each rival of one seed."""
    trainers: Any = [Trainer(name, images, budget, seed) for name in names]
    race(trainers, budget[time_of(budget)], f"seed {seed}")
    for trainer in trainers:
        yield row(trainer, images, budget)


def time_of(budget: dict) -> str:
    """The name that the time has in a budget."""
    return next(key for key in budget if "seconds" in key)


def row(trainer: Trainer, images: Images, budget: dict) -> dict:
    if trainer.name in PEERS:
        try_to_check(trainer)
    bits = trainer.judge(images.test)
    rate = trainer.steps * budget["batch size"] / trainer.cpu_seconds
    return {
        "run": trainer.name,
        "seed": trainer.seed,
        "test bits/dim": round(bits.mean().item(), 3),
        "standard error": round((bits.std() / len(bits) ** 0.5).item(), 3),
        "steps": trainer.steps,
        f"images per {trainer.unit}": round(rate, 1),
        **trainer.health.row(),
        **memory(trainer),
    }


def try_to_check(trainer: Trainer) -> None:
    """Draws; a peer that refuses to, as a scale is not a number, fails for all draws."""
    try:
        trainer.check()
    except (ValueError, RuntimeError) as error:
        print(f"{trainer.name} raised {error}", flush=True)
        trainer.health = trainer.health.add(torch.full((DRAWS, 1), math.nan))


def memory(trainer: Trainer) -> dict[str, float]:
    """Peak of one step on a GPU, besides what is there between steps."""
    if trainer.device.type == "cpu":
        return {}
    trainer.adamax.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer.step()
    return {"memory of a step (MB)": round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)}


def read(name: str, held_out: bool, device: str) -> Images:
    parts = {key: x.to(device) for key, x in load(name).items()}
    train, test = parts["x_train"], parts["x_test"]
    return Images(train[:-HELD_OUT], train[-HELD_OUT:]) if held_out else Images(train, test)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", choices=["cifar10", "cifar10_mini"], help="not the budget's")
    parser.add_argument("--run", choices=RUNS, nargs="+", help="instead of the budget's")
    parser.add_argument("--seed", type=int, nargs="+", help="instead of three of ours, one of all")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seconds", type=float, help="of training, instead of the budget's")
    return parser.parse_args()


def main() -> None:
    options = parse()
    budget = dict(BUDGETS[options.budget])
    budget["data"] = options.data or budget["data"]
    if options.seconds is not None:
        budget[time_of(budget)] = options.seconds
    device = options.device if options.budget == "paper" else "cpu"
    torch.set_num_threads(1)
    images = read(budget["data"], options.held_out, device)
    names = options.run or CHOSEN[options.budget]

    def measure() -> list[dict]:
        with pyro.validation_enabled(False):
            return [one for pair in seeds(names, options.seed) for one in compare_on(*pair)]

    def compare_on(seed: int, chosen: list[str]) -> Iterator[dict]:
        return compare(chosen, images, budget, seed)

    if options.held_out:
        for one in measure():
            print("  ".join(f"{key}: {value}" for key, value in one.items()), flush=True)
        return
    settings = {
        "budget": options.budget,
        "device": device,
        "images": f"{len(images.train):,} to train, {len(images.test):,} to test",
        "levels": LEVELS,
        "optimiser": f"Adamax {LEARNING_RATE:g} after a linear warm-up; no augmentation",
        "start": f"{STARTED_FROM} images, which are not counted as time",
        "turns": "rivals train in turns of 3 seconds; judgements and draws do not count",
        "bits": "one draw of uniform dequantisation, equal for all; standard error over images",
        "samples": f"{DRAWS} at temperature one, of ours on the way, of peers at the end",
        "as published": "affine coupling without bounds, edge bias, actnorm in nets: ours too",
        "peers": "normflows has actnorm in its nets as an option; autocast is channels last, "
        "nflows is assembled of its parts, with plain nets",
        "chosen": "nothing by test images",
        **budget,
    }
    title = "Glow beside its peers on CIFAR-10 at equal time"
    record("glow_cifar10", title, settings, measure)


def seeds(names: list[str], given: list[int] | None) -> Iterator[tuple[int, list[str]]]:
    """Each seed with its runs: all have the first, only some have more."""
    wanted = {name: given or SEEDS.get(name, [0]) for name in names}
    for seed in sorted({seed for of_one in wanted.values() for seed in of_one}):
        yield seed, [name for name in names if seed in wanted[name]]


if __name__ == "__main__":
    main()
