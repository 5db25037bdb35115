"""1602.06725: discrete latent variables, VIMCO against what Pyro has for them.

``python tests/benchmarks/papers/bm_vimco.py --budget small|paper`` needs static MNIST in
``PYRO_EXT_DATA``. Two races at equal CPU time, from equal weights, on one thread: a sigmoid belief
network on MNIST, and a small relative of AIR (Pyro's issue 3289) that counts blobs in simulated
images.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, TraceGraph_ELBO
from pyro.nn import DenseNN, PyroModule, pyro_method
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from race import Runner, batches, judge, paired, race
from record import record

from pyro_ext.demo import Images, read_images
from pyro_ext.infer import MultiSampleELBO, vimco
from pyro_ext.models import VariationalAutoencoder

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {"CPU seconds per run": 50, "seeds": [0, 1], "test images": 1_000, "judges": 500},
    "paper": {
        "CPU seconds per run": 3_600,
        "seeds": [0, 1, 2],
        "test images": 10_000,
        "judges": 5_000,
    },
}
BATCH, LEARNING_RATE, BASELINE_RATE = 64, 1e-3, 1e-2
FIVE: dict[str, Any] = {"num_particles": 5, "max_plate_nesting": 1, "vectorize_particles": True}
ONE: dict[str, Any] = {"num_particles": 1, "max_plate_nesting": 1}
BASELINE = "decaying average"
COMMON: dict[str, Any] = {
    "device": "cpu",
    "batch size": BATCH,
    "optimiser": f"one fused Adam {LEARNING_RATE:g}, constant; {BASELINE_RATE:g} for a baseline's "
    "network",
    "turns": "rivals train in turns of 3 CPU seconds; validation off",
}


# A sigmoid belief network.


class Bits(nn.Module):
    """Independent bits of given logits, or of learned ones."""

    def __init__(self, num_bits: int):
        super().__init__()
        self.feature_dim = num_bits
        self.logits = nn.Parameter(torch.zeros(num_bits))

    def forward(self, logits: Tensor | None = None) -> dist.Distribution:
        return dist.Bernoulli(logits=self.logits if logits is None else logits).to_event(1)


def belief_network(images: Images) -> VariationalAutoencoder:
    """200 bits and a linear map from them to the logits of the pixels."""
    mean, bits = images.train.mean(0), Bits(200)
    vae = VariationalAutoencoder(
        mean.numel(), 200, (200,), prior=bits, posterior=bits, data_mean=mean
    )
    decoder: Any = nn.Linear(200, mean.numel())
    vae.decoder = decoder
    with torch.no_grad():
        decoder.bias.copy_(mean.clamp(1e-4, 1 - 1e-4).logit())
    return vae


def belief_rivals(images: Images, seed: int) -> Iterator[tuple[str, Runner]]:
    def runner(elbo, **options) -> Runner:
        pyro.set_rng_seed(seed)
        data = batches(images.train, BATCH, seed)
        return Runner(belief_network(images), elbo, data, learning_rate=LEARNING_RATE, **options)

    yield "MultiSampleELBO, vimco, K=5", runner(MultiSampleELBO(gradient=vimco, **FIVE))
    yield "RenyiELBO, alpha=0, K=5", runner(RenyiELBO(alpha=0, **FIVE))
    average = runner(TraceGraph_ELBO(**ONE))
    average.guide = with_baseline(average.vae.guide, use_decaying_avg_baseline=True)
    yield f"TraceGraph_ELBO, {BASELINE}, one particle", average
    network = DenseNN(images.train.shape[-1], [100], [1], nn.Tanh())
    rate = {"params": list(network.parameters()), "lr": BASELINE_RATE}
    both = runner(TraceGraph_ELBO(**FIVE), groups=(rate,))
    both.guide = with_network(both.vae.guide, network)
    yield f"TraceGraph_ELBO, {BASELINE} and network, 5 particles", both


def with_baseline(guide: Callable, **options) -> Callable:
    """Pyro's baselines for the sites of a guide."""
    config: Any = {"baseline": options}
    return poutine.infer_config(guide, lambda site: config)


