"""A convolution that learns which channels it needs."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.l0_gate import L0Gate, check_penalty, gate_of


class L0Conv2d(nn.Conv2d):
    r"""A convolution with one hard concrete gate for each output channel.

    .. math::

        y_k = z_k (w_k * x + b_k), \qquad
        R = \sum_k P(z_k \ne 0) \Bigl( \lambda (\lvert w_k \rvert + 1)
        + \frac{\delta}{2} (\lVert w_k \rVert^2 + b_k^2) \Bigr)

    where :math:`\lvert w_k \rvert` is the number of weights of filter :math:`k`; without a bias,
    what belongs to it is left out. The bias is gated too, and gates fold into the filters: gates
    of the whole batch and those in evaluation cost next to nothing.

    A closed channel is zero. Batch normalisation turns it into another constant, which
    :func:`~pyro_ext.models.prune` accounts for.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, one gate each.
        kernel_size: as in :class:`torch.nn.Conv2d`, like ``stride``, ``padding``, ``dilation``,
            ``groups``, ``bias`` and ``padding_mode``.
        stride: step of the kernel.
        padding: of the input.
        dilation: spacing of the kernel.
        groups: of the channels.
        bias: whether there is one.
        padding_mode: of the input.
        gate: gates to share, ``L0Gate(out_channels, dim=-3)``; new ones if not given.
        device: of the parameters.
        dtype: of the parameters.
        **options: of the new :class:`~pyro_ext.nn.L0Gate`: ``droprate``, ``temperature``,
            ``stretch``, ``per_example``, ``test_gate``.

    Shape:
        ``(batch, in_channels, H, W) -> (batch, out_channels, H', W')``, or without the batch.

    Raises:
        ValueError: as :class:`torch.nn.Conv2d` and :class:`~pyro_ext.nn.L0Gate` do.

    References:
        Louizos, Welling and Kingma, *Learning Sparse Neural Networks through L0 Regularization*,
        arXiv 1712.01312.

    Example:
        >>> layer = L0Conv2d(1, 20, 5)
        >>> layer(torch.zeros(100, 1, 28, 28)).shape
        torch.Size([100, 20, 24, 24])
        >>> gates = torch.zeros(20)
        >>> bool(layer(torch.ones(100, 1, 28, 28), gates).any())
        False
        >>> layer.output_size((28, 28))
        (24, 24)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        *,
        gate: L0Gate | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ):
        place: Any = {"device": device, "dtype": dtype}
        gate = gate_of(gate, out_channels, -3, options, type(self).__name__, **place)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            **place,
        )
        self.gate = gate

    def reset_parameters(self) -> None:
        """Starts the weights anew, and the gates with them."""
        super().reset_parameters()
        gate = self._modules.get("gate")  # none yet while the weights are made
        if isinstance(gate, L0Gate):
            gate.reset_parameters()

    def forward(self, input: Tensor, z: Tensor | None = None) -> Tensor:
        """Convolves and gates the channels.

        Args:
            input: ``(batch, in_channels, H, W)``.
            z: gates in place of the layer's own, such as the value of a sample site,
                ``(out_channels,)`` or ``(batch, out_channels)``.
        """
        if z is None:
            z = self.gate.gates(input)
        if z.dim() > 1:
            return super().forward(input) * self.gate.align(z)
        bias = None if self.bias is None else z * self.bias
        return self._conv_forward(input, self.weight * z[:, None, None, None], bias)

    def penalty(self, weight: float = 1.0, weight_decay: float = 0.0) -> Tensor:
        r"""The penalty :math:`R` in nats, a scalar; that of :class:`~pyro_ext.nn.L0Linear`.

        Args:
            weight: :math:`\lambda \ge 0`, per weight.
            weight_decay: :math:`\delta \ge 0`, the precision of a normal prior of open weights.

        Raises:
            ValueError: if one is negative or not finite.
        """
        check_penalty(weight, weight_decay)
        squares = self.weight.square().flatten(1).sum(1)
        if self.bias is not None:
            squares = squares + self.bias.square()
        return self.gate.prob_nonzero() @ (weight * self._filter_size + weight_decay / 2 * squares)

    def expected_l0(self) -> Tensor:
        """The expected number of parameters that are not zero, biases among them."""
        return self.gate.expected_l0() * self._filter_size

    def expected_flops(self, input_size: tuple[int, int]) -> Tensor:
        r"""Expected operations for one example, as this layer's own gates have it.

        .. math:: 2 \, H' W' \lvert w_k \rvert \sum_k P(z_k \ne 0)

        Two for each multiplication and its addition, none for the bias, as
        :class:`torch.utils.flop_counter.FlopCounterMode` counts. What the gates of other layers
        save here is in the :class:`~pyro_ext.models.ExpectedFlops` of a whole network.

        Args:
            input_size: height and width of the input.
        """
        height, width = self.output_size(input_size)
        return 2 * height * width * self.weight[0].numel() * self.gate.expected_l0()

    def output_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output."""
        return self._extent(input_size, 0), self._extent(input_size, 1)

    @property
    def _filter_size(self) -> int:
        return self.weight[0].numel() + (self.bias is not None)

    def _extent(self, input_size: tuple[int, int], axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        if self.padding == "same":
            return input_size[axis]
        padding = 0 if isinstance(self.padding, str) else self.padding[axis]
        return (input_size[axis] + 2 * padding - reach - 1) // self.stride[axis] + 1
