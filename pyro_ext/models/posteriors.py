"""Families of distributions over vectors, made from the features that a network puts out."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import MultivariateNormal, Normal, TransformedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_ext.ops.counts import count

SMALLEST_SCALE = 1e-5


class DiagonalNormal(nn.Module):
    r"""Independent normal coordinates.

    .. math:: q(z) = \mathcal{N}\bigl(\mu, \operatorname{diag}\sigma^2\bigr), \qquad
        \sigma = \operatorname{softplus}(s) + 10^{-5}

    Args:
        latent_dim: :math:`D`, size of :math:`z`.

    Attributes:
        feature_dim: :math:`2D`, for :math:`\mu` and :math:`s`.

    Shape:
        Features ``(..., feature_dim)`` make batch shape ``(...)`` and event shape
        ``(latent_dim,)``.

    Raises:
        ValueError: if ``latent_dim < 1``.

    References:
        Kingma and Welling, *An Introduction to Variational Autoencoders*, arXiv 1906.02691.

    Example:
        >>> DiagonalNormal(2)(torch.zeros(5, 4)).stddev[0]
        tensor([0.6932, 0.6932])
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.feature_dim = 2 * count(latent_dim, "latent_dim")

    def forward(self, features: Tensor) -> Distribution:
        """The distribution."""
        loc, raw_scale = features.chunk(2, -1)
        return Normal(loc, softplus(raw_scale) + SMALLEST_SCALE).to_event(1)


class FullCovarianceNormal(nn.Module):
    r"""A normal with correlated coordinates, through the Cholesky factor of its covariance.

    .. math:: q(z) = \mathcal{N}(\mu, L L^\top), \qquad
        L = \operatorname{tril}_{-1}(l) + \operatorname{diag}(\operatorname{softplus}(s) + 10^{-5})

    A draw costs :math:`O(D^2)`. For a linear decoder with Gaussian noise it contains the exact
    posterior, which :class:`DiagonalNormal` does not.

    Args:
        latent_dim: :math:`D`, size of :math:`z`.

    Attributes:
        feature_dim: :math:`2D + D(D-1)/2`, for :math:`\mu`, :math:`s` and the rows of :math:`l`.

    Shape:
        Features ``(..., feature_dim)`` make batch shape ``(...)`` and event shape
        ``(latent_dim,)``.

    Raises:
        ValueError: if ``latent_dim < 1``.

    References:
        Kingma and Welling, *An Introduction to Variational Autoencoders*, arXiv 1906.02691.

    Example:
        >>> FullCovarianceNormal(2)(torch.zeros(5, 5)).scale_tril[0]
        tensor([[0.6932, 0.0000],
                [0.0000, 0.6932]])
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = count(latent_dim, "latent_dim")
        self.feature_dim = 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def forward(self, features: Tensor) -> Distribution:
        """The distribution."""
        dim = self.latent_dim
        loc, raw_scale, lower = features.split([dim, dim, self.feature_dim - 2 * dim], -1)
        scale_tril = torch.diag_embed(softplus(raw_scale) + SMALLEST_SCALE)
        row, column = torch.tril_indices(dim, dim, -1, device=features.device)
        scale_tril[..., row, column] = lower
        return MultivariateNormal(loc, scale_tril=scale_tril)


class InverseAutoregressiveFlow(nn.Module):
    r"""A diagonal normal bent by autoregressive transforms that see the features.

    .. math:: z^{(0)} \sim \mathcal{N}(\mu, \operatorname{diag}\sigma^2), \qquad
        z^{(t)} = \sigma_t \odot z^{(t-1)} + (1 - \sigma_t) \odot \mu_t

    where row :math:`i` of :math:`\mu_t` and :math:`\sigma_t \in (0, 1)` depends on the context
    :math:`h` and on those coordinates of :math:`z^{(t-1)}` that come before :math:`i`, in an
    order that every transform reverses.

    A draw and its own density take one pass of each network. The density of any *other* value
    takes ``latent_dim`` passes of each, one after the other; it is as exact and as
    differentiable. An objective that scores copies of the draws, as the gradient
    :func:`~pyro_ext.infer.dreg` does, pays them at every step: prefer
    :func:`~pyro_ext.infer.pathwise` with this posterior when ``latent_dim`` is large.

    Each call builds new transforms around the networks, so that no cached value outlives an
    update of the parameters.

    Args:
        latent_dim: :math:`D \ge 2`, size of :math:`z`; there is nothing to bend in one dimension.
        num_transforms: the number of transforms :math:`t`.
        hidden_dims: widths of the hidden layers of each network, at least ``latent_dim``;
            ``(2 * latent_dim,)`` if not given.
        context_dim: size of :math:`h`; ``latent_dim`` if not given.

    Attributes:
        feature_dim: :math:`2D` and ``context_dim``, for :math:`\mu`, the raw :math:`\sigma` as
            in :class:`DiagonalNormal`, and :math:`h`.

    Shape:
        Features ``(..., feature_dim)`` make batch shape ``(...)`` and event shape
        ``(latent_dim,)``.

    Raises:
        ValueError: if ``latent_dim < 2``, if another size is not positive, or if a hidden layer
            is narrower than ``latent_dim``, which cuts the last coordinates off.

    References:
        Kingma et al., *Improving Variational Inference with Inverse Autoregressive Flow*,
        arXiv 1606.04934. The transforms are Pyro's
        :class:`~pyro.distributions.transforms.AffineAutoregressive` with ``stable=True``.

    Example:
        >>> posterior = InverseAutoregressiveFlow(3, num_transforms=2)
        >>> q = posterior(torch.zeros(5, posterior.feature_dim))
        >>> q.log_prob(q.rsample((7,))).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        latent_dim: int,
        num_transforms: int = 2,
        hidden_dims: Sequence[int] | None = None,
        context_dim: int | None = None,
    ):
        super().__init__()
        self.latent_dim = count(latent_dim, "latent_dim", minimum=2)
        self.context_dim = count(latent_dim if context_dim is None else context_dim, "context_dim")
        self.feature_dim = 2 * latent_dim + self.context_dim
        self.base = DiagonalNormal(latent_dim)
        hidden = [2 * latent_dim] if hidden_dims is None else list(hidden_dims)
        if not hidden or min(hidden) < latent_dim:
            raise ValueError(
                f"InverseAutoregressiveFlow needs hidden_dims of at least latent_dim={latent_dim}, "
                f"got {hidden}: in a narrower layer some coordinates have no unit."
            )
        order: Any = torch.arange(latent_dim)
        self.networks = nn.ModuleList(
            ConditionalAutoRegressiveNN(
                latent_dim,
                self.context_dim,
                hidden,
                permutation=order if step % 2 == 0 else order.flip(0),
                nonlinearity=nn.ELU(),
            )
            for step in range(count(num_transforms, "num_transforms"))
        )

    def forward(self, features: Tensor) -> Distribution:
        """The distribution."""
        normal, context = features.split([2 * self.latent_dim, self.context_dim], -1)
        transforms: Any = [
            AffineAutoregressive(_Conditioned(network, context), stable=True)
            for network in self.networks
        ]
        return TransformedDistribution(self.base(normal), transforms)


class _Conditioned:
    """An autoregressive network at a fixed context, as a transform of Pyro's wants it."""

    def __init__(self, network: Any, context: Tensor):
        self.network, self.context, self.permutation = network, context, network.permutation

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        # Pyro's inverse starts from zeros of the default dtype
        return self.network(x.to(self.context.dtype), self.context)
