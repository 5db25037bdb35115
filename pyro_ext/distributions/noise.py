"""Noise that energies are told apart from: given contexts, drawn and scored in one pass."""

from typing import Any

import torch
from pyro.distributions import ConditionalDistribution
from pyro.distributions import TransformedDistribution as PyroTransformedDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, TransformedDistribution

from pyro_ext.distributions.wrappers import density_kind

HOW = (
    "Pass a distribution, or what returns one when it is called with a context: best a module, "
    "whose parameters are then the objective's too."
)


def check_noise(noise: Any, trained: bool = False) -> None:
    """Refuses what cannot be noise.

    Args:
        noise: a distribution, or a callable from contexts to one.
        trained: whether it must own parameters.

    Raises:
        ValueError: if it is neither, or a class; if it ought to be a module and is none.
    """
    known = isinstance(noise, Distribution | ConditionalDistribution) or callable(noise)
    if not known or isinstance(noise, type):
        raise ValueError(f"The noise is {noise!r}. {HOW}")
    if trained and not any(True for _ in parameters_of(noise)):
        raise ValueError(
            f"The noise is trained, but {noise!r} owns no parameters that an optimiser could find. "
            "Pass a module whose forward(context) returns the distribution."
        )


def parameters_of(noise: Any) -> Any:
    """The parameters of a module, and none of anything else."""
    return noise.parameters() if isinstance(noise, nn.Module) else iter(())


def noise_given(noise: Any, context: Tensor | None, x: Tensor | None = None) -> Any:
    """The distribution of the noise at contexts, whose batch is that of the data or empty.

    Raises:
        ValueError: if it is no distribution, has no exact density or does not fit the data.
    """
    made = _condition(noise, context)
    if not isinstance(made, Distribution):
        raise ValueError(f"The noise returned {made!r}, expected a distribution. {HOW}")
    if density_kind(made) != "exact":
        raise ValueError(
            f"The log_prob of {made} is a bound, and noise needs its density. Take a flow, or the "
            "proposal of this distribution."
        )
    if x is not None:
        check_shapes(made, x)
    return made


def _condition(noise: Any, context: Tensor | None) -> Any:
    """By ``condition``, where there is one: calling a PyroModule would register its parameters."""
    if isinstance(noise, Distribution):
        return noise
    return noise.condition(context) if hasattr(noise, "condition") else noise(context)


def check_shapes(distribution: Distribution, x: Tensor) -> None:
    """Refuses noise of another event shape than the data's, or of another batch."""
    event_dim = len(distribution.event_shape)
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    if event != distribution.event_shape or distribution.batch_shape not in (batch, ()):
        raise ValueError(
            f"Data of shape {tuple(x.shape)} need noise of one event for each datum, got events "
            f"{tuple(distribution.event_shape)} in batches {tuple(distribution.batch_shape)}. "
            "to_event(n) makes an event of a batch; without a context the batch is ()."
        )


def batch_of(distribution: Distribution, x: Tensor) -> torch.Size:
    """The batch shape of data."""
    return x.shape[: x.dim() - len(distribution.event_shape)]


def draw(distribution: Any, sample_shape: torch.Size | tuple) -> tuple[Tensor, Tensor]:
    """Draws and their log densities, both with a path, in one pass where that is possible.

    Raises:
        ValueError: if gradients are recorded, but draws have no path.
    """
    if hasattr(distribution, "rsample_and_log_prob"):
        return distribution.rsample_and_log_prob(sample_shape)
    if not distribution.has_rsample:
        return _draw_without_path(distribution, sample_shape)
    if _is_composed(distribution):
        return _draw_transformed(distribution, sample_shape)
    if isinstance(distribution, Independent):
        return _draw_independent(distribution, sample_shape)
    x = distribution.rsample(sample_shape)
    return x, distribution.log_prob(x)


def _draw_without_path(distribution: Any, sample_shape: Any) -> tuple[Tensor, Tensor]:
    x = distribution.sample(sample_shape)
    log_prob = distribution.log_prob(x)
    if log_prob.requires_grad:
        raise ValueError(
            f"The noise {distribution} is to be trained through its draws, which have no path "
            "(has_rsample is False). Take a flow."
        )
    return x, log_prob


def _is_composed(distribution: Any) -> bool:
    """Whether the density is that of the base and of transforms, and no class's own."""
    kinds = TransformedDistribution, PyroTransformedDistribution
    return any(type(distribution).log_prob is kind.log_prob for kind in kinds)


def _draw_transformed(distribution: Any, sample_shape: Any) -> tuple[Tensor, Tensor]:
    """Forwards only: no transform is inverted, so that its inverse may be slow or missing."""
    base = distribution.base_dist
    x, log_prob = draw(base, sample_shape)
    event_dim = len(base.event_shape)
    for transform in distribution.transforms:
        y = transform(x)
        log_det = transform.log_abs_det_jacobian(x, y)
        log_prob = log_prob - sum_rightmost(log_det, event_dim - transform.domain.event_dim)
        event_dim += transform.codomain.event_dim - transform.domain.event_dim
        x = y
    return x, log_prob


def _draw_independent(distribution: Any, sample_shape: Any) -> tuple[Tensor, Tensor]:
    x, log_prob = draw(distribution.base_dist, sample_shape)
    return x, sum_rightmost(log_prob, distribution.reinterpreted_batch_ndims)
