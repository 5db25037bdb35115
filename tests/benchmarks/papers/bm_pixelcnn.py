"""1701.05517: PixelCNN++ on digits, static MNIST and CIFAR-10, with averaged parameters.

``python tests/benchmarks/papers/bm_pixelcnn.py --budget small|paper`` needs static MNIST and
CIFAR-10, of which small takes the subset, in ``PYRO_EXT_DATA``; the digits are those of
scikit-learn. Small: each run has its CPU time on one thread. Paper: each has its time on a GPU if
there is one. ``--held-out`` judges on the last training images, which are then no part of training,
and records nothing.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple, cast

import pyro
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import record
from subset import spread

from pyro_ext.data.load import load
from pyro_ext.distributions import PixelCNN
from pyro_ext.nn import PixelCNNNet

SMALL = {"hidden_channels": 32, "num_resnets": 1, "stages": 2, "num_components": 5}
LARGE = {"hidden_channels": 96, "num_resnets": 5, "stages": 3, "num_components": 10}
BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "net": SMALL,
        "CPU seconds": {"digits": 150, "static_mnist": 240, "cifar10_mini": 240},
        "test images": 1_000,
    },
    "paper": {
        "net": LARGE,
        "seconds": {"digits": 240, "static_mnist": 1_200, "cifar10": 1_200},
        "test images": 10_000,
    },
}


class Data(NamedTuple):
    """Integer images ``(N, C, H, W)``, and their labels if there are any."""

    x_train: Tensor
    x_test: Tensor
    y_train: Tensor | None
    y_test: Tensor | None


class Recipe(NamedTuple):
    """How a kind of images is learned."""

    levels: int
    batch_size: int
    learning_rate: float
    options: dict[str, Any]
    starts_from_data: bool = True


class Variant(NamedTuple):
    """What a run does besides."""

    options: dict[str, Any]
    is_given_class: bool = False
    moves: tuple[tuple[int, int], ...] = ((0, 0),)


MOVES = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
RECIPES = {
    "digits": Recipe(17, 32, 8e-3, {"dropout": 0.5}, starts_from_data=False),
    "static_mnist": Recipe(2, 8, 4e-3, {"dropout": 0.0, "head": "bernoulli"}, False),
    "cifar10": Recipe(256, 64, 1e-3, {"dropout": 0.2}),
    "cifar10_mini": Recipe(256, 4, 4e-3, {"dropout": 0.2}, False),
}
VARIANTS = {
    "PixelCNN": Variant({}),
    "PixelCNN, categorical": Variant({"head": "categorical"}),
    "PixelCNN, moved images too": Variant({"dropout": 0.3}, moves=MOVES),
    "PixelCNN given the class": Variant({}, is_given_class=True),
    "PixelCNN given the class, moved images too": Variant({"dropout": 0.3}, True, MOVES),
}
TITLES = {
    "digits": "PixelCNN++ on 1,500 digits of 8 x 8 pixels and 17 levels",
    "static_mnist": "PixelCNN++ on static MNIST",
    "cifar10": "PixelCNN++ on CIFAR-10",
    "cifar10_mini": "PixelCNN++ on 4,500 images of CIFAR-10",
}
OF_ALL = "PixelCNN"
NUM_CLASSES = 10
DECAY, BETAS, WARM_UP, STARTED_FROM = 0.998, (0.95, 0.9995), 0.02, 128
HELD_OUT = {"digits": 300}
HELD_OUT_OTHERS, JUDGED_TOGETHER = 1_000, 100


def read(name: str, budget: dict, held_out: bool, device: str) -> Data:
    parts = {key: x.to(device) for key, x in load(name).items()}
    x, test = (images(parts[f"x_{part}"]) for part in ("train", "test"))
    y, y_test = parts.get("y_train"), parts.get("y_test")
    if held_out:
        left = len(x) - HELD_OUT.get(name, HELD_OUT_OTHERS)
        x, test = x[:left], x[left:]
        y, y_test = (None, None) if y is None else (y[:left], y[left:])
    most = budget["test images"]
    return Data(x, spread(test, most), y, None if y_test is None else spread(y_test, most))


def images(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 3 else x


class Trainer:
    """A net and the average of its parameters over steps.

    Args:
        data: the images.
        recipe: how they are learned.
        variant: what is learned besides.
        options: of the net.
        seconds: of training.
    """

    def __init__(
        self, data: Data, recipe: Recipe, variant: Variant, options: dict[str, Any], seconds: float
    ):
        self.data, self.recipe, self.variant, self.seconds = data, recipe, variant, seconds
        self.num_classes = NUM_CLASSES if variant.is_given_class else 1
        contexts = self.num_classes * len(variant.moves)
        self.device = data.x_train.device
        net = PixelCNNNet(
            data.x_train.shape[1:],
            recipe.levels,
            num_classes=contexts if contexts > 1 else 0,
            **options,
        )
        self.net = net.to(self.device)
        if recipe.starts_from_data:
            net.initialize(*self.batch(STARTED_FROM))
        self.average = AveragedModel(net, multi_avg_fn=average_of(DECAY))
        self.adam = torch.optim.Adam(net.parameters(), recipe.learning_rate, BETAS, fused=True)
        self.steps, self.spent = 0, 0.0

    def batch(self, size: int) -> tuple[Tensor, Tensor | None]:
        """Images, half of them moved if any are, and the context that says how."""
        chosen = torch.randint(len(self.data.x_train), (size,), device=self.device)
        x, labels = self.data.x_train[chosen], self.labels(self.data.y_train, size, chosen)
        if len(self.variant.moves) == 1:
            return x, labels
        kinds = torch.randint(1, len(self.variant.moves), (size,), device=self.device)
        kinds *= torch.randint(2, (size,), device=self.device)
        images = torch.stack([moved(x, *move) for move in self.variant.moves])
        return images[kinds, torch.arange(size)], cast(Tensor, labels) + self.num_classes * kinds

    def labels(self, y: Tensor | None, size: int, chosen: Any = slice(None)) -> Tensor | None:
        """The context of images as they are."""
        if not self.net.num_classes:
            return None
        if not self.variant.is_given_class:
            return torch.zeros(size, dtype=torch.long, device=self.device)
        return cast(Tensor, y)[chosen][:size].long()

    def train(self, label: str) -> None:
        """Trains until the time is over."""
        start = self.clock()
        with tqdm(total=round(self.seconds), desc=label, unit="s") as bar:
            while self.spent < self.seconds:
                self.step()
                self.spent = self.clock() - start
                bar.n = round(self.spent)
                bar.refresh() if self.steps % 10 == 0 else None

    def step(self) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.learning_rate * rate_at(self.spent / self.seconds)
        x, labels = self.batch(self.recipe.batch_size)
        self.adam.zero_grad()
        (-PixelCNN(self.net, labels).log_prob(x).mean()).backward()
        self.adam.step()
        self.average.update_parameters(self.net)
        self.steps += 1

    def clock(self) -> float:
        if self.device.type == "cpu":
            return process_time()
        torch.cuda.synchronize(self.device)
        return perf_counter()


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """Images moved by at most a pixel, with zeros where nothing was."""
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    return padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def average_of(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose memory grows with the steps, up to that of the decay."""

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], num_averaged: Any) -> None:
        steps = float(num_averaged)
        torch._foreach_lerp_(averages, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return update


def rate_at(part: float) -> float:
    """The learning rate after a part of the time: warm-up, then half a cosine."""
    return min(1.0, (part + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


@torch.no_grad()
def nats(net: PixelCNNNet, x: Tensor, labels: Tensor | None) -> Tensor:
    """Minus the log probability of each image; dropout is off."""
    net.eval()
    parts = [slice(k, k + JUDGED_TOGETHER) for k in range(0, len(x), JUDGED_TOGETHER)]
    given = [None if labels is None else labels[part] for part in parts]
    laws = [PixelCNN(net, context) for context in given]
    return -torch.cat([law.log_prob(x[part]) for law, part in zip(laws, parts, strict=True)])


@torch.no_grad()
def of_any_class(net: PixelCNNNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each image without its label, all labels being equally likely; the likeliest one."""
    classes = [torch.full((len(x),), k, device=x.device) for k in range(NUM_CLASSES)]
    log_probs = torch.stack([-nats(net, x, labels) for labels in classes])
    return math.log(NUM_CLASSES) - log_probs.logsumexp(0), log_probs.argmax(0)


def independent(data: Data, levels: int) -> Tensor:
    """Nats of each test image if pixels were independent, by counts of which one is added."""
    table = torch.nn.functional.one_hot(data.x_train.long(), levels).sum(0) + 1.0
    log_probs = (table / table.sum(-1, keepdim=True)).log()
    chosen = log_probs.expand(*data.x_test.shape, levels)
    return -chosen.gather(-1, data.x_test.long().unsqueeze(-1)).flatten(1).sum(1)


def figures(values: Tensor, dims: int, prefix: str = "test") -> dict[str, float]:
    """Mean nats of an image and bits per dimension, with the standard error of the latter."""
    bits = values / (dims * math.log(2))
    return {
        f"{prefix} bits/dim": round(bits.mean().item(), 4),
        f"{prefix} standard error": round((bits.std() / len(bits) ** 0.5).item(), 4),
        f"{prefix} nats": round(values.mean().item(), 3),
    }


def rows(
    name: str, data: Data, recipe: Recipe, budget: dict, wanted: argparse.Namespace
) -> Iterator[dict]:
    """A row for each law of a kind of images."""
    dims = data.x_train[0].numel()
    if recipe.levels < 256:
        values = independent(data, recipe.levels)
        yield {"data": name, "run": "independent pixels", **figures(values, dims)}
    for run in wanted.run or VARIANTS:
        if name == "digits" or run == OF_ALL:
            pyro.set_rng_seed(wanted.seed)
            merged = {**budget["net"], **recipe.options, **VARIANTS[run].options}
            trainer = Trainer(data, recipe, VARIANTS[run], merged, budget[time_of(budget)][name])
            trainer.train(f"{name}: {run}")
            yield {"data": name, "run": run, **judged(trainer, dims)}


def judged(trainer: Trainer, dims: int) -> dict[str, Any]:
    """What a trained net achieves, by averaged parameters and by the last ones."""
    data, net = trainer.data, cast(PixelCNNNet, trainer.average.module)
    y_test = trainer.labels(data.y_test, len(data.x_test))
    few = trainer.labels(data.y_train, len(data.x_test))
    return {
        **figures(nats(net, data.x_test, y_test), dims),
        **(without_labels(net, data, dims) if trainer.variant.is_given_class else {}),
        "last parameters' bits/dim": figures(nats(trainer.net, data.x_test, y_test), dims)[
            "test bits/dim"
        ],
        "training bits/dim": figures(nats(net, data.x_train[: len(data.x_test)], few), dims)[
            "test bits/dim"
        ],
        "steps": trainer.steps,
        "training (s)": round(trainer.spent, 1),
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
    }


def without_labels(net: PixelCNNNet, data: Data, dims: int) -> dict[str, float]:
    values, likeliest = of_any_class(net, data.x_test)
    is_right = torch.eq(likeliest, cast(Tensor, data.y_test)).double()
    found = figures(values, dims, "label summed out:")
    return {**found, "accuracy of the likeliest label (%)": round(100 * is_right.mean().item(), 1)}


def time_of(budget: dict) -> str:
    """The name that the time has in a budget."""
    return next(key for key in budget if "seconds" in key)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", choices=RECIPES, nargs="+", help="instead of the budget's")
    parser.add_argument("--run", choices=VARIANTS, nargs="+", help="instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seconds", type=float, help="of each run, instead of the budget's")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--plain-start", action="store_true", help="layers as torch starts them")
    parser.add_argument("--options", type=json.loads, default={}, help="of the net, as JSON")
    return parser.parse_args()


def budget_of(options: argparse.Namespace) -> dict[str, Any]:
    budget = dict(BUDGETS[options.budget])
    times = budget[time_of(budget)]
    chosen = options.data or list(times)
    budget[time_of(budget)] = {name: options.seconds or times[name] for name in chosen}
    return budget


def recipe_of(name: str, options: argparse.Namespace) -> Recipe:
    recipe = RECIPES[name]
    return recipe._replace(
        learning_rate=options.learning_rate or recipe.learning_rate,
        batch_size=options.batch_size or recipe.batch_size,
        options={**recipe.options, **options.options},
        starts_from_data=recipe.starts_from_data and not options.plain_start,
    )


def main() -> None:
    options = parse()
    budget = budget_of(options)
    recipes = {name: recipe_of(name, options) for name in budget[time_of(budget)]}
    device = options.device if options.budget == "paper" else "cpu"
    torch.set_num_threads(1)

    def measure(name: str) -> list[dict]:
        data = read(name, budget, options.held_out, device)
        with pyro.validation_enabled(False):
            return list(rows(name, data, recipes[name], budget, options))

    if options.held_out:
        for one in (row for name in recipes for row in measure(name)):
            print("  ".join(f"{key}: {value}" for key, value in one.items()), flush=True)
        return
    settings = {
        "budget": options.budget,
        "device": device,
        "optimiser": f"Adam, betas {BETAS}, warm-up for {WARM_UP:.0%} of the time, then half a "
        "cosine; no augmentation",
        "start": f"layers from {STARTED_FROM} images, which is not counted as time, unless a "
        "recipe says otherwise",
        "judged": f"the average of parameters, of decay {DECAY}; standard error over images",
        "label summed out": "ten equally likely labels; the net is that given the class",
        "chosen": "settings on the last training images, nothing by test images",
        "moved images too": "half of the images are moved by a pixel, and a label says how, as in "
        "Jun et al., Distribution Augmentation for Generative Modeling, 2020; judged as they are",
        "order": "test images lie at equal distances in their set",
        "seed": options.seed,
        **budget,
    }
    for name, recipe in recipes.items():
        of_data = {**settings, "recipe": recipe._asdict()}
        record(f"pixelcnn_{name}", TITLES[name], of_data, partial(measure, name))


if __name__ == "__main__":
    main()