def with_network(guide: Callable, network: nn.Module) -> Callable:
    def baseline(x: Tensor) -> Tensor:
        return network(x).squeeze(-1).expand(FIVE["num_particles"], -1)

    def particle_guide(x: Tensor) -> Tensor:
        options = {"nn_baseline": baseline, "nn_baseline_input": x}
        return with_baseline(guide, use_decaying_avg_baseline=True, **options)(x)

    return particle_guide


# A relative of AIR.


class Blobs(PyroModule):
    """Up to two blobs, each of which is there or not, and somewhere."""

    def __init__(self, side: int = 12, start: tuple[float, ...] = (0.5, 1.5, 0.5)):
        super().__init__()
        self.register_buffer("pixels", torch.cartesian_prod(*[torch.linspace(-2, 2, side)] * 2))
        amplitude, width, noise = torch.tensor(start).log()
        self.log_amplitude, self.log_width = nn.Parameter(amplitude), nn.Parameter(width)
        self.log_noise = nn.Parameter(noise)
        self.encoder = DenseNN(2 * side**2, [200, 200], [1, 2, 2], nn.Tanh())

    @pyro_method
    def model(self, x: Tensor | None = None, size: int = 1) -> tuple[Tensor, Tensor]:
        """Returns the images and the numbers of blobs, all of which are equally probable."""
        with pyro.plate("data", size if x is None else len(x)):
            image, present = torch.zeros(len(self.pixels)), torch.ones(())
            number = torch.zeros(())
            for i, probability in enumerate((2 / 3, 1 / 2)):
                present, where = object_at(i, probability * present, torch.zeros(2), torch.ones(2))
                amplitude, width = self.log_amplitude.exp(), self.log_width.exp()
                image = image + amplitude * present.unsqueeze(-1) * self.blob(where, width)
                number = number + present
            noise = self.log_noise.exp()
            return pyro.sample("x", dist.Normal(image, noise).to_event(1), obs=x), number

    @pyro_method
    def guide(self, x: Tensor) -> Tensor:
        """Looks for one blob after the other; returns their numbers."""
        with pyro.plate("data", len(x)):
            found, present = torch.zeros_like(x), torch.ones(())
            number = torch.zeros(())
            for i in range(2):
                seen = torch.cat(torch.broadcast_tensors(x, found), -1)
                logit, loc, raw_scale = self.encoder(seen)
                scale = nn.functional.softplus(raw_scale) + 1e-3
                present, where = object_at(i, logit.squeeze(-1).sigmoid() * present, loc, scale)
                found = found + present.unsqueeze(-1) * self.blob(where, torch.tensor(1.0))
                number = number + present
            return number

    def blob(self, where: Tensor, width: Tensor) -> Tensor:
        distance = (self.pixels - where.unsqueeze(-2)).square().sum(-1)  # (..., pixels)
        return torch.exp(-distance / (2 * (0.4 * width) ** 2))


