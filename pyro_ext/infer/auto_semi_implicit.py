"""An automatic guide of semi-implicit variational inference."""

from collections.abc import Sequence
from typing import Any

from pyro.distributions import Normal
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from pyro_ext.distributions.semi_implicit import SemiImplicit
from pyro_ext.infer.auto_stochastic import AutoStochastic
from pyro_ext.nn.energy_parts import check_sizes
from pyro_ext.nn.mixing import MixingNet, ReverseNet
from pyro_ext.ops.counts import count


class AutoSemiImplicit(AutoStochastic):
    r"""A normal over all latent variables, whose location is a network of noise.

    .. math::

        \epsilon \sim \mathcal{N}(0, I), \qquad
        z \sim \mathcal{N}\bigl(\mu + f(\epsilon), \operatorname{diag} \sigma^2\bigr)

    in unconstrained space. The network :math:`f` gives the marginal :math:`q(z)` any shape:
    correlated, skewed, of several modes. With :math:`\epsilon_0` the noise that produced :math:`z`
    and :math:`\epsilon_1, \dots, \epsilon_K \sim r(\epsilon \mid z)` fresh ones, the bound is

    .. math::

        \mathcal{L}_K = \mathbb{E} \Bigl[ \log p(x, z) - \log \frac{1}{K + 1} \sum_{k=0}^K
        \frac{q(z \mid \epsilon_k)\, \mathcal{N}(\epsilon_k; 0, I)}{r(\epsilon_k \mid z)} \Bigr]
        \le \log p(x)

    which rises with :math:`K`. Without ``reverse``, :math:`r(\epsilon \mid z) =
    \mathcal{N}(\epsilon; 0, I)`: semi-implicit variational inference (SIVI). With it, a second
    network learns :math:`r` by the same bound, which is then tight for few fresh ones:
    importance-weighted hierarchical variational inference (IWHVI). All is reparameterised.

    Args:
        model: the model, whose latent variables are continuous and of fixed size.
        hidden_dims: widths of the hidden layers of either network.
        noise_dim: size of :math:`\epsilon`; by default the number of latent variables, at
            least 10.
        num_fresh: :math:`K \ge 0`, evaluations of :math:`f` per draw, less one.
        reverse: whether :math:`r` is learned.
        init_loc_fn: finds initial values of the latent sites, as in Pyro's automatic guides.
        init_scale: initial :math:`\sigma`, and scale of :math:`f`.

    Attributes:
        loc: :math:`\mu`, of shape ``(latent_dim,)``.
        scale: :math:`\sigma`, of the same shape.
        num_draws: from which :meth:`median` and :meth:`quantiles` are estimated.

    Raises:
        ValueError: if a size is not positive, ``num_fresh < 0`` or ``init_scale`` is not positive;
            when called, if a latent site lies inside of a plate that is subsampled.
        AuxiliaryLost: from objectives that detach draws before they score them.

    References:
        Yin and Zhou, *Semi-Implicit Variational Inference*, arXiv 1805.11183. Sobolev and Vetrov,
        *Importance Weighted Hierarchical Variational Inference*, arXiv 1905.03290.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(x):
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(a * b, 0.1), obs=x)
        >>> guide = AutoSemiImplicit(model, hidden_dims=(20,), num_fresh=10, reverse=True)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        >>> loss = svi.step(torch.tensor(1.0))
        >>> sorted(guide.median())
        ['a', 'b']
    """

    def __init__(
        self,
        model,
        hidden_dims: Sequence[int] = (50, 50),
        noise_dim: int | None = None,
        num_fresh: int = 50,
        reverse: bool = False,
        init_loc_fn=init_to_median,
        init_scale: float = 0.1,
    ):
        super().__init__(model, init_loc_fn, init_scale)
        self.noise_dim: Any = None if noise_dim is None else count(noise_dim, "noise_dim")
        self.hidden_dims = check_sizes(hidden_dims, "hidden_dims")
        self.num_fresh = count(num_fresh, "num_fresh", 0)
        self.reverse = bool(reverse)

    def _setup_prototype(self, *args, **kwargs) -> None:
        super()._setup_prototype(*args, **kwargs)
        dim, loc = self.latent_dim, self.loc
        self.noise_dim = noise_dim = self.noise_dim or max(dim, 10)
        net = MixingNet(noise_dim, dim, self.hidden_dims, gain=self._init_scale)
        self.mixing_net = net.to(loc)
        if self.reverse:
            self.reverse_net = ReverseNet(dim, noise_dim, self.hidden_dims).to(loc)

    def get_posterior(self, *args, **kwargs) -> SemiImplicit:
        """The posterior of the unconstrained latent vector, of event shape ``(latent_dim,)``."""
        loc, scale, net = self.loc, self.scale, self._network("mixing_net")

        def conditional(noise: Tensor):
            return Normal(loc + net(noise), scale).to_event(1)

        noise = Normal(loc.new_zeros([self.noise_dim]), 1.0).to_event(1)
        reverse = self._reverse() if self.reverse else None
        return SemiImplicit(noise, conditional, reverse).tight(self.num_fresh + 1)

    def _reverse(self):
        net = self._network("reverse_net")
        return lambda z: Normal(*net(z)).to_event(1)
