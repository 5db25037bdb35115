"""Which pixels a network sees at each pixel."""

from typing import Any

import torch
from torch import Tensor


def influence(net: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    r"""How much each pixel counts for the law of each, by automatic derivatives.

    .. math:: I_{ij} = \sum_{c} \Bigl\lvert \frac{\partial \sum_k f_{ki}(x)}{\partial x_{cj}}
        \Bigr\rvert

    where :math:`f_{ki}` are the outputs at pixel :math:`i`. It takes a backward pass for each
    pixel.

    Args:
        net: a :class:`PixelCNNNet`, or any with its ``prepare``, ``features_of`` and ``run``.
        x: an image, ``(C, H, W)``.
        context: of the image, without a batch.

    Returns:
        ``(H, W, H, W)``: of the pixels in the last two dimensions at those in the first.
    """
    channels, height, width = x.shape
    features, _ = net.features_of(context)
    features = None if features is None else features.unsqueeze(0)
    options: Any = {"retain_graph": True, "materialize_grads": True}
    with torch.inference_mode(False), torch.enable_grad():
        image = net.prepare(x.unsqueeze(0)).clone().requires_grad_()
        outputs = net.run(image, features).sum((0, 1))  # (H, W)
        rows = [
            torch.autograd.grad(outputs[i, j], image, **options)[0]
            for i in range(height)
            for j in range(width)
        ]
    seen = torch.stack(rows)[:, 0, :channels, :height, :width].abs().sum(1)
    return seen.reshape(height, width, height, width)


def check_causality(net: Any, x: Tensor, context: Tensor | None = None) -> None:
    """Checks that the law of no pixel depends on that pixel or a later one.

    Args:
        net: as of :func:`influence`.
        x: an image, ``(C, H, W)``.
        context: of the image, without a batch.

    Raises:
        ValueError: if it does, the message names a pair of pixels; or if the derivatives are not
            finite.

    Example:
        >>> from pyro_ext.nn import PixelCNNNet
        >>> net = PixelCNNNet((1, 4, 4), 2, 5, 8, 1, 2, head="bernoulli")
        >>> check_causality(net, torch.randint(2, (1, 4, 4)))
    """
    seen = influence(net, x, context)
    if not bool(seen.isfinite().all()):
        raise ValueError("The network's derivatives are not finite: look for NaN parameters.")
    height, width = seen.shape[:2]
    leaks = seen.reshape(height * width, -1).triu().nonzero()
    if len(leaks):
        (i, j), num = leaks[0].tolist(), len(leaks)
        raise ValueError(
            f"The law of pixel {divmod(i, width)} depends on pixel {divmod(j, width)}, which is "
            f"not before it, and so do {num - 1} more pairs: log_prob is not that of any law."
        )
