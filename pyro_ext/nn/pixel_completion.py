"""Images of which some pixels are known."""

import math

import torch
from torch import Tensor

from pyro_ext.nn.pixel_sampler import PixelSampler


def complete(
    sampler: PixelSampler, observed: Tensor, mask: Tensor, num_particles: int
) -> tuple[Tensor, Tensor]:
    r"""Sequential Monte Carlo over the pixels of images.

    Particles draw what is hidden from the net, and are weighted by the probabilities of what is
    observed; they are resampled once the effective number of an image is below a half. The mean
    weight of an image is an unbiased estimate of the probability of its observed pixels.

    Args:
        sampler: of ``num_particles * B`` images.
        observed: ``(num_particles * B, C, H, W)``.
        mask: ``(num_particles * B, H, W)``, which pixels are observed.
        num_particles: of each image; the same image's are ``B`` apart.

    Returns:
        Images, as ``observed``, and log weights ``(num_particles * B,)``.
    """
    log_weights = observed.new_zeros(len(observed))
    _, height, width = mask.shape
    head = sampler.net.head
    for row in range(height):
        sampler.cache.start_row(row)
        for column in range(width):
            outputs, is_seen = sampler.outputs(row, column), mask[:, row, column]
            uniforms = torch.rand_like(outputs[:, :1].expand(-1, head.num_uniforms))
            drawn = head.sample(uniforms, outputs, 1.0)
            pixel = torch.where(is_seen.unsqueeze(-1), observed[..., row, column], drawn)
            log_weights = log_weights + is_seen * head.log_prob(pixel, outputs, 1.0)
            sampler.put(row, column, pixel)
            log_weights = _resample(sampler, log_weights, num_particles)
    return sampler.images, log_weights


def _resample(sampler: PixelSampler, log_weights: Tensor, num_particles: int) -> Tensor:
    """Replaces the particles of images whose weights are too uneven."""
    table = log_weights.reshape(num_particles, -1)  # (K, B)
    weights = table.softmax(0)
    is_uneven = weights.square().sum(0) * num_particles > 2  # half of them count
    if not bool(is_uneven.any()):
        return log_weights
    places = torch.arange(num_particles, device=table.device).unsqueeze(1)
    offset = torch.rand(table.shape[1], device=table.device, dtype=table.dtype)
    ancestors = torch.searchsorted(
        weights.cumsum(0).T.contiguous(), ((places + offset) / num_particles).T.contiguous()
    ).T.clamp_max(num_particles - 1)
    ancestors = torch.where(is_uneven, ancestors, places)
    columns = torch.arange(table.shape[1], device=table.device)
    sampler.select((ancestors * table.shape[1] + columns).flatten())
    mean = table.logsumexp(0) - math.log(num_particles)
    return torch.where(is_uneven, mean, table).flatten()
