"""The variational autoencoder whose latents can be identified."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_ext.models.checks import check_instance
from pyro_ext.models.context_checks import context_plate, latent_dim_of
from pyro_ext.models.observations import NormalObservation
from pyro_ext.models.posterior_laws import (
    around_inverse,
    check_inverse,
    check_product,
    product,
)
from pyro_ext.models.posteriors import DiagonalNormal
from pyro_ext.nn.context_features import as_features
from pyro_ext.nn.coupling_flow import CouplingFlow, column_statistics
from pyro_ext.nn.energy_parts import check_sizes
from pyro_ext.nn.perceptron import perceptron
from pyro_ext.ops.counts import count


class IdentifiableVAE(PyroModule):
    r"""A variational autoencoder with a prior that a context modulates.

    .. math::

        z_n \sim p(z \mid u_n), \qquad x_n \sim p(x \mid f_\theta(z_n)), \qquad
        q(z_n \mid x_n, u_n) = \mathcal N\bigl(g_\phi(x_n, u_n)\bigr)

    or, as a product of normal laws in which the prior takes part,

    .. math:: q(z_n \mid x_n, u_n) \propto \mathcal N\bigl(z_n; g_\phi(x_n)\bigr)\, p(z_n \mid u_n)

    or, around the inverse of an invertible decoder,

    .. math:: q(z_n \mid x_n, u_n) = \mathcal N\bigl(f_\theta^{-1}(x_n) + \sigma m,
        \sigma^2 S\bigr), \qquad (m, S) = g_\phi(x_n, u_n)

    The context acts through the prior alone, which is what makes latents identifiable, up to what
    :func:`~pyro_ext.diagnostics.check_identifiability` says of the prior, the contexts, the
    observations and the decoder: call it, as the model does not. Discrete observations are
    outside the theory. Nor does identifiable mean found: bounds have many optima, and other ones
    than the likelihood. **Independent coordinates in the posterior, the default, favour decoders
    whose Jacobian has orthogonal columns**, however small the noise: where the truth has not, they
    find something else. Pass ``posterior=FullCovarianceNormal(latent_dim)`` then. With little noise
    and as many latents as numbers, encoder and decoder must also follow each other closely, and
    stop where they are: pass a :class:`~pyro_ext.nn.CouplingFlow` as decoder, or without noise
    take an :class:`IdentifiableFlow`.

    :meth:`model` and :meth:`guide` are ordinary Pyro programs for ``SVI``, any ``ELBO`` and
    :func:`~pyro_ext.diagnostics.importance_diagnostics`.

    Args:
        prior: :math:`p(z \mid u)`, such as an
            :class:`~pyro_ext.distributions.IdentifiablePrior`.
        input_dim: size of a datum :math:`x`, not smaller than the latents.
        hidden_dims: widths of the hidden layers of encoder and, in reverse, decoder.
        observation: makes :math:`p(x \mid \cdot)` with event shape ``(input_dim,)`` of the
            decoder's output; a :class:`NormalObservation` if not given. Others are
            :class:`NegativeBinomialObservation`, :func:`poisson` and :func:`bernoulli`, or any
            callable; it gets as many numbers as its attribute ``feature_dim`` says, or
            ``input_dim`` without one.
        product_posterior: whether the posterior is the product; for an ``IdentifiablePrior`` of
            the normal family.
        activation: of encoder and decoder.
        posterior: makes a normal law of the encoder's output, of which it takes ``feature_dim``
            numbers; a :class:`DiagonalNormal` if not given.
        decoder: an invertible network, in place of the perceptron; for as many latents as numbers
            and a :class:`NormalObservation`, whose mean standard deviation is :math:`\sigma`. The
            posterior then says whether :math:`S` is diagonal or full; scales are exponentials.

    ``encoder`` and ``decoder`` are attributes that may be replaced by networks of the same input
    and output sizes.

    Shape:
        Data are ``(batch, input_dim)``, floating-point; contexts are labels ``(batch)`` or vectors
        ``(batch, context_dim)``, as the prior takes them.

    Raises:
        ValueError: if a size is out of its range, the decoder is narrower than the latents, or
            the prior does not fit; later, if data or contexts do not.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA: A Unifying Framework*,
        arXiv 1907.04809; the product posterior: Zhou and Wei, *Learning identifiable and
        interpretable latent models of high-dimensional neural activity using pi-VAE*,
        arXiv 2011.04798. What independent coordinates cost: Reizinger et al., *Embrace the Gap*,
        arXiv 2206.02416.

    Example:
        >>> from pyro.infer import SVI
        >>> from pyro_ext.distributions import IdentifiablePrior
        >>> from pyro_ext.infer import DecomposedELBO
        >>> vae = IdentifiableVAE(IdentifiablePrior(2, num_classes=8), input_dim=4)
        >>> elbo = DecomposedELBO(reconstruction=100.0, total_correlation=0.0, dimension_kl=10.0)
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
        >>> x, label = torch.randn(16, 4), torch.arange(16) % 8
        >>> isinstance(vae.initialize(x) and svi.step(x, label, size=1000), float)
        True
        >>> vae.encode(x, label).mean.shape
        torch.Size([16, 2])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        prior: Any,
        input_dim: int,
        hidden_dims: Sequence[int] = (100, 100),
        observation: Callable[[Tensor], Distribution] | None = None,
        *,
        product_posterior: bool = False,
        activation: Callable[[], nn.Module] = nn.SiLU,
        posterior: nn.Module | None = None,
        decoder: CouplingFlow | None = None,
    ):
        super().__init__()
        self.latent_dim, self.input_dim = latent_dim_of(prior), count(input_dim, "input_dim")
        hidden = check_sizes(hidden_dims, "hidden_dims")
        _check_width(self.latent_dim, input_dim, hidden if decoder is None else ())
        check_instance(observation, "observation")
        check_instance(posterior, "posterior")
        if product_posterior:
            check_product(prior, posterior)
        self.prior, self.product_posterior = prior, product_posterior
        self.observation: Any = NormalObservation(input_dim) if observation is None else observation
        num_outputs = getattr(self.observation, "feature_dim", input_dim)
        seen = 0 if product_posterior else prior.num_classes + prior.context_dim
        law: Any = DiagonalNormal(self.latent_dim) if posterior is None else posterior
        self.posterior = law
        self.encoder = perceptron([input_dim + seen, *hidden, law.feature_dim], activation)
        self.decoder: Any = decoder
        if decoder is None:
            self.decoder = perceptron([self.latent_dim, *hidden[::-1], num_outputs], activation)
        else:
            check_inverse(decoder, (self.latent_dim, input_dim), self.observation, law)
            nn.init.zeros_(self.encoder[-1].weight)  # type: ignore[arg-type]
        self.register_buffer("loc", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))

    @pyro_method
    def model(self, x: Tensor | None, context: Tensor, *, size: int | None = None) -> Tensor:
        """Samples ``z`` given contexts, and ``x``, which is observed if given.

        Args:
            x: mini-batch ``(batch, input_dim)``; none draws one for each context.
            context: labels ``(batch)`` or vectors ``(batch, context_dim)``.
            size: number of data that the mini-batch stands for; its own length if not given.

        Returns:
            The data.
        """
        with context_plate(x, context, size, self.loc):
            z = pyro.sample("z", self.prior(context))
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor, context: Tensor, *, size: int | None = None) -> Tensor:
        """Samples ``z`` given the mini-batch ``x`` and its contexts."""
        with context_plate(x, context, size, self.loc):
            return pyro.sample("z", self.encode(x, context))

    def encode(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        r"""The variational posterior :math:`q(z \mid x, u)`.

        Of a product, without a context, its factor :math:`\mathcal N(z; g_\phi(x))`: what data
        alone say of latents, up to how far training made it a likelihood.
        """
        seen = (x - self.loc) / self.scale
        if self.product_posterior:
            factor = self._around(x, self.encoder(seen))
            return factor if context is None else product(factor, self.prior(context))
        kinds = self.prior.num_classes, self.prior.context_dim
        features: Any = as_features(context, *kinds, self.loc)
        return self._around(x, self.encoder(torch.cat([seen, features], -1)))

    def decode(self, z: Tensor) -> Distribution:
        r"""The likelihood :math:`p(x \mid z)`."""
        if isinstance(self.decoder, CouplingFlow):
            return self.observation(self.decoder.decode(z)[0])
        return self.observation(self.decoder(z))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> "IdentifiableVAE":
        """Standardises what networks see by these data; returns the model.

        Args:
            x: ``(N, input_dim)``.

        Raises:
            ValueError: if they are of another shape, not finite, or have a constant column.
        """
        loc, scale = column_statistics(x, self.input_dim)
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        if isinstance(self.decoder, CouplingFlow):
            self.decoder.initialize(x)
        return self

    def _around(self, x: Tensor, features: Tensor) -> Distribution:
        if isinstance(self.decoder, CouplingFlow):
            return around_inverse(features, self.decoder.encode(x)[0], self.observation.scale)
        return self.posterior(features)


def _check_width(latent_dim: int, input_dim: int, hidden_dims: Sequence[int]) -> None:
    if any(size < latent_dim for size in hidden_dims):
        raise ValueError(
            f"A decoder with hidden_dims={tuple(hidden_dims)} is narrower than the {latent_dim} "
            "latents, which it cannot keep apart. Widen it."
        )
    if input_dim < latent_dim:
        raise ValueError(
            f"Data of input_dim={input_dim} cannot tell {latent_dim} latents apart: no continuous "
            "decoder is injective. Take a prior of fewer latents."
        )
