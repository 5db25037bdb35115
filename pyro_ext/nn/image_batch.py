"""Batches of images and of their contexts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def joint_batch(batch: torch.Size, features: Tensor | None, kept: int = 1) -> torch.Size:
    """The batch shape of images and of contexts, if there are any.

    Args:
        batch: of the images.
        features: of the contexts.
        kept: how many of their last dimensions are an event.

    Raises:
        ValueError: if they do not broadcast.
    """
    context = torch.Size() if features is None else features.shape[:-kept]
    try:
        return torch.broadcast_shapes(batch, context)
    except RuntimeError:
        raise ValueError(
            f"Images of batch shape {tuple(batch)} and contexts of {tuple(context)} do not "
            "broadcast: their left dimensions must agree."
        ) from None


def flat(x: Tensor, batch: Sequence[int], kept: int) -> Tensor:
    """Expands all but the last dimensions to a batch shape, and makes one of them.

    Example:
        >>> flat(torch.zeros(3, 1, 8), (3, 2), 1).shape
        torch.Size([6, 8])
    """
    event = x.shape[x.dim() - kept :]
    return x.expand((*batch, *event)).reshape(math.prod(batch), *event)
