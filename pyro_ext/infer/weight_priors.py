"""Prior distributions of the parameters of a module."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributions import Distribution

from pyro_ext.nn.l0_gate import L0Gate

Prior = Distribution | Callable[[str, nn.Parameter], Distribution | None]


def random_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Those that are not frozen, and none of a gate."""
    gates = {id(part.log_alpha) for part in module.modules() if isinstance(part, L0Gate)}
    return {
        name: value
        for name, value in module.named_parameters()
        if value.requires_grad and id(value) not in gates
    }


def weight_priors(prior: Prior, parameters: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Distributions of whole parameters, by name.

    Args:
        prior: of a single weight, or a function, as in :func:`~pyro_ext.infer.bayesianize`.
        parameters: by name.

    Raises:
        ValueError: if it fits no parameter, or not the shape of one.
    """
    found = {name: _prior_of(prior, name, value) for name, value in parameters.items()}
    priors = {name: fn for name, fn in found.items() if fn is not None}
    if not priors:
        raise ValueError(
            "No parameter of the module has a prior; those that are neither frozen nor a gate's "
            f"are {list(parameters)}. Give prior= a distribution, or a function that returns one "
            "for some of them."
        )
    return priors


def _prior_of(prior: Prior, name: str, value: nn.Parameter) -> Any:
    fn: Any = prior if isinstance(prior, Distribution) else _call(prior, name, value)
    if fn is None:
        return None
    if not isinstance(fn, Distribution):
        raise ValueError(f"The prior of '{name}' must be a distribution or None, got {fn!r}.")
    num_dims = value.dim() - len(fn.event_shape)
    try:
        whole: Any = fn.expand(value.shape[:num_dims])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The prior of '{name}' has shape {tuple(fn.batch_shape + fn.event_shape)}, which "
            f"does not broadcast to {tuple(value.shape)}. Give that of a single weight."
        ) from error
    if whole.batch_shape + whole.event_shape != value.shape:
        raise ValueError(
            f"The prior of '{name}' has events of shape {tuple(fn.event_shape)}, the parameter has "
            f"shape {tuple(value.shape)}. Let events be its rightmost dimensions."
        )
    return whole.to_event(num_dims)


def _call(prior: Any, name: str, value: nn.Parameter) -> Any:
    if not callable(prior):
        raise ValueError(
            f"prior must be a distribution or a function of name and parameter, got {prior!r}."
        )
    return prior(name, value)
