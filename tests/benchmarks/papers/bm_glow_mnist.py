"""1807.03039: class-conditional Glow on MNIST, and the classifier that it is by Bayes' rule.

``python tests/benchmarks/papers/bm_glow_mnist.py --budget small|paper`` needs MNIST in
``PYRO_EXT_DATA``; its images are padded to 32x32. The labels are known to the last level's prior
alone, as published, or to all couplings. ``--held-out`` judges on the last training images, which
are then no part of training, and records nothing.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import record

from pyro_ext.data.load import load
from pyro_ext.distributions import Glow
from pyro_ext.nn import GlowNet

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "depth": 8,
        "width": 64,
        "learning rate": 4e-3,
        "CPU seconds per run": 240,
        "test images": 1_000,
    },
    "paper": {
        "depth": 32,
        "width": 512,
        "learning rate": 1e-3,
        "CPU seconds per run": 1_200,
        "test images": 10_000,
    },
}
RUNS: dict[str, dict[str, Any]] = {
    "labels in the prior": {},
    "labels in all couplings": {"condition_couplings": True},
}
LEVELS, NUM_CLASSES, BATCH, WARM_UP, STARTED_FROM = 5, 10, 32, 0.05, 256
OF_LABELS = 10.0  # times the learning rate
HELD_OUT, DRAWS = 1_000, 100


class Digits(NamedTuple):
    """Integer images ``(N, 1, 32, 32)`` and their labels."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def read(num_test: int, held_out: bool, device: str) -> Digits:
    parts = {name: x.to(device) for name, x in load("mnist").items()}
    x_train, x_test = (pad(parts[name].unsqueeze(1), (2,) * 4) for name in ("x_train", "x_test"))
    y_train, y_test = parts["y_train"], parts["y_test"]
    if held_out:
        x_train, x_test = x_train[:-HELD_OUT], x_train[-HELD_OUT:]
        y_train, y_test = y_train[:-HELD_OUT], y_train[-HELD_OUT:]
    return Digits(x_train, y_train, x_test[:num_test], y_test[:num_test])


