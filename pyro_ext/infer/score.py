"""Scores of energies by automatic differentiation, and energies that have none."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_ext.infer.energy_objective import check_energies, energy_of

KINKED = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.SELU,
    nn.Threshold,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardshrink,
    nn.Softshrink,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
KINKED_STEPS = re.compile(
    r"(Relu|LeakyRelu|PreluKernel|RreluWithNoise|Threshold|Hard(tanh|sigmoid|swish|shrink)"
    r"|Softshrink|(Adaptive)?MaxPool\w*)Backward\d*"
)
WHY = (
    "Score matching fits the gradient of the energy, which jumps at the kinks of {}; between them "
    "it is constant where all layers are of this kind. Use a smooth activation: SiLU, Softplus, "
    "Tanh, GELU or ELU with alpha=1."
)


def refuse_kinks(ebm: nn.Module) -> None:
    """Refuses energies whose gradient jumps, as far as their modules tell.

    Functions are seen by :func:`refuse_kinked_graph`, when there is a graph.

    Raises:
        ValueError: if a module has a kink.
    """
    found = [f"{name} ({type(m).__name__})" for name, m in ebm.named_modules() if _has_kink(m)]
    if found:
        raise ValueError(WHY.format(", ".join(found)))


def refuse_kinked_graph(energy: Tensor) -> None:
    """Refuses energies whose recorded steps have kinks, such as ReLU called as a function.

    Steps that smooth functions are also made of, such as ``abs`` and ``clamp``, pass.

    Raises:
        ValueError: if a step has a kink.
    """
    found = {step.name() for step in _steps(energy) if KINKED_STEPS.fullmatch(step.name())}
    if found:
        raise ValueError(WHY.format(", ".join(sorted(found))))


def _steps(value: Tensor) -> Iterator[Any]:
    """The steps of the graph that made a value, each once."""
    waiting: list[Any] = [value.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        step = waiting.pop()
        if step not in seen:
            seen.add(step)
            yield step
            waiting.extend(before for before, _ in step.next_functions)


def _has_kink(module: nn.Module) -> bool:
    return isinstance(module, KINKED) or (isinstance(module, nn.ELU) and module.alpha != 1)


def score_of(ebm: nn.Module, x: Tensor, context: Tensor | None, create_graph: bool) -> Tensor:
    r"""The score :math:`-\nabla_x E(x, u)`, of the shape of ``x``, which must require gradients."""
    energy = energy_of(ebm, x, context)
    check_energies(energy, x.shape[: x.dim() - len(event_dims(ebm, x))])
    if not energy.requires_grad:
        raise ValueError(f"The energy {type(ebm).__name__} does not depend on its data.")
    if is_validation_enabled():
        refuse_kinked_graph(energy)
    return -torch.autograd.grad(energy.sum(), x, create_graph=create_graph)[0]


def event_dims(ebm: nn.Module, x: Tensor) -> tuple[int, ...]:
    """The dimensions of an event: those that the energy declares, else all but the first."""
    shape = getattr(ebm, "event_shape", None)
    num = x.dim() - 1 if shape is None else len(shape)
    return tuple(range(x.dim() - num, x.dim()))


def sum_event(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum over an event, which may be a single number."""
    return values.sum(dims) if dims else values
