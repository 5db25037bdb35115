"""Hamiltonian importance sampling as a distribution."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_ext.distributions.hamiltonian_checks import (
    check_alone,
    check_base,
    check_factors,
    check_finite,
    check_moments,
    check_potential,
    check_shape,
)
from pyro_ext.distributions.proposals import align, check_event, refuse_bound, separated, unmoved
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.ops.counts import count
from pyro_ext.ops.leapfrog import inverse_leapfrog, leapfrog
from pyro_ext.ops.tracing import is_traced

MomentumMap = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Path(NamedTuple):
    """The auxiliaries: a momentum for the end of a path, and what else is known of the path."""

    momentum: Tensor  # (num, *batch, *event)
    log_reverse: Tensor | None = None  # (num, *batch): its log density given the value
    start: tuple[Tensor, Tensor] | None = None  # position and momentum, of the same shape
    value: Tensor | None = None  # the value, if it was drawn without path


class HamiltonianImportance(StochasticDensity):
    r"""Stochastic: Hamiltonian importance sampling (HIS), whose ``log_prob`` is a lower bound.

    .. math::

        x_0 \sim \pi, \quad \rho_0 \sim \mathcal{N}(0, I), \qquad
        (x_T, \rho_T) = \Phi_T(x_0, \rho_0), \qquad x = x_T

    :math:`\Phi_T` is the tempered leapfrog map of :func:`pyro_ext.ops.leapfrog` in the potential
    :math:`U`, whose first tempering :math:`\alpha_0 = 1 / \prod_{t=1}^T \alpha_t` heats the
    momentum by as much as the steps cool it, so that volume is preserved. Draws roll from the base
    distribution towards low potential. With a guess :math:`r` of the last momentum,

    .. math::

        p(x) = \mathbb{E}_{\rho_T \sim r(\cdot \mid x)}[W], \qquad
        W = \frac{\pi(x_0)\, \mathcal{N}(\rho_0; 0, I)}{r(\rho_T \mid x)}, \qquad
        (x_0, \rho_0) = \Phi_T^{-1}(x, \rho_T)

    ``log_prob(x)`` is :math:`\log W` with a fresh momentum, a stochastic lower bound;
    ``score_parts(x)`` is :math:`\log W` with the momentum that ``x`` arrived with, a stochastic
    upper bound: see :class:`StochasticDensity`. A constant added to the potential changes nothing.

    Everything is reparameterised: gradients of draws and densities reach the potential (through
    its second derivatives), the step size, the tempering, the momentum net and the base
    distribution. If only the base distribution is not, ``pyro.sample`` adds its score function.

    The step size must keep :math:`\epsilon^2 \lambda_{\max}(\nabla^2 U) < 4`, or paths blow up.
    Rounding in a path back from ``x`` grows with :math:`\prod_t 1 / \alpha_t`. In float32, with 50
    dimensions, five steps of 0.1, temperings of 0.9995 and an :class:`~pyro_ext.nn.EnergyNet`,
    positions and momenta come back to within 2e-6, and ``log_prob`` is right to within 1e-4
    nats.

    To keep the proposal inside the potential, :math:`U(x) - \log \pi(x)`, pass
    ``lambda x: energy(x) - base_dist.log_prob(x)``: then the dynamics' own equilibrium is the
    energy-based model :math:`\pi(x) e^{-U(x)}`.

    Args:
        base_dist: :math:`\pi`, a distribution over real numbers of any event shape.
        potential: :math:`U`, a callable from ``(..., *event_shape)`` to ``(...)`` in nats, each
            event by itself; probable values have a low potential. Smooth, without random numbers,
            and the same at each evaluation. It may depend on the batch. An attribute
            ``event_shape`` is checked here.
        num_steps: :math:`T \ge 1`, leapfrog steps; a path evaluates :math:`T + 1` gradients.
        step_size: :math:`\epsilon \ge 0`, a scalar or of the event shape.
        tempering: :math:`\alpha_1, \dots, \alpha_T \in (0, 1]`, a scalar or one for each step.
        momentum_net: maps ``x`` to location and scale of :math:`r`, a diagonal normal, as
            :class:`~pyro_ext.nn.MomentumNet` does; by default :math:`\mathcal{N}(0, I)`.
        validate_args: checks arguments, values, and that paths are finite.

    Shape:
        ``batch_shape`` and ``event_shape`` are those of ``base_dist``.

    Raises:
        ValueError: if ``num_steps < 1``, ``step_size`` or ``tempering`` is outside its domain or
            of another shape, ``base_dist`` is not over real numbers, the event shapes disagree, or
            the potential has layers that mix events or draw random numbers; later, if the
            potential returns a wrong shape or is not differentiable, the momentum net returns no
            location and scale, or, when validating, paths are not finite or events are mixed.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models: Learning with
        Sampler-Induced Distributions*, arXiv 1910.14265; Caterini, Doucet and Sejdinovic,
        *Hamiltonian Variational Auto-Encoder*, arXiv 1805.11328.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.nn import EnergyNet, MomentumNet
        >>> base_dist = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> d = HamiltonianImportance(
        ...     base_dist, EnergyNet(2, (20, 20)), 5, 0.1, 0.995, MomentumNet(2, (20,))
        ... )
        >>> x = d.rsample((3,))
        >>> d.log_prob(x).shape, d.tight(100).frozen(0).log_prob(x).shape
        (torch.Size([3]), torch.Size([3]))
    """

    _is_checked = False

    def __init__(
        self,
        base_dist: Distribution,
        potential: Callable[[Tensor], Tensor],
        num_steps: int,
        step_size: Tensor | float,
        tempering: Tensor | float | Sequence[float],
        momentum_net: MomentumMap | None = None,
        *,
        validate_args: bool | None = None,
    ):
        check_potential(potential, stacklevel=4)
        check_base(base_dist)
        check_event(base_dist, "potential", potential, "base distribution")
        check_event(base_dist, "momentum net", momentum_net, "base distribution")
        self.base_dist = base_dist
        self.potential = potential
        self.num_steps = count(num_steps, "num_steps")
        self.step_size = step_size
        self.tempering = tempering
        self.momentum_net = momentum_net
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)
        check_factors("step_size", step_size, self.event_shape, math.inf, self._validate_args)
        check_factors("tempering", tempering, (self.num_steps,), 1.0, self._validate_args)

    @constraints.dependent_property
    def support(self):
        """Real numbers of the event shape, as the base distribution's."""
        return self.base_dist.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the base distribution is reparameterised."""
        return bool(self.base_dist.has_rsample)

    @property
    def is_partly_pathwise(self) -> bool:
        """Whether only the base distribution's draws have no path; the dynamics always has."""
        return not self.has_rsample

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: the arguments are a distribution and a callable, not tensors."""
        raise NotImplementedError("HamiltonianImportance takes its shapes from its base_dist.")

    @property
    def draw_size(self) -> int:
        """Numbers of positions, momenta and, if the potential is a module, its hidden units."""
        module = self.potential if isinstance(self.potential, nn.Module) else nn.Identity()
        hidden = sum(len(p) for p in module.parameters() if p.dim())
        return self.batch_shape.numel() * (4 * self.event_shape.numel() + hidden)

    def simulate(self, sample_shape: torch.Size, pathwise: bool) -> tuple[Tensor, _Path]:
        """Draws positions and momenta to start from, and follows their paths."""
        if not pathwise:
            return self._simulate_detached(sample_shape)
        base = self.base_dist.expand(self.batch_shape)
        position = base.rsample(sample_shape) if base.has_rsample else base.sample(sample_shape)
        momentum = torch.randn_like(position)
        value, arrived = self._follow(leapfrog, position, momentum)
        start = position.unsqueeze(0), momentum.unsqueeze(0)
        value = value.view_as(value)  # the graph of the auxiliaries holds the other one
        return value, _Path(arrived.unsqueeze(0), start=start)

    def _simulate_detached(self, sample_shape: torch.Size) -> tuple[Tensor, _Path]:
        with torch.no_grad():
            value, path = self.simulate(sample_shape, pathwise=True)
        start = None if torch.is_grad_enabled() else path.start
        return value, path._replace(start=start, value=value.detach())

    def draw_auxiliaries(self, value: Tensor, num: int) -> _Path:
        """Draws ``num`` momenta that values may have arrived with."""
        value = value.expand(self._batch_of(value) + self.event_shape)
        noise = self._noise(value, num)
        log_q = self._sum(noise.square()) / -2
        if self.momentum_net is None:
            return _Path(noise, log_q)
        loc, scale = self._reverse(value)
        return _Path(loc + scale * noise, log_q - self._sum(scale.log()))

    def log_weights(self, value: Tensor, auxiliaries: _Path) -> Tensor:
        r"""Evaluates :math:`\log \pi(x_0) + \log \mathcal{N}(\rho_0) - \log r(\rho_T \mid x)`."""
        log_reverse = auxiliaries.log_reverse
        if log_reverse is None:
            log_reverse = self._log_reverse(value, auxiliaries.momentum)
        start = auxiliaries.start or self._retrace(value, auxiliaries.momentum)
        return self._log_start(*start) - log_reverse

    def score_function(self, auxiliaries: _Path) -> Tensor | float:
        """Log density, up to a constant, of where the path starts, or of all that was drawn.

        Raises:
            NotImplementedError: if the base distribution is itself a stochastic density.
        """
        refuse_bound(self, self.base_dist, "base distribution")
        _, _, start, value = auxiliaries
        if value is not None:
            start = start or self._retrace(value, auxiliaries.momentum)
            return self._log_start(*start).squeeze(0)
        if start is None or self.has_rsample:
            return 0.0
        return self.base_dist.log_prob(start[0]).squeeze(0)

    def frozen(self, seed: int):
        """A copy whose ``log_prob`` is a deterministic function; freezes a random base too."""
        new = super().frozen(seed)
        new.base_dist = unmoved(self.base_dist, seed)
        return new

    def _noise(self, value: Tensor, num: int) -> Tensor:
        """A noise for each value; if frozen, one for all values of a batch element."""
        own = value.shape if self._seed is None else self.base_dist.batch_shape + self.event_shape
        noise = torch.randn(num, *own, dtype=value.dtype, device=value.device)
        return align(noise, value.dim()).expand(num, *value.shape)

    def _retrace(self, value: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        value = value.expand(self._batch_of(value) + self.event_shape)
        return self._follow(inverse_leapfrog, value, momentum)

    def _follow(self, direction: Callable, x: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        checks = self._validate_args and not is_traced()
        if checks and not self._is_checked:
            check_alone(self.potential, x, self.event_dim)
            self._is_checked = True
        alphas = _schedule(self.tempering, self.num_steps)
        path = direction(self._energy, x, momentum, self.step_size, alphas)
        if checks:
            check_finite(*path)
        return path

    def _energy(self, x: Tensor) -> Tensor:
        energy = self.potential(x)
        check_shape(energy, x.shape, self.event_shape)
        return energy

    def _log_start(self, position: Tensor, momentum: Tensor) -> Tensor:
        """Without the constant that the density of the last momentum has, too."""
        base = separated(self.base_dist, position)
        return base.log_prob(position) - self._sum(momentum.square()) / 2

    def _log_reverse(self, value: Tensor, momentum: Tensor) -> Tensor:
        """Without the constant that the density of the first momentum has, too."""
        if self.momentum_net is None:
            return self._sum(momentum.square()) / -2
        loc, scale = self._reverse(value)
        return self._sum(((momentum - loc) / scale).square()) / -2 - self._sum(scale.log())

    def _reverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.momentum_net(value)  # type: ignore[misc]
        check_moments(moments, value.shape, self._validate_args)
        return moments

    def _sum(self, x: Tensor) -> Tensor:
        return sum_rightmost(x, self.event_dim)

    def __repr__(self):
        return (
            f"HamiltonianImportance({self.base_dist}, {self.potential}, "
            f"num_steps={self.num_steps})" + self._variant
        )


def _schedule(tempering: Any, num_steps: int) -> Tensor | list[float]:
    """All temperings, with a first one that makes their product one."""
    if isinstance(tempering, Tensor):
        alphas = tempering.expand(num_steps)
        return torch.cat([alphas.log().sum().neg().exp().unsqueeze(0), alphas])
    factors = [*tempering] if isinstance(tempering, Sequence) else [tempering] * num_steps
    return [1 / math.prod(factors), *factors]
