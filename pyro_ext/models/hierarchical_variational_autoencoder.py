"""A variational autoencoder with a chain of latent layers."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import DenseNN, PyroModule, pyro_method
from torch import Tensor, nn

from pyro_ext.models.checks import check_event, check_mean, check_sizes, start_at_pixels
from pyro_ext.models.mini_batch import data_plate
from pyro_ext.models.observations import bernoulli
from pyro_ext.models.posteriors import DiagonalNormal
from pyro_ext.models.priors import StandardNormalPrior


class HierarchicalVariationalAutoencoder(PyroModule):
    r"""Several latent vectors per datum, each the parent of the one below it.

    .. math::

        p(x, z_1, \dots, z_L) &= p(z_L) \prod_{l=1}^{L-1} p(z_l \mid z_{l+1}) \; p(x \mid z_1) \\
        q(z_1, \dots, z_L \mid x) &= q(z_1 \mid x) \prod_{l=1}^{L-1} q(z_{l+1} \mid z_l)

    The model goes down, the guide up. The conditional densities between layers are diagonal
    normals on both sides, the first of the guide too.

    Args:
        input_dim: size of a flattened datum :math:`x`.
        latent_dims: sizes of :math:`z_1, \dots, z_L`, from the layer above the data upwards.
        hidden_dims: widths of the tanh layers of each network going up; those going down have
            them in reverse.
        prior: a module which, called without arguments, returns :math:`p(z_L)` with event shape
            ``(latent_dims[-1],)``; a standard normal if not given.
        observation: makes :math:`p(x \mid \cdot)` as in :class:`VariationalAutoencoder`.
        data_mean: mean of the data, as in :class:`VariationalAutoencoder`.

    ``encoders`` and ``decoders`` are lists of networks, counted from the data: ``encoders[l]``
    reads layer :math:`l` (0 is the data), and ``decoders[l]`` makes it.

    Shape:
        Data are ``(batch, input_dim)``, floating-point. Sites are named ``z1`` to ``zL``, and
        ``x``.

    Raises:
        ValueError: if there are fewer than two latent layers, if a size is not positive, if the
            prior's event shape is not ``(latent_dims[-1],)``, if ``data_mean`` or, later, the
            data do not have ``input_dim``.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519;
        Kingma and Welling, *An Introduction to Variational Autoencoders*, arXiv 1906.02691.

    Example:
        >>> import torch
        >>> vae = HierarchicalVariationalAutoencoder(4, latent_dims=(3, 2), hidden_dims=(8,))
        >>> x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
        >>> [tuple(z.shape) for z in vae.guide(x)]
        [(2, 3), (2, 2)]
    """

    def __init__(
        self,
        input_dim: int,
        latent_dims: Sequence[int] = (100, 50),
        hidden_dims: Sequence[int] = (200, 200),
        prior: Callable[[], Distribution] | None = None,
        observation: Callable[[Tensor], Distribution] = bernoulli,
        data_mean: Tensor | None = None,
    ):
        super().__init__()
        dims, hidden = list(latent_dims), list(hidden_dims)
        if len(dims) < 2:
            raise ValueError(
                f"latent_dims={latent_dims} has {len(dims)} layers, expected two or more; "
                "VariationalAutoencoder has one."
            )
        check_sizes(hidden, input_dim=input_dim, **{f"z{i + 1}": d for i, d in enumerate(dims)})
        self.input_dim = input_dim
        self.prior: Any = StandardNormalPrior(dims[-1]) if prior is None else prior
        check_event(self.prior(), dims[-1], "prior")
        self.observation = observation
        self.normals = nn.ModuleList(DiagonalNormal(dim) for dim in dims)
        num_outputs = getattr(observation, "feature_dim", input_dim)
        self.encoders: Any = nn.ModuleList(
            DenseNN(below, hidden, [2 * above], nn.Tanh())
            for below, above in pairwise([input_dim, *dims])
        )
        self.decoders: Any = nn.ModuleList(
            DenseNN(above, hidden[::-1], [outputs], nn.Tanh())
            for above, outputs in zip(dims, [num_outputs] + [2 * d for d in dims], strict=False)
        )
        self.register_buffer("data_mean", check_mean(data_mean, input_dim))
        if observation is bernoulli and data_mean is not None:
            start_at_pixels(self.decoders[0], data_mean)

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Samples ``zL`` to ``z1`` and ``x``, which is observed if given.

        Args:
            x: mini-batch of shape ``(batch, input_dim)``; none draws ``size`` data.
            size: number of data that the mini-batch stands for; its own length if not given.

        Returns:
            The data.
        """
        top = len(self.normals)
        with data_plate(x, size, self.input_dim):
            z = pyro.sample(f"z{top}", self.prior())
            for layer in range(top - 1, 0, -1):
                z = pyro.sample(f"z{layer}", self.normals[layer - 1](self.decoders[layer](z)))
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor, *, size: int | None = None) -> list[Tensor]:
        """Samples ``z1`` to ``zL`` given the mini-batch ``x``."""
        with data_plate(x, size, self.input_dim):
            below = x if self.data_mean is None else x - self.data_mean
            latents = []
            for layer, (encoder, normal) in enumerate(
                zip(self.encoders, self.normals, strict=True), 1
            ):
                below = pyro.sample(f"z{layer}", normal(encoder(below)))
                latents.append(below)
            return latents

    @pyro_method
    def decode(self, z: Tensor) -> Distribution:
        r"""The likelihood :math:`p(x \mid z_1)`."""
        return self.observation(self.decoders[0](z))
