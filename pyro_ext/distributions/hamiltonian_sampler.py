"""A potential that reshapes proposals by Hamiltonian importance sampling."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from pyro_ext.distributions.hamiltonian_checks import check_factors, check_potential
from pyro_ext.distributions.hamiltonian_importance import HamiltonianImportance, MomentumMap
from pyro_ext.nn.momentum import MomentumNet
from pyro_ext.ops.counts import count


class HamiltonianSampler(nn.Module):
    r"""Owns a potential and its dynamics, and reshapes the distributions that it is called with.

    .. math::

        \pi \mapsto \mathrm{HIS}(\pi, U_\theta, T, \epsilon, \alpha, r_\psi), \qquad
        \epsilon = \mathrm{softplus}(e) \in (0, \infty)^d, \qquad
        \alpha = \mathrm{sigmoid}(a) \in (0, 1)^T

    The result is a :class:`HamiltonianImportance`, built anew at each call: a prior if :math:`\pi`
    is one, a likelihood if :math:`\pi` is a decoder's, a posterior in
    :class:`~pyro_ext.infer.AutoEnergyInspired`.

    Args:
        potential: :math:`U_\theta`, a smooth module from events to nats, such as
            :class:`~pyro_ext.nn.EnergyNet`; any callable will do, but only modules are trained.
            The event shape is read from its attribute ``event_shape``.
        num_steps: :math:`T \ge 1`, leapfrog steps.
        step_size: :math:`\epsilon`, where to start: a number, or a tensor of the event shape.
        tempering: :math:`\alpha`, where to start: a number, or one for each step.
        momentum_net: :math:`r_\psi`, from events to location and scale of the last momentum. By
            default a :class:`~pyro_ext.nn.MomentumNet`. A fixed standard normal is
            ``lambda x: (torch.zeros_like(x), torch.ones_like(x))``.
        learn_step_size: whether :math:`\epsilon` is trained, for each dimension.
        learn_tempering: whether :math:`\alpha` is trained, for each step. If not, it may be one.

    Shape:
        Batch and event shape of the result are those of the distribution that it is called with.

    Raises:
        ValueError: if the event shape is unknown; if a number is out of its range, or at the edge
            of it and to be learned; as :class:`HamiltonianImportance` about the potential, here
            or when called.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265; the defaults
        are those of its published code for images.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.nn import EnergyNet
        >>> sampler = HamiltonianSampler(EnergyNet(2, (20, 20)), num_steps=3)
        >>> density = sampler(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> density.log_prob(density.sample((5,))).shape, sampler.step_size.shape
        (torch.Size([5]), torch.Size([2]))
    """

    raw_step_size: Tensor
    raw_tempering: Tensor

    def __init__(
        self,
        potential: Callable[[Tensor], Tensor],
        num_steps: int = 5,
        step_size: Tensor | float = 0.1,
        tempering: Tensor | float | Sequence[float] = 0.9995,
        momentum_net: MomentumMap | None = None,
        *,
        learn_step_size: bool = True,
        learn_tempering: bool = True,
    ):
        super().__init__()
        check_potential(potential)
        self.potential = potential
        self.num_steps = count(num_steps, "num_steps")
        self.event_shape = _event_shape(potential, step_size)
        self.momentum_net = MomentumNet(self.event_shape) if momentum_net is None else momentum_net
        steps = (self.num_steps,)
        check_factors("step_size", step_size, self.event_shape, math.inf, True)
        check_factors("tempering", tempering, steps, 1.0, True)
        size = _numbers(step_size, self.event_shape)
        raw_step_size = size + (-(-size).expm1()).log()  # the inverse of softplus
        raw_tempering = _numbers(tempering, steps).logit()
        self._enter("raw_step_size", raw_step_size, learn_step_size)
        self._enter("raw_tempering", raw_tempering, learn_tempering)

    @property
    def step_size(self) -> Tensor:
        """Step size of each dimension, of the event shape."""
        return softplus(self.raw_step_size)

    @property
    def tempering(self) -> Tensor:
        """Tempering of each step, of shape ``(num_steps,)``."""
        return self.raw_tempering.sigmoid()

    def forward(self, base_dist: Distribution) -> HamiltonianImportance:
        """The reshaped distribution."""
        return self.follow(base_dist, self.potential)

    def follow(
        self, base_dist: Distribution, potential: Callable[[Tensor], Tensor]
    ) -> HamiltonianImportance:
        """A distribution reshaped by this dynamics in another potential."""
        return HamiltonianImportance(
            base_dist,
            potential,
            self.num_steps,
            self.step_size,
            self.tempering,
            self.momentum_net,
        )

    def _enter(self, name: str, raw: Tensor, learn: bool) -> None:
        value = torch.empty(raw.shape).copy_(raw)
        if not learn:
            self.register_buffer(name, value)
            return
        if not value.isfinite().all():
            raise ValueError(
                "A step size of zero or a tempering of one lies at the edge of its range, from "
                "where it cannot be learned. Start inside, as the defaults do, or pass "
                f"learn_{name.removeprefix('raw_')}=False."
            )
        self.register_parameter(name, nn.Parameter(value))


def _event_shape(potential: Callable, step_size: Tensor | float) -> torch.Size:
    declared = getattr(potential, "event_shape", getattr(step_size, "shape", None) or None)
    if declared is None:
        raise ValueError(
            f"HamiltonianSampler cannot tell the event shape of {potential!r}. Give it an "
            "attribute event_shape, or pass step_size as a tensor of the event shape."
        )
    return torch.Size([declared] if isinstance(declared, int) else declared)


def _numbers(value: Tensor | float | Sequence[float], shape: Sequence[int]) -> Tensor:
    """In double precision, on the CPU."""
    like = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    return like.expand(shape)
