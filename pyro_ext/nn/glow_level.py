"""The steps of flow at one resolution."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.act_norm import LOG_SCALE_FACTOR, ActNorm
from pyro_ext.nn.coupling import Coupling
from pyro_ext.nn.coupling_chain import run_chain
from pyro_ext.nn.glow_checks import check_level
from pyro_ext.nn.invertible_conv import InvertibleConv1x1
from pyro_ext.ops.invertible_matrix import LU, PLAIN, MatrixForm


class GlowLevel(nn.Module):
    r"""Steps of flow: :class:`ActNorm`, :class:`InvertibleConv1x1`, :class:`Coupling`, repeated.

    Norm and convolution of a step are one affine map of the channels,
    :math:`W e^{3 s} (x + b)`, computed for all steps at once, so that they cost one matrix product.

    Args:
        num_channels: :math:`C`, even.
        depth: number of steps.
        width: hidden channels of the couplings' networks.
        coupling: law of the couplings.
        context_dim: numbers in a context that the couplings see; none if it is zero.
        edge_bias: whether the couplings know the edge of the image.
        lu: whether the matrices are made of triangular factors.
        compute_dtype: dtype in which the couplings' networks compute.
        memory: what is kept for the backward pass: ``"none"`` saves no memory, ``"checkpoint"``
            keeps the input of each step and computes the rest again, ``"invertible"`` keeps the
            output of the level alone and computes the inputs from it. The latter has no second
            derivatives, is a break in a compiled graph, and with ``"affine"`` fails where scales
            are near zero.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> level = GlowLevel(12, depth=4, width=32)
        >>> x = torch.randn(5, 12, 8, 8)
        >>> z, log_det = level.encode(x)
        >>> torch.allclose(level.decode(z)[0], x, atol=1e-4), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        num_channels: int,
        depth: int,
        width: int,
        coupling: str = "affine_bounded",
        context_dim: int = 0,
        edge_bias: bool = False,
        lu: bool = True,
        compute_dtype: torch.dtype | None = None,
        memory: str = "none",
    ):
        super().__init__()
        check_level(depth, width, memory, compute_dtype)
        options = (width, coupling, context_dim, edge_bias, compute_dtype)
        self.memory = memory
        self.norms: Any = nn.ModuleList(ActNorm(num_channels) for _ in range(depth))
        self.convs: Any = nn.ModuleList(InvertibleConv1x1(num_channels, lu) for _ in range(depth))
        self.couplings: Any = nn.ModuleList(Coupling(num_channels, *options) for _ in range(depth))
        self.form: MatrixForm = LU if lu else PLAIN

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`encode`."""
        return self.encode(x, context)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps ``x``, ``(N, C, H, W)``, to :math:`z` and the log determinant, ``(N,)``."""
        bias, log_scale, matrix = self._stacked()
        weight = self.form.compose(matrix) * log_scale.exp().unsqueeze(-2)  # (depth, C, C)
        shift = (weight @ bias.unsqueeze(-1)).squeeze(-1)
        z, log_det = run_chain(self.couplings, x, weight, shift, context, self.memory, True)
        return z, log_det + self._log_det(x, log_scale, matrix)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps ``z`` back, with the log determinant of this direction."""
        bias, log_scale, matrix = self._stacked()
        weight = self.form.invert(matrix) * (-log_scale).exp().unsqueeze(-1)
        x, log_det = run_chain(self.couplings, z, weight, -bias, context, self.memory, False)
        return x, log_det - self._log_det(z, log_scale, matrix)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Starts norms and networks from ``x``, step by step, and returns it mapped."""
        for norm, conv, coupling in zip(self.norms, self.convs, self.couplings, strict=True):
            x = coupling.initialize(conv.initialize(norm.initialize(x)), context)
        return x

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Biases ``(depth, C)``, log scales ``(depth, C)`` and matrices ``(depth, C, C)``."""
        bias = torch.stack([norm.bias for norm in self.norms])
        log_scale = LOG_SCALE_FACTOR * torch.stack([norm.log_scale for norm in self.norms])
        return bias, log_scale, torch.stack([conv.matrix for conv in self.convs])

    def _log_det(self, x: Tensor, log_scale: Tensor, matrix: Tensor) -> Tensor:
        _, _, height, width = x.shape
        return height * width * (log_scale.sum() + self.form.log_abs_det(matrix).sum())
