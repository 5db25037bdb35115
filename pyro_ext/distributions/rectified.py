"""Laws on the unit interval that hold exact zeros and ones."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.kl import register_kl

from pyro_ext.distributions.constraints import unit_interval_with_atoms
from pyro_ext.distributions.parameters import expanded
from pyro_ext.ops.hard_concrete import check_stretch, logistic_noise
from pyro_ext.ops.quadrature import stretched_nodes


class LogParts(NamedTuple):
    """What the unclipped variable does at a point of the unit interval, as logarithms."""

    below: Tensor  # its probability to lie below
    above: Tensor  # its probability to lie above
    density: Tensor


class Rectified(TorchDistribution):
    r"""Abstract: a law on (0, 1), stretched beyond and clipped back, with atoms at 0 and 1.

    .. math::

        z = \min(1, \max(0, l + (h - l)\, x)), \qquad x \sim q \text{ on } (0, 1), \qquad
        l < 0 < 1 < h

    The density is with respect to :math:`\delta_0 + \delta_1 + \mathrm{Lebesgue}(0, 1)`: at 0 and
    1 ``log_prob`` is the log probability of the atom, between them the log of a density. The
    support is :data:`~pyro_ext.distributions.constraints.unit_interval_with_atoms`, which no
    bijection takes to the real line.

    ``rsample`` has the pathwise gradient, unbiased for means of functions that are continuous in
    :math:`z`. The density is not: the pathwise gradient of a divergence that is estimated from
    draws is biased, and only analytic divergences train such a site.

    A subclass stores its parameters under the names in ``arg_constraints`` and defines
    :meth:`transport` and :meth:`log_parts`.

    Args:
        batch_shape: shape of the parameters.
        stretch: the limits :math:`(l, h)`, two numbers.
        validate_args: checks arguments and values.

    Shape:
        ``event_shape`` is ``()``.

    Raises:
        ValueError: unless :math:`l < 0` and :math:`h > 1`.

    Example:
        >>> from pyro_ext.distributions import HardKumaraswamy
        >>> d = HardKumaraswamy(torch.tensor(0.5), torch.tensor(0.5))
        >>> isinstance(d, Rectified), d.prob_zero + d.prob_one < 1
        (True, tensor(True))
    """

    support = unit_interval_with_atoms
    has_rsample = True

    def __init__(
        self,
        batch_shape: torch.Size,
        stretch: tuple[float, float] = (-0.1, 1.1),
        *,
        validate_args: bool | None = None,
    ):
        self.stretch = _limits(stretch)
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    @abstractmethod
    def transport(self, logistic: Tensor) -> Tensor:
        """Maps standard logistic noise monotonically to a draw.

        Args:
            logistic: of shape ``(..., *batch_shape)``.
        """

    @abstractmethod
    def log_parts(self, value: Tensor) -> LogParts:
        """Log probabilities to lie below and above a point, and log density, all finite.

        Args:
            value: numbers in [0, 1], which broadcast against ``batch_shape``.
        """

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        new = expanded(self, batch_shape, _instance, *self.arg_constraints)
        new.stretch = self.stretch
        return new

    def rsample(self, sample_shape=torch.Size()):
        """Draws with pathwise gradients."""
        return self.transport(logistic_noise(self._extended_shape(sample_shape), self._like))

    def log_prob(self, value):
        """Log probability at 0 and 1, log density between them."""
        if self._validate_args:
            self._validate_sample(value)
        zero, one = value == 0, value == 1
        if value.requires_grad:  # but not at the atoms
            value = torch.where(zero | one, value.detach(), value)
        parts = self.log_parts(value)
        zero, one = zero.to(parts.below.dtype), one.to(parts.below.dtype)
        inside = 1 - zero - one  # masks as factors are several times faster than torch.where
        return zero * parts.below + one * parts.above + inside * parts.density

    def cdf(self, value):
        """Probability of this value or less, for any real number."""
        below = self.log_parts(value.clamp(0, 1)).below.exp()
        return torch.where(value < 0, 0.0, torch.where(value < 1, below, 1.0))

    def icdf(self, value):
        """Quantiles; exactly 0 and 1 where the atoms are."""
        return self.transport(torch.logit(value))

    @property
    def prob_zero(self) -> Tensor:
        """Probability of exactly 0."""
        return self.log_parts(self._like.new_zeros(())).below.exp()

    @property
    def prob_one(self) -> Tensor:
        """Probability of exactly 1."""
        return self.log_parts(self._like.new_ones(())).above.exp()

    @property
    def prob_nonzero(self) -> Tensor:
        r"""Probability of anything but 0: the expected :math:`L_0` norm, precise if small."""
        return self.log_parts(self._like.new_zeros(())).above.exp()

    @property
    def median(self) -> Tensor:
        """The median."""
        return self.transport(torch.zeros_like(self._like))

    @property
    def mean(self) -> Tensor:
        """The mean, by quadrature."""
        return self.expectation(lambda value: value)

    @property
    def variance(self) -> Tensor:
        """The variance, by quadrature."""
        mean = self.mean
        return self.expectation(lambda value: (value - mean).square())

    def entropy(self) -> Tensor:
        """Entropy with respect to the mixed measure, by quadrature, in nats."""
        return -self.expectation(self.log_prob)

    def expectation(self, function) -> Tensor:
        r"""Mean of a smooth function, by quadrature.

        .. math::

            \mathbb{E}[f(z)] = P(0) f(0) + P(1) f(1) + \int_0^1 p(z) f(z) \, dz

        Args:
            function: :math:`f`, from ``(34, *batch_shape)`` or what broadcasts to it, to the same;
                from another number of values in laws that have a rule of their own.

        Shape:
            ``batch_shape``.

        Example:
            >>> from pyro_ext.distributions import HardConcrete
            >>> HardConcrete(torch.zeros(())).expectation(lambda z: z)
            tensor(0.5000)
        """
        nodes, weights, _ = stretched_nodes(*self.stretch, self._like)
        ends = nodes.new_zeros(1), nodes.new_ones(1)
        shape = (-1, *(1,) * len(self.batch_shape))
        value = torch.cat([*ends, nodes]).reshape(shape)
        measure = torch.cat([weights.new_ones(2), weights]).reshape(shape)
        return (measure * self.log_prob(value).exp() * function(value)).sum(0)

    def test_gate(self, kind: str = "median") -> Tensor:
        """A deterministic stand-in for the draws at test time.

        Args:
            kind: ``"median"``, zero where the gate is more often zero than not, or ``"mean"``,
                never zero.

        Raises:
            ValueError: if there is no such kind.
        """
        gates = self._gates
        if kind not in gates:
            raise ValueError(f"kind must be one of {sorted(gates)}, got {kind!r}.")
        return gates[kind]()

    @property
    def _gates(self):
        return {"median": lambda: self.median, "mean": lambda: self.mean}

    @property
    def _like(self) -> Tensor:
        return getattr(self, next(iter(self.arg_constraints)))

    def __repr__(self):
        names = [f"{name}: {getattr(self, name)}" for name in self.arg_constraints]
        return f"{type(self).__name__}({', '.join(names)}, stretch: {self.stretch})"


def _limits(stretch: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(limit) for limit in stretch)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"stretch must be two numbers (low, high) such as (-0.1, 1.1), got {stretch!r}."
        ) from error
    check_stretch(low, high)
    return low, high


@register_kl(Rectified, Rectified)
def kl_rectified(p: Rectified, q: Rectified) -> Tensor:
    """Divergence of any two rectified laws, by quadrature, in nats."""
    return p.expectation(lambda value: p.log_prob(value) - q.log_prob(value))
