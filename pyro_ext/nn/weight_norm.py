"""Layers whose weights have a direction and a length."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.channel_statistics import channel_statistics
from pyro_ext.ops.slices import lengths, scaled_to

_MOMENTUM = 0.1


class WeightNorm(nn.Module):
    r"""Abstract: a layer with one length for each output channel.

    .. math:: y_k = g_k \frac{v_k}{\lVert v_k \rVert} * x + b_k

    Starts with the weights that torch gives the plain layer. :meth:`initialize` starts lengths and
    biases from data instead, so that outputs have mean zero and standard deviation ``init_scale``.
    A :math:`v_k` of zeros has a weight of zeros. Parameters are plain: named ``v``, ``g`` and
    ``bias``, they can be pickled, and may be replaced by ``PyroSample`` in a layer that a model
    runs.
    """

    channel_dim = -3
    running_mean: Tensor

    def __init__(
        self,
        kind: type[nn.Module],
        options: dict[str, Any],
        axis: int,
        init_scale: float,
        mean_only_batch_norm: bool,
    ):
        super().__init__()
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}.")
        self.kind, self.options = kind, options
        self.axis, self.init_scale = axis, init_scale
        self.mean_only_batch_norm = mean_only_batch_norm
        plain: Any = kind(**options)
        self.v: Any = nn.Parameter(plain.weight.detach().clone())
        self.g: Any = nn.Parameter(lengths(self.v.detach(), axis))
        self.bias: Any = nn.Parameter(torch.zeros_like(self.g))
        if mean_only_batch_norm:
            self.register_buffer("running_mean", torch.zeros_like(self.g.detach()))

    def weight(self) -> Tensor:
        r""":math:`g v / \lVert v \rVert`, in the shape of torch's own layer."""
        return scaled_to(self.v, self.g, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs."""
        if not self.mean_only_batch_norm:
            return self.apply_weight(x, self.weight(), self.bias)
        y = self.apply_weight(x, self.weight(), None)
        return y + self._channels(self.bias - self._mean(y))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Starts lengths and biases from ``x``, and returns the outputs.

        Raises:
            ValueError: if an output channel is constant or has one value only.
        """
        y = self.apply_weight(x, scaled_to(self.v, torch.ones_like(self.g), self.axis), None)
        images = y.movedim(self.channel_dim, -1).flatten(0, -2)[..., None, None]
        mean, std = channel_statistics(images, type(self).__name__)
        self.g.copy_(self.init_scale / std)
        centre = self.init_scale * mean / std
        if self.mean_only_batch_norm:
            self.running_mean.copy_(centre)
            self.bias.zero_()
        else:
            self.bias.copy_(-centre)
        return self._channels(self.g) * y - self._channels(centre)

    @torch.no_grad()
    def load_plain(self, plain: Any) -> Any:
        """Takes the weights of torch's own layer, with or without its weight norm.

        Raises:
            ValueError: if it is another layer, of other shapes, strides and so on, or one of the
                old ``torch.nn.utils.weight_norm``, whose weight may be out of date.
        """
        self._check_plain(plain)
        weight = plain.weight
        self.v.copy_(weight)
        self.g.copy_(lengths(weight, self.axis))
        self.bias.zero_() if plain.bias is None else self.bias.copy_(plain.bias)
        if self.mean_only_batch_norm:
            self.running_mean.zero_()
        return self

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """Torch's own layer with these weights, and what it computes in evaluation mode."""
        layer: Any = self.kind(**self.options).to(self.v)
        layer.weight.copy_(self.weight())
        layer.bias.copy_(self.bias)
        if self.mean_only_batch_norm:
            layer.bias.sub_(self.running_mean)
        return layer

    @abstractmethod
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What torch's own layer computes."""

    def _channels(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (-self.channel_dim - 1))

    def _check_plain(self, plain: Any) -> None:
        """Refuses a layer that computes something else."""
        own: Any = self.kind(**self.options)
        names = {*self.options, "padding_mode"} & vars(own).keys()
        other = sorted(k for k in names if getattr(plain, k, None) != getattr(own, k))
        if not isinstance(plain, self.kind) or other or plain.weight.shape != own.weight.shape:
            raise ValueError(
                f"{type(self).__name__} takes the weights of {own}, got {plain}"
                + (f", of other {', '.join(other)}." if other else ".")
            )
        if hasattr(plain, "weight_v"):
            raise ValueError("Call torch.nn.utils.remove_weight_norm(layer) first.")

    def _mean(self, y: Tensor) -> Tensor:
        if not self.training:
            return self.running_mean
        mean = y.movedim(self.channel_dim, -1).flatten(0, -2).mean(0)
        self.running_mean.lerp_(mean.detach(), _MOMENTUM)
        return mean
