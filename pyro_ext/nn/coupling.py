"""Coupling layers of images."""

import torch
from torch import Tensor, nn

from pyro_ext.nn.coupling_law import Rule, law
from pyro_ext.nn.coupling_net import CouplingNet


class Coupling(nn.Module):
    r"""Moves one half of the channels by what a network makes of the other half.

    .. math::

        z_1 = x_1, \qquad (t, h) = f(x_1), \qquad z_2 = (x_2 + t) \cdot s, \qquad
        \log \Bigl\lvert \frac{\partial z}{\partial x} \Bigr\rvert = \sum_i \log s_i

    with the scale of the law: ``"additive"`` :math:`s = 1`; ``"affine"``
    :math:`s = \sigma(h + 2)`, as published; ``"affine_bounded"``
    :math:`s = \tfrac12 + \tfrac12 \sigma(h + 2)`, where :math:`f` sees
    :math:`4 \tanh(x_1 / 4)`. The published law is easily inverted at data, but not at samples: as
    training lets a scale near zero, its inverse explodes. That of the bounded one grows by twofold
    and a constant at most, at the same likelihood as far as was seen.

    Args:
        num_channels: :math:`C`, even.
        width: hidden channels of :math:`f`, a :class:`~pyro_ext.nn.CouplingNet`.
        coupling: the law.
        context_dim: numbers in a context that :math:`f` sees; none if it is zero.
        edge_bias: whether :math:`f` knows the edge of the image.
        compute_dtype: dtype in which :math:`f` computes, the parameters' if None; latents and
            determinants stay in theirs.

    Raises:
        ValueError: if the number of channels is odd, or there is no such law.

    References:
        Kingma and Dhariwal, *Glow*, arXiv 1807.03039; Behrmann et al., *Understanding and
        mitigating exploding inverses in invertible neural networks*, arXiv 2006.09347.

    Example:
        >>> layer = Coupling(12, width=32)
        >>> x = torch.randn(5, 12, 8, 8)
        >>> z, log_det = layer.encode(x)
        >>> torch.allclose(layer.decode(z)[0], x, atol=1e-5), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        num_channels: int,
        width: int,
        coupling: str = "affine_bounded",
        context_dim: int = 0,
        edge_bias: bool = False,
        compute_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_channels % 2:
            raise ValueError(
                f"A coupling halves its channels, so their number is even; got {num_channels}."
            )
        self.law = law(coupling)
        half = num_channels // 2
        options = (self.law.bound, context_dim, edge_bias, compute_dtype)
        self.net = CouplingNet(half, self.law.num_outputs * half, width, *options)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """:meth:`encode`, or :meth:`decode` if ``inverse``."""
        return self.decode(x, context) if inverse else self.encode(x, context)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps ``x``, ``(N, C, H, W)``, to :math:`z` and the log determinant, ``(N,)``."""
        return self._move(self.law.apply, x, context)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps ``z`` back, with the log determinant of this direction."""
        return self._move(self.law.undo, z, context)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Starts the network from ``x``, which it returns mapped."""
        self.net.initialize(x.chunk(2, 1)[0])
        return self.encode(x, context)[0]

    def _move(self, rule: Rule, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, 1)
        moved, log_det = rule(self.net(kept, context), moved)
        return torch.cat([kept, moved], 1), log_det
