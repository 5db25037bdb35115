"""Glow as a distribution."""

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions.parameters import expanded, temperature_like
from pyro_ext.nn.glow import GlowNet


class Glow(TorchDistribution):
    r"""The density of images that a :class:`~pyro_ext.nn.GlowNet` makes of independent Normals.

    .. math::

        \epsilon \sim \mathcal N(0, \tau^2 I_D), \qquad x = g(\epsilon; u), \qquad
        \log p(x \mid u) = \log \mathcal N(\epsilon; 0, \tau^2 I_D)
        + \log \Bigl\lvert \det \frac{\partial \epsilon}{\partial x} \Bigr\rvert

    An ordinary density of real numbers, in nats; the published preprocessing puts pixels into
    :math:`[-\tfrac12, \tfrac12)`. Integer images are observed through
    :class:`Dequantized`. Temperatures :math:`\tau < 1` draw more typical images; the law is then
    that of the scaled latents, whose density is given here too.

    A net that has not started, in training mode, starts from the first images that are scored,
    but for a distribution that has drawn: as a guide, it scores its draws as it drew them.

    Args:
        net: owns the parameters.
        context: :math:`u`: labels of any shape, or vectors ``(..., context_dim)``, if the net
            takes them; the left dimensions are the batch.
        temperature: :math:`\tau \ge 0`, a number or one for each batch element. At zero all draws
            are :math:`g(0)`, and the log density is :math:`-\infty` everywhere.
        validate_args: checks the temperature's and the values' finiteness.

    Shape:
        ``batch_shape`` is that of context and temperature, ``event_shape`` the net's image shape.

    Raises:
        ValueError: if the temperature is negative, or the net cannot take the context; later, if
            values are no images of the net's shape and dtype.

    References:
        Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*,
        arXiv 1807.03039.

    Example:
        >>> net = GlowNet((1, 8, 8), depth=2, levels=2, width=16)
        >>> images = torch.rand(20, 1, 8, 8) - 0.5
        >>> Glow(net).log_prob(images).shape  # starts the net
        torch.Size([20])
        >>> x, log_prob = Glow(net, temperature=0.7).rsample_and_log_prob((5,))
        >>> x.shape, torch.allclose(Glow(net, temperature=0.7).log_prob(x), log_prob, atol=1e-2)
        (torch.Size([5, 1, 8, 8]), True)

        In a model of integer images:

        >>> import pyro
        >>> from pyro_ext.distributions import Dequantized
        >>> def model(images):
        ...     pyro.module("net", net)
        ...     with pyro.plate("data", len(images)):
        ...         pyro.sample("x", Dequantized(Glow(net), bits=8), obs=images)
        >>> model(torch.randint(256, (20, 1, 8, 8)))
    """

    arg_constraints: dict = {}  # noqa: RUF012 - torch's own convention
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self,
        net: GlowNet,
        context: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        *,
        validate_args: bool | None = None,
    ):
        self.net = net
        self.context = context
        self.temperature = temperature_like(net.top.bias, temperature)
        self._has_drawn = False
        batch_shape = torch.broadcast_shapes(self.temperature.shape, net.context_batch(context))
        super().__init__(batch_shape, net.image_shape, validate_args=validate_args)
        if self._validate_args and not bool((self.temperature >= 0).all()):
            raise ValueError(f"temperature must be zero or more, got {temperature}.")

    def expand(self, batch_shape, _instance=None):
        """A copy of a larger batch shape."""
        new = expanded(self, batch_shape, _instance, "temperature")
        new.net, new.context, new._has_drawn = self.net, self.context, False
        return new

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""
        return self.temperature.dtype

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: the event's shape is the net's."""
        raise NotImplementedError("Glow takes its shapes from its net.")

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws images, with a path."""
        return self.rsample_and_log_prob(sample_shape)[0]

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws images, ``(*sample_shape, *batch_shape, C, H, W)``."""
        return self.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape=torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws images and their log density, in one pass through the net, both with a path."""
        self._has_drawn = True
        shape = (*sample_shape, *self.batch_shape, self.event_shape.numel())
        z = torch.randn(shape, dtype=self.temperature.dtype, device=self.temperature.device)
        x, log_det = self.net.decode(z * self.temperature.unsqueeze(-1), self.context)
        return x, self._base_log_prob(z) - log_det

    @torch.no_grad()
    def sample_and_log_prob(self, sample_shape=torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws images and their log density, in one pass through the net."""
        return self.rsample_and_log_prob(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        latents, log_det = self.net.encode(value, self.context, start=not self._has_drawn)
        log_prob = self._base_log_prob(latents / self._scale().unsqueeze(-1)) + log_det
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def encode(self, value: Tensor) -> Tensor:
        """The latents of images, ``(..., D)`` from coarse to fine, see ``GlowNet.split``."""
        return self.net.encode(value, self.context, start=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """The images of latents, ``(..., D)``, at which the temperature has been applied."""
        return self.net.decode(latents, self.context)[0]

    def _scale(self) -> Tensor:
        """The temperature, but one where it is zero."""
        return torch.where(self.temperature > 0, self.temperature, 1.0)

    def _base_log_prob(self, z: Tensor) -> Tensor:
        """Of latents divided by their temperature."""
        log_normalizer = 0.5 * math.log(2 * math.pi) + self._scale().log()
        density = -0.5 * z.square().sum(-1) - z.shape[-1] * log_normalizer
        return torch.where(self.temperature > 0, density, -math.inf)
