"""1611.02731: what the window of a decoder and an autoregressive prior do to a lossy autoencoder.

``python tests/benchmarks/papers/bm_vlae.py --budget small|paper`` needs static MNIST and the
silhouettes of Caltech 101 in ``PYRO_EXT_DATA``. All runs of a seed train in turns, for equal CPU
time on one thread, or on a GPU at the paper's budget if there is one. ``--held-out`` judges on the
validation images and records nothing.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from race import Runner, batches, cosine, judge, paired, race
from record import record
from subset import spread

from pyro_ext.data.load import load
from pyro_ext.diagnostics import active_units
from pyro_ext.infer import FreeBitsELBO
from pyro_ext.models import AutoregressiveFlowPrior, LossyAutoencoder
from pyro_ext.models.lossy_autoencoder import CodeLength
from pyro_ext.models.priors import StandardNormalPrior
from pyro_ext.nn import PixelCNNNet

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "CPU seconds per run": {"static_mnist": 60, "caltech101_silhouettes": 40},
        "latent dim": 32,
        "hidden channels": 16,
        "channels of the decoder": 24,
        "test images": 300,
        "importance samples": 10,
    },
    "paper": {
        "CPU seconds per run": {"static_mnist": 1_800, "caltech101_silhouettes": 900},
        "latent dim": 64,
        "hidden channels": 32,
        "channels of the decoder": 32,
        "test images": 2_000,
        "importance samples": 200,
    },
}
WINDOW, NONE, ALL = (7, 4), (1, 0), None
FREE_NATS, SEEDS, BATCH, STARTED_FROM, ACTIVE = 7.84, (0, 1, 2), 64, 128, 0.01
TOGETHER, JUDGED_TOGETHER = 50, 10  # images of codes, of bounds


class Run(NamedTuple):
    """A decoder, a prior, and the nats that the code has for free."""

    window: tuple[int, int] | None
    has_flow: bool
    free_nats: float


MAIN, GAUSSIAN = "window, AF prior", "window, Gaussian prior"
RUNS = {
    MAIN: Run(WINDOW, True, FREE_NATS),
    GAUSSIAN: Run(WINDOW, False, FREE_NATS),
    "factorised, AF prior": Run(NONE, True, FREE_NATS),
    "all earlier pixels, AF prior": Run(ALL, True, 0.0),
}


class Images(NamedTuple):
    """Binary images ``(N, 1, 28, 28)``."""

    train: Tensor
    test: Tensor


def read(name: str, budget: dict, held_out: bool) -> Images:
    arrays = load(name)
    test = spread(arrays["x_valid" if held_out else "x_test"], budget["test images"])
    return Images(arrays["x_train"].unsqueeze(1), test.unsqueeze(1))


def autoencoder(run: Run, budget: dict, x: Tensor) -> LossyAutoencoder:
    """A model that has started from images."""
    dim, shape, maps = budget["latent dim"], x.shape[1:], 4
    prior = AutoregressiveFlowPrior(dim) if run.has_flow else StandardNormalPrior(dim)
    options: dict[str, Any] = {
        "window": run.window,
        "head": "bernoulli",
        "context_channels": maps,
        "dropout": 0.0,
    }
    channels = budget["channels of the decoder"]
    sizes = (shape, 2, 1, *((channels, 2, 2) if run.window else (2 * channels // 3, 1, 2)))
    vae = LossyAutoencoder(
        shape,
        2,
        dim,
        prior=prior,
        hidden_channels=budget["hidden channels"],
        map_channels=maps,
        decoder=PixelCNNNet(*sizes, **options),
    )
    return vae.initialize(x)


def runner(name: str, images: Images, budget: dict, seconds: float, seed: int) -> Runner:
    pyro.set_rng_seed(seed)
    stream = batches(images.train, BATCH, seed)
    vae = autoencoder(RUNS[name], budget, images.train[:STARTED_FROM])
    elbo = FreeBitsELBO(RUNS[name].free_nats, max_plate_nesting=1)
    options: Any = {"learning_rate": budget["learning rate"], "copied": False}
    return Runner(vae, elbo, stream, schedule=cosine(seconds), **options)


@torch.no_grad()
def row(data: str, name: str, seed: int, runner: Runner, bounds: Tensor, images: Images) -> dict:
    vae, x = runner.vae, images.test
    codes = [vae.code_length(part) for part in x.split(TOGETHER)]
    code = CodeLength(*(torch.cat(parts) for parts in zip(*codes, strict=True)))
    return {
        "data": data,
        "run": name,
        "seed": seed,
        "test nats, importance-weighted bound": round(-bounds.mean().item(), 2),
        "test nats, ELBO": round(code.total.mean().item() * math.log(2), 2),
        "KL (bits)": round(code.latent.mean().item(), 2),
        "pixels given the code (bits)": round(code.pixels.mean().item(), 2),
        "active units": active_units(vae.encode(x).mean, ACTIVE).num_active,
        "free nats": RUNS[name].free_nats,
        "steps": runner.steps,
        "training CPU (s)": round(runner.cpu_seconds, 1),
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def compare(data: str, images: Images, budget: dict, seed: int, names: list[str]) -> Iterator[dict]:
    """A row for each run of a seed, and one of the difference of the priors."""
    seconds = budget["CPU seconds per run"][data]
    runners = {name: runner(name, images, budget, seconds, seed) for name in names}
    race(list(runners.values()), seconds, f"{data}, seed {seed}")
    bounds = {}
    samples = budget["importance samples"]
    for name, one in runners.items():
        pyro.set_rng_seed(seed)
        bounds[name] = judge(one.vae.eval(), images.test, samples, JUDGED_TOGETHER)
        yield row(data, name, seed, one, bounds[name], images)
    if {MAIN, GAUSSIAN} <= bounds.keys():
        mean, error = paired(bounds[MAIN], bounds[GAUSSIAN])
        gain = {"gain of the AF prior (nats)": mean, "its standard error": error}
        yield {"data": data, "run": "AF prior - Gaussian prior", "seed": seed, **gain}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--data", nargs="+", help="instead of the budget's")
    parser.add_argument("--run", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--seed", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seconds", type=float, help="per run, instead of the budget's")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    return parser.parse_args()


def main() -> None:
    options = parse()
    budget = {**BUDGETS[options.budget], "learning rate": options.learning_rate}
    times = budget["CPU seconds per run"]
    names = options.data or list(times)
    budget["CPU seconds per run"] = {name: options.seconds or times[name] for name in names}
    torch.set_num_threads(1)

    def measure() -> list[dict]:
        with pyro.validation_enabled(False):
            return [one for name in names for seed in options.seed for one in of_seed(name, seed)]

    def of_seed(name: str, seed: int) -> Iterator[dict]:
        images = read(name, budget, options.held_out)
        return compare(name, images, budget, seed, options.run)

    if options.held_out:
        for one in measure():
            print("  ".join(f"{key}: {value}" for key, value in one.items()), flush=True)
        return
    settings = {
        "budget": options.budget,
        "window": f"{WINDOW[0]} x {WINDOW[1]}; factorised: no pixels",
        "objective": "free bits of the whole code, one draw",
        "optimiser": "Adam, half a cosine to zero; no average of parameters",
        "batch size": BATCH,
        "all earlier pixels": "two thirds of the channels and half the blocks, as it takes longer",
        "order": "test images lie at equal distances in their set, which is sorted",
        "active": f"units whose posterior means vary by more than {ACTIVE} among test images",
        "chosen": "settings on validation images, nothing by test images",
        "turns": "runs of a seed train in turns of 3 seconds; judgements do not count",
        **budget,
    }
    record("vlae", "Lossy autoencoders of several windows and priors", settings, measure)


if __name__ == "__main__":
    main()
