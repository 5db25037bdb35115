"""Correlations between the columns of two matrices."""

import torch
from torch import Tensor


def pearson(z: Tensor, s: Tensor) -> Tensor:
    r"""Pearson's correlation of each column of ``z`` with each of ``s``.

    .. math:: r_{ij} = \frac{\operatorname{Cov}(z_i, s_j)}
        {\sqrt{\operatorname{Var} z_i \operatorname{Var} s_j}}

    Args:
        z: ``(N, D)``.
        s: ``(N, E)``.

    Shape:
        - output: ``(D, E)``; NaN for a constant column.

    Example:
        >>> z = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, -3.0]])
        >>> pearson(z, z[:, :1])
        tensor([[ 1.0000],
                [-0.8660]])
    """
    z, s = (_unit(value) for value in (z, s))
    return (z.mT @ s).clamp(-1, 1)


def spearman(z: Tensor, s: Tensor) -> Tensor:
    r"""Spearman's correlation: Pearson's of the ranks, that of ties being their mean.

    Increasing functions of a column change nothing.

    Args:
        z: ``(N, D)``.
        s: ``(N, E)``.

    Shape:
        - output: ``(D, E)``; NaN for a constant column.

    Raises:
        ImportError: if SciPy is not installed.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [2.0]])
        >>> spearman(z, z.exp()).item() > 0.999999
        True
    """
    return pearson(*(_ranks(value) for value in (z, s)))


def _unit(value: Tensor) -> Tensor:
    """Centred columns of unit length; NaN where they are constant to rounding."""
    value = value if value.is_floating_point() else value.double()
    centred, eps = value - value.mean(0), torch.finfo(value.dtype).eps
    length = centred.norm(dim=0)
    is_constant = length <= 4 * eps * value.norm(dim=0)
    return torch.where(is_constant, torch.nan, centred / length)


def _ranks(value: Tensor) -> Tensor:
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(value.detach().cpu().numpy(), axis=0)).to(value.device)
