"""PixelCNN++ as a distribution."""

from typing import Any, NamedTuple

import torch
from pyro.distributions import ConditionalDistribution, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions.parameters import expanded, temperature_like
from pyro_ext.nn.pixel_cnn import PixelCNNNet
from pyro_ext.nn.pixel_cnn_checks import check_integers, check_mask, check_pixels
from pyro_ext.ops.counts import count

MOST = 2**16


class PixelCNN(TorchDistribution):
    r"""The law of integer images that a :class:`~pyro_ext.nn.PixelCNNNet` makes of its pixels.

    .. math:: \log P(x \mid h) = \sum_i \log P(x_i \mid x_1, \dots, x_{i - 1}, h)

    Exact and normalised, at any number of levels; draws are rounded before later pixels see them,
    so that they have this very law. Drawing an image takes about as many operations as scoring
    it, as what is needed of earlier pixels is remembered.

    Args:
        net: owns the parameters.
        context: :math:`h`: labels of any shape, vectors ``(..., context_dim)`` or images ``(...,
            context_channels, H, W)``, as the net takes them; the left dimensions are the batch.
        temperature: :math:`\tau > 0`, a number or one for each batch element: divides the logits
            of components and classes, and multiplies scales.
        validate_args: checks the temperature, and that values are integers within the range.

    Shape:
        ``batch_shape`` is that of context and temperature, ``event_shape`` the net's image shape.
        Values are integers of any dtype.

    Raises:
        ValueError: if the net cannot take the context, a parameter is not contiguous, is a
            ``PyroSample`` or is of half precision; when validating, if the temperature is not
            positive, values are no integers within the range, or what is drawn from a net has NaN.

    References:
        Salimans et al., *PixelCNN++*, arXiv 1701.05517.

    Example:
        >>> net = PixelCNNNet((1, 8, 8), levels=17, hidden_channels=8, num_resnets=1, stages=2)
        >>> images = PixelCNN(net).sample((5,))
        >>> images.shape, PixelCNN(net).log_prob(images).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]))

        In a model:

        >>> import pyro
        >>> def model(images):
        ...     pyro.module("net", net)
        ...     with pyro.plate("data", len(images)):
        ...         pyro.sample("x", PixelCNN(net), obs=images)
        >>> model(images)
    """

    arg_constraints: dict = {}  # noqa: RUF012 - torch's own convention

    def __init__(
        self,
        net: PixelCNNNet,
        context: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        *,
        validate_args: bool | None = None,
    ):
        self.net, self.context = net, context
        _check_net(net)
        like = net.output.bias
        self.temperature = temperature_like(like, temperature)
        batch_shape = torch.broadcast_shapes(self.temperature.shape, net.context_batch(context))
        super().__init__(batch_shape, net.image_shape, validate_args=validate_args)
        if self._validate_args and not bool((self.temperature > 0).all()):
            raise ValueError(f"temperature must be positive, got {temperature}.")

    def expand(self, batch_shape, _instance=None):
        """A copy of a larger batch shape."""
        new = expanded(self, batch_shape, _instance, "temperature")
        new.net, new.context = self.net, self.context
        return new

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: the event's shape is the net's."""
        raise NotImplementedError("PixelCNN takes its shapes from its net.")

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self):
        """Integers below the number of levels, one of each channel of each pixel."""
        levels = constraints.integer_interval(0, self.net.levels - 1)
        return constraints.independent(levels, 3)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether there are few enough images, 65,536 at most."""
        return self.net.levels ** self.event_shape.numel() <= MOST

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All images, along a new left dimension.

        Raises:
            NotImplementedError: if there are more than 65,536.
        """
        size = self.event_shape.numel()
        if not self.has_enumerate_support:
            raise NotImplementedError(f"There are {self.net.levels}**{size} images.")
        pixels = torch.arange(self.net.levels).to(self.temperature)
        images = torch.cartesian_prod(*[pixels] * size)
        images = images.reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return images.expand(-1, *self.batch_shape, *self.event_shape) if expand else images

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws images, ``(*sample_shape, *batch_shape, C, H, W)``; dropout is off."""
        if self._validate_args:
            _check_finite(self.net)
        return self.decode(self.noise(sample_shape))

    def noise(self, sample_shape=torch.Size()) -> Tensor:
        """Uniform numbers to decode, ``(*sample_shape, *batch_shape, H, W, U)``.

        The first images of a larger sample are those of a smaller one, given the same seed; with
        very many levels but for rounding.
        """
        shape = torch.Size((*sample_shape, *self.batch_shape))
        each = (*self.event_shape[1:], self.net.num_uniforms)
        options: Any = {"dtype": self.temperature.dtype, "device": self.temperature.device}
        images = [torch.rand(1, *each, **options) for _ in range(shape.numel())]
        return torch.cat([torch.empty(0, *each, **options), *images]).reshape(*shape, *each)

    def decode(self, uniforms: Tensor) -> Tensor:
        """The images that uniform numbers stand for: equal numbers, equal images.

        Raises:
            ValueError: if the shape is not as of :meth:`noise`; when validating, if a number is
                not in [0, 1).
        """
        if self._validate_args and not bool(((uniforms >= 0) & (uniforms < 1)).all()):
            raise ValueError("Images are decoded from uniform numbers in [0, 1).")
        batch = torch.broadcast_shapes(uniforms.shape[:-3], self.batch_shape)
        uniforms = uniforms.expand(*batch, *uniforms.shape[-3:])
        return self.net.decode(uniforms, self.context, self.temperature)

    def complete(self, observed: Tensor, mask: Tensor, num_particles: int = 1) -> "Completion":
        r"""Draws the rest of images of which some pixels are known.

        If the known pixels are the first ones, each draw is exact. Else particles are weighted by
        what is observed later (sequential Monte Carlo): ``log_weights.logsumexp(0) - log K`` is
        the logarithm of an unbiased estimate of the probability of the observed pixels, and images
        are draws of the conditional law in proportion to their weights.

        Args:
            observed: ``(*batch, C, H, W)``, of which only the known pixels are read.
            mask: of bool, ``(*batch, H, W)``: which pixels are known.
            num_particles: :math:`K`.

        Raises:
            ValueError: if the temperature is not one, a shape does not fit, or the mask is not of
                bool, or not of first pixels while there is one particle only; when validating, if
                known pixels are no integers within the range.
        """
        if bool((self.temperature != 1).any()):
            raise ValueError("Completions are of the law itself: build PixelCNN at temperature 1.")
        check_pixels(observed, self.event_shape)
        check_mask(mask, self.event_shape)
        _check_known(mask, num_particles)
        if self._validate_args:
            self._validate_sample(torch.where(mask.unsqueeze(-3), observed, 0))
        batch = torch.broadcast_shapes(observed.shape[:-3], self.batch_shape)
        observed = observed.expand(*batch, *observed.shape[-3:])
        return Completion(*self.net.complete(observed, mask, self.context, num_particles))

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log probability, in nats."""
        return self.log_prob_map(value).sum((-2, -1))

    def log_prob_map(self, value: Tensor) -> Tensor:
        """Log probability of each pixel given those before it, ``(..., H, W)``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.net.log_prob_map(value, self.context, self.temperature)

    def _validate_sample(self, value: Tensor) -> None:
        check_pixels(value, self.event_shape)
        try:
            torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Images of batch shape {tuple(value.shape[:-3])} and a PixelCNN of batch shape "
                f"{tuple(self.batch_shape)} do not broadcast."
            ) from None
        check_integers(value, self.net.levels)


