"""1912.00589: energies and flows trained against each other, in the plane and on digits.

``python tests/benchmarks/papers/bm_fce.py --budget small|paper`` takes toys and the digits that
scikit-learn ships. A flow is fitted by likelihood, then trained against an energy; beside it stands
the same flow by likelihood alone for the same CPU time. The energy is a network relative to the
flow as likelihood left it, and its draws are those of self-normalised importance sampling with the
trained flow as proposal. With labels on few images the energy is a classifier too, beside the same
network on these labels alone. ``--held-out`` judges digits on the last training images, which are
then no part of training, and records nothing; ``--dry`` records nothing; ``--fraction 0.1`` takes a
tenth of the steps.
"""

import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from contrastive import FlowNoise, GlowNoise, Pixels, Waves, optimise, relative
from options import parser, show
from record import record
from two_samples import quality

from pyro_ext.data import load
from pyro_ext.data.simulate import Checkerboard, NineGaussians, TwoRings
from pyro_ext.infer import FlowContrastive
from pyro_ext.models import ICEBeeM

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {"seeds": 3, "part": 1.0},
    "paper": {"seeds": 5, "part": 10.0},
}
TOYS: dict[str, Callable] = {
    "nine Gaussians": NineGaussians,
    "two rings": TwoRings,
    "checkerboard": Checkerboard,
}
DIGITS, FEW, FEW_TOY = "digits, Glow", "digits, few labels", "two rings, few labels"
LEVELS, HELD_OUT = 17, 300
NUM_LABELS = {FEW: [10, 50, 100], FEW_TOY: [4, 10, 40]}
ALL = [*TOYS, DIGITS, FEW_TOY, FEW]
LABELLED, LABEL_WEIGHT = 16, 3.0  # in a batch, besides
DRAWS = 1_000
GRID, EDGE = 301, 4.0

Batches = Callable[[], Tensor]


class Plan(NamedTuple):
    """How long, and how fast, each part of a training is."""

    batch: int
    likelihood_steps: int
    likelihood_rate: float
    alone_steps: int  # of the energy, against the flow as it is
    steps: int  # of both, in turns
    energy_rate: float
    flow_rate: float
    turn: int  # steps at most

    def scaled(self, part: float) -> "Plan":
        steps = {key: max(2, round(getattr(self, key) * part)) for key in STEPS}
        return self._replace(**steps)


STEPS = ("likelihood_steps", "alone_steps", "steps")
PLANS = {
    "toys": Plan(256, 800, 5e-3, 100, 300, 1e-2, 2e-3, 1),
    DIGITS: Plan(64, 200, 2e-3, 40, 120, 1e-3, 3e-4, 1),
    FEW: Plan(128, 200, 2e-3, 50, 250, 1e-3, 3e-4, 1),
    FEW_TOY: Plan(128, 300, 5e-3, 100, 400, 5e-3, 1e-3, 1),
}


def by_likelihood(noise: nn.Module, batches: Batches, plan: Plan, steps: int) -> float:
    groups = [{"params": list(noise.parameters()), "lr": plan.likelihood_rate}]
    return optimise(groups, lambda step: -noise(None).log_prob(batches()).mean(), steps)


def contrasted(
    energy: nn.Module, noise: nn.Module, batches: Callable[[], tuple], plan: Plan, **options: Any
) -> float:
    """The energy alone at first and at last, else both in turns; returns the CPU seconds."""
    fce = FlowContrastive(0.0, 1.0, max_turn=plan.turn, **options)(energy, noise)
    groups: list[dict[str, Any]] = [
        {"params": list(energy.parameters()), "lr": plan.energy_rate},
        {"params": list(noise.parameters()), "lr": plan.flow_rate},
    ]
    groups[0]["params"] = [p for p in groups[0]["params"] if p.requires_grad]
    together = range(plan.alone_steps, plan.alone_steps + plan.steps)

    def loss(step: int) -> Tensor:
        return (fce if step in together else fce.ebm_loss)(*batches())

    return optimise(groups, loss, 2 * plan.alone_steps + plan.steps)


class Fit(NamedTuple):
    """A flow before and after, the energy, the flow by likelihood alone, and their CPU seconds."""

    before: nn.Module
    after: nn.Module
    energy: Any
    alone: nn.Module
    seconds: tuple[float, float, float]


def fit(make: Callable[[], nn.Module], features: Callable, batches: Batches, plan: Plan) -> Fit:
    noise = make()
    alone = copy.deepcopy(noise)
    first = by_likelihood(noise, batches, plan, plan.likelihood_steps)
    before = copy.deepcopy(noise)
    energy = relative(noise, batches(), features())
    both = first + contrasted(energy, noise, lambda: (batches(),), plan)
    steps = round(plan.likelihood_steps * both / first)
    last = by_likelihood(alone, batches, plan, steps)
    return Fit(before, noise, energy, alone, (first, both, last))


