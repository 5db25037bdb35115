"""Invertible networks of vectors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.vector_coupling import VectorCoupling
from pyro_ext.ops.counts import count
from pyro_ext.ops.invertible_matrix import PLAIN, rotation

SMALLEST_VARIANCE = 1e-6  # of a combination of columns of variance one, where they are dependent


class CouplingFlow(nn.Module):
    r"""Couplings between learned invertible affine maps, behind a standardisation of the data.

    .. math::

        h_0 = (x - m) / s, \qquad h_k = c_k(W_k h_{k-1} + b_k), \qquad
        z = W_{K+1} h_K + b_{K+1}

    At the start a rotation of the whitened data: couplings are the identity, matrices are drawn
    from the Haar measure, and the first one includes the inverse root of the correlations. Until
    :meth:`initialize` is called, :math:`m` is zero, :math:`s` is one, and nothing is whitened.
    Inverses and determinants of the matrices are computed in float64.

    Args:
        dim: of :math:`x` and :math:`z`, at least two.
        num_couplings: :math:`K`.
        hidden_dims: widths of the hidden layers of each coupling.
        max_log_scale: of the couplings, see :class:`VectorCoupling`.
        activation: of the couplings.

    Raises:
        ValueError: if a size is out of its range.

    Example:
        >>> flow = CouplingFlow(3, num_couplings=2)
        >>> x = 5 + 9 * torch.randn(100, 3)
        >>> z, log_det = flow.initialize(x).encode(x)
        >>> torch.allclose(flow.decode(z)[0], x, atol=1e-4), log_det.shape
        (True, torch.Size([100]))
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        num_couplings: int = 8,
        hidden_dims: Sequence[int] = (64, 64),
        max_log_scale: float = 2.0,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        super().__init__()
        self.dim = count(dim, "dim", minimum=2)
        self.couplings: Any = nn.ModuleList(
            VectorCoupling(dim, _num_kept(dim, k), hidden_dims, max_log_scale, activation)
            for k in range(count(num_couplings, "num_couplings"))
        )
        start = torch.stack([rotation(dim) for _ in range(num_couplings + 1)])
        self.matrices = nn.Parameter(start.to(torch.get_default_dtype()))
        self.biases = nn.Parameter(torch.zeros(num_couplings + 1, dim))
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``x``, ``(..., dim)``, to :math:`z` and the log determinant, ``(...)``."""
        h = (x - self.loc) / self.scale
        log_det = self._constant()
        for k, coupling in enumerate(self.couplings):
            h, added = coupling.encode(h @ self.matrices[k].mT + self.biases[k])
            log_det = log_det + added
        return h @ self.matrices[-1].mT + self.biases[-1], log_det

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``z`` back, with the log determinant of this direction."""
        inverses = PLAIN.invert(self.matrices)
        h, log_det = (z - self.biases[-1]) @ inverses[-1].mT, -self._constant()
        for k in reversed(range(len(self.couplings))):
            h, added = self.couplings[k].decode(h)
            h, log_det = (h - self.biases[k]) @ inverses[k].mT, log_det + added
        return h * self.scale + self.loc, log_det

    @torch.no_grad()
    def initialize(self, x: Tensor) -> "CouplingFlow":
        """Takes mean and standard deviation of data ``(N, dim)``, and whitens them.

        The rotation of the first matrix stays. Returns the network.

        Raises:
            ValueError: if data are of another shape, not finite, or have a constant column.
        """
        loc, scale = column_statistics(x, self.dim)
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        left, _, right = torch.linalg.svd(self.matrices[0].double())
        self.matrices[0] = left @ right @ whitening((x.double() - loc) / scale)
        return self

    def _constant(self) -> Tensor:
        """The log determinant of all that is affine."""
        return PLAIN.log_abs_det(self.matrices).sum() - self.scale.log().sum()


def whitening(standard: Tensor) -> Tensor:
    """The symmetric inverse root of the correlations of standardised data ``(N, dim)``."""
    values, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
    return vectors / values.clamp_min(SMALLEST_VARIANCE).sqrt() @ vectors.T


def column_statistics(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, ``(dim,)``, in float64.

    Raises:
        ValueError: if ``x`` is not ``(N, dim)``, not finite, or a column of it is constant.
    """
    if x.dim() != 2 or x.shape[1] != dim or len(x) < 2:
        raise ValueError(f"Expected data of shape (N, {dim}), N >= 2, got {tuple(x.shape)}.")
    values = x.detach().double()
    if not bool(values.isfinite().all()):
        rows = (~values.isfinite()).any(1).sum().item()
        raise ValueError(f"{rows} rows of the data hold NaN or infinite numbers. Remove them.")
    loc, scale = values.mean(0), values.std(0, correction=0)
    constant = (scale <= 1e-6 * loc.abs()).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"Columns {constant} of the data are constant, or vary by less than a millionth of "
            "their mean: they have no density that could be learned. Remove them, or subtract the "
            "mean."
        )
    return loc, scale


def _num_kept(dim: int, index: int) -> int:
    """The smaller and the larger half of an odd number by turns."""
    return dim // 2 if index % 2 == 0 else (dim + 1) // 2
