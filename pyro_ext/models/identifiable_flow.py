"""The identifiable model of observations without noise."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_ext.distributions.flow_density import FlowDensity, FlowTransform
from pyro_ext.models.context_checks import context_plate, latent_dim_of
from pyro_ext.nn.coupling_flow import CouplingFlow
from pyro_ext.ops.counts import count


class IdentifiableFlow(PyroModule):
    r"""Nonlinear independent component analysis by exact likelihood.

    .. math::

        z \sim p(z \mid u), \qquad x = f(z), \qquad
        \log p(x \mid u) = \log p(f^{-1}(x) \mid u)
        + \log \Bigl\lvert \det \frac{\partial f^{-1}(x)}{\partial x} \Bigr\rvert

    with an invertible :math:`f`, a :class:`~pyro_ext.nn.coupling_flow.CouplingFlow`, and a prior
    that a context modulates. Where there are as many latents as observed numbers and no noise,
    take this rather than an :class:`IdentifiableVAE`: there is no posterior to approximate, no
    bound to be loose, and :math:`f` is injective by construction. With noise, or fewer latents
    than numbers, it has no place for what is left over.

    Call :meth:`initialize` with the training data first. What is found in :meth:`sources` are the
    latents up to what :func:`~pyro_ext.diagnostics.check_identifiability` says of the prior and
    the contexts; give it ``likelihood=Delta``. Likelihoods have many optima: :func:`best_of`
    restarts and selects by held-out likelihood.

    Calling the module is :meth:`condition`, so that it may serve as noise and proposal of energies.

    Args:
        prior: :math:`p(z \mid u)`, such as an
            :class:`~pyro_ext.distributions.IdentifiablePrior`, of two latents or more.
        num_couplings: how deep :math:`f` is.
        hidden_dims: widths of the hidden layers of each coupling.
        max_log_scale: log scales of couplings lie between plus and minus this number.
        activation: of the couplings.

    Shape:
        Data are ``(batch, latent_dim)``; contexts are labels ``(batch)`` or vectors
        ``(batch, context_dim)``, as the prior takes them.

    Raises:
        ValueError: if the prior has fewer than two latents, or another size is out of its range;
            later, if data are not of ``latent_dim`` columns.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA*, arXiv 1907.04809, without
        noise; Li, Hooi and Lee, *Identifying through Flows for Recovering Latent Representations*,
        arXiv 1909.12555.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_ext.distributions import GaussianFamily, IdentifiablePrior
        >>> prior = IdentifiablePrior(3, num_classes=8, family=GaussianFamily(("scale",)))
        >>> flow = IdentifiableFlow(prior)
        >>> x, label = torch.randn(64, 3), torch.arange(64) % 8
        >>> svi = SVI(flow.model, flow.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
        >>> isinstance(flow.initialize(x) and svi.step(x, label), float)
        True
        >>> flow.condition(label).log_prob(x).shape, flow.sources(x).shape
        (torch.Size([64]), torch.Size([64, 3]))
    """

    def __init__(
        self,
        prior: Any,
        num_couplings: int = 8,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        max_log_scale: float = 2.0,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        super().__init__()
        self.latent_dim = count(latent_dim_of(prior), "latent_dim", minimum=2)
        self.prior = prior
        self.net = CouplingFlow(
            self.latent_dim, num_couplings, hidden_dims, max_log_scale, activation
        )

    def __call__(self, context: Tensor) -> FlowDensity:
        """:meth:`condition`, which registers no parameters in Pyro's store."""
        return self.condition(context)

    def condition(self, context: Tensor) -> FlowDensity:
        r"""The law :math:`p(x \mid u)`, of batch shape ``(batch)``."""
        return FlowDensity(self.prior(context), [FlowTransform(self.net)])

    @pyro_method
    def model(self, x: Tensor | None, context: Tensor, *, size: int | None = None) -> Tensor:
        """Samples ``x`` given contexts, observed if given.

        Args:
            x: mini-batch ``(batch, latent_dim)``; none draws one for each context.
            context: labels ``(batch)`` or vectors ``(batch, context_dim)``.
            size: number of data that the mini-batch stands for; its own length if not given.
        """
        with context_plate(x, context, size, self.net.loc):
            return pyro.sample("x", self.condition(context), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None, context: Tensor, *, size: int | None = None) -> None:
        """Samples nothing: there are no latent variables."""

    def sources(self, x: Tensor) -> Tensor:
        """The latents behind data, ``(..., latent_dim) -> (..., latent_dim)``."""
        return self.net.encode(x)[0]

    def initialize(self, x: Tensor) -> "IdentifiableFlow":
        """Whitens by these data, ``(N, latent_dim)``; returns the model.

        Raises:
            ValueError: if they are of another shape, not finite, or have a constant column.
        """
        self.net.initialize(x)
        return self
