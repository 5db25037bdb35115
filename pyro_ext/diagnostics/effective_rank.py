"""How many directions a representation really has."""

import torch
from torch import Tensor

from pyro_ext.diagnostics.representation_pair import representation


def effective_rank(z: Tensor) -> float:
    r"""The number of directions that carry the variance of standardised coordinates.

    .. math:: \exp \Bigl(- \sum_i p_i \log p_i\Bigr), \qquad p_i = \lambda_i / D

    with the eigenvalues :math:`\lambda` of the correlation matrix: from 1, where all coordinates
    are copies of one, to :math:`D`, where no two correlate. Scales and shifts change nothing.

    Args:
        z: a representation, ``(N, D)``.

    Raises:
        ValueError: if ``z`` is no matrix, or has NaN, infinite or constant columns.

    References:
        Roy and Vetterli, *The Effective Rank: A Measure of Effective Dimensionality*, EUSIPCO 2007
        (of the correlation matrix).

    Example:
        >>> z = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> round(effective_rank(z * torch.tensor([1.0, -2.0, 3.0])), 3)
        1.0
        >>> effective_rank(torch.cat([z, z.square(), z.sin()], -1)) < 3
        True
    """
    z = representation(z, "z")
    standard = (z - z.mean(0)) / z.std(0, correction=0)
    eigenvalues = torch.linalg.svdvals(standard).square() / len(z)
    return torch.special.entr(eigenvalues / z.shape[1]).sum().exp().item()