def object_at(i: int, probability: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As in AIR, the place of an absent object is masked."""
    present = pyro.sample(f"present_{i}", dist.Bernoulli(probability))
    place = dist.Normal(loc, scale).to_event(1).mask(present > 0)
    return present, pyro.sample(f"where_{i}", place)


@torch.no_grad()
def simulate(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of blobs of height and width one in noise, and how many there are."""
    pyro.set_rng_seed(seed)
    return Blobs(start=(1.0, 1.0, 0.2)).model(size=size)


def blob_rivals(train: Tensor, seed: int) -> Iterator[tuple[str, Runner]]:
    def runner(elbo) -> Runner:
        pyro.set_rng_seed(seed)
        return Runner(Blobs(), elbo, batches(train, BATCH, seed), learning_rate=LEARNING_RATE)

    yield "MultiSampleELBO, auto, K=5", runner(MultiSampleELBO(**FIVE))
    yield "RenyiELBO, alpha=0, K=5", runner(RenyiELBO(alpha=0, **FIVE))
    average = runner(TraceGraph_ELBO(**ONE))
    average.guide = with_baseline(average.vae.guide, use_decaying_avg_baseline=True)
    yield f"TraceGraph_ELBO, {BASELINE}, one particle", average


@torch.no_grad()
def accuracy(blobs: Blobs, x: Tensor, number: Tensor) -> float:
    """How often the guide's most frequent number of blobs is right."""
    with pyro.get_param_store().scope(), pyro.plate("draws", 50, dim=-2):
        drawn = blobs.guide(x)
    return (drawn.mode(0).values == number).float().mean().item()


# The races.


def compare(rivals: dict[str, Runner], x: Tensor, budget: dict, seed: int, facts) -> Iterator[dict]:
    """A row for each rival; the first is what the others are compared to."""
    race(list(rivals.values()), budget["CPU seconds per run"], f"seed {seed}")
    bounds = {name: judge(one.vae, x, budget["judges"]) for name, one in rivals.items()}
    of_five = {name: judge(one.vae, x, 5).mean().item() for name, one in rivals.items()}
    ours = next(iter(rivals))
    for name, runner in rivals.items():
        row = {
            "seed": seed,
            "objective": name,
            "steps": runner.steps,
            "K=5 test bound (nats)": round(of_five[name], 3),
            "test bound (nats)": round(bounds[name].mean().item(), 3),
        }
        if name != ours:
            gain, error = paired(bounds[name], bounds[ours])
            row |= {"minus ours": gain, "error of minus ours": error}
        yield row | facts(runner.vae)


def measure_belief_network(budget: dict) -> list[dict]:
    images = read_images("static_mnist", budget["test images"])
    return [
        row
        for seed in budget["seeds"]
        for row in compare(
            dict(belief_rivals(images, seed)), images.test, budget, seed, lambda vae: {}
        )
    ]


def measure_blobs(budget: dict) -> list[dict]:
    (train, _), (test, number) = simulate(20_000, 100), simulate(budget["test images"], 101)

    def facts(blobs: Blobs) -> dict[str, float]:
        return {
            "counted right": round(accuracy(blobs, test, number), 3),
            "height (true 1)": round(blobs.log_amplitude.exp().item(), 3),
            "width (true 1)": round(blobs.log_width.exp().item(), 3),
            "noise (true 0.2)": round(blobs.log_noise.exp().item(), 3),
        }

    return [
        row
        for seed in budget["seeds"]
        for row in compare(dict(blob_rivals(train, seed)), test, budget, seed, facts)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--seed", type=int, nargs="+", help="instead of the budget's")
    options = parser.parse_args()
    budget = dict(BUDGETS[options.budget])
    budget["seeds"] = options.seed or budget["seeds"]
    torch.set_num_threads(1)
    judged = f"IWAE-{budget['judges']} on test images; errors are standard errors of the mean of "
    settings = {"budget": options.budget, **COMMON, **budget}
    settings["test bound"] = judged + "paired differences; the larger K forgives a bad guide more"
    with pyro.validation_enabled(False):
        record(
            "vimco_sbn",
            "A sigmoid belief network of 200 bits at equal CPU time",
            {
                "data": "static MNIST, the first test images",
                "model": "200 bits with learned logits, linear decoder; encoder 784-200-200, tanh",
                **settings,
            },
            lambda: measure_belief_network(budget),
        )
        record(
            "vimco_blobs",
            "Counting blobs, a relative of AIR, at equal CPU time",
            {
                "data": "simulated 12 x 12 images of 0, 1 or 2 blobs, equally probable, in noise",
                "model": "per blob a Bernoulli presence and a Normal place, masked if absent",
                "counted right": "share of test images whose most frequent number in 50 draws of "
                "the guide is right",
                **settings,
            },
            lambda: measure_blobs(budget),
        )


if __name__ == "__main__":
    main()
