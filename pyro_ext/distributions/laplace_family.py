"""Laplace laws with a modulated scale."""

import math
from typing import Any

import torch
from pyro.distributions import Laplace
from torch import Tensor

from pyro_ext.distributions.gaussian_family import MAX_LOG_SCALE, check_bound
from pyro_ext.ops.soft_bound import soft_bound

LOG_TWO = math.log(2)


class LaplaceFamily:
    r"""Laplace laws of a coordinate around zero, of which a context modulates the scale.

    .. math::

        p(z) = \frac{1}{2 b} e^{-|z| / b}, \qquad T = |z|, \quad \lambda = -1 / b, \quad
        A = -\log(-\lambda), \quad Q = 1 / 2

    The free number is :math:`\log b`, bounded smoothly.

    Args:
        max_log_scale: log scales lie between plus and minus this number.

    Raises:
        ValueError: if the bound is not positive.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA*, arXiv 1907.04809.

    Example:
        >>> LaplaceFamily().law(torch.zeros(4, 1)).scale
        tensor([1., 1., 1., 1.])
    """

    num_statistics = 1
    is_monotone = False

    def __init__(self, max_log_scale: float = MAX_LOG_SCALE):
        self.max_log_scale = check_bound(max_log_scale, "max_log_scale")

    def natural_parameters(self, free: Tensor) -> Tensor:
        """From the log scale."""
        return -(-soft_bound(free, self.max_log_scale)).exp()

    def statistics(self, z: Tensor) -> Tensor:
        """The absolute value."""
        return z.abs().unsqueeze(-1)

    def log_base(self, z: Tensor) -> Tensor:
        """A constant."""
        return torch.full_like(z, -LOG_TWO)

    def log_normalizer(self, natural_parameters: Tensor) -> Tensor:
        """In closed form, in nats."""
        return -(-natural_parameters[..., 0]).log()

    def law(self, free: Tensor, validate_args: bool | None = None) -> Any:
        """Pyro's ``Laplace``."""
        scale = soft_bound(free[..., 0], self.max_log_scale).exp()
        return Laplace(torch.zeros_like(scale), scale, validate_args=validate_args)

    def from_natural(self, natural_parameters: Tensor) -> Any:
        """Pyro's ``Laplace``."""
        scale = -1 / natural_parameters[..., 0]
        return Laplace(torch.zeros_like(scale), scale)

    def __repr__(self) -> str:
        return "LaplaceFamily()"
