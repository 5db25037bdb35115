"""Divergences between the sites of a guide and of a model."""

import math
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pyro_ext.distributions.log_variance_normal import LogVarianceNormal


def analytic_divergence(guide: Any, model: Any) -> Tensor | None:
    r"""The divergence from guide to model in nats if it is known in closed form.

    .. math:: D = \mathbb{E}_{q(z)}[\log q(z) - \log p(z)]

    What is registered with :func:`torch.distributions.kl.register_kl` is known. Between normal
    distributions of many weights, whose prior has one location and one scale, it is summed in
    fewer passes over memory.

    Args:
        guide: :math:`q`.
        model: :math:`p`.

    Returns:
        Of the guide's ``batch_shape``, or ``None``; so too if parts are masked, or points.

    Example:
        >>> import pyro.distributions as dist
        >>> analytic_divergence(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0))
        tensor(0.5000)
        >>> analytic_divergence(dist.Normal(1.0, 1.0), dist.StudentT(3.0)) is None
        True
    """
    if _holds(guide, MaskedDistribution) or _holds(model, MaskedDistribution):
        return None
    if _holds(guide, Delta):
        return None  # its density is with respect to another measure than that of the prior
    q, p = _normal(guide), _normal(model)
    if q and p and guide.event_dim == model.event_dim:
        divergence = _normal_divergence(q, p, guide.event_dim)
        if divergence is not None:
            return divergence
    try:
        divergence = kl_divergence(guide, model)
    except NotImplementedError:
        return None
    return divergence if divergence.shape == guide.batch_shape else None


def _holds(distribution: Any, kind: type) -> bool:
    """Whether a distribution, or one that it wraps, is of a kind."""
    while distribution is not None and not isinstance(distribution, kind):
        distribution = getattr(distribution, "base_dist", None)
    return distribution is not None


def _normal(distribution: Any) -> Normal | None:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution if isinstance(distribution, Normal) else None


def _normal_divergence(q: Normal, p: Normal, num_dims: int) -> Tensor | None:
    """Between ``num_dims`` dimensions of weights and a prior that is the same for all of them."""
    loc, scale = (_one_value(x, num_dims) for x in (p.loc, p.scale))
    if loc is None or scale is None:
        return None
    dims = tuple(range(-num_dims, 0))
    size = math.prod(q.loc.shape[q.loc.dim() - num_dims :])
    distance = q.loc - loc if isinstance(loc, Tensor) or loc else q.loc
    squares = torch.addcmul(q.variance, distance, distance).sum(dims)
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    constant = size * (log_scale - 0.5)
    return squares * (0.5 / scale**2) - _log_scale(q, dims) + constant


def _log_scale(law: Normal, dims: tuple[int, ...]) -> Tensor:
    if isinstance(law, LogVarianceNormal):
        return law.log_var.sum(dims) * 0.5
    return law.scale.log().sum(dims)


def _one_value(values: Tensor, num_dims: int) -> Tensor | float | None:
    """The number that is repeated along all dimensions, if there is but one.

    It is a float if that needs no synchronisation, and no gradient.
    """
    repeats = zip(values.shape, values.stride(), strict=True)
    if num_dims and all(size == 1 or stride == 0 for size, stride in repeats):
        value = values[(0,) * values.dim()]
        is_known = value.device.type == "cpu" and not value.requires_grad
        return value.item() if is_known else value
    return None