def draws_of(found: Fit, num: int, num_proposals: int = 64) -> dict[str, Tensor]:
    """By each law; those of the energy by importance from the flow after."""
    laws = {
        "flow, by likelihood": found.before,
        "flow, then against an energy": found.after,
        "flow, by likelihood for equal time": found.alone,
    }
    drawn = {name: noise(None).sample((num,)) for name, noise in laws.items()}
    sampler = ICEBeeM(found.energy, found.after, num_proposals)
    parts = [sampler.sample(sample_shape=(100,)) for _ in range(num // 100)]
    return drawn | {"energy": torch.cat(parts)}


# In the plane.


def grid() -> tuple[Tensor, float]:
    """Points, and the logarithm of the area of each."""
    axis = torch.linspace(-EDGE, EDGE, GRID)
    return torch.cartesian_prod(axis, axis), 2 * math.log((axis[1] - axis[0]).item())


def on_grid(log_density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    return torch.cat([log_density(part) for part in points.split(2**15)]).double()


def divergences(log_p: Tensor, log_q: Tensor) -> dict[str, float]:
    """Of cells' log probabilities."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    p, q = log_p.exp(), log_q.exp()
    return {
        "divergence from data (nats)": _sum(p, log_p - log_q),
        "Jensen-Shannon (nats)": (_sum(p, log_p - middle) + _sum(q, log_q - middle)) / 2,
        "best classifier (%)": 50 + 25 * (p - q).abs().sum().item(),
    }


def _sum(weight: Tensor, values: Tensor) -> float:
    return torch.where(weight > 0, weight * values, 0.0).sum().item()


def toy_rows(name: str, budget: dict[str, Any]) -> Iterator[dict]:
    plan = PLANS["toys"].scaled(budget["part"])
    target, found = TOYS[name](), []
    for seed in tqdm(range(budget["seeds"]), desc=name, unit="seed"):
        pyro.set_rng_seed(seed)

        def batches() -> Tensor:
            return target.sample((plan.batch,))

        def make() -> nn.Module:
            return FlowNoise(target.sample((2_000,)), 2, 16)

        one = fit(make, lambda: Waves(128), batches, plan)
        found.append(judge_toy(target, one))
    yield from merged({"data": name}, found)


@torch.no_grad()
def judge_toy(target: Any, found: Fit) -> dict[str, dict[str, float]]:
    """Figures of each law: by quadrature on the grid, and of draws."""
    points, log_area = grid()
    log_p = on_grid(target.log_prob, points)
    log_p = log_p - log_p.logsumexp(0)
    laws = {
        "flow, by likelihood": (found.before(None).log_prob, found.seconds[0]),
        "flow, then against an energy": (found.after(None).log_prob, found.seconds[1]),
        "flow, by likelihood for equal time": (found.alone(None).log_prob, found.seconds[2]),
        "energy": (found.energy.log_density, found.seconds[1]),
    }
    fresh, other = target.sample((2, DRAWS))
    drawn, figures = draws_of(found, DRAWS), {}
    for name, (log_density, seconds) in laws.items():
        log_q = on_grid(log_density, points) + log_area
        log_z = log_q.logsumexp(0)
        exact = {"log Z, learned - quadrature": -log_z.item()} if name == "energy" else {}
        figures[name] = {
            **divergences(log_p, log_q - log_z),
            **quality(drawn[name], fresh),
            **exact,
            "training, CPU (s)": seconds,
        }
    figures["data themselves"] = quality(other, fresh)
    return figures


def merged(labels: dict, found: list[dict[str, dict[str, float]]]) -> Iterator[dict]:
    """A row for each law: means over seeds, and each seed's energy distance."""
    for name, first in found[0].items():
        each = [one[name] for one in found]
        means = {key: round(mean([one[key] for one in each]), 4) for key in first}
        key = "energy distance (1e-3)"
        seeds = {f"{key} of each seed": [round(one[key], 2) for one in each]}
        worst = {}
        if "log Z, learned - quadrature" in first:
            errors = [abs(one["log Z, learned - quadrature"]) for one in each]
            worst = {"its largest error": round(max(errors), 4)}
        yield {**labels, "law": name, **means, **worst, **seeds}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# Digits.


class Digits(NamedTuple):
    """Integers below 17, ``(N, 1, 8, 8)``, and labels."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def read(held_out: bool) -> Digits:
    parts = load("digits")
    x, x_test = (parts[f"x_{part}"].unsqueeze(1).float() for part in ("train", "test"))
    y, y_test = (parts[f"y_{part}"].long() for part in ("train", "test"))
    if held_out:
        x, x_test, y, y_test = x[:-HELD_OUT], x[-HELD_OUT:], y[:-HELD_OUT], y[-HELD_OUT:]
    return Digits(x, y, x_test, y_test)


def dequantised(x: Tensor) -> Tensor:
    """In [-1/2, 1/2)."""
    return (x + torch.rand_like(x)) / LEVELS - 0.5


def quantised(x: Tensor) -> Tensor:
    """Back to integers, as vectors."""
    return ((x + 0.5) * LEVELS).floor().clamp(0, LEVELS - 1).flatten(1)


def pick(x: Tensor, num: int) -> Tensor:
    return x[torch.randint(len(x), (num,))]


def digit_rows(digits: Digits, budget: dict[str, Any]) -> Iterator[dict]:
    plan, found = PLANS[DIGITS].scaled(budget["part"]), []
    for seed in tqdm(range(budget["seeds"]), desc=DIGITS, unit="seed"):
        pyro.set_rng_seed(seed)

        def batches() -> Tensor:
            return dequantised(pick(digits.x, plan.batch))

        def make() -> nn.Module:
            return GlowNoise(dequantised(digits.x[:256]), 2, 32)

        def features() -> nn.Module:
            return Pixels(dequantised(digits.x), 256)

        found.append(judge_digits(digits, fit(make, features, batches, plan)))
    yield from merged({"data": DIGITS}, found)


@torch.no_grad()
def judge_digits(digits: Digits, found: Fit) -> dict[str, dict[str, float]]:
    """Figures of each law; nats of test images, those of the energy with log Z by importance."""
    before, both, last = found.seconds
    x = dequantised(digits.x_test)
    draws = {name: quantised(x) for name, x in draws_of(found, DRAWS, 16).items()}
    estimate = ICEBeeM(found.energy, found.after).estimate_log_normalizer(None, 2_000)
    nats = {
        "flow, by likelihood": (-found.before(None).log_prob(x), before),
        "flow, then against an energy": (-found.after(None).log_prob(x), both),
        "flow, by likelihood for equal time": (-found.alone(None).log_prob(x), last),
        "energy": (found.energy(x) + estimate.value, both),
    }
    data = digits.x_test.flatten(1)
    figures = {
        name: {
            "test nats": value.mean().item(),
            **quality(draws[name], data),
            "training, CPU (s)": seconds,
        }
        for name, (value, seconds) in nats.items()
    }
    error = (found.energy.log_normalizer() - estimate.value).item()
    figures["energy"] |= {
        "log Z, learned - importance": error,
        "ESS of 2,000": estimate.ess.item(),
        "Pareto k": estimate.pareto_k.item(),
    }
    figures["training images"] = quality(pick(digits.x, DRAWS).flatten(1), data)
    return figures


# Few labels.


class Labelled(NamedTuple):
    """Vectors and labels to train on and to test by."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    jitter: Callable[[Tensor], Tensor]
    num_classes: int
    couplings: tuple[int, int]
    features: Callable[[], nn.Module]


def labelled_digits(digits: Digits) -> Labelled:
    x, x_test = digits.x.flatten(1), digits.x_test.flatten(1)

    def features() -> nn.Module:
        return Pixels(dequantised(x), 256)

    middle = (x_test + 0.5) / LEVELS - 0.5
    return Labelled(x, digits.y, middle, digits.y_test, dequantised, 10, (4, 128), features)


def labelled_rings() -> Labelled:
    """The label is the ring; 1,000 points without one."""
    x = TwoRings().sample((3_000,))
    y = (x.norm(dim=-1) > 0.95).long()

    def features() -> nn.Module:
        return Pixels(x, 128)

    return Labelled(x[:1_000], y[:1_000], x[1_000:], y[1_000:], _same, 2, (2, 16), features)


def _same(x: Tensor) -> Tensor:
    return x


def few_rows(name: str, digits: Digits, budget: dict[str, Any]) -> Iterator[dict]:
    plan, nums = PLANS[name].scaled(budget["part"]), NUM_LABELS[name]
    accuracy: dict[str, list[list[float]]] = {"labels alone": [], "labels and other data": []}
    for seed in tqdm(range(budget["seeds"]), desc=name, unit="seed"):
        pyro.set_rng_seed(seed)
        data = labelled_digits(digits) if name == FEW else labelled_rings()
        noise = FlowNoise(data.jitter(data.x), *data.couplings)
        batches = partial(batch, data, plan.batch)
        by_likelihood(noise, batches, plan, plan.likelihood_steps)
        found = [learn_labels(data, copy.deepcopy(noise), num, plan) for num in nums]
        for key, values in zip(accuracy, zip(*found, strict=True), strict=True):
            accuracy[key].append(list(values))
    for k, num in enumerate(nums):
        for key, seeds in accuracy.items():
            scores = [values[k] for values in seeds]
            yield {
                "data": name,
                "labels": num,
                "trained by": key,
                "test accuracy (%)": round(mean(scores), 2),
                "of each seed (%)": [round(score, 1) for score in scores],
            }


def batch(data: Labelled, size: int) -> Tensor:
    return data.jitter(pick(data.x, size))


def learn_labels(data: Labelled, noise: nn.Module, num: int, plan: Plan) -> tuple[float, float]:
    """Test accuracies of the same network, on labels alone and with all data."""
    classes = range(data.num_classes)
    chosen = torch.cat([some_of(data.y == k, num // data.num_classes) for k in classes])
    energy = relative(noise, data.jitter(data.x), data.features(), data.num_classes)
    alone = copy.deepcopy(energy)

    def labelled(size: int) -> tuple[Tensor, Tensor]:
        index = chosen[torch.randint(len(chosen), (size,))]
        return data.jitter(data.x[index]), data.y[index]

    def supervised(step: int) -> Tensor:
        x, y = labelled(plan.batch)
        return cross_entropy(alone.class_logits(x), y)

    def batches() -> tuple[Tensor, Tensor]:
        x, y = labelled(LABELLED)
        missing = torch.full((plan.batch,), -1)
        return torch.cat([batch(data, plan.batch), x]), torch.cat([missing, y])

    parameters = [p for p in alone.parameters() if p.requires_grad]
    steps = plan.steps + 2 * plan.alone_steps
    optimise([{"params": parameters, "lr": plan.energy_rate}], supervised, steps)
    contrasted(energy, noise, batches, plan, label_weight=LABEL_WEIGHT)
    return score(alone, data), score(energy, data)


def some_of(mask: Tensor, num: int) -> Tensor:
    places = mask.nonzero().flatten()
    return places[torch.randperm(len(places))[:num]]


@torch.no_grad()
def score(energy: Any, data: Labelled) -> float:
    guessed = energy.class_logits(data.x_test).argmax(-1)
    return 100 * (guessed == data.y_test).double().mean().item()


def parse() -> argparse.Namespace:
    made = parser(__doc__, BUDGETS, ALL)
    made.add_argument("--held-out", action="store_true")
    return made.parse_args()


def main() -> None:
    options = parse()
    budget = dict(BUDGETS[options.budget])
    budget["seeds"] = options.seeds or budget["seeds"]
    budget["part"] *= options.fraction
    torch.set_num_threads(1)
    digits = read(options.held_out)

    def rows(name: str) -> Iterator[dict]:
        if name in TOYS:
            return toy_rows(name, budget)
        if name == DIGITS:
            return digit_rows(digits, budget)
        return few_rows(name, digits, budget)

    def measure() -> Iterator[dict]:
        with pyro.validation_enabled(False):
            for name in options.only or ALL:
                yield from rows(name)

    if options.dry or options.held_out:
        show(measure())
        return
    settings = {
        "budget": options.budget,
        "flows": "two affine couplings of 16 hidden units in the plane, too few on purpose; Glow "
        "with two levels of depth 2 and width 32; four couplings of 128 with few labels of digits",
        "energy": "log density of the flow as likelihood left it, which stays, plus a network: "
        "sines of 64 random frequencies and two layers of 128 in the plane, of digits and with "
        "labels two layers on standardised data; learned log normaliser",
        "turns": "a step of each, between steps of the energy alone at first and at last",
        "equal time": "as many steps of likelihood as the whole of the other training took CPU "
        "seconds, with a schedule of their own",
        "quadrature": f"{GRID} x {GRID} points on a square of half side {EDGE:g}; best classifier: "
        "of draws and data, 50 plus half the total variation, in per cent",
        "energy distance": f"Szekely's, unbiased, of {DRAWS} draws and as many new data, of digits "
        "and their test images; pixels rounded to integers first",
        "forest": "scikit-learn's random forest of 100 trees, told right out of bag, equal "
        "numbers of draws and data; 50 by chance",
        "energy's draws": "self-normalised importance sampling from the trained flow, of 64 "
        "proposals in the plane, 16 for digits",
        "few labels": f"batches of unlabelled data with {LABELLED} labelled ones besides, label "
        f"weight {LABEL_WEIGHT}; beside it cross-entropy for as many steps of the energy and the "
        "flow together; the labels are 1,000 points' in the plane, equally of each class",
        "tuned": "form and rates of the plane's energy on nine Gaussians and the checkerboard by "
        "quadrature, one seed; labelled data per batch and label weight on the last "
        f"{HELD_OUT} training images, one seed, two settings tried; else as they are",
        "plans": {name: plan.scaled(budget["part"])._asdict() for name, plan in PLANS.items()},
        **budget,
    }
    record("fce", "Energies and flows trained against each other", settings, measure)


if __name__ == "__main__":
    main()
