"""1712.01312 and 2208.04425: a perceptron on MNIST that loses its units, by target or by weight.

``python tests/benchmarks/papers/bm_l0.py --budget small|paper`` needs MNIST in ``PYRO_EXT_DATA``.
Each run trains 784-300-100-10 with one gate for each input of a layer, averages the parameters,
prunes the result and measures what is left: error, parameters, operations, latency. ``--run`` and
``--held-out`` compare settings by 5,000 training images that take no part, and write nothing.
"""

import argparse
import sys
from pathlib import Path
from time import process_time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
import mnist
from record import record

from pyro_ext.infer import ConstrainedELBO
from pyro_ext.models import ExpectedFlops, prune
from pyro_ext.nn import L0Linear

# a weight of the penalty in nats per weight, or a target as a fraction of the dense operations
PUBLISHED = {"batch": 100, "rate": 1e-3, "averaging": 0.999, "weight decay": 5e-4, "epochs": 90}
FAST = {"batch": 500, "rate": 5e-3, "averaging": 0.995, "weight decay": 5e-4, "epochs": 100}
RUNS: dict[str, dict[str, Any]] = {
    "no penalty": {"weight": 0.0, **PUBLISHED},
    "weight 0.1": {"weight": 0.1, **PUBLISHED},
    "target 24 %": {"target": 0.24, **PUBLISHED},
    "target 21 %, large batches": {"target": 0.21, **FAST},
    "target 8 %, small batches": {"target": 0.08, **PUBLISHED},
    "target 7.6 %": {"target": 0.076, **FAST},
}
BUDGETS: dict[str, dict[str, Any]] = {
    "small": {"seeds": [0], "runs": ["target 24 %", "target 7.6 %"]},
    "paper": {
        "seeds": [0, 1, 2],
        "runs": ["no penalty", "weight 0.1", "target 24 %", "target 7.6 %"],
    },
}
CHOICE = (
    "batch size, by the last 5,000 training images, seed 0, trained on the others; the standard "
    "error is 0.2 %. Batches of 100, 60 epochs: 1.04 % at a weight of 0.1 (81,012 parameters), "
    "1.94 % at a target of 8 % (19,799). Batches of 500, 100 epochs: 1.38 % at 21 % (45,577), "
    "1.80 % at 7.6 % (19,560); with a fifth of the weight decay 1.30 % and 1.68 %, which went to "
    "1.67 % and 1.83 % on the test images in a full run of 150 epochs, so that the published decay "
    "was kept; earlier runs of other lengths had test errors from 1.56 % to 1.62 % at 7.5 and "
    "9.9 %. A full run of these settings had 1.54 % at a target of 21 % (48,079 parameters), 1.65 "
    "% at 7.6 %. The targets by the sizes they lead to, the epochs by ten minutes of CPU time"
)
BATCH, DUAL_RATE, TIMES = 100, 1e-3, 5


def read(held_out: bool) -> mnist.Images:
    """Standardised pixels to train and to judge by, and the labels of both."""
    x, test, y, labels = mnist.read(held_out)
    mean, scale = x.mean(), x.std()
    return (x - mean) / scale, (test - mean) / scale, y, labels


def build() -> nn.Sequential:
    return nn.Sequential(
        L0Linear(784, 300, droprate=0.2),
        nn.ReLU(),
        L0Linear(300, 100),
        nn.ReLU(),
        L0Linear(100, 10),
    )


def program(network: nn.Sequential, num_data: int, weight: float, decay: float):
    """The model, whose loss is in nats of all data; its guide draws nothing."""
    layers = [layer for layer in network if isinstance(layer, L0Linear)]

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", num_data, subsample=x):
            pyro.sample("y", dist.Categorical(logits=network(x)), obs=y)
        penalty: Any = sum(layer.penalty(weight, decay * num_data) for layer in layers)
        pyro.factor("l0", -penalty)

    return model, lambda x, y: None


def objective(network: nn.Sequential, run: dict) -> Any:
    if "target" not in run:
        return Trace_ELBO(max_plate_nesting=1)
    flops = ExpectedFlops(network, torch.zeros(1, 784))
    return ConstrainedELBO(
        Trace_ELBO(max_plate_nesting=1),
        {"flops": run["target"]},
        {"flops": flops.fraction},
        rate=DUAL_RATE,
    )


