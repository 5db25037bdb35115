"""What a PixelCNN cannot be built from, or applied to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ext.nn.compute_dtype import check_half
from pyro_ext.ops.counts import count

HEADS = ("logistic", "bernoulli", "categorical")


def check_config(
    image_shape: Sequence[int],
    levels: int,
    num_components: int,
    hidden_channels: int,
    num_resnets: int,
    stages: int,
    head: str,
    window: tuple[int, int] | None,
    num_classes: int,
    context_dim: int,
    context_channels: int,
    dropout: float,
    compute_dtype: torch.dtype | None,
) -> None:
    """Refuses arguments out of their range."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"PixelCNNNet takes images (C, H, W), got image_shape={image_shape}.")
    sizes = {
        "num_components": num_components,
        "hidden_channels": hidden_channels,
        "num_resnets": num_resnets,
        "stages": stages,
    }
    for name, value in sizes.items():
        count(value, name)
    count(levels, "levels", 2)
    contexts = {
        "num_classes": num_classes,
        "context_dim": context_dim,
        "context_channels": context_channels,
    }
    for name, value in contexts.items():
        count(value, name, 0)
    _check_head(head, levels)
    _check_window(window)
    if sum(value > 0 for value in contexts.values()) > 1:
        raise ValueError(
            "PixelCNNNet has one kind of context: num_classes, context_dim or context_channels."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a rate in [0, 1), got {dropout}.")
    check_half(compute_dtype)


def _check_head(head: str, levels: int) -> None:
    if head not in HEADS:
        raise ValueError(f"head is one of {', '.join(HEADS)}, got {head!r}.")
    if head == "bernoulli" and levels != 2:
        raise ValueError(f'head="bernoulli" is for levels=2, got levels={levels}.')


def _check_window(window: tuple[int, int] | None) -> None:
    if window is not None and (len(window) != 2 or window[0] < 1 or window[1] < 0):
        raise ValueError(f"window is (width, height), a width of one or more, got {window}.")


def check_pixels(x: Tensor, shape: Sequence[int]) -> None:
    """Refuses what are no images of a shape."""
    if x.shape[-3:] != torch.Size(shape):
        raise ValueError(f"PixelCNNNet takes images (..., {tuple(shape)}), got {tuple(x.shape)}.")


def check_integers(x: Tensor, levels: int) -> None:
    """Refuses pixels that are no integers below a number of levels."""
    pixels = x.double()
    if not bool(((pixels >= 0) & (pixels < levels) & (pixels == pixels.round())).all()):
        raise ValueError(
            f"Pixels are integers from 0 to {levels - 1}, of any dtype; got {x.dtype} from "
            f"{pixels.min():g} to {pixels.max():g}. Images in [0, 1] or [-1, 1] have to be rounded "
            "to levels first."
        )


def check_uniforms(uniforms: Tensor, shape: Sequence[int], num: int) -> None:
    """Refuses what cannot be decoded to images of a shape."""
    expected = (*shape[1:], num)
    if uniforms.shape[-3:] != torch.Size(expected):
        raise ValueError(
            f"An image is decoded from uniform numbers (..., {expected}), got "
            f"{tuple(uniforms.shape)}."
        )


def check_mask(mask: Tensor, shape: Sequence[int]) -> None:
    """Refuses what is no mask of images of a shape."""
    if mask.shape[-2:] != torch.Size(shape[1:]):
        raise ValueError(f"mask has shape (..., {tuple(shape[1:])}), got {tuple(mask.shape)}.")
