"""Position and momentum together, at the end of a path."""

import torch
from pyro.distributions import Delta, Independent, Normal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions.candidates import refuse_bound
from pyro_ext.distributions.hamiltonian_importance import HamiltonianImportance
from pyro_ext.ops.leapfrog import inverse_leapfrog, leapfrog


class _Phase(TorchDistribution):
    """Events are ``(2, *event_shape)`` of a sampler: position, then momentum."""

    arg_constraints: dict = {}  # noqa: RUF012 - torch's own convention

    def __init__(self, density: HamiltonianImportance, batch_shape: torch.Size):
        self.density = density
        super().__init__(batch_shape, torch.Size((2, *density.event_shape)), validate_args=False)

    @constraints.dependent_property
    def support(self):
        """Real numbers."""
        return constraints.independent(constraints.real, self.event_dim)

    def _stack(self, position: Tensor, momentum: Tensor) -> Tensor:
        return torch.stack((position, momentum), -self.event_dim)

    def _split(self, value: Tensor) -> tuple[Tensor, ...]:
        return value.unbind(-self.event_dim)


class Phase(_Phase):
    r"""Where a path of Hamiltonian importance sampling ends, in position and in momentum.

    .. math:: p(x_T, \rho_T) = \pi(x_0)\, \mathcal{N}(\rho_0; 0, I)

    Args:
        density: the sampler.
        batch_shape: the sampler's is expanded to it.

    Shape:
        Events are ``(2, *density.event_shape)``: position, then momentum.

    Raises:
        ValueError: if the density of the first position is only a bound.
    """

    def __init__(self, density: HamiltonianImportance, batch_shape: torch.Size):
        refuse_bound(density.base_dist)
        self.base_dist = density.base_dist.expand(batch_shape)
        super().__init__(density, batch_shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the first position has."""
        return bool(self.base_dist.has_rsample)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return Phase(self.density, torch.Size(batch_shape))

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws with a path."""
        return self._arrive(self.base_dist.rsample(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws without gradient."""
        return self._arrive(self.base_dist.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the start of the path, in nats: its map preserves volume."""
        position, momentum = self.density._follow(inverse_leapfrog, *self._split(value))
        log_normal = _normal(torch.zeros_like(momentum), 1.0, self).log_prob(momentum)
        return self.base_dist.log_prob(position) + log_normal

    def _arrive(self, start: Tensor) -> Tensor:
        return self._stack(*self.density._follow(leapfrog, start, torch.randn_like(start)))


class PhaseAround(_Phase):
    r"""A given last position, with a momentum that it may have arrived with.

    .. math:: p(x_T, \rho_T \mid x) = \delta_x(x_T)\, r(\rho_T \mid x)

    Args:
        density: the sampler.
        value: :math:`x`, of shape ``(*batch, *density.event_shape)``. It keeps its gradient.
    """

    has_rsample = True

    def __init__(self, density: HamiltonianImportance, value: Tensor):
        batch = value.shape[: value.dim() - density.event_dim]
        batch = torch.broadcast_shapes(batch, density.batch_shape)
        self.value = value.expand(batch + density.event_shape)
        super().__init__(density, batch)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        shape = torch.Size(batch_shape) + self.density.event_shape
        return PhaseAround(self.density, self.value.expand(shape))

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws with a path, from the momentum net and from the value."""
        momentum = self._reverse.rsample(sample_shape)
        return self._stack(self.value.expand_as(momentum), momentum)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the momentum, in nats; minus infinity at another position."""
        position, momentum = self._split(value)
        given = Delta(self.value, event_dim=self.density.event_dim).log_prob(position)
        return given + self._reverse.log_prob(momentum)

    @property
    def _reverse(self) -> Independent:
        net = self.density.momentum_net
        loc, scale = (torch.zeros_like(self.value), 1.0) if net is None else net(self.value)
        return _normal(loc, scale, self)


def _normal(loc: Tensor, scale: Tensor | float, phase: _Phase) -> Independent:
    return Normal(loc, scale).to_event(phase.density.event_dim)
