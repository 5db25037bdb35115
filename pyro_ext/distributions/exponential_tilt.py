"""A law of one real number, tilted by statistics of it."""

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_ext.distributions.parameters import check_expand

STEPS = 16  # of Newton's method, within a panel


class ExponentialTilt(TorchDistribution):
    r"""A law between two limits, or on the line, with the statistics of a family.

    .. math::

        p(z) = Q(z) \exp\bigl(T(z)^\top \lambda - A(\lambda)\bigr), \qquad
        \mathrm{KL}(\lambda \,\|\, \lambda') = (\lambda - \lambda')^\top
            \mathbb E_\lambda[T] - A(\lambda) + A(\lambda')

    Draws invert the distribution function, and carry gradients by implicit differentiation,
    :math:`\partial z / \partial \lambda = -\partial_\lambda F(z) / p(z)`. They have first
    derivatives only. Out of the limits the density is zero; at them it is that of the
    nearest number within, since statistics may be infinite there.

    Args:
        family: a :class:`StatisticsFamily`, which knows :math:`T`, :math:`Q` and the limits.
        natural_parameters: :math:`\lambda`, ``(*batch, k)``.
        validate_args: checks that these lie within the family's limits, and values in the support.

    Shape:
        ``batch_shape`` is that of the natural parameters without the last dimension;
        ``event_shape`` is ``()``.

    Raises:
        ValueError: if the last dimension is not the number of statistics; when validating, if a
            number is out of its limits.

    References:
        Figurnov et al., *Implicit Reparameterization Gradients*, arXiv 1805.08498.

    Example:
        >>> from pyro_ext.distributions import StatisticsFamily
        >>> family = StatisticsFamily([torch.square], -2.0, 2.0)
        >>> law = ExponentialTilt(family, torch.tensor([[-1.0], [1.0]]))
        >>> law.variance, law.sample((5,)).shape
        (tensor([0.4792, 2.8185]), torch.Size([5, 2]))
    """

    arg_constraints: ClassVar = {"natural_parameters": constraints.real_vector}
    has_rsample = True

    def __init__(
        self, family: Any, natural_parameters: Tensor, *, validate_args: bool | None = None
    ):
        self.family, self.natural_parameters = family, natural_parameters
        if natural_parameters.shape[-1:] != (family.num_statistics,):
            raise ValueError(
                f"natural_parameters must have shape (..., {family.num_statistics}), one number "
                f"for each statistic, got {tuple(natural_parameters.shape)}."
            )
        super().__init__(natural_parameters.shape[:-1], validate_args=validate_args)
        if self._validate_args:
            self._check_limits()

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        """Between the limits, or the line."""
        low, high, _ = self.family.rule
        return constraints.real if self.family.unbounded else constraints.interval(low, high)

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        batch_shape = torch.Size(batch_shape)
        check_expand(self, batch_shape)
        new = self._get_checked_instance(type(self), _instance)
        new.family = self.family
        new.natural_parameters = self.natural_parameters.expand(*batch_shape, -1)
        torch.distributions.Distribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=torch.Size()):
        """Draws with implicit gradients."""
        like = self.natural_parameters
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=like.dtype, device=like.device))

    def log_prob(self, value):
        """Log density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        if self.family.unbounded:
            return self._log_density(value)
        low, high, _ = self.family.rule
        is_out = (value < low) | (value > high)
        return self._log_density(self._interior(value)).masked_fill(is_out, -torch.inf)

    def cdf(self, value):
        """Probability of this value or less."""
        rule = self.family.rule
        value = value.clamp(rule.low, rule.high)
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        panel = rule.panel(value.detach())
        below = _pick(self._cumulative(), panel)
        return (below + self._within(panel, value, self.log_normalizer)).clamp(0, 1)

    def icdf(self, value):
        """Quantiles, with implicit gradients."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        value = value.expand(shape)
        with torch.no_grad():
            x = self._solve(value)
            density = self._log_density(x).exp()
        density = density.clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
        shift = (value - self.cdf(x)) / density
        return x + (shift - shift.detach())

    @property
    def log_normalizer(self) -> Tensor:
        r"""The :math:`A(\lambda)`, in nats."""
        return self.family.log_normalizer(self.natural_parameters)

    @property
    def mean_statistics(self) -> Tensor:
        r"""The moments :math:`\mathbb E[T]`, ``(*batch, k)``, which stand for :math:`\lambda`."""
        return self._probs @ self.family.table(self.natural_parameters)[0]

    @property
    def mean(self) -> Tensor:
        """The mean, by quadrature."""
        return self.expectation(lambda z: z)

    @property
    def variance(self) -> Tensor:
        """The variance, by quadrature."""
        mean = self.mean
        return self.expectation(lambda z: (z - mean).square())

    def entropy(self) -> Tensor:
        """The entropy, by quadrature, in nats."""
        return -self.expectation(self._log_density)

    def expectation(self, function) -> Tensor:
        """Mean of a smooth function, by quadrature.

        Args:
            function: from ``(num_nodes, 1, ..., 1)`` to ``(num_nodes, *batch)``, or what
                broadcasts to it.

        Shape:
            ``batch_shape``.
        """
        nodes = self.family.rule.nodes().to(self.natural_parameters)
        nodes = nodes.reshape(-1, *(1,) * len(self.batch_shape))
        return (self._probs.movedim(-1, 0) * function(nodes)).sum(0)

    @property
    def _probs(self) -> Tensor:
        """Of the nodes, ``(*batch, num_nodes)``."""
        return self.family.log_masses(self.natural_parameters).softmax(-1)

    def _interior(self, value: Tensor) -> Tensor:
        """At the limits the nearest number within, as statistics may be infinite there."""
        low, high, _ = self.family.rule
        width = torch.finfo(value.dtype).eps * max(abs(low), abs(high))
        return value.clamp(low + width, high - width)

    def _log_density(self, value: Tensor, normalizer: Tensor | None = None) -> Tensor:
        normalizer = self.log_normalizer if normalizer is None else normalizer
        tilt = (self.family.statistics(value) * self.natural_parameters).sum(-1)
        return tilt + self.family.log_base(value) - normalizer

    def _cumulative(self) -> Tensor:
        """Probability below each panel's left edge, ``(*batch, num_panels)``."""
        masses = self._probs.unflatten(-1, (self.family.rule.num_panels, -1)).sum(-1)
        return masses.cumsum(-1) - masses

    def _within(self, panel: Tensor, value: Tensor, normalizer: Tensor) -> Tensor:
        """Probability between a panel's left edge and a value in it."""
        nodes, weights = self.family.rule.between(self.family.rule.left(panel, value), value)
        return (weights * self._log_density(nodes, normalizer).exp()).sum(0)

    def _solve(self, prob: Tensor) -> Tensor:
        """Newton's method in the panel where the quantile lies.

        A step out of the bracket goes to its end or, every other time, to its middle.
        """
        rule, below, normalizer = self.family.rule, self._cumulative(), self.log_normalizer
        panel = ((below <= prob.unsqueeze(-1)).sum(-1) - 1).clamp(min=0)
        low = rule.left(panel, prob)
        high, target = low + rule.width, prob - _pick(below, panel)
        x = (low + high) / 2
        for i in range(STEPS):
            excess = self._within(panel, x, normalizer) - target
            low, high = torch.where(excess < 0, x, low), torch.where(excess < 0, high, x)
            step = x - excess / self._log_density(x, normalizer).exp()
            inside = torch.minimum(torch.maximum(step, low), high)
            x = inside if i % 2 == 0 else torch.where(inside == step, step, (low + high) / 2)
        return x.clamp(rule.low, rule.high)

    def _check_limits(self) -> None:
        for i, (low, high) in enumerate(self.family.limits):
            numbers = self.natural_parameters[..., i]
            if not bool(((numbers >= low) & (numbers <= high)).all()):
                raise ValueError(
                    f"Natural parameter {i} must lie between {low} and {high}, the family's limits "
                    f"within which it was checked, got {numbers}."
                )


def _pick(below: Tensor, panel: Tensor) -> Tensor:
    below = below.expand(*panel.shape, below.shape[-1])
    return below.gather(-1, panel.unsqueeze(-1)).squeeze(-1)


@register_kl(ExponentialTilt, ExponentialTilt)
def _kl_tilts(p: ExponentialTilt, q: ExponentialTilt) -> Tensor:
    if p.family != q.family:
        raise NotImplementedError(
            "Laws of two families of statistics have no divergence in closed form: make both from "
            "one StatisticsFamily."
        )
    change = p.natural_parameters - q.natural_parameters
    return (change * p.mean_statistics).sum(-1) - p.log_normalizer + q.log_normalizer
