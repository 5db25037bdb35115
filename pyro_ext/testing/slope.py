r"""Are stochastic gradients unbiased? A difference of means against the integral of the gradient.

.. math::

    \mathbb{E}_{\theta + v}[f] - \mathbb{E}_{\theta - v}[f]
        = \int_{-1}^{1} v \cdot \nabla_\theta \mathbb{E}_{\theta + t v}[f]\, dt

holds for steps of any length. Three Gauss-Legendre nodes make the integral all but exact, so that
the step can be long enough for the left side to stand out of its noise.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from pyro_ext.testing.case import Params, cast, expect, gradients, leaves, ramp, seeded
from pyro_ext.testing.flyweight import DistributionCase
from pyro_ext.testing.statistic import LIMIT, standard_errors

CLUSTERS = 64
DRAWS = 256
TOLERANCE = 1e-3  # of the quadrature, where values of f span 2.8
NODES = ((-(0.6**0.5), 5 / 9), (0.0, 8 / 9), (0.6**0.5, 5 / 9))

Surrogate = Callable[[Any, Callable[[Tensor], Tensor], torch.Size], Tensor]


def pathwise_surrogate(dist: Any, f: Callable[[Tensor], Tensor], shape: torch.Size) -> Tensor:
    """Its gradient is the pathwise gradient of the mean of ``f``."""
    return f(dist.rsample(shape)).mean()


def score_surrogate(dist: Any, f: Callable[[Tensor], Tensor], shape: torch.Size) -> Tensor:
    """Its gradient is the score-function gradient of the mean of ``f``."""
    x = dist.sample(shape)
    return (f(x) * dist.score_parts(x).score_function).mean()


def expect_unbiased(case: DistributionCase, surrogate: Surrogate) -> None:
    """Moves one parameter after another; a step that no size makes sensible is not judged."""
    test = _Slope(case, surrogate)
    for name in case.params:
        step = test.step(name)
        if step is not None:
            seen, expected, errors = test.compare(step)
            what = f"gradient {seen:.4g} in {name!r}, {errors:.1f} standard errors from the slope"
            expect(errors < LIMIT, what, f"{expected:.4g}, within {LIMIT:.0f} standard errors")


class _Slope:
    """The mean of one smooth bounded function of the draws, along directions in parameters."""

    def __init__(self, case: DistributionCase, surrogate: Surrogate):
        self.case = case
        self.surrogate = surrogate
        size = max(case.dist.shape().numel(), 1)
        self.shape = torch.Size([max(32, min(DRAWS, 4 * DRAWS // size))])
        self.pilot = _quartiles(seeded(lambda: case.dist.sample(torch.Size([4000])), 1))

    @cached_property
    def scale(self) -> Tensor:
        """The interquartile range, one where it vanishes."""
        width = self.pilot[2] - self.pilot[0]
        return width.where(width > 0, torch.ones_like(width)) / 1.35

    def f(self, x: Tensor) -> Tensor:
        """Neither even nor odd in the standardised value, so that it feels place and width."""
        z = (x.double() - self.pilot[1]) / self.scale
        values = z.sin() + z.cos()
        dim = len(self.case.event_shape)
        return values.flatten(-dim).mean(-1) if dim else values

    def params(self, step: Params, t: float, grad: bool = False) -> Params:
        """The parameters, moved ``t`` steps."""
        params = self.case.cast()
        for name, leaf in leaves(params).items():
            if name in step:
                leaf.detach().add_(t * step[name])
        return cast(params, grad=grad)

    def step(self, name: str) -> Params | None:
        """A step in one parameter that changes the distribution visibly, but not beyond sight."""
        chosen = leaves({name: self.case.frozen_params[name]})
        size = 0.5
        for _ in range(10 if chosen else 0):
            step = {
                key: size * ramp(leaf) * leaf.abs().where(leaf != 0, torch.ones_like(leaf))
                for key, leaf in chosen.items()
            }
            if self._is_sensible(step):
                return step
            size /= 2
        return None

    @torch.no_grad()
    def _is_sensible(self, step: Params) -> bool:
        for t in (-1.0, 1.0):
            try:
                dist = self.case.build(self.params(step, t), validate_args=True)
            except ValueError:
                return False
            moved = _quartiles(seeded(partial(dist.sample, torch.Size([4000])), 1))
            if not bool(((moved - self.pilot).abs() < 0.6 * self.scale).all()):
                return False
        return True

    def compare(self, step: Params) -> tuple[float, float, float]:
        """Gradient and slope along a step, and their distance in standard errors."""
        seen = torch.stack([weight * self._gradients(step, t) for t, weight in NODES]).sum(0)
        expected = self._levels(step, 1.0) - self._levels(step, -1.0)
        gap = seen - expected
        excess = (gap.mean().abs() - TOLERANCE).clamp(min=0).copysign(gap.mean())
        errors = float(standard_errors(gap - gap.mean() + excess).abs())
        return float(seen.mean()), float(expected.mean()), errors

    @torch.no_grad()
    def _levels(self, step: Params, t: float) -> Tensor:
        """Means of the function, one for each seed."""
        dist = self.case.build(self.params(step, t))
        level = lambda: self.f(dist.sample(self.shape)).mean()  # noqa: E731
        return torch.stack([seeded(level, seed) for seed in range(CLUSTERS)])

    def _gradients(self, step: Params, t: float) -> Tensor:
        """Gradients of the surrogate along the step, one for each seed."""
        params = self.params(step, t, grad=True)
        moved = {key: leaf for key, leaf in leaves(params).items() if key in step}

        def along() -> Tensor:
            value = self.surrogate(self.case.build(params), self.f, self.shape)
            if not value.requires_grad:
                return torch.zeros_like(value)
            grads = gradients(value, moved)
            return torch.stack([(grads[key] * step[key]).sum() for key in step]).sum()

        return torch.stack([seeded(along, seed) for seed in range(CLUSTERS)])


def _quartiles(x: Tensor) -> Tensor:
    order = x.double().sort(0).values
    return order[[len(x) // 4, len(x) // 2, 3 * len(x) // 4]]
