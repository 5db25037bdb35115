"""A Normal whose noise is proportional to its location."""

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_ext.distributions.log_uniform import LogUniform
from pyro_ext.distributions.parameters import broadcast, expanded
from pyro_ext.ops.log_uniform_kl import log_uniform_kl


class MultiplicativeNormal(Normal):
    r"""A weight under multiplicative noise: the posterior of variational dropout, type B.

    .. math:: w \sim \mathcal{N}(\theta, \alpha \theta^2), \qquad w = \theta (1 + \sqrt\alpha\,
        \epsilon)

    It is a Normal with ``scale`` :math:`|\theta| \sqrt\alpha`, and its divergence from
    :class:`LogUniform` depends on :math:`\alpha` alone. A location of exactly zero has no density.
    For training, a Normal with free location and scale has gradients of less variance.

    Args:
        loc: :math:`\theta \ne 0`.
        log_alpha: :math:`\log\alpha`. Dropout at rate :math:`p` has :math:`\alpha = p / (1 - p)`.
        validate_args: checks arguments and values.

    Shape:
        ``batch_shape`` is that of the arguments, broadcast; ``event_shape`` is ``()``.

    Raises:
        ValueError: when validating, if a location is zero.

    References:
        Kingma, Salimans and Welling, *Variational Dropout and the Local Reparameterization Trick*,
        arXiv 1506.02557.

    Example:
        >>> d = MultiplicativeNormal(torch.tensor([1.0, -2.0]), 0.0)
        >>> d.scale
        tensor([1., 2.])
        >>> torch.distributions.kl_divergence(d, LogUniform())
        tensor([0.4267, 0.4267])
    """

    arg_constraints = {"loc": constraints.real, "log_alpha": constraints.real}  # noqa: RUF012

    def __init__(
        self,
        loc: Tensor | float,
        log_alpha: Tensor | float,
        *,
        validate_args: bool | None = None,
    ):
        loc, self.log_alpha = broadcast(loc, log_alpha)
        scale = loc.abs() * (self.log_alpha / 2).exp()
        super().__init__(loc, scale, validate_args=validate_args)
        if self._validate_args and bool((self.loc == 0).any()):
            raise ValueError(
                "loc must not be zero: noise proportional to it would be zero too. Start from "
                "small random numbers, or use a Normal with a scale of its own."
            )

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        return expanded(self, batch_shape, _instance, "loc", "log_alpha", "scale")


@register_kl(MultiplicativeNormal, LogUniform)
def _kl_multiplicative(q, p):
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    return log_uniform_kl(q.log_alpha).expand(shape)
