"""An automatic guide of Hamiltonian variational inference."""

from collections.abc import Callable, Sequence

import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from pyro_ext.distributions.hamiltonian_importance import HamiltonianImportance
from pyro_ext.distributions.hamiltonian_sampler import HamiltonianSampler
from pyro_ext.infer.auto_stochastic import AutoStochastic
from pyro_ext.infer.model_potential import ModelPotential, num_plate_dims
from pyro_ext.nn.energy_parts import check_sizes
from pyro_ext.nn.momentum import MomentumNet
from pyro_ext.ops.counts import count


class AutoHamiltonian(AutoStochastic):
    r"""A diagonal normal over all latent variables that rolls towards the posterior.

    .. math::

        z_0 \sim \mathcal{N}(\mu, \operatorname{diag} \sigma^2), \quad
        \rho_0 \sim \mathcal{N}(0, I), \qquad (z_T, \rho_T) = \Phi_T(z_0, \rho_0)

    with :math:`\Phi_T` the tempered leapfrog map of
    :class:`~pyro_ext.distributions.HamiltonianImportance` in the potential :math:`U(z) = -\log
    p(x, z)` of the model itself, in unconstrained space. :math:`\Phi_T` preserves volume, so
    that the bound is

    .. math::

        \mathbb{E} \bigl[ \log p(x, z_T) + \log r(\rho_T \mid z_T) - \log \mathcal{N}(z_0; \mu,
        \sigma^2) - \log \mathcal{N}(\rho_0; 0, I) \bigr] \le \log p(x)

    with a learned diagonal normal :math:`r`, a learned step size per dimension and a learned
    tempering per step. The gradient of the model tells the guide about correlations and curvature
    that a diagonal normal cannot learn; each draw costs :math:`T + 1` runs of the model and their
    gradients, and training their second derivatives. All is reparameterised.

    The guide runs the model with the arguments it is called with, data included: draw posterior
    samples with the arguments of training, and pass them on to ``Predictive(model,
    posterior_samples)``, rather than the guide. All particles are run at once, so vectorised
    particles, :meth:`median` and :meth:`quantiles` need a model that indexes dimensions from the
    right. Parameters
    of the model are trained through both sides. Where a plate with observations is subsampled, a
    path sees one subsample, independent of that of the objective: that is noise of the guide,
    under which the bound stays a bound.

    Args:
        model: the model, whose latent variables are continuous and of fixed size.
        num_steps: :math:`T \ge 1`.
        step_size: initial :math:`\epsilon > 0`, a number or one for each unconstrained latent
            variable. About the width of the narrowest direction of the posterior is the limit,
            beyond which paths blow up; much data make a posterior narrow.
        tempering: initial :math:`\alpha_t \in (0, 1]`, a number or one for each step; below one,
            paths start with more momentum and lose it on their way.
        hidden_dims: widths of the hidden layers of the reverse momentum net.
        init_loc_fn: finds initial values of the latent sites, as in Pyro's automatic guides.
        init_scale: initial :math:`\sigma`.
        learn_step_size: whether :math:`\epsilon` is learned.
        learn_tempering: whether :math:`\alpha_t` are learned; they must not be one then.

    Attributes:
        loc: :math:`\mu`, of shape ``(latent_dim,)``.
        scale: :math:`\sigma`, of the same shape.
        sampler: owns step size, tempering and momentum net, once the guide has been called.
        num_draws: from which :meth:`median` and :meth:`quantiles` are estimated.

    Raises:
        ValueError: if a size, ``step_size``, ``tempering`` or ``init_scale`` is out of its domain;
            when called, if a latent site lies inside of a plate that is subsampled, if the model
            draws a site that the guide does not, or, when validating, if paths are not finite.
        RuntimeError: if a guide from a pickle is called, which has no model.
        AuxiliaryLost: from objectives that detach draws before they score them.

    References:
        Salimans, Kingma and Welling, *Markov Chain Monte Carlo and Variational Inference: Bridging
        the Gap*, arXiv 1410.6460. Caterini, Doucet and Sejdinovic, *Hamiltonian Variational
        Auto-Encoder*, arXiv 1805.11328.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, scale), obs=x)
        >>> guide = AutoHamiltonian(model, num_steps=3, step_size=0.05)
        >>> elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
        >>> x = torch.tensor([0.0, 1.0, 2.0])
        >>> loss = svi.step(x)
        >>> guide.get_posterior(x).rsample((4,)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        model,
        num_steps: int = 5,
        step_size: Tensor | float = 0.02,
        tempering: Tensor | float | Sequence[float] = 0.9995,
        hidden_dims: Sequence[int] = (100, 100),
        init_loc_fn=init_to_median,
        init_scale: float = 0.1,
        *,
        learn_step_size: bool = True,
        learn_tempering: bool = True,
    ):
        super().__init__(model, init_loc_fn, init_scale)
        self._target: tuple[Callable] | None = (model,)  # no submodule; without init_loc_fn
        self.num_steps = count(num_steps, "num_steps")
        self.hidden_dims = check_sizes(hidden_dims, "hidden_dims")
        self._learn = {"learn_step_size": learn_step_size, "learn_tempering": learn_tempering}
        self._step_size, self._tempering = step_size, tempering
        self._make_sampler(torch.as_tensor(step_size).numel())  # checks the arguments

    def __getstate__(self):
        return {**super().__getstate__(), "_target": None}

    def _setup_prototype(self, *args, **kwargs) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.num_plate_dims = num_plate_dims(self.model, args, kwargs)
        self.sampler = self._make_sampler(self.latent_dim).to(self.loc)
        self._refuse_random(self.get_posterior(*args, **kwargs).potential)

    @torch.no_grad()
    def _refuse_random(self, potential: Callable[[Tensor], Tensor]) -> None:
        first, second = potential(self.loc), potential(self.loc)
        if not torch.allclose(first, second, equal_nan=True):
            raise ValueError(
                f"The log joint density of the model is random: {-first.item():g}, then "
                f"{-second.item():g} at the same values, so that no path can be retraced. Put "
                ".frozen(seed) at sites with a StochasticDensity, as an energy-inspired prior is; "
                "show all latent sites to AutoHamiltonian, none hidden by poutine.block; and call "
                "eval() on networks that draw random numbers."
            )

    def _make_sampler(self, dim: int) -> HamiltonianSampler:
        step_size = torch.as_tensor(self._step_size)
        if step_size.dim() > 1 or step_size.numel() not in (1, dim):
            raise ValueError(
                f"step_size has shape {tuple(step_size.shape)}, but the model has {dim} "
                "unconstrained latent variables. Give a number, or one for each of them."
            )
        step_size = step_size.expand(dim)
        net = MomentumNet(dim, self.hidden_dims)
        return HamiltonianSampler(
            _no_potential, self.num_steps, step_size, self._tempering, net, **self._learn
        )

    def get_posterior(self, *args, **kwargs) -> HamiltonianImportance:
        """The posterior of the unconstrained latent vector, of event shape ``(latent_dim,)``.

        Args:
            args: those of the model.
            kwargs: those of the model.
        """
        if self._target is None:
            raise RuntimeError(
                "An AutoHamiltonian needs its model, which pickles and copies leave out. Make a "
                "new one of the model, call it once with data, and then load_state_dict()."
            )
        sampler = self._network("sampler")
        potential = ModelPotential(
            self._target[0], self._unpack_latent, self.latent_dim, self.num_plate_dims, args, kwargs
        )
        return sampler.follow(self.get_base_dist(), potential)


def _no_potential(z: Tensor) -> Tensor:
    raise NotImplementedError("The potential of an AutoHamiltonian is made by get_posterior().")
