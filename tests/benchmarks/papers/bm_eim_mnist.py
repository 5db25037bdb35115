"""1910.14265: energy-inspired priors of a VAE on static and dynamic MNIST.

``python tests/benchmarks/papers/bm_eim_mnist.py --budget small|paper`` needs both in
``PYRO_EXT_DATA``. Small: all priors train for equal CPU time on one thread, in turns. Paper: each
trains for equal steps, on a GPU if there is one, and the weights that were best on the validation
images are judged.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from tqdm import trange

sys.path.insert(0, str(Path(__file__).parents[1]))
from race import Runner, batches, cosine, judge, race
from record import record

from pyro_ext.data.load import load
from pyro_ext.demo import paired_difference
from pyro_ext.distributions import (
    HamiltonianSampler,
    ImportanceSampler,
    LearnedAcceptRejectSampler,
    TruncatedRejectionSampler,
)
from pyro_ext.infer import MultiSampleELBO, pathwise
from pyro_ext.models import VariationalAutoencoder
from pyro_ext.models.priors import EnergyInspiredPrior
from pyro_ext.nn import EnergyNet

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "CPU seconds per run": 150,
        "learning rate": 5e-3,
        "leapfrog steps of HIS": 3,
        "first step size of HIS": 0.2,
        "test images": 1_000,
    },
    "paper": {
        "leapfrog steps of HIS": 5,
        "first step size of HIS": 0.1,
        "steps": 500_000,
        "learning rate": 3e-4,
        "test images": 10_000,
        "steps between validations": 5_000,
    },
}
LATENT_DIM, CANDIDATES, BATCH, JUDGES, ESTIMATED = 50, 128, 128, 1_000, 1_000_000
PRIORS: dict[str, Callable[[dict], Any] | None] = {
    "Gaussian": None,
    "TRS": lambda _: TruncatedRejectionSampler(EnergyNet(LATENT_DIM), CANDIDATES),
    "SNIS": lambda _: ImportanceSampler(EnergyNet(LATENT_DIM), CANDIDATES),
    "HIS": lambda budget: HamiltonianSampler(
        EnergyNet(LATENT_DIM),
        budget["leapfrog steps of HIS"],
        budget["first step size of HIS"],
    ),
    "LARS": lambda _: LearnedAcceptRejectSampler(
        EnergyNet(LATENT_DIM), CANDIDATES, num_proposals=CANDIDATES
    ),
}


class Images(NamedTuple):
    """Flattened images; grey ones are to be binarised anew in each batch."""

    train: Tensor  # (N, 784) in [0, 1]
    valid: Tensor  # (V, 784) in {0, 1}
    test: Tensor  # (M, 784) in {0, 1}

    def batches(self, seed: int) -> Iterator[Tensor]:
        chosen = batches(self.train, BATCH, seed)
        if bool(((self.train == 0) | (self.train == 1)).all()):
            return chosen
        generator = torch.Generator(self.train.device).manual_seed(seed)
        return (torch.bernoulli(x, generator=generator) for x in chosen)


def static(num_test: int) -> Images:
    parts = {name: x.flatten(1).float() for name, x in load("static_mnist").items()}
    return Images(parts["x_train"], parts["x_valid"], parts["x_test"][:num_test])


def dynamic(num_test: int, num_valid: int = 10_000) -> Images:
    """Judged on images binarised once, with a fixed seed; validated on the last training images."""
    grey = {name: x.flatten(1).float() / 255 for name, x in load("mnist").items() if name[0] == "x"}
    generator = torch.Generator().manual_seed(0)
    test = torch.bernoulli(grey["x_test"][:num_test], generator=generator)
    valid = torch.bernoulli(grey["x_train"][-num_valid:], generator=generator)
    return Images(grey["x_train"][:-num_valid], valid, test)


SETS: dict[str, Callable[[int], Images]] = {"static": static, "dynamic": dynamic}


def build(prior: str, images: Images, budget: dict, seed: int) -> VariationalAutoencoder:
    pyro.set_rng_seed(seed)
    make, mean = PRIORS[prior], images.train.mean(0)
    wired = make and EnergyInspiredPrior(LATENT_DIM, sampler=make(budget))
    vae = VariationalAutoencoder(mean.numel(), LATENT_DIM, (300, 300), wired, data_mean=mean.cpu())
    return vae.to(mean.device)


def enter(vae: VariationalAutoencoder, images: Images, seed: int, **options) -> Runner:
    elbo = MultiSampleELBO(1, gradient=pathwise, max_plate_nesting=1)
    return Runner(vae, elbo, images.batches(seed), copied=False, **options)


def fit_in_time(images: Images, budget: dict, seed: int, label: str) -> dict[str, Runner]:
    """All priors in turns, the learning rate falling with the share of the time that is gone."""
    seconds = budget["CPU seconds per run"]
    options = {"learning_rate": budget["learning rate"], "schedule": cosine(seconds)}
    runners = {
        prior: enter(build(prior, images, budget, seed), images, seed, **options)
        for prior in PRIORS
    }
    race(list(runners.values()), seconds, label)
    return runners


def fit_in_steps(images: Images, budget: dict, seed: int, label: str) -> dict[str, Runner]:
    """One prior after the other, each stopped where it was best on the validation images."""
    return {prior: stop_early(prior, images, budget, seed, f"{label}, {prior}") for prior in PRIORS}


def stop_early(prior: str, images: Images, budget: dict, seed: int, label: str) -> Runner:
    every, best = budget["steps between validations"], -torch.inf
    vae = build(prior, images, budget, seed)
    runner = enter(vae, images, seed, learning_rate=budget["learning rate"])
    for _ in trange(0, budget["steps"], every, desc=label):
        runner.take(every)
        bound = judge(conclude(copy.deepcopy(runner.vae)), images.valid, 1, 1_000).mean()
        if bound > best:
            best, state = bound, copy.deepcopy(runner.vae.state_dict())
    runner.vae.load_state_dict(state)
    return runner


def conclude(vae: VariationalAutoencoder) -> VariationalAutoencoder:
    """Ends training; a learned normaliser is replaced by one from many proposals."""
    vae.eval()
    if isinstance(getattr(vae.prior, "sampler", None), LearnedAcceptRejectSampler):
        vae.prior().estimate_normalizer(ESTIMATED)
    return vae


def compare(name: str, images: Images, budget: dict, seed: int) -> Iterator[dict]:
    """A row for each prior, with what it gains over the Gaussian one on the same images."""
    fit = fit_in_steps if "steps" in budget else fit_in_time
    bounds: dict[str, Tensor] = {}
    for prior, runner in fit(images, budget, seed, name).items():
        start = perf_counter()
        bounds[prior] = judge(conclude(runner.vae), images.test, JUDGES).cpu()
        print(f"judged {name}, {prior} in {perf_counter() - start:.0f} s", flush=True)
        row = {
            "data": name,
            "prior": prior,
            "steps": runner.steps,
            "training CPU (s)": round(runner.cpu_seconds, 1),
            f"IWAE-{JUDGES} bound (nats)": round(bounds[prior].mean().item(), 3),
        }
        if prior != "Gaussian":
            gain, error = paired_difference(bounds[prior], bounds["Gaussian"])
            row |= {"gain (nats)": round(gain, 3), "error of the gain (nats)": round(error, 3)}
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", choices=SETS, nargs="+", help="both if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    budget = BUDGETS[options.budget]
    device = options.device if options.budget == "paper" else "cpu"
    torch.set_num_threads(1)

    settings = {
        "budget": options.budget,
        "device": device,
        "model": f"784-300-300-{LATENT_DIM}, tanh",
        "energy and acceptance logit": f"{LATENT_DIM}-100-100-1, tanh",
        "candidates of SNIS, TRS and LARS": CANDIDATES,
        "batch size": BATCH,
        "training particles": 1,
        "seed": options.seed,
        "optimiser": "fused Adam, " + ("cosine in CPU time" if device == "cpu" else "constant"),
        "normaliser of LARS": f"from {ESTIMATED:,} proposals once trained",
        "error of the gain": "standard error of means over 25 images, which share proposals",
        **budget,
    }
    for name in options.data or SETS:

        def measure(name: str = name) -> list[dict]:
            images = Images(*(x.to(device) for x in SETS[name](budget["test images"])))
            with pyro.validation_enabled(False):
                return list(compare(name, images, budget, options.seed))

        title = f"Energy-inspired priors against a Gaussian one, {name} MNIST"
        record(f"eim_{name}_mnist", title, settings, measure)


if __name__ == "__main__":
    main()
