"""The variational autoencoder as a Pyro model and guide."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import DenseNN, PyroModule, pyro_method
from torch import Tensor, nn

from pyro_ext.models.checks import (
    check_event,
    check_instance,
    check_mean,
    check_sizes,
    check_trained,
    start_at_pixels,
)
from pyro_ext.models.mini_batch import beside, data_plate
from pyro_ext.models.observations import bernoulli
from pyro_ext.models.posteriors import DiagonalNormal
from pyro_ext.models.priors import StandardNormalPrior
from pyro_ext.ops.counts import count


class VariationalAutoencoder(PyroModule):
    r"""A latent vector per datum, with networks on both sides.

    .. math::

        z_n \sim p(z), \qquad x_n \sim p(x \mid f_\theta(z_n, u_n)), \qquad
        q(z_n \mid x_n, u_n) = q(z \mid g_\phi(x_n, u_n))

    where :math:`u_n` is an optional context. :meth:`model` and :meth:`guide` are ordinary Pyro
    programs for ``SVI`` and any ``ELBO``. Both take a mini-batch, its context if there is one,
    and the number of data it stands for.

    Args:
        input_dim: size of a flattened datum :math:`x`.
        latent_dim: size of :math:`z`.
        hidden_dims: widths of the encoder's tanh layers; the decoder has them in reverse.
        prior: a module which, called without arguments, returns :math:`p(z)` with event shape
            ``(latent_dim,)``; a standard normal if not given.
        observation: makes :math:`p(x \mid \cdot)` with event shape ``(input_dim,)`` from the
            decoder's output; Bernoulli pixels if not given.
        data_mean: mean of the data, subtracted in the encoder. With Bernoulli pixels it also
            starts the decoder's bias, at the logit of the mean clipped to ``[1e-4, 1 - 1e-4]``.
        posterior: makes :math:`q(z \mid \cdot)` with event shape ``(latent_dim,)`` from the
            encoder's output; a :class:`DiagonalNormal` if not given.
        context_dim: size of :math:`u`, which both networks see beside their input; with 0 there
            is none. The prior does not depend on it.

    ``observation`` and ``posterior`` are any callables from a tensor to a distribution, modules
    too. The networks give them as many numbers as their attribute ``feature_dim`` says, or
    ``input_dim`` and ``2 * latent_dim`` without one. ``encoder`` and ``decoder`` are attributes
    that may be replaced by networks of the same input and output sizes.

    Shape:
        Data are ``(batch, input_dim)``, floating-point; of 0 and 1 for Bernoulli pixels
        (``torch.bernoulli`` makes them of grey levels in [0, 1]). The context is
        ``(batch, context_dim)``, floating-point.

    Raises:
        ValueError: if a size is not positive, if the event shape of prior or posterior is not
            ``(latent_dim,)``, if ``data_mean`` or, later, the data do not have ``input_dim``, if
            a context is missing or not expected.

    References:
        Kingma and Welling, *An Introduction to Variational Autoencoders*, arXiv 1906.02691.

    Example:
        >>> from pyro.infer import SVI
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> vae = VariationalAutoencoder(input_dim=4, latent_dim=2, hidden_dims=(8,))
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), MultiSampleELBO(5))
        >>> x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
        >>> isinstance(svi.step(x, size=100), float)
        True
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int = 50,
        hidden_dims: Sequence[int] = (300, 300),
        prior: Callable[[], Distribution] | None = None,
        observation: Callable[[Tensor], Distribution] = bernoulli,
        data_mean: Tensor | None = None,
        *,
        posterior: Callable[[Tensor], Distribution] | None = None,
        context_dim: int = 0,
    ):
        super().__init__()
        check_sizes(hidden_dims, input_dim=input_dim, latent_dim=latent_dim)
        self.input_dim, self.context_dim = input_dim, count(context_dim, "context_dim", minimum=0)
        check_instance(prior, "prior")
        check_instance(posterior, "posterior")
        self.prior: Any = StandardNormalPrior(latent_dim) if prior is None else prior
        self.posterior: Any = DiagonalNormal(latent_dim) if posterior is None else posterior
        self.observation = observation
        num_features = getattr(self.posterior, "feature_dim", 2 * latent_dim)
        num_outputs = getattr(observation, "feature_dim", input_dim)
        made = self.prior()
        check_event(made, latent_dim, "prior")
        check_trained(self.prior, made, "prior")
        check_event(self.posterior(torch.zeros(num_features)), latent_dim, "posterior")
        hidden = list(hidden_dims)
        self.encoder = DenseNN(input_dim + context_dim, hidden, [num_features], nn.Tanh())
        self.decoder = DenseNN(latent_dim + context_dim, hidden[::-1], [num_outputs], nn.Tanh())
        self.register_buffer("data_mean", check_mean(data_mean, input_dim))
        if observation is bernoulli and data_mean is not None:
            start_at_pixels(self.decoder, data_mean)

    @pyro_method
    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, size: int | None = None
    ) -> Tensor:
        """Samples ``z`` and ``x``, which is observed if given.

        Args:
            x: mini-batch of shape ``(batch, input_dim)``; none draws ``size`` data.
            context: of shape ``(batch, context_dim)``, if the model has one.
            size: number of data that the mini-batch stands for; its own length if not given.

        Returns:
            The data.
        """
        with data_plate(x, size, self.input_dim):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z, context), obs=x)

    @pyro_method
    def guide(self, x: Tensor, context: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Samples ``z`` given the mini-batch ``x``."""
        with data_plate(x, size, self.input_dim):
            return pyro.sample("z", self.encode(x, context))

    @pyro_method
    def encode(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        r"""The variational posterior :math:`q(z \mid x, u)`."""
        centred = x if self.data_mean is None else x - self.data_mean
        return self.posterior(self.encoder(beside(centred, context, self.context_dim)))

    @pyro_method
    def decode(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        r"""The likelihood :math:`p(x \mid z, u)`."""
        return self.observation(self.decoder(beside(z, context, self.context_dim)))
