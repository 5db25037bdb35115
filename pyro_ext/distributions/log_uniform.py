"""The improper log-uniform prior of variational dropout."""

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Normal, constraints
from torch.distributions.kl import register_kl

from pyro_ext.distributions.improper import refuse_draws
from pyro_ext.distributions.parameters import expanded
from pyro_ext.ops.log_uniform_kl import LOG_SCALE, normal_log_uniform_kl

START = 0.1  # scale of values to start from: not zero, of which alpha is infinite


class LogUniform(TorchDistribution):
    r"""Improper: a prior that is uniform in the logarithm of a weight's size.

    .. math:: p(w) \propto \frac{1}{|w|}, \qquad w \in \mathbb{R}

    Its divergence from a Normal depends on the noise :math:`\alpha = \sigma^2 / \theta^2` alone,
    and is exact here for every :math:`\alpha`:

    .. math:: \mathrm{KL}(\mathcal{N}(\theta, \alpha\theta^2) \,\|\, p)
        = \int_0^1 \frac{1 - e^{-(1 - t^2) / 2\alpha}}{1 - t^2} \, dt

    ``log_prob`` is :math:`-\log|w| - 2.0541`. The constant of an improper density is free; this
    one makes the least divergence of a Normal zero (:math:`\alpha \to \infty`) and agrees with
    draws: the divergence is the mean of :math:`\log q - \log p`.

    The posterior under this prior is improper too: no sampler explores it, mass escapes to
    :math:`w = 0`, and what is fitted is a penalty rather than an approximation of a posterior.
    Proper alternatives for weights are Normal and StudentT; :class:`TruncatedLogUniform` is one
    for noise, which is positive. Estimated from draws the gradient of the divergence has infinite
    variance: use an objective with analytic divergences.

    As the prior of a group's scale :math:`z`, with weights :math:`w = z \tilde w` and
    :math:`\tilde w \sim \mathcal{N}(0, 1)`, it is the group normal-Jeffreys prior, whose divergence
    is the sum of this one and those of the Normal weights, exact as well.

    It cannot be sampled: give the site a guide. Posterior predictive draws are those of
    ``Predictive(model, guide=guide)``; prior predictive ones are refused. Where Pyro initialises a
    site, for an automatic guide or to learn shapes, it starts at small normal values, on torch's
    default device.

    Args:
        validate_args: checks values.

    Shape:
        ``batch_shape`` and ``event_shape`` are ``()``; expand it.

    Raises:
        NotImplementedError: when sampled.

    References:
        Kingma, Salimans and Welling, *Variational Dropout and the Local Reparameterization Trick*,
        arXiv 1506.02557; Hron, Matthews and Ghahramani, *Variational Bayesian dropout: pitfalls
        and fixes*, arXiv 1807.01969; Louizos, Ullrich and Welling, *Bayesian Compression for Deep
        Learning*, arXiv 1705.08665.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> kl_divergence(Normal(torch.tensor([0.0, 1.0, 10.0]), 1.0), LogUniform())
        tensor([0.0000, 0.4267, 2.9327])
    """

    arg_constraints: ClassVar = {}
    support = constraints.real

    def __init__(self, *, validate_args: bool | None = None):
        super().__init__(torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        return expanded(self, batch_shape, _instance)

    def sample(self, sample_shape=torch.Size()):
        """Not possible; under Pyro's initialisation of guides, values to start from.

        Raises:
            NotImplementedError: anywhere else.
        """
        refuse_draws(self, "Normal and StudentT are proper priors of weights.")
        return START * torch.randn(self._extended_shape(sample_shape))

    def log_prob(self, value):
        """Log density up to the constant of an improper law; infinite at zero."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return (LOG_SCALE - value.abs().log()).expand(shape)


@register_kl(Normal, LogUniform)
def _kl_normal(q, p):
    divergence = normal_log_uniform_kl(q.loc / q.scale)
    return divergence.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))
