"""Annealed importance sampling with Hamiltonian moves."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext.ops.counts import count
from pyro_ext.ops.leapfrog import leapfrog

LogDensity = Callable[[Tensor], Tensor]


@torch.no_grad()
def annealed_importance(
    log_start: LogDensity,
    log_target: LogDensity,
    position: Tensor,
    num_temperatures: int,
    step_size: float,
    num_leapfrog: int = 5,
    event_dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Carries draws from one density towards another, with weights that correct for the rest.

    .. math::

        \log w = \sum_{t=1}^T \tfrac1T \bigl( \log \tilde p(x_{t-1}) - \log q(x_{t-1}) \bigr),
        \qquad x_t \sim \mathcal K_t(\cdot \mid x_{t-1})

    where :math:`\mathcal K_t` is a Hamiltonian move with an accept/reject step, which keeps
    :math:`q^{1 - t/T} \tilde p^{t/T}`. The mean of :math:`w` is unbiased for the ratio of both
    normalisers at any :math:`T`, step size and number of leapfrog steps; :math:`T = 1` is plain
    importance sampling. There are no gradients.

    Args:
        log_start: :math:`\log q`, from ``(..., *event_shape)`` to ``(...)``.
        log_target: :math:`\log \tilde p`.
        position: draws of :math:`q`, ``(..., *event_shape)``.
        num_temperatures: :math:`T \ge 1`.
        step_size: of the leapfrog steps, in the units of the position.
        num_leapfrog: leapfrog steps of each move.
        event_dim: number of dimensions of an event.

    Returns:
        Log-weights ``(...)`` in nats, the positions at the end, before a move that would keep the
        target, and the share of accepted moves.

    Raises:
        ValueError: if a number is not positive, or as :func:`~pyro_ext.ops.leapfrog`.

    References:
        Neal, *Annealed Importance Sampling*, arXiv physics/9803008. Sohl-Dickstein and Culpepper,
        *Hamiltonian Annealed Importance Sampling for partition function estimation*,
        arXiv 1205.1925.

    Example:
        >>> start, target = (lambda x: -x.square().sum(-1) / 2), (lambda x: -x.square().sum(-1))
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> log_w, _, _ = annealed_importance(start, target, x, 10, 0.3)
        >>> bool((log_w.exp().mean() - 0.5).abs() < 0.05)  # pi / 2 pi
        True
    """
    num_temperatures = count(num_temperatures, "num_temperatures")
    tempering = [1.0] * (count(num_leapfrog, "num_leapfrog") + 1)
    if not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}.")
    log_w: Tensor | float = 0.0
    accepted = []
    for t in range(1, num_temperatures + 1):
        log_w = log_w + (log_target(position) - log_start(position)) / num_temperatures
        if t < num_temperatures:
            potential = _between(log_start, log_target, t / num_temperatures)
            position, is_moved = _move(potential, position, step_size, tempering, event_dim)
            accepted.append(is_moved.to(position.dtype).mean())
    rate = torch.stack(accepted).mean() if accepted else position.new_ones(())
    return torch.as_tensor(log_w), position, rate


def _between(log_start: LogDensity, log_target: LogDensity, share: float) -> LogDensity:
    return lambda x: -(1 - share) * log_start(x) - share * log_target(x)


def _move(
    potential: LogDensity, x: Tensor, step_size: float, tempering: list[float], event_dim: int
) -> tuple[Tensor, Tensor]:
    """One Hamiltonian move with fresh momenta; where it is rejected the position stays."""
    momentum = torch.randn_like(x)
    new, new_momentum = leapfrog(potential, x, momentum, step_size, tempering)
    before = potential(x) + _kinetic(momentum, event_dim)
    after = potential(new) + _kinetic(new_momentum, event_dim)
    is_moved = torch.rand_like(before).log() < before - after  # never where after is NaN
    choice = is_moved.reshape(is_moved.shape + (1,) * event_dim)
    return torch.where(choice, new, x), is_moved


def _kinetic(momentum: Tensor, event_dim: int) -> Tensor:
    square = momentum.square() / 2
    return square.flatten(-event_dim).sum(-1) if event_dim else square
