"""An automatic guide that an energy reshapes."""

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide.initialization import init_to_median
from torch import nn

from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.infer.auto_stochastic import AutoStochastic


class AutoEnergyInspired(AutoStochastic):
    r"""A diagonal normal over all latent variables, reshaped by a sampler that has an energy.

    .. math::

        q(z) = \mathrm{Sampler}_{U} \bigl[ \mathcal{N}(\mu, \operatorname{diag} \sigma^2) \bigr](z)

    in unconstrained space, with learned :math:`\mu, \sigma` and energy :math:`U`. Self-normalised
    importance sampling, truncated rejection and Hamiltonian importance sampling make posteriors
    that are skewed, correlated or of several modes. The objective is a lower bound on the
    evidence, with the stochastic upper bound on :math:`\log q(z)` of the auxiliaries that produced
    :math:`z`; if the sampler is importance sampling with the model's own weights,
    :math:`e^{-U} = p(x, z) / \mathcal{N}(z; \mu, \sigma^2)`, it is the importance-weighted bound.

    It trains with ``Trace_ELBO``, ``TraceGraph_ELBO``, ``TraceEnum_ELBO`` and
    :class:`MultiSampleELBO`, particles vectorised or not: along the paths of draws as far as there
    are any, and by the score function for discrete choices. ``ReweightedWakeSleep`` is refused.

    Args:
        model: the model, whose latent variables are continuous and of fixed size.
        sampler: either a module that maps a distribution to a :class:`StochasticDensity`, such as
            :class:`~pyro_ext.distributions.ImportanceSampler`, or a function of the number of
            unconstrained latent variables that makes such a module (or any callable like it). The
            function is called once, when the model has been seen, and what it makes is moved to the
            device and dtype of the latent variables.
        init_loc_fn: finds initial values of the latent sites, as in Pyro's automatic guides.
        init_scale: initial :math:`\sigma`. The sampler only reshapes what the base covers: of
            modes beyond it the guide learns nothing.

    Attributes:
        loc: :math:`\mu`, of shape ``(latent_dim,)``.
        scale: :math:`\sigma`, of the same shape.
        sampler: the sampler, once the guide has been called.
        num_draws: from which :meth:`median` and :meth:`quantiles` are estimated.

    Raises:
        ValueError: if ``sampler`` cannot be called or ``init_scale`` is not positive; when called,
            if the sampler does not return a stochastic density over vectors of size
            ``latent_dim``, or if a latent site lies inside of a plate that is subsampled.
        AuxiliaryLost: from objectives that detach draws before they score them.

    References:
        Lawson, Tucker, Dai and Ranganath, *Energy-Inspired Models*, arXiv 1910.14265.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_ext.distributions import ImportanceSampler
        >>> from pyro_ext.nn import EnergyNet
        >>> def model(x):  # whose posterior has two modes
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)
        >>> def sampler(latent_dim):
        ...     return ImportanceSampler(EnergyNet(latent_dim), num_proposals=32)
        >>> guide = AutoEnergyInspired(model, sampler, init_scale=1.0)
        >>> elbo = Trace_ELBO(num_particles=20, vectorize_particles=True)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), elbo)
        >>> loss = svi.step(torch.tensor(1.0))
        >>> guide.get_posterior().sample((3,)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        model,
        sampler: Callable[..., Any],
        init_loc_fn=init_to_median,
        init_scale: float = 0.1,
    ):
        if not callable(sampler):
            raise ValueError(
                "sampler must be a module that reshapes a distribution, or a function of the "
                f"latent dimension that makes one, got {sampler!r}."
            )
        super().__init__(model, init_loc_fn, init_scale)
        is_module = isinstance(sampler, nn.Module)
        self._make_sampler = None if is_module else sampler
        self.sampler = sampler if is_module else None

    def _setup_prototype(self, *args, **kwargs) -> None:
        super()._setup_prototype(*args, **kwargs)
        if self._make_sampler is not None:
            made = self._make_sampler(self.latent_dim)
            self._make_sampler = None  # functions often cannot be pickled
            self.sampler = made.to(self.loc) if isinstance(made, nn.Module) else made

    def get_posterior(self, *args, **kwargs) -> StochasticDensity:
        """The posterior of the unconstrained latent vector, of event shape ``(latent_dim,)``."""
        sampler: Any = self._network("sampler")
        base = self.get_base_dist()
        density = sampler(base) if callable(sampler) else None
        if not isinstance(density, StochasticDensity) or density.shape() != base.shape():
            raise ValueError(
                "sampler must map the base distribution, over vectors of size "
                f"{self.latent_dim}, to a StochasticDensity over such vectors, but "
                f"{sampler!r} returned {density!r}. Pass a module such as ImportanceSampler, "
                "or a function that makes one: lambda latent_dim: ImportanceSampler(...)."
            )
        return density
