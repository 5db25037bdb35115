"""Checks of what Hamiltonian dynamics is run on: potentials, step sizes, momenta, paths."""

import math
import warnings
from collections.abc import Iterator
from numbers import Real
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_ext.ops.tracing import is_traced

# Piecewise linear, so that their second derivative is zero almost everywhere.
ROUGH = (
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardtanh,  # and ReLU6
    nn.LeakyReLU,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.Softshrink,
    nn.Threshold,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
MIXING = (nn.modules.batchnorm._BatchNorm,)
RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)

_warned: WeakSet[nn.Module] = WeakSet()  # potentials, once each


def check_potential(potential: Any, stacklevel: int = 3) -> None:
    """Looks through a module for layers that Hamiltonian dynamics cannot do with.

    Args:
        potential: any callable.
        stacklevel: of the warning.

    Raises:
        ValueError: if it cannot be called, or if a layer mixes events or draws random numbers, as
            it does in training.

    Warns:
        UserWarning: once per potential, if a layer is piecewise linear.
    """
    if not callable(potential):
        raise ValueError(f"The potential must be callable, got {potential!r}.")
    if is_traced() or not isinstance(potential, nn.Module):
        return
    _refuse(potential, MIXING, "lets the events of a batch depend on each other")
    _refuse(potential, RANDOM, "draws random numbers, so that no path can be retraced")
    rough = ", ".join(_named(potential, ROUGH))
    if rough and potential not in _warned:
        _warned.add(potential)
        warnings.warn(
            f"The potential {type(potential).__name__} has piecewise linear layers: {rough}. Its "
            "second derivatives vanish almost everywhere, and training needs them. Use smooth "
            "activations: Tanh, Softplus, SiLU, GELU; average instead of maximum pooling.",
            stacklevel=stacklevel,
        )


@torch.no_grad()
def check_alone(potential: Any, x: Tensor, event_dim: int) -> None:
    """Compares the potential of an event among others with that of the event alone.

    Raises:
        ValueError: if they differ.
    """
    batch_dim = x.dim() - event_dim
    if not batch_dim or x.shape[0] < 2:
        return
    try:  # a potential that depends on the batch may refuse a part of it
        pair, alone = (potential(x[:rows]).flatten()[0] for rows in (2, 1))
    except (AttributeError, RuntimeError, ValueError):
        return
    if not torch.isclose(pair, alone, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ValueError(
            f"The potential of one event is {alone.item():g}, but {pair.item():g} in company of "
            "another: it mixes the events of a batch, or draws random numbers. Let it map each "
            "event by itself, without statistics over the batch, dropout and noise."
        )


def check_base(base_dist: Any) -> None:
    """Refuses what is no distribution over real numbers."""
    if not isinstance(base_dist, Distribution):
        raise ValueError(
            f"HamiltonianImportance takes a distribution as base_dist, got {base_dist!r}."
        )
    support: Any = base_dist.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if not isinstance(support, type(constraints.real)):
        raise ValueError(
            f"Hamiltonian dynamics moves values anywhere among the real numbers, but {base_dist} "
            f"has support {base_dist.support}. Transform the variable: take a base distribution "
            "over real numbers and put TransformedDistribution around the result, or use "
            "pyro.infer.reparam.TransformReparam at the site."
        )


def check_factors(
    name: str, value: Any, shape: torch.Size | tuple[int, ...], top: float, validate: bool
) -> None:
    """Refuses a wrong shape, and, if validating or if it costs nothing, numbers out of range.

    Args:
        name: ``"step_size"``, which may be zero, or ``"tempering"``, which may not.
        value: a number, a sequence of numbers or a tensor.
        shape: that it may have besides the scalar one.
        top: the largest value allowed.
        validate: whether to look into tensors.
    """
    is_tensor = isinstance(value, Tensor)
    kinds = (Tensor, Real) if name == "step_size" else (Tensor, Real, tuple, list)
    is_known = isinstance(value, kinds)
    if not is_known:
        raise ValueError(f"{name} must be a number or a tensor, got {name}={value!r}.")
    seen = value.shape if is_tensor else (len(value),) if isinstance(value, tuple | list) else ()
    if seen not in ((), shape):
        raise ValueError(
            f"{name} has shape {tuple(seen)}, expected a scalar or shape {tuple(shape)}."
        )
    if is_tensor and (not validate or is_traced()):
        return
    numbers = torch.as_tensor(value, device=None if is_tensor else "cpu")
    inside = numbers >= 0 if name == "step_size" else numbers > 0
    if not bool((inside & (numbers <= top) & numbers.isfinite()).all()):
        domain = "[0, inf)" if math.isinf(top) else "(0, 1]"
        raise ValueError(f"{name} must lie in {domain}, got {name}={value!r}.")


def check_shape(energy: Any, shape: torch.Size, event_shape: torch.Size) -> None:
    """Refuses what is no potential of each event; what is no tensor is refused later."""
    expected = shape[: len(shape) - len(event_shape)]
    if isinstance(energy, Tensor) and energy.shape != expected:
        raise ValueError(
            f"The potential returned shape {tuple(energy.shape)} for values of shape "
            f"{tuple(shape)}, expected {tuple(expected)}: it maps (..., *event_shape) to (...) "
            f"with event_shape {tuple(event_shape)}. Sum or squeeze its output, or let "
            "base_dist.to_event(n) turn the base distribution's last dimensions into its event."
        )


def check_moments(moments: Any, shape: torch.Size, validate: bool) -> None:
    """Refuses what is no pair of location and positive scale."""
    is_pair = isinstance(moments, tuple) and len(moments) == 2
    if not is_pair or any(getattr(moment, "shape", None) != shape for moment in moments):
        raise ValueError(
            f"The momentum net maps values of shape {tuple(shape)} to a pair of tensors of that "
            "shape, location and scale of the momentum, as pyro_ext.nn.MomentumNet does, got "
            f"{[tuple(m.shape) if isinstance(m, Tensor) else m for m in moments]}."
            if is_pair
            else f"The momentum net returns a pair of location and scale, got {type(moments)}."
        )
    if validate and not is_traced() and not bool((moments[1] > 0).all()):
        raise ValueError(
            "The momentum net's scale is not positive everywhere. Pass its output through "
            "softplus or exp, and lower the learning rate if it is NaN."
        )


def check_finite(position: Tensor, momentum: Tensor) -> None:
    """Refuses paths that blew up."""
    bad = ~(position.isfinite() & momentum.isfinite())
    if bool(bad.any()):
        raise ValueError(
            f"The leapfrog path is not finite at {int(bad.sum())} of {bad.numel()} numbers. "
            "Lower the step size: eps^2 times the largest curvature of the potential must stay "
            "below 4; or bound the potential, and keep the tempering near one."
        )


def _refuse(potential: nn.Module, kinds: tuple[type, ...], what: str) -> None:
    found = next(_named(potential, kinds, training=True), None)
    if found is not None:
        raise ValueError(
            f"The potential {type(potential).__name__} has a layer {found} in training mode, "
            f"which {what}. Remove it, or call .eval() on it if it keeps running statistics."
        )


def _named(potential: nn.Module, kinds: tuple[type, ...], training: bool = False) -> Iterator[str]:
    for name, module in potential.named_modules():
        is_live = module.training or getattr(module, "track_running_stats", True) is False
        if (is_live or not training) and isinstance(module, kinds):
            yield f"{name or 'itself'} ({type(module).__name__})"
