"""Tempered leapfrog integration of Hamiltonian dynamics, and its exact inverse."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_ext.ops.tracing import is_traced

Potential = Callable[[Tensor], Tensor]


def leapfrog(
    potential: Potential,
    position: Tensor,
    momentum: Tensor,
    step_size: Tensor | float,
    tempering: Tensor | Sequence[float],
) -> tuple[Tensor, Tensor]:
    r"""Moves positions and momenta along tempered Hamiltonian dynamics.

    .. math::

        \rho &\leftarrow \alpha_0 \rho, \qquad \text{then for } t = 1, \dots, T: \\
        \rho &\leftarrow \rho - \tfrac{\epsilon}{2} \nabla U(x), \quad
        x \leftarrow x + \epsilon \rho, \quad
        \rho \leftarrow \rho - \tfrac{\epsilon}{2} \nabla U(x), \quad
        \rho \leftarrow \alpha_t \rho

    The Jacobian determinant of the map on :math:`d` dimensions is
    :math:`\bigl(\prod_{t=0}^T \alpha_t\bigr)^d`; it preserves volume if the product is one. A
    quadratic potential stays bounded while :math:`\epsilon^2 \lambda_{\max}(\nabla^2 U) < 4`. The
    gradient is evaluated :math:`T + 1` times, once per position; its own derivatives are taken
    if gradients are enabled, and then a smooth potential is needed. Under ``torch.no_grad()`` and
    ``torch.inference_mode()`` the results carry no gradient.

    Args:
        potential: :math:`U`, from ``(..., *event_shape)`` to ``(...)`` in nats, each event by
            itself.
        position: :math:`x`.
        momentum: :math:`\rho`, broadcastable against the position.
        step_size: :math:`\epsilon`, a scalar or one per dimension of an event.
        tempering: :math:`\alpha_0, \dots, \alpha_T`, positive; its length sets :math:`T \ge 1`.

    Returns:
        Position and momentum after :math:`T` steps.

    Raises:
        ValueError: if the tempering is shorter than two, or if the potential does not return
            floating-point numbers that depend on the position.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265; Neal, *MCMC
        using Hamiltonian dynamics*, arXiv 1206.1901, for tempering and the step size's limit.

    Example:
        >>> zero = torch.zeros(1)
        >>> leapfrog(lambda x: -x.sum(-1), zero, zero, 1.0, [1, 1, 1, 1])
        (tensor([4.5000]), tensor([3.]))
    """
    alphas = _alphas(tempering)
    half = step_size / 2
    momentum = momentum * alphas[0]
    kick = half * _gradient(potential, position)
    for alpha in alphas[1:]:
        momentum = momentum - kick
        position = position + step_size * momentum
        kick = half * _gradient(potential, position)
        momentum = (momentum - kick) * alpha
    return position, momentum


def inverse_leapfrog(
    potential: Potential,
    position: Tensor,
    momentum: Tensor,
    step_size: Tensor | float,
    tempering: Tensor | Sequence[float],
) -> tuple[Tensor, Tensor]:
    r"""Undoes :func:`leapfrog` with the same arguments, up to rounding.

    .. math:: (x_T, \rho_T) \mapsto (x_0, \rho_0)

    Rounding errors grow with :math:`\prod_t 1 / \alpha_t`.

    Args:
        potential: :math:`U`, as for :func:`leapfrog`.
        position: :math:`x_T`.
        momentum: :math:`\rho_T`.
        step_size: :math:`\epsilon`.
        tempering: :math:`\alpha_0, \dots, \alpha_T`, in the order of :func:`leapfrog`.

    Returns:
        Position and momentum before the first step.

    Raises:
        ValueError: as :func:`leapfrog`.

    Example:
        >>> x, momentum = torch.tensor([4.5]), torch.tensor([3.0])
        >>> inverse_leapfrog(lambda x: -x.sum(-1), x, momentum, 1.0, [1, 1, 1, 1])
        (tensor([0.]), tensor([0.]))
    """
    alphas = _alphas(tempering)
    half = step_size / 2
    kick = half * _gradient(potential, position)
    for alpha in reversed(alphas[1:]):
        momentum = momentum / alpha + kick
        position = position - step_size * momentum
        kick = half * _gradient(potential, position)
        momentum = momentum + kick
    return position, momentum / alphas[0]


def _alphas(tempering: Tensor | Sequence[float]) -> Sequence[Tensor | float]:
    is_vector = not isinstance(tempering, Tensor) or tempering.dim() == 1
    if not is_vector or len(tempering) < 2:
        raise ValueError(
            "The tempering holds one factor to begin with and one for each step, got "
            f"{tempering!r}. Give num_steps + 1 numbers, ones for no tempering."
        )
    return tempering.unbind(0) if isinstance(tempering, Tensor) else list(tempering)


def _gradient(potential: Potential, x: Tensor) -> Tensor:
    """Position gradient, differentiable if the caller wants gradients."""
    is_transformed = is_traced()
    is_constant = torch.is_grad_enabled() and not x.requires_grad and type(x) is Tensor
    if is_transformed or is_constant:  # slower, but no gradient is owed to the position itself
        return torch.func.grad(lambda y: _total(potential, y))(x)
    create_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone() if x.is_inference() else x
        leaf = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            _total(potential, leaf), leaf, create_graph=create_graph, allow_unused=True
        )
    if gradient is None:
        raise ValueError(_no_gradient("numbers that do not depend on the position"))
    return gradient


def _total(potential: Potential, x: Tensor) -> Tensor:
    energy = potential(x)
    if not isinstance(energy, Tensor) or not energy.is_floating_point():
        kind = energy.dtype if isinstance(energy, Tensor) else type(energy)
        raise ValueError(_no_gradient(kind))
    if not torch.compiler.is_compiling() and not energy.requires_grad:
        raise ValueError(_no_gradient("a tensor without gradient"))
    return energy.sum()


def _no_gradient(what: object) -> str:
    return (
        f"The potential is not differentiable: it returned {what}, expected floating-point "
        "numbers computed from the position by differentiable operations. Leave out .detach(), "
        ".item(), numpy and torch.no_grad(); write a constant as 0 * x.sum(-1)."
    )
