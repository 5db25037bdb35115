"""One representation in the coordinates of another."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext.diagnostics.mean_correlation import mean_correlation


def align_to(reference: Tensor, z: Tensor) -> Tensor:
    r"""Permutes, flips, scales and shifts coordinates of ``z`` to be those of ``reference``.

    .. math::

        z_i' = m_i + \sigma_i\, \rho_{i \pi(i)}\, \frac{z_{\pi(i)} - m_{\pi(i)}}{\sigma_{\pi(i)}}

    with the matching :math:`\pi` of :func:`mean_correlation`, the signs :math:`\rho` of the matched
    correlations, and means and standard deviations over data. These are what identifiability
    leaves open; so the posterior draws of several seeds can be the chains of ArviZ, and r-hat
    then says, datum by datum, whether the seeds agree. Rows of data are no draws: r-hat over
    them says nothing, as all seeds saw the same data.

    Args:
        reference: a representation of data, such as one seed's posterior draws or the true sources,
            ``(..., N, D)``.
        z: another one of the same data, ``(..., N, E)`` with :math:`E \ge D`. Leading dimensions,
            which need not be those of ``reference``, are averaged to find what to do.

    Shape:
        - output: ``(..., N, D)``, of the leading dimensions of ``z``.

    Raises:
        ValueError: if shapes do not fit, or as :func:`mean_correlation` does.
        ImportError: if SciPy is not installed.

    Example:
        >>> means = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> draws = [means + 0.1 * torch.randn(100, 200, 2), 3 - means.flip(-1).expand(100, -1, -1)]
        >>> chains = torch.stack([align_to(draws[0], z) for z in draws])  # (chain, draw, N, D)
        >>> (chains[0].mean(0) - chains[1].mean(0)).abs().max() < 0.1
        tensor(True)
    """
    ours, theirs = _mean(z, "z"), _mean(reference, "reference")
    if ours.shape[1] < theirs.shape[1]:
        raise ValueError(
            f"z must have at least the {theirs.shape[1]} coordinates of reference, got "
            f"{ours.shape[1]}."
        )
    match = mean_correlation(ours, theirs, fit=(ours, theirs))
    order = match.rows
    scale = match.signs * theirs.std(0) / ours.std(0)[order]
    shift = theirs.mean(0) - scale * ours.mean(0)[order]
    z = torch.as_tensor(z)
    return z[..., order.to(z.device)] * scale.to(z) + shift.to(z)


def _mean(value: Any, name: str) -> Tensor:
    """Over all but the last two dimensions, in double precision on the CPU."""
    value = torch.as_tensor(value).detach().cpu().double()
    if value.dim() < 2:
        raise ValueError(f"{name} must be of shape (..., N, D), got {tuple(value.shape)}.")
    return value.flatten(0, -3).mean(0) if value.dim() > 2 else value
