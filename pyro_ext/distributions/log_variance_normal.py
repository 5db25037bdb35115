"""A normal distribution with a free log variance."""

from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all, lazy_property

from pyro_ext.distributions.log_uniform import LogUniform
from pyro_ext.ops.log_uniform_kl import log_uniform_kl


class LogVarianceNormal(Normal):
    r"""A normal distribution that knows the logarithm of its variance.

    .. math:: p(x) = N(x; \mu, \sigma^2), \qquad \sigma^2 = e^{v}

    Variance and standard deviation are computed when asked for, and once.

    Args:
        loc: :math:`\mu`, real, of any shape.
        log_var: :math:`v`, real, of any shape.
        validate_args: as in :class:`torch.distributions.Distribution`.

    Example:
        >>> normal = LogVarianceNormal(torch.zeros(3), torch.tensor(0.0))
        >>> normal.variance, normal.batch_shape
        (tensor([1., 1., 1.]), torch.Size([3]))
    """

    arg_constraints = {"loc": constraints.real, "log_var": constraints.real}  # noqa: RUF012

    def __init__(self, loc: Any, log_var: Any, *, validate_args: bool | None = None):
        self.loc, self.log_var = broadcast_all(loc, log_var)
        torch.distributions.Distribution.__init__(self, self.loc.shape, validate_args=validate_args)

    @lazy_property
    def scale(self) -> Tensor:
        r""":math:`\sigma`."""
        return (self.log_var / 2).exp()

    @lazy_property
    def variance(self) -> Tensor:
        r""":math:`\sigma^2`."""
        return self.log_var.exp()

    def expand(self, batch_shape, _instance=None):
        """The distribution with another batch shape."""
        loc, log_var = self.loc.expand(batch_shape), self.log_var.expand(batch_shape)
        new = type(self)(loc, log_var, validate_args=False)
        new._validate_args = self._validate_args
        return new


@register_kl(LogVarianceNormal, LogUniform)
def _kl_log_uniform(q, p):
    r"""From :math:`\log\alpha`, which neither overflows nor underflows."""
    size = q.loc.abs()
    is_zero = size < torch.finfo(size.dtype).tiny  # no divergence, and no gradient
    log_alpha = q.log_var - 2 * size.masked_fill(is_zero, 1.0).log()
    divergence = log_uniform_kl(log_alpha).masked_fill(is_zero, 0.0)
    return divergence.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))
