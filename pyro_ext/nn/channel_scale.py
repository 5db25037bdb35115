"""What is left of gates in a pruned network: a fixed scale of channels, and a choice of them."""

from torch import Tensor, nn


class ChannelScale(nn.Module):
    r"""Multiplies each channel by a fixed number, :math:`y_k = s_k x_k`.

    Args:
        scale: :math:`s`, ``(channels,)``; a buffer.
        dim: the dimension of the channels, counted from the right.

    Example:
        >>> import torch
        >>> ChannelScale(torch.tensor([0.5, 1.0]))(torch.ones(3, 2))[0]
        tensor([0.5000, 1.0000])
    """

    scale: Tensor

    def __init__(self, scale: Tensor, dim: int = -1):
        super().__init__()
        self.register_buffer("scale", scale)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels."""
        return x * self.scale[(..., *[None] * (-self.dim - 1))]

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"{len(self.scale)}, dim={self.dim}"


class ChannelSelect(nn.Module):
    r"""Picks channels by their index, in order.

    Args:
        index: which, ``(kept,)``; a buffer.
        dim: the dimension of the channels.

    Example:
        >>> import torch
        >>> ChannelSelect(torch.tensor([2, 0]), dim=-1)(torch.arange(3.0))
        tensor([2., 0.])
    """

    index: Tensor

    def __init__(self, index: Tensor, dim: int):
        super().__init__()
        self.register_buffer("index", index)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Picks the channels."""
        return x.index_select(self.dim, self.index)

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"{len(self.index)}, dim={self.dim}"
