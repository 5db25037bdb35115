"""1506.02142: regression on nine UCI sets by Bayesian networks, MC dropout and ridge regression.

``python tests/benchmarks/papers/bm_uci.py --budget small|paper`` needs the UCI sets in
``PYRO_EXT_DATA``. All splits of a set are trained at once, as copies of one network. The prior and
the rate of dropout are chosen by validation parts of the first training split alone.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import record

from pyro_ext.data import load
from pyro_ext.distributions import LogUniform
from pyro_ext.infer import (
    AutoAdditiveNormal,
    AutoMultiplicativeNormal,
    MeanFieldELBO,
    bayesianize,
)
from pyro_ext.poutine import anneal, local_reparameterization, variational_dropout

PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    "boston": (2.97, 0.19, -2.46, 0.06),
    "concrete": (5.23, 0.12, -3.04, 0.02),
    "energy": (1.66, 0.04, -1.99, 0.02),
    "kin8nm": (0.10, 0.00, 0.95, 0.01),
    "naval": (0.01, 0.00, 3.80, 0.01),
    "power": (4.02, 0.04, -2.80, 0.01),
    "protein": (4.36, 0.01, -2.89, 0.00),
    "wine_red": (0.62, 0.01, -0.93, 0.01),
    "yacht": (1.11, 0.09, -1.55, 0.03),
}  # error, its standard error, log-likelihood, its standard error; see SETTINGS
SETS = list(PUBLISHED)
BUDGETS: dict[str, dict[str, int]] = {
    "small": {"splits": 20, "steps": 4_000},
    "paper": {"splits": 20, "steps": 20_000},
}
SCALES, RATES, PENALTIES = (
    (0.3, 1.0, 3.0),
    (0.005, 0.02, 0.05),
    tuple(10.0**k for k in range(-4, 5)),
)
WARM_UP, RATE, LARGE, FOLDS, DRAWS = 0.25, 1e-2, 2_000, 5, 500
SETTINGS = {
    "device": "cpu",
    "data": "Hernandez-Lobato's splits, 20 (protein: 5); columns and y standardised by training "
    "rows; figures in units of y",
    "networks": "50 hidden units (protein: 100), ReLU; one standard deviation of the noise, a "
    "parameter; all splits at once, as copies of one network",
    "Bayesian network": "normal prior, of output weights by the root of the width narrower; "
    "AutoAdditiveNormal, local reparameterisation, MeanFieldELBO; the divergence rises in the "
    f"first {100 * WARM_UP:g} % of steps",
    "MC dropout": "Bernoulli noise of a fixed rate at the inputs of both layers; no weight decay",
    "optimiser": f"fused Adam, rate {RATE:g}, falling linearly to zero; batches of 100, of 256 "
    f"where there are more than {LARGE:,} rows",
    "chosen": f"the scale of the prior from {SCALES}, the rate of dropout from {RATES}, by the "
    "log-likelihood of a fifth of the first training split, in half of the steps; mean of "
    f"{FOLDS} such parts up to {LARGE:,} rows, of one above. Rows of that split are test rows of "
    "others. Candidates, steps and rates of Adam were set by pilots on validation parts of the "
    "same kind",
    "log-likelihood": f"mean log density of the mixture of {DRAWS} draws; of ridge regression, of "
    "a normal whose variance is the mean square of its leave-one-out errors",
    "published": "Gal and Ghahramani 2016, table 1, as their repository "
    "yaringal/DropoutUncertaintyExps gives it (columns 'original', standard errors); the table "
    "itself was not read",
}


class Table(NamedTuple):
    """Standardised copies of a data set, one per split: ``(S, N, D)`` and ``(S, N)``."""

    x: Tensor
    y: Tensor
    new_x: Tensor
    new_y: Tensor
    unit: Tensor  # (S, 1), the standard deviation of y

    @classmethod
    def of(cls, x: Tensor, y: Tensor, masks: Tensor) -> "Table":
        """Of rows in double precision; masks are true at rows to be predicted."""
        return cls(*map(torch.stack, zip(*(standardised(x, y, m) for m in masks), strict=True)))


def standardised(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """By the rows for training; columns that are constant there become zero."""
    shift, scale, center, unit = x[~mask].mean(0), x[~mask].std(0), y[~mask].mean(), y[~mask].std()
    x, y = (x - shift) / scale.where(scale > 0, 1.0), (y - center) / unit
    return *(part.float() for part in (x[~mask], y[~mask], x[mask], y[mask])), unit.reshape(1)


class Layer(nn.Module):
    """A linear map for each copy."""

    def __init__(self, copies: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(copies, inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(copies, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Network(nn.Module):
    """One hidden layer; means and standard deviations of ``y``."""

    def __init__(self, copies: int, inputs: int, width: int):
        super().__init__()
        self.hidden, self.output = Layer(copies, inputs, width), Layer(copies, width, 1)
        self.log_noise = nn.Parameter(torch.full((copies, 1), -1.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.output(self.hidden(x).relu()).squeeze(-1)
        return mean, self.log_noise.exp()


class Regression(nn.Module):
    """The data of all copies, given a network with random weights."""

    def __init__(self, network: Any, num_data: int):
        super().__init__()
        self.network, self.num_data = network, num_data

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean, noise = self.network(x)
        rows = pyro.plate("rows", self.num_data, subsample=torch.arange(y.shape[1]), dim=-1)
        with pyro.plate("copies", len(x), dim=-2), rows:
            pyro.sample("y", dist.Normal(mean, noise), obs=y)


def bayesian(scale: float, network: Network) -> Any:
    """Normal weights; those of the output are smaller, for a function of the same size."""

    def prior(name: str, value: Tensor) -> Any:
        if name == "log_noise":
            return None
        return dist.Normal(0.0, scale / (value.shape[1] ** 0.5 if name == "output.weight" else 1))

    return bayesianize(network, prior, partial(AutoAdditiveNormal, init_log_var=-7.0))


def dropout(rate: float, network: Network) -> Any:
    """With this prior the divergence is constant: dropout of a fixed rate, no decay of weights."""

    def prior(name: str, value: Tensor) -> Any:
        return LogUniform() if name.endswith("weight") else None

    guide = partial(AutoMultiplicativeNormal, rate=rate, per="site", trainable=False)
    return bayesianize(network, prior, guide)


METHODS: dict[str, tuple[Callable, Callable, tuple[float, ...]]] = {
    "Bayesian network": (bayesian, local_reparameterization, SCALES),
    "MC dropout": (dropout, partial(variational_dropout, noise="bernoulli"), RATES),
}


def fit(method: str, value: float, table: Table, run: dict, label: str) -> Any:
    """A trained network with as many copies as the table."""
    build, handler, _ = METHODS[method]
    copies, rows, inputs = table.x.shape
    large = rows > LARGE
    network = build(value, Network(copies, inputs, run["width"]))
    train(network, table, handler(), run["steps"], 256 if large else 100, label)
    return network


def train(network: Any, table: Table, handler: Any, steps: int, batch: int, label: str) -> None:
    """One fused Adam; its rate falls linearly to zero, the divergence rises at first."""
    rows = table.y.shape[1]
    elbo = MeanFieldELBO()(Regression(network, rows), network.guide)
    adam = torch.optim.Adam(elbo.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda done: 1 - done / steps)
    warm_up = anneal(factor=0.0)
    with handler, warm_up:
        for index in tqdm(islice(shuffled(rows, batch), steps), label, steps, leave=False):
            adam.zero_grad()
            elbo(table.x[:, index], table.y[:, index]).backward()
            adam.step()
            schedule.step()
            warm_up.factor = min(1.0, schedule.last_epoch / (WARM_UP * steps))


def shuffled(rows: int, batch: int) -> Iterator[Tensor]:
    """Batches of equal size, without end; the rest of an epoch is dropped."""
    while True:
        yield from torch.randperm(rows).split(batch)[: rows // batch]


@torch.no_grad()
def scores(network: Any, table: Table, handler: Any) -> tuple[Tensor, Tensor]:
    """Root mean square error and mean log density in nats of each copy, in units of ``y``."""
    sums, log_probs = torch.zeros(()), torch.tensor(-math.inf)
    with handler:
        for _ in range(DRAWS):
            drawn = poutine.trace(network.guide).get_trace()
            mean, noise = poutine.replay(network, trace=drawn)(table.new_x)
            sums = sums + mean
            log_probs = log_probs.logaddexp(dist.Normal(mean, noise).log_prob(table.new_y))
    error = (sums / DRAWS - table.new_y).square().mean(1).sqrt() * table.unit
    return error, (log_probs - math.log(DRAWS)).double().mean(1) - table.unit.log()


def chosen(method: str, x: Tensor, y: Tensor, run: dict, label: str) -> float:
    """The candidate with the best mean log density of validation parts of these rows."""
    parts = 1 if len(y) > LARGE else FOLDS
    order = torch.stack([torch.randperm(len(y)) for _ in range(parts)])
    table = Table.of(x, y, order < len(y) // 5)
    shorter = {**run, "steps": run["steps"] // 2}
    _, handler, values = METHODS[method]

    def score(value: float) -> float:
        network = fit(method, value, table, shorter, f"{label}, validation of {value}")
        return scores(network, table, handler())[1].mean().item()

    return max(values, key=score)


def network_row(name: str, method: str, x: Tensor, y: Tensor, masks: Tensor, run: dict) -> dict:
    start, label = process_time(), f"{name}, {method}"
    value = chosen(method, x[~masks[0]], y[~masks[0]], run, label)
    table = Table.of(x, y, masks)
    network = fit(method, value, table, run, label)
    row = summary(name, method, *scores(network, table, METHODS[method][1]()))
    return row | {"chosen scale or rate": value, "CPU seconds": round(process_time() - start, 1)}


def ridge_row(name: str, x: Tensor, y: Tensor, masks: Tensor) -> dict:
    """The penalty by leave-one-out in closed form; its mean square is the predicted variance."""
    from sklearn.linear_model import RidgeCV

    start, found = process_time(), []
    for mask in masks:
        table = Table.of(x, y, mask[None])
        old_x, old_y, new_x, new_y, unit = (part[0].double().numpy() for part in table)
        ridge = RidgeCV(PENALTIES, store_cv_results=True).fit(old_x, old_y)
        mean = torch.as_tensor(ridge.predict(new_x))
        noise = torch.as_tensor(ridge.cv_results_.mean(0).min()).sqrt()
        rest = torch.as_tensor(new_y) - mean
        log_prob = dist.Normal(0.0, noise).log_prob(rest).mean() - math.log(unit[0])
        found.append((rest.square().mean().sqrt() * unit[0], log_prob))
    row = summary(name, "ridge regression", *map(torch.stack, zip(*found, strict=True)))
    return row | {"CPU seconds": round(process_time() - start, 1)}


def published_row(name: str) -> dict:
    error, error_width, log_prob, width = PUBLISHED[name]
    return {
        "set": name,
        "method": "MC dropout, published",
        "splits": 5 if name == "protein" else 20,
        "test RMSE": error,
        "its standard error": error_width,
        "test log-likelihood (nats)": log_prob,
        "its standard error (nats)": width,
    }


def summary(name: str, method: str, errors: Tensor, log_probs: Tensor) -> dict:
    """Means and standard errors over splits."""

    def of(values: Tensor) -> tuple[float, float]:
        width = values.std() / len(values) ** 0.5 if len(values) > 1 else math.nan
        digits = 3 if values.mean().abs() > 0.1 else 5
        return round(values.mean().item(), digits), round(float(width), digits)

    (error, error_width), (log_prob, width) = of(errors), of(log_probs)
    return {
        "set": name,
        "method": method,
        "splits": len(errors),
        "test RMSE": error,
        "its standard error": error_width,
        "test log-likelihood (nats)": log_prob,
        "its standard error (nats)": width,
    }


def measure_set(name: str, budget: dict) -> list[dict]:
    pyro.set_rng_seed(0)
    arrays = load(f"uci/{name}", root=os.environ["PYRO_EXT_DATA"])
    x, y = arrays["x"].double(), arrays["y"].double()
    masks = arrays["test_mask"][: budget["splits"]]
    run = {"width": 100 if name == "protein" else 50, "steps": budget["steps"]}
    rows = [network_row(name, method, x, y, masks, run) for method in METHODS]
    return [*rows, published_row(name), ridge_row(name, x, y, masks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--set", choices=SETS, nargs="+", default=SETS)
    options = parser.parse_args()
    budget = BUDGETS[options.budget]
    torch.set_num_threads(1)

    def measure() -> list[dict]:
        with pyro.validation_enabled(False), pyro.settings.context(module_local_params=True):
            found = []
            for name in options.set:
                found += measure_set(name, budget)
                for row in found[-4:]:
                    print(row, flush=True)
            return found

    if options.set != SETS:
        measure()
        return
    settings = {"budget": options.budget, **SETTINGS, **budget}
    record("uci", "Bayesian networks and MC dropout on nine UCI sets", settings, measure)


if __name__ == "__main__":
    main()
