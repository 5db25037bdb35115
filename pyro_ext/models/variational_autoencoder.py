"""The variational autoencoder as a Pyro model and guide."""

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import DenseNN, PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_ext.models.priors import StandardNormalPrior


def bernoulli(logits: Tensor) -> Distribution:
    """Independent pixels in {0, 1}."""
    return Bernoulli(logits=logits).to_event(1)


class VariationalAutoencoder(PyroModule):
    r"""A latent vector per datum, with networks on both sides.

    .. math::

        z_n \sim p(z), \qquad x_n \sim p(x \mid f_\theta(z_n)), \qquad
        q(z_n \mid x_n)
        = \mathcal{N}\bigl(\mu_\phi(x_n), \operatorname{diag} \sigma_\phi^2(x_n)\bigr)

    :meth:`model` and :meth:`guide` are ordinary Pyro programs for ``SVI`` and any ``ELBO``. Both
    take a mini-batch, and the number of data it stands for.

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

    Shape:
        Data are ``(batch, input_dim)``, floating-point; of 0 and 1 for Bernoulli pixels
        (``torch.bernoulli`` makes them of grey levels in [0, 1]).

    Raises:
        ValueError: if a size is not positive, if the prior's event shape is not
            ``(latent_dim,)``, if ``data_mean`` or, later, the data do not have ``input_dim``.

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
    ):
        super().__init__()
        if not hidden_dims or min([input_dim, latent_dim, *hidden_dims]) < 1:
            raise ValueError(
                "VariationalAutoencoder needs positive sizes and a hidden layer, got "
                f"input_dim={input_dim}, latent_dim={latent_dim}, hidden_dims={hidden_dims}."
            )
        self.input_dim = input_dim
        self.prior = StandardNormalPrior(latent_dim) if prior is None else prior
        _check_prior(self.prior, latent_dim)
        hidden = list(hidden_dims)
        self.encoder = DenseNN(input_dim, hidden, [latent_dim, latent_dim], nn.Tanh())
        self.decoder = DenseNN(latent_dim, hidden[::-1], [input_dim], nn.Tanh())
        self.observation = observation
        self.register_buffer("data_mean", self._start_at(data_mean))

    @pyro_method
    def model(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Samples ``z`` and ``x``, which is observed if given.

        Args:
            x: mini-batch of shape ``(batch, input_dim)``; none draws ``size`` data.
            size: number of data that the mini-batch stands for; its own length if not given.

        Returns:
            The data.
        """
        with self._plate(x, size):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.observation(self.decoder(z)), obs=x)

    @pyro_method
    def guide(self, x: Tensor, size: int | None = None) -> Tensor:
        """Samples ``z`` given the mini-batch ``x``."""
        with self._plate(x, size):
            return pyro.sample("z", self.encode(x))

    @pyro_method
    def encode(self, x: Tensor) -> Distribution:
        r"""The variational posterior :math:`q(z \mid x)`."""
        loc, raw_scale = self.encoder(x if self.data_mean is None else x - self.data_mean)
        return Normal(loc, softplus(raw_scale) + 1e-5).to_event(1)

    @pyro_method
    def decode(self, z: Tensor) -> Distribution:
        r"""The likelihood :math:`p(x \mid z)`."""
        return self.observation(self.decoder(z))

    def _plate(self, x: Tensor | None, size: int | None):
        if x is None:
            return pyro.plate("data", 1 if size is None else size)
        if x.dim() != 2 or x.shape[-1] != self.input_dim:
            raise ValueError(
                f"VariationalAutoencoder expects data of shape (batch, {self.input_dim}), got "
                f"{tuple(x.shape)}. Flatten images, x.flatten(1)."
            )
        if not x.is_floating_point():
            raise ValueError(f"VariationalAutoencoder expects floating-point data, got {x.dtype}.")
        if size is None or size == len(x):
            return pyro.plate("data", len(x))
        if size < len(x):
            raise ValueError(f"A mini-batch of {len(x)} cannot stand for size={size} data.")
        return pyro.plate("data", size, subsample=torch.arange(len(x), device=x.device))

    def _start_at(self, data_mean: Tensor | None) -> Tensor | None:
        if data_mean is None:
            return None
        if data_mean.shape != (self.input_dim,):
            raise ValueError(
                f"data_mean has shape {tuple(data_mean.shape)}, expected ({self.input_dim},)."
            )
        if self.observation is bernoulli:
            if not ((data_mean >= 0) & (data_mean <= 1)).all():
                raise ValueError(
                    "Bernoulli pixels have a mean in [0, 1], but data_mean reaches from "
                    f"{data_mean.min():.3g} to {data_mean.max():.3g}. Scale the data."
                )
            with torch.no_grad():
                self.decoder.layers[-1].bias.copy_(  # type: ignore[operator]
                    data_mean.clamp(1e-4, 1 - 1e-4).logit()
                )
        return data_mean


def _check_prior(prior: Callable[[], Distribution], latent_dim: int) -> None:
    distribution = prior()
    if distribution.event_shape != (latent_dim,) or distribution.batch_shape != ():
        raise ValueError(
            f"The prior draws events of shape {tuple(distribution.event_shape)} in batches of "
            f"{tuple(distribution.batch_shape)}, expected ({latent_dim},) and (): latent_dim and "
            "the prior's must agree, and to_event(1) makes an event of a batch."
        )
