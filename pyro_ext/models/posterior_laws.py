"""Normal laws of latents given data, made from others."""

from typing import Any

import torch
from pyro.distributions import MultivariateNormal, Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor

from pyro_ext.distributions.gaussian_family import GaussianFamily
from pyro_ext.models.observations import NormalObservation
from pyro_ext.models.posteriors import DiagonalNormal, FullCovarianceNormal
from pyro_ext.nn.coupling_flow import CouplingFlow
from pyro_ext.ops.soft_bound import soft_bound

MAX_LOG = 10.0


def around_inverse(features: Tensor, inverse: Tensor, noise: Tensor) -> Distribution:
    r"""The normal law of :math:`f^{-1}(x) + \sigma (m + U D \epsilon)`.

    :math:`U` is triangular with ones, and :math:`D` holds exponentials, of numbers within 10: where
    a decoder squeezes, scales are hundreds of times the noise.

    Args:
        features: :math:`m`, :math:`\log D`, and the rows of :math:`U`, if it is not the identity,
            ``(batch, 2 * latent_dim)`` or more.
        inverse: :math:`f^{-1}(x)`, ``(batch, latent_dim)``.
        noise: standard deviations, whose geometric mean is :math:`\sigma`.
    """
    dim, unit = inverse.shape[-1], noise.log().mean().exp()
    shift, log_scale, lower = features.split([dim, dim, features.shape[-1] - 2 * dim], -1)
    loc, scale = inverse + unit * shift, unit * soft_bound(log_scale, MAX_LOG).exp()
    if lower.shape[-1] == 0:
        return Normal(loc, scale).to_event(1)
    factor = torch.diag_embed(torch.ones_like(scale))
    row, column = torch.tril_indices(dim, dim, -1, device=factor.device)
    factor[..., row, column] = lower
    return MultivariateNormal(loc, scale_tril=factor * scale.unsqueeze(-2))


def product(first: Any, second: Any) -> Distribution:
    """The normal law proportional to the product of two densities."""
    precisions = [law.stddev.square().reciprocal() for law in (first, second)]
    precision = precisions[0] + precisions[1]
    loc = (first.mean * precisions[0] + second.mean * precisions[1]) / precision
    return Normal(loc, precision.rsqrt()).to_event(1)


def check_inverse(decoder: Any, dims: tuple[int, int], observation: Any, posterior: Any) -> None:
    """Refuses what has no such posterior.

    Raises:
        ValueError: unless the decoder is invertible and of as many latents as numbers, the noise
            normal, and the posterior a normal law.
    """
    if not isinstance(decoder, CouplingFlow) or {decoder.dim} != set(dims):
        raise ValueError(
            f"A decoder of {dims[0]} latents and {dims[1]} numbers was given as {decoder!r}. Give "
            "a CouplingFlow of both sizes, which must be the same, or none for a perceptron."
        )
    if not isinstance(observation, NormalObservation):
        raise ValueError(
            f"An invertible decoder goes with a NormalObservation, got {observation!r}."
        )
    if not isinstance(posterior, DiagonalNormal | FullCovarianceNormal):
        raise ValueError(
            "Around the inverse of a decoder posteriors are DiagonalNormal or "
            f"FullCovarianceNormal, got {posterior!r}."
        )


def check_product(prior: Any, posterior: Any) -> None:
    """Refuses what has no normal product of single coordinates.

    Raises:
        ValueError: unless prior and posterior are normal laws of independent coordinates.
    """
    if not isinstance(posterior, DiagonalNormal | None):
        raise ValueError(
            f"product_posterior multiplies single coordinates, but the posterior is {posterior!r}. "
            "Leave it out, or take product_posterior=False."
        )
    law = getattr(prior, "family", None)
    if not isinstance(law, GaussianFamily) or hasattr(prior, "base_precision"):
        raise ValueError(
            f"product_posterior multiplies normal laws of single latents, but the prior is "
            f"{prior!r}. Take an IdentifiablePrior of a GaussianFamily, or product_posterior=False."
        )
