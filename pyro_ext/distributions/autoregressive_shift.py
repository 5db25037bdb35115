"""Autoregressive transforms that keep volumes."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ext.ops.counts import count


class AutoregressiveShift(TransformModule):
    r"""Adds to each coordinate what a network makes of the coordinates before it.

    .. math:: x_i = z_i + m_i(x_1, \dots, x_{i - 1}), \qquad
        \log \Bigl\lvert \det \frac{\partial x}{\partial z} \Bigr\rvert = 0

    The mean-only form of Pyro's ``AffineAutoregressive``, which cannot be had by clipping its log
    scales: clipped values there keep their gradient. From data to latents all coordinates are
    computed at once; from latents to data one after another. So densities are fast, draws take a
    pass of the network for each coordinate, and the transform is fit for priors; its inverse,
    ``transform.inv``, for posteriors. Nothing is cached.

    Args:
        input_dim: :math:`D \ge 2`.
        hidden_dims: widths of the network's hidden layers, at least ``input_dim``;
            ``(2 * input_dim,)`` if not given.
        reverse: whether the first coordinate is the last one.
        nonlinearity: of the hidden layers.

    Shape:
        ``(..., input_dim)``, kept.

    Raises:
        ValueError: if a size is too small: in a narrower layer some coordinates have no unit.

    References:
        Chen et al., *Variational Lossy Autoencoder*, arXiv 1611.02731.

    Example:
        >>> import pyro.distributions as dist
        >>> flow = AutoregressiveShift(4)
        >>> base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
        >>> d = dist.TransformedDistribution(base, [flow])
        >>> x = d.sample((5,))
        >>> bool(torch.allclose(d.log_prob(x), base.log_prob(flow.inv(x)), atol=1e-5))
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int] | None = None,
        *,
        reverse: bool = False,
        nonlinearity: nn.Module | None = None,
    ):
        super().__init__(cache_size=0)
        hidden = [2 * count(input_dim, "input_dim", 2)] if hidden_dims is None else [*hidden_dims]
        if not hidden or min(hidden) < count(input_dim, "input_dim", 2):
            raise ValueError(
                f"AutoregressiveShift needs hidden_dims of at least input_dim={input_dim}, got "
                f"{hidden}: in a narrower layer some coordinates have no unit."
            )
        order: Any = torch.arange(input_dim)
        self.order = order.flip(0).tolist() if reverse else order.tolist()
        self.network = AutoRegressiveNN(
            input_dim,
            hidden,
            param_dims=[1],
            permutation=order.flip(0) if reverse else order,
            nonlinearity=nn.ELU() if nonlinearity is None else nonlinearity,
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero for each vector."""
        return x.new_zeros(x.shape[:-1])

    def _call(self, z: Tensor) -> Tensor:
        x = torch.zeros_like(z)
        for k in self.order:
            place = torch.zeros(z.shape[-1], dtype=torch.bool, device=z.device)
            place[k] = True
            x = torch.where(place, z + self.network(x), x)
        return x

    def _inverse(self, x: Tensor) -> Tensor:
        return x - self.network(x)
