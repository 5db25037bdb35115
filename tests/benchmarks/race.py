"""Training at equal CPU time: rivals take turns, so that what else the machine does meets each."""

import copy
import math
from collections.abc import Callable, Iterator
from time import process_time
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_ext.infer import MultiSampleELBO
from pyro_ext.ops import iwae

TURN = 3.0  # CPU seconds
EVERY = 250  # steps between copies of the parameters
JUDGED_TOGETHER = 25  # data


class Runner:
    """One rival: a module, its optimiser and the batches it sees.

    Args:
        vae: has ``model`` and ``guide``.
        elbo: any with ``loss_and_grads``.
        batches: an endless iterator.
        guide: that of ``vae`` if not given.
        groups: parameters with a learning rate of their own, as groups of torch.
        learning_rate: of Adam, for the parameters of ``vae``.
        schedule: a factor of all learning rates, given the CPU seconds so far; one if not given.
        copied: whether to keep copies of the parameters on the way.
    """

    def __init__(
        self,
        vae: Any,
        elbo: Any,
        batches: Iterator[Tensor],
        *,
        guide: Callable | None = None,
        groups: tuple[dict, ...] = (),
        learning_rate: float = 1e-3,
        schedule: Callable[[float], float] | None = None,
        copied: bool = True,
    ):
        self.vae, self.elbo, self.batches = vae, elbo, batches
        self.guide: Callable = vae.guide if guide is None else guide
        own = {"params": list(vae.parameters())}
        self.adam = torch.optim.Adam([own, *groups], lr=learning_rate, fused=True)
        self.schedule = schedule
        self.rates = [group["lr"] for group in self.adam.param_groups]
        self.steps, self.cpu_seconds = 0, 0.0
        self.copied = copied
        self.copies: dict[int, dict[str, Tensor]] = {}
        self.store: Any = None  # Pyro keeps baselines there, by the names of sites

    def advance(self, seconds: float) -> None:
        """Trains for so many CPU seconds, reading batches and all."""
        with pyro.get_param_store().scope(self.store) as self.store:
            self._train(seconds)

    def _train(self, seconds: float) -> None:
        start = process_time()
        while (spent := process_time() - start) < seconds:
            self._anneal(self.cpu_seconds + spent)
            self._step()
        self.cpu_seconds += spent

    def take(self, steps: int) -> None:
        """Trains for so many steps, whatever time they take."""
        start = process_time()
        with pyro.get_param_store().scope(self.store) as self.store:
            for _ in range(steps):
                self._step()
        self.cpu_seconds += process_time() - start

    def _step(self) -> None:
        self.adam.zero_grad()
        self.elbo.loss_and_grads(self.vae.model, self.guide, next(self.batches))
        self.adam.step()
        self.steps += 1
        if self.copied and self.steps % EVERY == 0:
            self.copies[self.steps] = copy.deepcopy(self.vae.state_dict())

    def _anneal(self, cpu_seconds: float) -> None:
        if self.schedule is not None:
            for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.schedule(cpu_seconds)

    def at(self, steps: int) -> Any:
        """The module as it was after so many steps."""
        module = copy.deepcopy(self.vae)
        module.load_state_dict(self.copies[steps])
        return module


def cosine(total: float) -> Callable[[float], float]:
    """Falls from one to zero along half a wave, and stays there."""
    return lambda done: 0.5 * (1 + math.cos(math.pi * min(done / total, 1.0)))


def race(runners: list[Runner], seconds: float, label: str) -> None:
    """Advances all in turns until each has had its CPU seconds."""
    with tqdm(total=round(seconds * len(runners)), desc=label, unit="s") as bar:
        while min(runner.cpu_seconds for runner in runners) < seconds - 0.1:
            for runner in runners:
                runner.advance(min(TURN, seconds - runner.cpu_seconds))
            bar.n = round(sum(runner.cpu_seconds for runner in runners))
            bar.refresh()


def equal_steps(runners: list[Runner]) -> int:
    """The last number of steps of which all have a copy."""
    return min(max(runner.copies) for runner in runners)


def batches(train: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Random mini-batches without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield train[torch.randint(len(train), (size,), generator=generator)]


@torch.no_grad()
def judge(vae: Any, x: Tensor, num_particles: int, together: int = JUDGED_TOGETHER) -> Tensor:
    """The IWAE bound of each datum in nats, whatever the module was trained by."""
    elbo = MultiSampleELBO(num_particles, max_plate_nesting=1)
    parts = [elbo.log_weights(vae.model, vae.guide, part) for part in x.split(together)]
    return iwae(torch.cat(parts, 1))


def paired(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Mean difference of the bounds of the same images, and its standard error, in nats."""
    difference = ours - theirs
    return round(difference.mean().item(), 3), round(
        (difference.std() / len(ours) ** 0.5).item(), 3
    )
