"""Images moved in the latent space of a flow."""

import torch
from torch import Tensor

from pyro_ext.nn.glow import GlowNet
from pyro_ext.ops.counts import count


@torch.no_grad()
def interpolate(
    net: GlowNet, x1: Tensor, x2: Tensor, num: int, context: Tensor | None = None
) -> Tensor:
    r"""Images on the straight line between the latents of two images, which are its ends.

    .. math::

        x_t = g\bigl((1 - t)\, g^{-1}(x_1) + t\, g^{-1}(x_2)\bigr), \qquad
        t = 0, \tfrac1{n - 1}, \dots, 1

    If only the last level's prior sees the context, all contexts give the same images.

    Args:
        net: :math:`g`, with its latents as ``GlowNet.encode`` gives them.
        x1: ``(*batch, C, H, W)``, real numbers as the net takes them.
        x2: likewise; the batches broadcast.
        num: :math:`n \ge 2`.
        context: of both images and all between, if the net takes one.

    Returns:
        ``(num, *batch, C, H, W)``.

    Raises:
        ValueError: if ``num`` is below two, or the net cannot take images or context.

    References:
        Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*,
        arXiv 1807.03039.

    Example:
        >>> net = GlowNet((1, 8, 8), depth=2, levels=2, width=16)
        >>> images = torch.rand(20, 1, 8, 8) - 0.5
        >>> between = interpolate(net.initialize(images), images[:3], images[3:6], num=5)
        >>> between.shape, torch.allclose(between[-1], images[3:6], atol=1e-4)
        (torch.Size([5, 3, 1, 8, 8]), True)
    """
    num = count(num, "num", 2)
    z1, z2 = (net.encode(x, context, start=False)[0] for x in (x1, x2))
    z1, z2 = torch.broadcast_tensors(z1, z2)
    weight = torch.linspace(0, 1, num, dtype=z1.dtype, device=z1.device)
    return net.decode(torch.lerp(z1, z2, weight.reshape(-1, *[1] * z1.dim())), context)[0]


@torch.no_grad()
def attribute_direction(
    net: GlowNet, images: Tensor, labels: Tensor, context: Tensor | None = None
) -> Tensor:
    r"""The way in latent space from images without an attribute to those with it.

    .. math::

        \delta = \frac1{\lvert A \rvert} \sum_{i \in A} g^{-1}(x_i)
        - \frac1{\lvert \bar A \rvert} \sum_{i \notin A} g^{-1}(x_i)

    An image gains the attribute as :math:`g(g^{-1}(x) + \alpha \delta)`, and loses it with
    :math:`\alpha < 0`.

    Args:
        net: :math:`g`, with its latents as ``GlowNet.encode`` gives them.
        images: ``(N, C, H, W)``, real numbers as the net takes them.
        labels: ``(N,)``, of bool: whether an image has the attribute.
        context: of the images, if the net takes one.

    Returns:
        :math:`\delta`, ``(D,)``.

    Raises:
        ValueError: if ``labels`` are not one bool for each image, or all images or none have the
            attribute, or the net cannot take images or context.

    References:
        Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*,
        arXiv 1807.03039.

    Example:
        >>> net = GlowNet((1, 8, 8), depth=2, levels=2, width=16)
        >>> images = torch.rand(20, 1, 8, 8) - 0.5
        >>> is_bright = images.mean((1, 2, 3)) > 0
        >>> direction = attribute_direction(net.initialize(images), images, is_bright)
        >>> latents, _ = net.encode(images[:3])
        >>> net.decode(latents + 0.5 * direction)[0].shape
        torch.Size([3, 1, 8, 8])
    """
    _check_labels(images, labels)
    latents, _ = net.encode(images, context, start=False)
    return latents[labels].mean(0) - latents[~labels].mean(0)


def _check_labels(images: Tensor, labels: Tensor) -> None:
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels are a tensor of bool, got {labels!r}.")
    if labels.dtype != torch.bool or labels.shape != images.shape[:-3] or labels.dim() != 1:
        raise ValueError(
            "attribute_direction needs images (N, C, H, W) and one bool for each, got "
            f"{tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}."
        )
    if bool(labels.all()) or not bool(labels.any()):
        raise ValueError("A direction needs images with the attribute and images without it.")
