"""Weight-normalised counterparts of torch's layers."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear

from pyro_ext.nn.weight_norm import WeightNorm


class WeightNormLinear(WeightNorm):
    r"""A dense layer whose rows of weights have a direction and a length.

    .. math:: y_k = g_k \frac{v_k^\top x}{\lVert v_k \rVert} + b_k

    Args:
        in_features: of the input.
        out_features: of the output; one length each.
        init_scale: standard deviation of the outputs of :meth:`~WeightNorm.initialize`.
        mean_only_batch_norm: whether outputs lose their mean over the batch, and in evaluation
            mode a running mean of it.

    Shape:
        ``(*batch, in_features) -> (*batch, out_features)``.

    Raises:
        ValueError: if ``init_scale`` is not positive.

    References:
        Salimans and Kingma, *Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks*, arXiv 1602.07868.

    Example:
        >>> import torch
        >>> layer = WeightNormLinear(20, 5)
        >>> x = torch.randn(100, 20)
        >>> y = layer.initialize(x)
        >>> torch.allclose(y.std(0, correction=0), torch.ones(5), atol=1e-4)
        True
        >>> torch.allclose(layer.plain()(x), y, atol=1e-5)
        True
    """

    channel_dim = -1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init_scale: float = 1.0,
        mean_only_batch_norm: bool = False,
    ):
        options = {"in_features": in_features, "out_features": out_features}
        super().__init__(nn.Linear, options, 0, init_scale, mean_only_batch_norm)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The dense layer."""
        return linear(x, weight, bias)


class WeightNormConv2d(WeightNorm):
    r"""A convolution whose filters have a direction and a length, one of each output channel.

    .. math:: y_k = g_k \frac{v_k}{\lVert v_k \rVert} * x + b_k

    Args:
        in_channels: of the input.
        out_channels: of the output; one length each.
        kernel_size: height and width, or one number for both.
        stride: as of :class:`torch.nn.Conv2d`, and so are the next three.
        padding: zeros around the image.
        dilation: of the kernel.
        groups: of channels.
        init_scale: standard deviation of the outputs of :meth:`~WeightNorm.initialize`.
        mean_only_batch_norm: whether outputs lose their mean over the batch, and in evaluation
            mode a running mean of it.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H', W')``.

    Raises:
        ValueError: if ``init_scale`` is not positive, or as torch's layer does.

    References:
        Salimans and Kingma, *Weight Normalization*, arXiv 1602.07868.

    Example:
        >>> import torch
        >>> layer = WeightNormConv2d(3, 8, 3, padding=1, init_scale=0.1)
        >>> y = layer.initialize(torch.randn(10, 3, 8, 8))
        >>> torch.allclose(y.std((0, 2, 3), correction=0), torch.full((8,), 0.1), atol=1e-4)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        init_scale: float = 1.0,
        mean_only_batch_norm: bool = False,
    ):
        conv_options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }
        options = {**_sizes(in_channels, out_channels, kernel_size), **conv_options}
        super().__init__(nn.Conv2d, options, 0, init_scale, mean_only_batch_norm)
        self.conv_options = conv_options

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        return conv2d(x, weight, bias, **self.conv_options)


class WeightNormConvTranspose2d(WeightNorm):
    r"""A transposed convolution, with one length for each **output** channel.

    .. math:: y_k = \sum_j g_k \frac{v_{jk}}{\lVert v_{\cdot k} \rVert} *^\top x_j + b_k

    torch's own weight norm takes the first axis of the weight by default, which is the input
    channel of a transposed convolution.

    Args:
        in_channels: of the input.
        out_channels: of the output; one length each.
        kernel_size: height and width, or one number for both.
        stride: as of :class:`torch.nn.ConvTranspose2d`, and so are the next two.
        padding: what is cut off around the image.
        output_padding: what is added at the bottom and on the right.
        init_scale: standard deviation of the outputs of :meth:`~WeightNorm.initialize`.
        mean_only_batch_norm: whether outputs lose their mean over the batch, and in evaluation
            mode a running mean of it.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H', W')``.

    Raises:
        ValueError: if ``init_scale`` is not positive, or as torch's layer does.

    References:
        Salimans and Kingma, *Weight Normalization*, arXiv 1602.07868.

    Example:
        >>> import torch
        >>> layer = WeightNormConvTranspose2d(8, 3, 2, stride=2)
        >>> layer(torch.randn(10, 8, 4, 4)).shape, layer.g.shape
        (torch.Size([10, 3, 8, 8]), torch.Size([3]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        *,
        init_scale: float = 1.0,
        mean_only_batch_norm: bool = False,
    ):
        conv_options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
        }
        options = {**_sizes(in_channels, out_channels, kernel_size), **conv_options}
        super().__init__(nn.ConvTranspose2d, options, 1, init_scale, mean_only_batch_norm)
        self.conv_options = conv_options

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The transposed convolution."""
        return conv_transpose2d(x, weight, bias, **self.conv_options)


def _sizes(in_channels: int, out_channels: int, kernel_size: Any) -> dict[str, Any]:
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": kernel_size,
    }
