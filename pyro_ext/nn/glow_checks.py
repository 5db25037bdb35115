"""What a Glow cannot be built from, or applied to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ext.nn.compute_dtype import check_dtype
from pyro_ext.nn.coupling_chain import MEMORY
from pyro_ext.ops.counts import count


def check_config(
    image_shape: Sequence[int],
    levels: int,
    num_classes: int,
    context_dim: int,
    condition_couplings: bool,
    classifier: bool,
    **_,
) -> None:
    """Refuses arguments of a net that are out of their range; each level checks its own."""
    count(levels, "levels")
    for name, value in {"num_classes": num_classes, "context_dim": context_dim}.items():
        count(value, name, 0)
    if num_classes and context_dim:
        raise ValueError("GlowNet takes labels or vectors as context: num_classes or context_dim.")
    if condition_couplings and not num_classes and not context_dim:
        raise ValueError("condition_couplings needs a context: num_classes or context_dim.")
    if classifier and (condition_couplings or not num_classes):
        raise ValueError(
            "A classifier needs num_classes, and couplings that do not see the label: "
            "condition_couplings=False."
        )
    _check_image_shape(image_shape, levels)


def check_level(depth: int, width: int, memory: str, compute_dtype: torch.dtype | None) -> None:
    """Refuses arguments of a level that are out of their range."""
    count(depth, "depth")
    count(width, "width")
    if memory not in MEMORY:
        raise ValueError(f"memory is one of {', '.join(MEMORY)}, got {memory!r}.")
    check_dtype(compute_dtype)


def _check_image_shape(image_shape: Sequence[int], levels: int) -> None:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"GlowNet takes images (C, H, W), got image_shape={tuple(image_shape)}.")
    if any(size % 2**levels for size in image_shape[1:]):
        raise ValueError(
            f"Height and width must be divisible by 2**levels = {2**levels}, got "
            f"image_shape={tuple(image_shape)}. Pad the images or take fewer levels."
        )


def check_images(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuses what are no images of a shape and dtype."""
    if not x.is_floating_point():
        raise ValueError(
            f"GlowNet is a density of real numbers, got {x.dtype}. Observe integer images "
            "through Dequantized(Glow(net), bits=8)."
        )
    if x.shape[-3:] != torch.Size(shape):
        raise ValueError(f"GlowNet takes images (..., {tuple(shape)}), got {tuple(x.shape)}.")
    if x.dtype != dtype:
        raise ValueError(f"GlowNet computes in {dtype}, got {x.dtype}. Convert one of them.")


def check_latents(z: Tensor, size: int, dtype: torch.dtype) -> None:
    """Refuses what are no flat latents of a size and dtype."""
    if z.shape[-1:] != (size,) or z.dtype != dtype:
        raise ValueError(
            f"GlowNet has latents (..., {size}) of {dtype}, got {tuple(z.shape)} of {z.dtype}."
        )
