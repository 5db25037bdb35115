"""Exponential families of any statistics of one real number."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ext.distributions.exponential_tilt import ExponentialTilt
from pyro_ext.distributions.panel_rule import PanelRule
from pyro_ext.distributions.statistics_checks import (
    check_corners,
    check_limits,
    check_table,
    check_window,
)
from pyro_ext.ops.counts import count
from pyro_ext.ops.soft_bound import soft_bound

Function = Callable[[Tensor], Tensor]


class StatisticsFamily:
    r"""Laws of a coordinate with any statistics, which a context tilts.

    .. math::

        p(z) = Q(z) \exp\bigl(T(z)^\top \lambda - A(\lambda)\bigr), \qquad
        A(\lambda) = \log \int_l^h Q(z)\, e^{T(z)^\top \lambda} \, dz

    :math:`A` is found by Gauss-Legendre quadrature, eight nodes in each of equal panels, and is
    differentiable in :math:`\lambda`. That the rule is exact enough, and that a window leaves
    nothing out, is checked at construction at the corners of the limits.

    Free numbers are natural parameters, bounded smoothly to lie within their limits.

    Args:
        statistics: :math:`T_1, \dots, T_k`, fixed functions of a tensor to one of its shape, smooth
            between the panels' edges. A kink may lie on an edge: of :math:`|z|`, between symmetric
            limits with an even number of panels. Functions of a module, and no lambdas, if the
            family is to be pickled.
        low: :math:`l`.
        high: :math:`h`.
        log_base: :math:`\log Q`, such a function too, up to a constant; uniform if not given.
        limits: the smallest and the largest natural parameter, of each statistic or, as one pair,
            of all.
        unbounded: whether the support is the whole line. Then ``low`` and ``high`` are the window
            outside of which there is no mass to speak of.
        num_panels: the more, the narrower a law may be; about two to its standard deviation.

    Raises:
        ValueError: if limits are not in order; if a function does not return finite numbers of
            the right shape; if at some corner of the limits the rule is not exact to 1e-6, or the
            window leaves out more than 1e-9 of the mass.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA*, arXiv 1907.04809.

    Example:
        >>> family = StatisticsFamily([torch.sin, torch.cos], -torch.pi, torch.pi)  # von Mises
        >>> law = family.from_natural(torch.tensor([0.0, 2.0]))
        >>> law.log_prob(torch.tensor(0.0)), law.mean_statistics[1]
        (tensor(-0.6619), tensor(0.6978))
    """

    def __init__(
        self,
        statistics: Function | Sequence[Function],
        low: float = -1.0,
        high: float = 1.0,
        log_base: Function | None = None,
        *,
        limits: tuple[float, float] | Sequence[tuple[float, float]] = (-5.0, 5.0),
        unbounded: bool = False,
        num_panels: int = 32,
    ):
        self.functions = (statistics,) if callable(statistics) else tuple(statistics)
        self.base_function, self.unbounded = log_base, unbounded
        check_window(low, high)
        self.rule = PanelRule(float(low), float(high), count(num_panels, "num_panels"))
        self.limits = check_limits(limits, len(self.functions))
        self._table = check_table(self, self.rule)
        check_corners(self)

    @property
    def num_statistics(self) -> int:
        """How many functions there are."""
        return len(self.functions)

    @property
    def is_monotone(self) -> bool:
        """Whether one function only, which never turns at the nodes, is there."""
        steps = self._table[0].diff(dim=0)
        return self.num_statistics == 1 and bool((steps > 0).all() or (steps < 0).all())

    def natural_parameters(self, free: Tensor) -> Tensor:
        """Free numbers, bounded to the limits, around their middle."""
        parts = [_within(free[..., i], *limits) for i, limits in enumerate(self.limits)]
        return torch.stack(parts, -1)

    def statistics(self, z: Tensor) -> Tensor:
        """All functions of values."""
        return torch.stack([function(z) for function in self.functions], -1)

    def log_base(self, z: Tensor) -> Tensor:
        """The log base measure of values within the limits."""
        return torch.zeros_like(z) if self.base_function is None else self.base_function(z)

    def log_normalizer(self, natural_parameters: Tensor) -> Tensor:
        """By quadrature, in nats."""
        return self.log_masses(natural_parameters).logsumexp(-1)

    def log_masses(self, natural_parameters: Tensor) -> Tensor:
        """The summands of the normaliser at the nodes, ``(..., num_nodes)``, in logarithms."""
        statistics, base = self.table(natural_parameters)
        return natural_parameters @ statistics.mT + base

    def table(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Statistics at the nodes ``(num_nodes, k)``, and log base measure times weight."""
        statistics, base = self._table
        return statistics.to(like), base.to(like)

    def law(self, free: Tensor, validate_args: bool | None = None) -> Any:
        """An :class:`ExponentialTilt`."""
        natural_parameters = self.natural_parameters(free)
        return ExponentialTilt(self, natural_parameters, validate_args=validate_args)

    def from_natural(self, natural_parameters: Tensor) -> Any:
        """An :class:`ExponentialTilt`."""
        return ExponentialTilt(self, natural_parameters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StatisticsFamily) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple:
        return self.functions, self.base_function, self.rule, self.unbounded

    def __repr__(self) -> str:
        names = ", ".join(getattr(function, "__name__", "?") for function in self.functions)
        return f"StatisticsFamily({names})"


def _within(free: Tensor, low: float, high: float) -> Tensor:
    return ((low + high) / 2 + soft_bound(free, (high - low) / 2)).clamp(low, high)
