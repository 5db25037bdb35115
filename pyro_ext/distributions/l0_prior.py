r"""A prior on gates that charges for each one that is not exactly zero."""

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_ext.distributions.constraints import unit_interval_with_atoms
from pyro_ext.distributions.improper import refuse_draws
from pyro_ext.distributions.parameters import broadcast, expanded
from pyro_ext.distributions.rectified import Rectified


class L0Prior(TorchDistribution):
    r"""Improper: charges ``weight`` nats for every gate that is not exactly zero.

    .. math:: \log p(z) = -\lambda\, 1[z \ne 0]

    Against a gate :math:`q` with an atom at zero its divergence is taken as

    .. math:: \mathrm{KL}(q \,\|\, p) = \lambda\, Q(z \ne 0)

    relative to the entropy of :math:`q`, which a prior without a normaliser cannot weigh. This is
    the expected :math:`L_0` norm, the published penalty: with an objective that takes analytic
    divergences it needs no factor statement. ``log_prob`` is a step, and has no gradient: an
    objective that estimates the divergence from draws never closes a gate.

    It cannot be sampled: give the site a guide, such as :class:`HardConcrete`, and predict with
    ``Predictive(model, guide=guide)``.

    Args:
        weight: :math:`\lambda \ge 0` in nats, a number or a tensor. For a gate that switches
            :math:`n` weights under the published penalty :math:`\lambda_0` per weight and datum,
            with :math:`N` data, it is :math:`\lambda_0 n N`.
        validate_args: checks arguments and values.

    Shape:
        ``batch_shape`` is that of ``weight``; ``event_shape`` is ``()``.

    Raises:
        ValueError: if a weight is negative; NotImplementedError when sampled.

    References:
        Louizos, Welling and Kingma, *Learning Sparse Neural Networks through L0 Regularization*,
        arXiv 1712.01312.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> from pyro_ext.distributions import HardConcrete
        >>> prior = L0Prior(2.0)
        >>> prior.log_prob(torch.tensor([0.0, 0.3, 1.0]))
        tensor([ 0., -2., -2.])
        >>> kl_divergence(HardConcrete(torch.tensor([-4.0, 4.0])), prior)
        tensor([0.1661, 1.9926])
    """

    arg_constraints: ClassVar = {"weight": constraints.nonnegative}
    support = unit_interval_with_atoms

    def __init__(self, weight: Tensor | float, *, validate_args: bool | None = None):
        if not isinstance(weight, Tensor) and not weight >= 0:
            raise ValueError(
                f"weight must be >= 0 nats per open gate, got {weight}. A negative one would pay "
                "for open gates."
            )
        (self.weight,) = broadcast(weight)
        super().__init__(self.weight.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        return expanded(self, batch_shape, _instance, "weight")

    def sample(self, sample_shape=torch.Size()):
        """Not possible; where Pyro initialises a site to learn shapes, open gates.

        Raises:
            NotImplementedError: anywhere else.
        """
        refuse_draws(self, "Its guides are HardConcrete and HardKumaraswamy.")
        return self.weight.new_ones(self._extended_shape(sample_shape))

    def log_prob(self, value):
        """The charge, in nats, as a negative number."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.where(value == 0, 0.0, -self.weight)


@register_kl(Rectified, L0Prior)
def _kl_l0(q, p):
    return p.weight * q.prob_nonzero