def dequantized(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """In [-1/2, 1/2)."""
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return (images + noise) / 256 - 0.5


def train(net: GlowNet, digits: Digits, budget: dict, label: str) -> tuple[int, float]:
    """Trains for so many CPU seconds; the steps, and the seconds."""
    seconds = budget["CPU seconds per run"]
    steps, start, spent = 0, process_time(), 0.0
    adamax = optimizer(net, budget["learning rate"])
    schedule = torch.optim.lr_scheduler.LambdaLR(adamax, lambda _: rate_at(spent / seconds))
    with tqdm(total=round(seconds), desc=label, unit="s") as bar:
        while spent < seconds:
            step(net, adamax, *draw(digits, BATCH))
            steps, spent = steps + 1, process_time() - start
            schedule.step()
            bar.n = round(spent)
            bar.refresh() if steps % 10 == 0 else None
    return steps, spent


def optimizer(net: GlowNet, rate: float) -> torch.optim.Optimizer:
    """What sees labels learns faster."""
    of_labels = [p for name, p in net.named_parameters() if "context" in name]
    others = [p for name, p in net.named_parameters() if "context" not in name]
    groups: list[dict[str, Any]] = [
        {"params": of_labels, "lr": OF_LABELS * rate},
        {"params": others},
    ]
    return torch.optim.Adamax(groups, rate)


def rate_at(part: float) -> float:
    """The learning rate after a part of the time: warm-up, then half a cosine."""
    return min(1.0, (part + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


def step(net: GlowNet, adamax: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    adamax.zero_grad()
    (-Glow(net, labels, validate_args=False).log_prob(dequantized(images)).mean()).backward()
    adamax.step()


def draw(digits: Digits, size: int) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(digits.x_train), (size,), device=digits.x_train.device)
    return digits.x_train[chosen], digits.y_train[chosen]


@torch.no_grad()
def score(net: GlowNet, digits: Digits) -> tuple[Tensor, Tensor]:
    """Bits of each image given its label, and whether the likeliest label is the true one."""
    generator = torch.Generator(digits.x_test.device).manual_seed(0)
    parts = dequantized(digits.x_test, generator).split(100)
    log_prob = torch.cat([net.log_prob_all_classes(part) for part in parts])  # (M, 10)
    of_label = log_prob.gather(1, digits.y_test.unsqueeze(1)).squeeze(1)
    bits = -of_label / math.log(2) + 8 * digits.x_test[0].numel()
    return bits, log_prob.argmax(1) == digits.y_test


@torch.no_grad()
def finite_draws(net: GlowNet, device: torch.device) -> float:
    """Percentage of draws, given labels in turn."""
    labels = torch.arange(DRAWS, device=device) % NUM_CLASSES
    images = Glow(net, labels, validate_args=False).sample()
    return 100 * images.flatten(1).isfinite().all(1).float().mean().item()


def compare(digits: Digits, budget: dict, seed: int) -> Iterator[dict]:
    device = digits.x_train.device
    for name, options in RUNS.items():
        pyro.set_rng_seed(seed)
        size = (budget["depth"], LEVELS, budget["width"])
        options = {"compute_dtype": torch.bfloat16, "num_classes": NUM_CLASSES, **options}
        net = GlowNet((1, 32, 32), *size, **options).to(device)
        images, labels = draw(digits, STARTED_FROM)
        net.initialize(dequantized(images), labels)
        steps, spent = train(net, digits, budget, name)
        bits, is_right = score(net, digits)
        accuracy = is_right.float().mean().item()
        yield {
            "run": name,
            "test bits/dim of 32x32": round(bits.mean().item() / 1024, 3),
            "test bits per pixel of 28x28": round(bits.mean().item() / 784, 3),
            "accuracy of the classifier (%)": round(100 * accuracy, 1),
            "its standard error (%)": round(
                100 * (accuracy * (1 - accuracy) / len(is_right)) ** 0.5, 1
            ),
            "finite samples (%)": round(finite_draws(net, device), 1),
            "steps": steps,
            "training CPU (s)": round(spent, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--learning-rate", type=float, help="instead of the budget's")
    parser.add_argument("--seconds", type=float, help="per run, instead of the budget's")
    options = parser.parse_args()
    budget = dict(BUDGETS[options.budget])
    budget["CPU seconds per run"] = options.seconds or budget["CPU seconds per run"]
    budget["learning rate"] = options.learning_rate or budget["learning rate"]
    device = options.device if options.budget == "paper" else "cpu"
    torch.set_num_threads(1)
    digits = read(budget["test images"], options.held_out, device)

    def measure() -> list[dict]:
        with pyro.validation_enabled(False):
            return list(compare(digits, budget, options.seed))

    if options.held_out:
        for one in measure():
            print("  ".join(f"{key}: {value}" for key, value in one.items()), flush=True)
        return
    settings = {
        "budget": options.budget,
        "device": device,
        "data": "MNIST, padded with zeros to 32x32, the first test images",
        "levels": LEVELS,
        "batch size": BATCH,
        "optimiser": f"Adamax, warm-up for {WARM_UP:.0%} of the time, then half a cosine; "
        f"{OF_LABELS:g} times the rate for what sees labels",
        "couplings": "affine_bounded, bf16 nets",
        "bits": "given the true label; one draw of uniform dequantisation; the padding counts as "
        "what it costs",
        "chosen": f"the learning rate, on the last {HELD_OUT:,} training images",
        "classifier": "the label under which the image is likeliest; no loss of a classifier",
        "samples": f"{DRAWS} at temperature one",
        "seed": options.seed,
        **budget,
    }
    record("glow_mnist", "Class-conditional Glow on MNIST", settings, measure)


if __name__ == "__main__":
    main()