def _check_net(net: PixelCNNNet) -> None:
    if not all(parameter.is_contiguous() for parameter in net.parameters()):
        raise ValueError(
            "The net has parameters that are not contiguous, of which Pyro's parameter store would "
            "train copies. Call net.to(memory_format=torch.contiguous_format)."
        )
    if any(getattr(part, "_pyro_samples", None) for part in net.modules()):
        raise ValueError(
            "The net has weights that are PyroSample. It runs within log_prob, where they would be "
            "no sites of the model: PixelCNN takes a net of plain parameters."
        )
    if net.output.bias.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The net's parameters are of {net.output.bias.dtype}, too coarse for probabilities: "
            "keep them in float32, and build the net with compute_dtype=torch.bfloat16."
        )


def _check_finite(net: PixelCNNNet) -> None:
    sums = torch.stack([parameter.detach().sum() for parameter in net.parameters()])
    if not bool(sums.isfinite().all()):
        raise ValueError("The net has parameters that are not finite, and no images to draw.")


class Completion(NamedTuple):
    """Images of which some pixels are known."""

    images: Tensor  # (K, *batch, C, H, W)
    log_weights: Tensor  # (K, *batch), in nats


def _check_known(mask: Tensor, num_particles: int) -> None:
    count(num_particles, "num_particles")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is of bool, true where a pixel is known; got {mask.dtype}.")
    known = mask.flatten(-2)
    if num_particles == 1 and bool((known[..., 1:] & ~known[..., :-1]).any()):
        raise ValueError(
            "The known pixels are not the first ones of the image, so that one draw is not exact: "
            "take num_particles of a hundred, say, and the weights that come with them."
        )


class ConditionalPixelCNN(ConditionalDistribution):
    r"""A family of :class:`PixelCNN` laws, one of each context.

    Args:
        net: with a context.
        temperature: of all of them.

    Example:
        >>> net = PixelCNNNet((1, 8, 8), 2, 5, 8, 1, 2, num_classes=10)
        >>> ConditionalPixelCNN(net).condition(torch.tensor([3, 5])).batch_shape
        torch.Size([2])
    """

    def __init__(self, net: PixelCNNNet, temperature: float | Tensor = 1.0):
        self.net, self.temperature = net, temperature

    def condition(self, context: Tensor) -> PixelCNN:
        """The law given a context."""
        return PixelCNN(self.net, context, self.temperature)
