"""Networks started from data, layer after layer."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.weight_norm import WeightNorm

_CONSTANT = 1e-6


@torch.no_grad()
def start_layers(net: nn.Module, *inputs: Any) -> Any:
    """Runs a network once, whose weight-normalised layers start from what they are given.

    In the order of the run: each layer's outputs are standardised before the next one sees them.
    A layer that sees nothing of the data, as where all that it sees is padding, is left as it is.
    The run is in evaluation mode, without dropout.

    Args:
        net: whose layers of :class:`WeightNorm` are started.
        *inputs: of the network, the data first.

    Returns:
        The network's outputs.

    Raises:
        ValueError: if the data are not finite, or all the same.
    """
    _check_data(inputs[0])
    parts = list(net.modules())
    in_training = [part for part in parts if part.training]
    layers = [part for part in parts if isinstance(part, WeightNorm)]
    hooks = [layer.register_forward_hook(_start) for layer in layers]
    net.eval()
    try:
        return net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for part in in_training:
            part.training = True


def _start(layer: Any, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
    y = outputs.movedim(layer.channel_dim, -1)
    return layer.initialize(*inputs) if _tells_data_apart(y) else outputs


def _tells_data_apart(y: Tensor) -> bool:
    """Whether each channel of ``(N, ..., F)`` varies with the data.

    What varies from place to place alone, because of padding, says nothing of them. Of a single
    datum nothing is known.
    """
    if len(y) < 2:
        return True
    variances, squares = (x.flatten(0, -2).mean(0) for x in (y.var(0, keepdim=True), y.square()))
    return bool((variances > _CONSTANT * squares).all())


def _check_data(x: Tensor) -> None:
    values = x.double()
    if not bool(values.isfinite().all()):
        raise ValueError("A network cannot start from data that are not finite.")
    first = values[:1] if len(values) > 1 else values.flatten()[:1]
    if bool((values == first).all()):
        raise ValueError(
            "A network cannot start from data that are all the same: start from a few hundred "
            "images that differ."
        )
