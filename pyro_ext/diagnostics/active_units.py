"""Latent coordinates that tell data apart."""

from typing import NamedTuple

from torch import Tensor


class ActiveUnits(NamedTuple):
    """Of each latent coordinate."""

    variance: Tensor  # (D,): of the posterior means, over data
    is_active: Tensor  # (D,), of bool

    @property
    def num_active(self) -> int:
        """How many are active."""
        return int(self.is_active.sum())


def active_units(loc: Tensor, threshold: float = 0.01) -> ActiveUnits:
    r"""Which latent coordinates are used: those whose posterior means differ between data.

    .. math:: A_d = \operatorname{Var}_x \bigl(\mathbb E_{q(z \mid x)} [z_d]\bigr) > t

    A coordinate that collapsed to the prior has the same posterior for all data.

    Args:
        loc: posterior means of data, ``(N, D)``, at least two.
        threshold: :math:`t`.

    Raises:
        ValueError: if ``loc`` has not two dimensions and two data.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.

    Example:
        >>> import torch
        >>> used = active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.01, 0.5]]))
        >>> used.num_active, used.is_active
        (1, tensor([False,  True]))
    """
    if loc.dim() != 2 or len(loc) < 2:
        raise ValueError(
            f"active_units needs posterior means (N, D) of data, got {tuple(loc.shape)}."
        )
    variance = loc.detach().var(0)
    return ActiveUnits(variance, variance > threshold)
