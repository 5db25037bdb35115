"""Flows as noise, energies relative to them, and how these are trained."""

import copy
from collections.abc import Callable
from time import process_time
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext.distributions import Glow
from pyro_ext.distributions.flow_density import FlowDensity, FlowTransform
from pyro_ext.nn import ConditionalEnergy, GlowNet
from pyro_ext.nn.coupling_flow import CouplingFlow

MAX_NORM, WARM_UP = 10.0, 0.05


class FlowNoise(nn.Module):
    """A flow of vectors."""

    def __init__(self, x: Tensor, num_couplings: int, width: int):
        super().__init__()
        self.net = CouplingFlow(x.shape[-1], num_couplings, (width,)).initialize(x)

    def forward(self, context: Any = None) -> FlowDensity:
        base = dist.Normal(torch.zeros_like(self.net.loc), 1.0).to_event(1)
        return FlowDensity(base, [FlowTransform(self.net)])


class GlowNoise(nn.Module):
    """A flow of images."""

    def __init__(self, x: Tensor, depth: int, width: int):
        super().__init__()
        self.net = GlowNet(x.shape[1:], depth, 2, width).initialize(x)

    def forward(self, context: Any = None) -> Glow:
        return Glow(self.net)


class LogDensity(nn.Module):
    """That of the noise as it is now; it stays so."""

    def __init__(self, noise: nn.Module):
        super().__init__()
        self.noise = copy.deepcopy(noise).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(None).log_prob(x)


class Waves(nn.Module):
    """Features of the plane, by sines of random frequencies."""

    def __init__(self, width: int, frequency: float = 3.0):
        super().__init__()
        self.register_buffer("frequencies", frequency * torch.randn(2, 64))
        self.layers = nn.Sequential(
            nn.Linear(130, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.get_buffer("frequencies")
        return self.layers(torch.cat([x, phase.sin(), phase.cos()], -1))


class Pixels(nn.Module):
    """Features of pixels, standardised."""

    def __init__(self, x: Tensor, width: int):
        super().__init__()
        self.register_buffer("loc", x.mean(0))
        self.register_buffer("scale", x.std(0) + 0.1 * x.std())
        layers = [nn.Flatten(), nn.Linear(x[0].numel(), width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.get_buffer("loc")) / self.get_buffer("scale"))


def relative(noise: nn.Module, x: Tensor, features: nn.Module, classes: int = 0) -> Any:
    """An energy that starts as the noise, all but."""
    width = features(x[:2]).shape[-1]
    options: dict[str, Any] = {"feature_net": features, "base": LogDensity(noise)}
    energy = ConditionalEnergy(x.shape[1:], width, classes, **options)
    with torch.no_grad():
        energy.weight_head.table.mul_(0.1)
    return energy


def optimise(groups: list[dict[str, Any]], loss: Callable[[int], Tensor], steps: int) -> float:
    """Adam, warm-up, half a cosine; returns the CPU seconds."""
    start = process_time()
    adam = torch.optim.Adam(groups, fused=True)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rates, steps + 1, pct_start=WARM_UP)
    parameters = [p for group in groups for p in group["params"]]
    for step in range(steps):
        adam.zero_grad()
        loss(step).backward()
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        adam.step()
        schedule.step()
    return process_time() - start
