"""The density that an invertible network of vectors makes of another one, in one pass."""

from typing import Any

import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints


class FlowTransform(TransformModule):
    """An invertible network, from its latents to data; nothing is cached.

    Args:
        net: with ``encode`` and ``decode`` of vectors, which return a log determinant too.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: Any):
        super().__init__(cache_size=0)
        self.net = net

    def _call(self, z: Tensor) -> Tensor:
        return self.net.decode(z)[0]

    def _inverse(self, x: Tensor) -> Tensor:
        return self.net.encode(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of data with respect to latents ``x``."""
        return self.net.decode(x)[1]


class FlowDensity(TransformedDistribution):
    r"""Pyro's ``TransformedDistribution``, with value and log determinant in one pass.

    .. math:: \log p(x) = \log p_0(f^{-1}(x))
        + \log \Bigl\lvert \det \frac{\partial f^{-1}(x)}{\partial x} \Bigr\rvert

    Args:
        base_dist: of latents, with events of one dimension.
        transforms: one :class:`FlowTransform`.
        validate_args: as in torch.
    """

    transforms: Any

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        z, log_det = self.transforms[0].net.encode(value)
        return self.base_dist.log_prob(z) + log_det

    def rsample_and_log_prob(self, sample_shape=torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws values and their log density, in one pass, both with a path."""
        z = self.base_dist.rsample(sample_shape)
        x, log_det = self.transforms[0].net.decode(z)
        return x, self.base_dist.log_prob(z) - log_det

    @torch.no_grad()
    def sample_and_log_prob(self, sample_shape=torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws values and their log density, in one pass."""
        return self.rsample_and_log_prob(sample_shape)
