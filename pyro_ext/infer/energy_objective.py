"""What the objectives of energies have in common: the module that they return, and checks."""

from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn


class EnergyObjective(nn.Module):
    """The loss of an energy as a module, which owns the energy and, if there is one, the noise.

    What ``ELBOModule`` is to model and guide: made by calling an objective, such as
    :class:`~pyro_ext.infer.NoiseContrastive`, and called with data and contexts.
    """

    def __init__(self, objective: Any, ebm: nn.Module, noise: Any = None):
        super().__init__()
        self.objective, self.ebm, self.noise = objective, ebm, noise

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The loss, a scalar to be minimised."""
        check_data(x, context)
        if self.noise is None:
            return self.objective.differentiable_loss(self.ebm, x, context)
        return self.objective.differentiable_loss(self.ebm, self.noise, x, context)


def energy_of(ebm: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Energies; an energy that knows no context is called without."""
    return ebm(x) if context is None else ebm(x, context)


def check_energy(ebm: Any, method: str | None, remedy: str = "") -> None:
    """Refuses what is no module, or has not the method that an objective calls.

    Raises:
        ValueError: in these cases.
    """
    if not isinstance(ebm, nn.Module):
        raise ValueError(
            f"The ebm must be a torch module from (x, context) to energies, got {ebm!r}. "
            "ConditionalEnergy is one."
        )
    if method is not None and not hasattr(ebm, method):
        raise ValueError(
            f"This objective calls {method} of the ebm, which {type(ebm).__name__} does not have. "
            f"Take a ConditionalEnergy{remedy}."
        )


def check_energies(energies: Tensor, batch: torch.Size, what: str = "data") -> None:
    """Refuses energies, or log densities, that are not one for each datum.

    Args:
        energies: as the ebm returned them.
        batch: what they must be of, or broadcast to without another dimension.
        what: they are of.

    Raises:
        ValueError: if they are not.
    """
    fits = (
        energies.dim() == len(batch)
        and torch.Size(n if m == 1 else m for m, n in zip(energies.shape, batch, strict=True))
        == batch
    )
    if not fits:
        raise ValueError(
            f"The ebm returned shape {tuple(energies.shape)} for {what} of batch {tuple(batch)}. "
            "Give one context for each datum: labels of shape (batch), vectors of shape "
            "(batch, context_dim)."
        )


def check_data(x: Tensor, context: Tensor | None) -> None:
    """Refuses what are no data and, while Pyro validates, what is not finite.

    Raises:
        ValueError: in these cases.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"Data must be a tensor of floating-point numbers, got {kind}.")
    if not x.numel():
        raise ValueError(f"There are no data: their shape is {tuple(x.shape)}.")
    if is_validation_enabled():
        _check_finite(x, "data")
        if isinstance(context, Tensor) and context.is_floating_point():
            _check_finite(context, "contexts")


def _check_finite(values: Tensor, what: str) -> None:
    if not torch._is_all_true(torch.isfinite(values)):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{bad} of {values.numel()} numbers of the {what} are NaN or infinite. Drop or fill "
            "those rows first: one of them makes the whole loss NaN."
        )