def train(
    network: nn.Sequential, images: mnist.Images, run: dict, epochs: int, label: str
) -> nn.Module:
    """The average of the parameters on the way."""
    x, _, y, _ = images
    model, guide = program(network, len(x), run.get("weight", 0.0), run["weight decay"])
    elbo = objective(network, run)
    adam = torch.optim.Adam(network.parameters(), lr=run["rate"], fused=True)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(run["averaging"]))
    steps = epochs * (len(x) // run["batch"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda done: min(1.0, 3 * (1 - done / steps))
    )
    for _ in tqdm(range(epochs), desc=label, unit="epoch", mininterval=10):
        for index in torch.randperm(len(x)).split(run["batch"]):
            adam.zero_grad()
            elbo.differentiable_loss(model, guide, x[index], y[index]).backward()
            adam.step()
            schedule.step()
            average.update_parameters(network)
    return average.module


def latency(network: nn.Module, example: Tensor) -> tuple[float, float]:
    """Before and after, of the measurement whose ratio is the median one."""
    pairs = [prune(network, example)[1].latency for _ in range(TIMES)]
    return sorted(pairs, key=lambda pair: pair[0] / pair[1])[TIMES // 2]


def measure_run(
    name: str, images: mnist.Images, epochs: int | None, seed: int, judges: str
) -> dict[str, Any]:
    pyro.set_rng_seed(seed)
    run, (_, x, _, y) = RUNS[name], images
    epochs = epochs or run["epochs"]
    start = process_time()
    average = train(build(), images, run, epochs, f"{name}, seed {seed}").eval()
    seconds = process_time() - start
    small, report = prune(average, x[:BATCH], timed=False)
    before, after = latency(average, x[:BATCH])
    row = {
        "run": name,
        "seed": seed,
        "epochs": epochs,
        "training CPU seconds": round(seconds),
        f"{judges} error (%)": mnist.error(small, x, y),
        f"{judges} error of the gated network (%)": mnist.error(average, x, y),
        "widths": "-".join(str(width) for width in report.widths.values()),
        "parameters": report.parameters[1],
        "parameters before / after": round(report.parameters[0] / report.parameters[1], 2),
        "FLOPs / dense (%)": round(100 * report.flops[1] / report.flops[0], 2),
        "latency before (ms)": round(before, 3),
        "latency after (ms)": round(after, 3),
        "latency before / after": round(before / after, 2),
    }
    if "target" in run:
        reached = ExpectedFlops(average, x[:1]).fraction().item()
        row |= {"target (%)": 100 * run["target"], "expected FLOPs (%)": round(100 * reached, 2)}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--seed", type=int, nargs="+", help="instead of the budget's")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--run", choices=RUNS, nargs="+", help="instead of the budget's")
    parser.add_argument("--held-out", action="store_true", help="judge by training images")
    options = parser.parse_args()
    budget = dict(BUDGETS[options.budget])
    budget["seeds"] = options.seed or budget["seeds"]
    budget["runs"] = options.run or budget["runs"]
    torch.set_num_threads(1)
    images = read(options.held_out)
    judges = "held-out" if options.held_out else "test"

    def measure():
        with pyro.validation_enabled(False):
            for seed in budget["seeds"]:
                for name in budget["runs"]:
                    yield measure_run(name, images, options.epochs, seed, judges)

    if options.held_out:
        for row in measure():
            print(row, flush=True)
        return
    settings = {
        "budget": options.budget,
        "device": "cpu",
        "data": "MNIST, pixels standardised as a whole; all 60,000 training images; the error is "
        "that of the last step",
        "choice of settings": CHOICE,
        "network": "784-300-100-10, ReLU, a gate for each input of a layer and each example; "
        "droprate 0.2 of pixels, 0.5 of units",
        "recipes": f"{ {name: RUNS[name] for name in budget['runs']} }; weight in nats, weight "
        "decay per datum; the rate is that of one fused Adam, falling linearly in the last third",
        "target": "at most this fraction of FLOPs; nothing holds a network that falls below it. "
        f"Rate of the multiplier: {DUAL_RATE:g} of the first loss per step",
        "test gate": "as published",
        "latency": f"median wall-clock time of a batch of {BATCH}, both networks in turns, one "
        f"thread, on a machine with other work; of {TIMES} such measurements that of the median "
        "ratio",
        **budget,
    }
    record("l0_mnist", "A perceptron that loses its units: L0 on MNIST", settings, measure)


if __name__ == "__main__":
    main()
