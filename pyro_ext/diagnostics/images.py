"""Figures of merit of densities of images."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution


@torch.no_grad()
def bits_per_dim(distribution: Distribution, images: Tensor, batch_size: int = 100) -> Tensor:
    r"""Bits that a density of integers spends on each number of an image.

    .. math:: -\frac{\log_2 P(x)}{D}

    A random bound such as :class:`~pyro_ext.distributions.Dequantized` gives a random upper bound
    of the bits, unbiased for its mean; ``tight(num)`` lowers it.

    Args:
        distribution: of images of integers, of batch shape ``()``, or ``(N,)``: one density for
            each image, which are then all scored at once.
        images: ``(N, *event_shape)``.
        batch_size: images that are scored at once.

    Returns:
        ``(N,)``, in bits per dimension.

    Raises:
        ValueError: if the density is one of real numbers, whose bits depend on their unit, or its
            batch is not that of the images.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.distributions import Dequantized
        >>> uniform = dist.Uniform(torch.full((1, 8, 8), -0.5), 0.5).to_event(3)
        >>> bits_per_dim(Dequantized(uniform, 8), torch.randint(256, (3, 1, 8, 8)))
        tensor([8., 8., 8.])
    """
    support: Any = distribution.support
    if not support.is_discrete:
        raise ValueError(
            f"Bits of real numbers depend on their unit, and {type(distribution).__name__} is a "
            "density of real numbers. Observe integers, through Dequantized say."
        )
    batch = distribution.batch_shape
    if batch and batch != images.shape[:1]:
        raise ValueError(
            f"bits_per_dim needs one density, or one for each of {len(images)} images; got batch "
            f"shape {tuple(batch)}."
        )
    parts = [images] if batch else images.split(batch_size)
    nats = torch.cat([-distribution.log_prob(part) for part in parts])
    return nats / (math.log(2) * distribution.event_shape.numel())
