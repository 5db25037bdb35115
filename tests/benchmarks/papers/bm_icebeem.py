"""2002.11537: conditional energies whose features are the sources, as normalised densities.

``python tests/benchmarks/papers/bm_icebeem.py --budget small|paper``. An energy's features are the
squares of a network's outputs; its score is Pearson's mean correlation of these features themselves
with the squared sources, which is what the contexts identify, on data that nothing was fitted on,
matched on the training data. No linear analysis after the fact, and no choice by the truth: of
several starts that of the best held-out objective is kept. Beside it stands what FastICA makes of
the observations. Each seed is another problem and another start. Two more tables have the features
of classifiers, and learned normalizers of small energies beside quadrature. ``--dry``
prints and records nothing; ``--fraction 0.1`` takes a tenth of the steps.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from normalizer_errors import normalizer_errors
from options import parser, show
from record import record
from student_mixture import StudentMixture
from whitened_sources import WhitenedSources, draw, linear, score

from pyro_ext.data import simulate
from pyro_ext.infer import ContextContrastive, NoiseContrastive
from pyro_ext.models import ICEBeeM, best_of
from pyro_ext.nn import ConditionalEnergy, EnergyNet

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {"seeds": 3, "starts": 1, "part": 1.0},
    "paper": {"seeds": 5, "starts": 3, "part": 2.0},
}
SIZES = (500, 100, 200)  # of training, validation and test data of each context
BATCH, RATE, WARM_UP, MAX_NORM = 256, 2e-2, 0.05, 10.0
BASE, NUM_NOISE, PARTS, DF = (64, 64), 2, 3, 5.0
NUM_SAMPLES, NUM_DRAWS = 20_000, 50
SEEDS = (2, 3, 4, 5, 6)


class Problem(NamedTuple):
    """A simulation with the network that undoes it, of one layer less."""

    make: Callable[..., simulate.MixedSources]
    num_layers: int
    width: int
    steps: int

    def draw(self, seed: int) -> WhitenedSources:
        seeds = {"mixing_seed": seed, "modulator_seed": seed}
        return draw(self.make(num_layers=self.num_layers, **seeds), *SIZES)


PROBLEMS = {
    "TCL, L=2": Problem(simulate.tcl, 2, 128, 1000),
    "TCL, L=4": Problem(simulate.tcl, 4, 64, 1200),
    "IMCA, L=2": Problem(simulate.imca, 2, 128, 1000),
    "IMCA, L=4": Problem(simulate.imca, 4, 64, 1200),
}
SOURCES, ALONE, NORMALIZERS = "sources", "contexts alone", "normalizers"
RESULTS = {
    SOURCES: ("icebeem", "Conditional energies that find sources"),
    ALONE: ("icebeem_contexts", "Features of conditional energies, told from contexts alone"),
    NORMALIZERS: ("icebeem_normalizers", "Learned normalizers of conditional energies"),
}


class Small(NamedTuple):
    """Energies of one or two numbers."""

    num_contexts: int = 3
    num_per_context: int = 250_000
    width: int = 32
    num_noise: int = 10
    batch: int = 512
    slope: float = 0.5
    steps: int = 1500


SMALL = Small()

Loss = Callable[[Tensor, Tensor], Tensor]


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Negative(nn.Module):
    """Weights by which squares only lower the density: it has a finite integral for sure."""

    def forward(self, x: Tensor) -> Tensor:
        return -nn.functional.softplus(x)


class Magnitude(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Maxout(nn.Module):
    """The larger of two affine maps."""

    def __init__(self, input_dim: int, output_dim: int):
        super().__init__()
        self.layer = nn.Linear(input_dim, 2 * output_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).unflatten(-1, (-1, 2)).amax(-1)


@torch.no_grad()
def squares(x: Tensor, width: int, depth: int) -> nn.Sequential:
    """Squares of what leaky ReLUs make, which start at unit scale: at zero they would not move."""
    dim = x.shape[-1]
    layers: list[nn.Module] = []
    for size in [dim, *[width] * (depth - 1)]:
        layers += [nn.Linear(size, width), nn.LeakyReLU(0.2)]
    last = nn.Linear(width, dim, bias=False)
    net = nn.Sequential(*layers, last)
    made = net(x)
    last.weight.div_(made.std(0).unsqueeze(-1))
    last.bias = nn.Parameter(-made.mean(0) / made.std(0))
    return net.append(Square())


def magnitudes(dim: int, depth: int) -> nn.Sequential:
    """The published features of time-contrastive learning."""
    layers = [Maxout(size, 2 * dim) for size in [dim, *[2 * dim] * (depth - 1)]]
    return nn.Sequential(*layers, nn.Linear(2 * dim, dim), Magnitude())


def energy(features: nn.Module, dim: int, num_classes: int, base: Any = BASE) -> ConditionalEnergy:
    """One that has a finite integral at its start: weights of squares are negative."""
    term = EnergyNet(dim, base, nn.SiLU)
    made = ConditionalEnergy(dim, dim, num_classes, feature_net=features, base=term)
    with torch.no_grad():
        made.weight_head.table.sub_(0.5)
    return made


def by_context(model: ICEBeeM) -> Loss:
    return ContextContrastive()(model.energy)


def by_noise(model: ICEBeeM, num_noise: int = NUM_NOISE) -> Loss:
    return NoiseContrastive(num_noise)(model.energy, model.noise)


def by_both(model: ICEBeeM, num_noise: int = NUM_NOISE) -> Loss:
    contexts, noise = by_context(model), by_noise(model, num_noise)
    return lambda x, label: contexts(x, label) + noise(x, label)


class Method(NamedTuple):
    """An objective and what stands before the weights."""

    objective: Callable[[ICEBeeM], Loss]
    is_squared: bool = True  # the features, by the network
    power: int = 1  # of the features, when they are scored

    @property
    def is_density(self) -> bool:
        return self.objective is not by_context


METHODS = {
    "energy, told from contexts and noise": Method(by_both),
    "energy, told from noise alone": Method(by_noise),
    "classifier (time-contrastive learning)": Method(by_context, is_squared=False),
}
DENSITIES = {"contexts and noise": by_both, "noise alone": by_noise}
CLASSIFIERS = {
    "the energy's features": Method(by_context),
    "time-contrastive learning, squared afterwards": Method(by_context, is_squared=False, power=2),
}


def minimise(module: nn.Module, loss: Loss, x: Tensor, label: Tensor, steps: int, size: int):
    """Mini-batches, Adam, warm-up and half a cosine."""
    optimizer = torch.optim.Adam(module.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=WARM_UP)
    for _ in range(steps):
        index = torch.randint(len(x), (size,))
        optimizer.zero_grad()
        loss(x[index], label[index]).backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()


def fit(case: Problem, method: Method, data: WhitenedSources, steps: int, seeds: Any) -> ICEBeeM:
    """The best of several starts, by its objective on data of their own."""
    dim, depth = data.problem.latent_dim, case.num_layers - 1
    num_contexts = data.problem.num_contexts
    noise = StudentMixture(data.train.x, data.train.context, PARTS, DF)

    def build() -> ICEBeeM:
        is_squared = method.is_squared
        net = squares(data.train.x, case.width, depth) if is_squared else magnitudes(dim, depth)
        if method.is_density:
            return ICEBeeM(energy(net, dim, num_contexts), noise)
        return ICEBeeM(ConditionalEnergy(dim, dim, num_contexts, feature_net=net), noise)

    def train(model: ICEBeeM) -> None:
        part = data.train
        minimise(model.energy, method.objective(model), part.x, part.context, steps, BATCH)

    def held_out(model: ICEBeeM) -> Tensor:
        return -method.objective(model)(data.validation.x, data.validation.context)

    return best_of(build, train, held_out, seeds).model


def figures(case: Problem, method: Method, data: WhitenedSources, steps: int, seeds: Any) -> dict:
    start = process_time()
    model = fit(case, method, data, steps, seeds)
    spent = process_time() - start
    density = density_figures(model, data) if method.is_density else {}

    def represent(x: Tensor) -> Tensor:
        return model.features(x) ** method.power

    with torch.no_grad():
        contrast = ContextContrastive()(model.energy)(data.test.x, data.test.context)
    return {
        "MCC": score(represent, torch.square, data),
        "weak MCC": score(represent, torch.square, data, weak=True),
        "nats of labels": contrast.item(),
        "nats of labels, truth": data.cross_entropy_of_truth,
        **density,
        "training, CPU (s)": spent,
    }


@torch.no_grad()
def density_figures(model: ICEBeeM, data: WhitenedSources) -> dict[str, float]:
    """Held-out nats under three normalisations, and how far to trust each."""
    x, label = data.test.x, data.test.context
    contexts = torch.arange(data.problem.num_contexts)
    found = model.estimate_log_normalizer(contexts, NUM_SAMPLES)
    learned = model.energy.log_normalizer(contexts)

    def nats(log_prob: Tensor) -> float:
        return -log_prob.mean().item() - data.log_det

    return {
        "test nats": nats(-model.energy(x, label) - found.value[label]),
        "test nats, learned log Z": nats(model.energy.log_density(x, label)),
        "test nats, noise": nats(model.noise(label).log_prob(x)),
        "test nats, truth": data.nats_of_truth,
        "|learned - estimated log Z|": (learned - found.value).abs().mean().item(),
        "standard error of log Z": found.standard_error.mean().item(),
        "k-hat": found.pareto_k.mean().item(),
        "contexts with k-hat > 0.7": (found.pareto_k > 0.7).float().mean().item(),
        "energy distance of draws": distance(data, model.sample),
        "of noise": distance(data, lambda u: model.noise(u).sample()),
        "of training data": distance(data, lambda _: training_rows(data)),
    }


def distance(data: WhitenedSources, sample: Callable[[Tensor], Tensor]) -> float:
    """Energy distance to the test data within contexts, each in units of its own scale."""
    num, dim = data.problem.num_contexts, data.problem.latent_dim
    x = data.test.x.reshape(num, -1, dim)
    y = sample(torch.arange(num).repeat_interleave(NUM_DRAWS)).reshape(num, -1, dim)
    scale = x.std(1, keepdim=True)
    x, y = x / scale, y / scale
    within = [torch.cdist(a, a).sum((1, 2)) / (a.shape[1] * (a.shape[1] - 1)) for a in (x, y)]
    return (2 * torch.cdist(x, y).mean((1, 2)) - sum(within)).mean().item()


def training_rows(data: WhitenedSources) -> Tensor:
    """As many of each context as are drawn."""
    return data.train.x.reshape(data.problem.num_contexts, SIZES[0], -1)[:, :NUM_DRAWS]


def rows(name: str, methods: dict[str, Method], budget: dict[str, Any]) -> Iterator[dict]:
    """A row for each method on a problem, over its seeds."""
    case, seeds = PROBLEMS[name], SEEDS[: budget["seeds"]]
    steps, starts = round(case.steps * budget["part"]), budget["starts"]
    drawn = {seed: case.draw(seed) for seed in seeds}
    base = [linear(data) for data in drawn.values()]
    for title, method in methods.items():
        found = [
            figures(case, method, drawn[s], steps, range(100 * s, 100 * s + starts))
            for s in tqdm(seeds, desc=f"{name}: {title}", unit="seed")
        ]
        yield row(name, title, found, base)


def row(name: str, method: str, found: list[dict], base: list[tuple[float, float]]) -> dict:
    """Means over seeds, and the extremes of the score."""
    means = {key: round(mean([one[key] for one in found]), 3) for key in found[0]}
    scores = [one["MCC"] for one in found]
    extremes = {"MCC, lowest": round(min(scores), 3), "MCC, highest": round(max(scores), 3)}
    beside = {
        "MCC of FastICA(x), squares": round(mean([squared for _, squared in base]), 3),
        "MCC of FastICA(x), sources": round(mean([plain for plain, _ in base]), 3),
    }
    first = {"data": name, "method": method, "MCC": means["MCC"]}
    return {**first, **extremes, **beside, **means}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def normalizers(budget: dict[str, Any]) -> Iterator[dict]:
    """Energies of one and of two numbers, whose integrals quadrature knows: the worst of seeds."""
    steps = round(SMALL.steps * budget["part"])
    for (dim, num_layers), method in product(((1, 1), (1, 2), (2, 2)), DENSITIES):
        name = f"TCL, L={num_layers}, {dim}-D"
        seeds = tqdm(SEEDS[: budget["seeds"]], desc=f"{name}: {method}", unit="seed")
        found = [small_figures(dim, num_layers, DENSITIES[method], seed, steps) for seed in seeds]
        worst = {key: round(max(one[key] for one in found), 4) for key in found[0]}
        yield {"data": name, "method": method, **worst}


def small_figures(
    dim: int, num_layers: int, objective: Callable[..., Loss], seed: int, steps: int
) -> dict[str, float]:
    pyro.set_rng_seed(seed)
    seeds = {"mixing_seed": seed, "modulator_seed": seed}
    options = {"scale_range": (0.5, 2.0), "negative_slope": SMALL.slope}
    problem = simulate.tcl(dim, SMALL.num_contexts, num_layers, **options, **seeds)
    x, _, label = problem.sample(SMALL.num_per_context)
    start = process_time()
    net = squares(x, SMALL.width, 1)
    made = energy(net, dim, SMALL.num_contexts, (SMALL.width, SMALL.width))
    parametrize.register_parametrization(made.weight_head, "table", Negative())
    model = ICEBeeM(made, StudentMixture(x, label, 1, DF))
    minimise(made, objective(model, SMALL.num_noise), x, label, steps, SMALL.batch)
    spent = process_time() - start
    return {**normalizer_errors(model, problem), "training, CPU (s)": spent}


def parse() -> argparse.Namespace:
    made = parser(__doc__, BUDGETS, RESULTS)
    made.add_argument("--data", choices=PROBLEMS, nargs="+", default=[*PROBLEMS])
    return made.parse_args()


def main() -> None:
    options = parse()
    budget = dict(BUDGETS[options.budget])
    budget["seeds"] = options.seeds or budget["seeds"]
    budget["part"] *= options.fraction
    torch.set_num_threads(1)
    for part in options.only or RESULTS:
        report(part, options, budget)


def report(part: str, options: argparse.Namespace, budget: dict[str, Any]) -> None:
    """Prints a part and, unless it is dry, records it."""

    def measure() -> Iterator[dict]:
        with pyro.validation_enabled(False), pyro.settings.context(module_local_params=True):
            if part == NORMALIZERS:
                yield from normalizers(budget)
                return
            for name in options.data:
                yield from rows(name, METHODS if part == SOURCES else CLASSIFIERS, budget)

    if options.dry:
        show(measure())
        return
    describe = {SOURCES: settings, ALONE: alone_settings, NORMALIZERS: small_settings}[part]
    record(*RESULTS[part], describe(options, budget), measure)


def settings(options: argparse.Namespace, budget: dict[str, Any]) -> dict[str, Any]:
    return {
        "budget": options.budget,
        "MCC": "Pearson's, of features with squared sources, matched on training data, scored on "
        "held-out data",
        "selected": f"of {budget['starts']} starts by the objective on {SIZES[1]} other data of "
        "each context; nothing by the truth",
        "seeds": f"{SEEDS[: budget['seeds']]}, each another mixing, modulation and start; rates, "
        "widths, steps and the scale at the start were chosen on seeds 1, 10, 11 and 12, seeing "
        "their scores",
        "features": "squares of leaky-ReLU networks of unit scale at first, of one layer less than "
        f"the mixing, as is published for classifiers; widths {widths()}; of the classifier "
        "magnitudes of maxout units, as published",
        "weights": "free: that the integral is finite where no noise comes is not forced",
        "base term": f"SiLU network of widths {BASE}",
        "noise": f"for each context a mixture of {PARTS} Student's t of {DF:g} degrees, fitted to "
        f"the training data; {NUM_NOISE} draws for each datum",
        "optimiser": f"Adam, rate {RATE}, batches of {BATCH}, warm-up for {WARM_UP:.0%}, then "
        "half a cosine",
        "test nats": f"normalised by importance sampling, {NUM_SAMPLES} draws of the noise, or by "
        "the learned constants",
        "energy distance": f"of {NUM_DRAWS} draws to {SIZES[2]} test data, mean over contexts",
        **{
            f"steps of {name}": round(case.steps * budget["part"])
            for name, case in PROBLEMS.items()
        },
    }


def alone_settings(options: argparse.Namespace, budget: dict[str, Any]) -> dict[str, Any]:
    shared = settings(options, budget)
    for key in ("weights", "base term", "noise", "test nats", "energy distance"):
        del shared[key]
    about = "no densities; magnitudes of time-contrastive learning are squared before scoring"
    return {**shared, "methods": about}


def small_settings(options: argparse.Namespace, budget: dict[str, Any]) -> dict[str, Any]:
    return {
        "budget": options.budget,
        "errors": "in nats against the midpoint rule, the largest over contexts and seeds",
        "seeds": str(SEEDS[: budget["seeds"]]),
        "data": f"L=1 is Gaussian; {SMALL.num_contexts} contexts of {SMALL.num_per_context}, "
        f"scales in [0.5, 2], slope {SMALL.slope}",
        "weights": "of squares, negative by construction",
        "noise": f"for each context a Student's t; {SMALL.num_noise} draws for each datum",
        "optimiser": f"Adam, rate {RATE}, batches of {SMALL.batch}",
        "steps": round(SMALL.steps * budget["part"]),
    }


def widths() -> str:
    return ", ".join(f"{case.width} ({name})" for name, case in PROBLEMS.items())


if __name__ == "__main__":
    main()
