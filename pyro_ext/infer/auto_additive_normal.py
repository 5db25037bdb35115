"""An automatic guide of independent normals with free log variances."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuide, init_to_feasible
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor

from pyro_ext.distributions.log_uniform import LogUniform
from pyro_ext.distributions.log_variance_normal import LogVarianceNormal
from pyro_ext.infer.latent import Latent
from pyro_ext.infer.store_names import claim_loaded
from pyro_ext.poutine.cut_messenger import innermost


def init_to_start(site: Any = None) -> Any:
    """Zero for proper priors of real numbers; for log-uniform ones small values."""
    if site is None:
        return init_to_start
    if isinstance(innermost(site["fn"]), LogUniform):
        return site["fn"].sample()
    return init_to_feasible(site)


class AutoAdditiveNormal(AutoGuide):
    r"""Draws each latent variable from a normal of its own, at the site itself.

    .. math:: w = \theta + \sigma \epsilon, \quad \epsilon \sim N(0, 1), \qquad
        \log \alpha = \log \sigma^2 - \log \theta^2

    with free parameters :math:`\theta` and :math:`\log \sigma^2`. Pyro's ``AutoNormal`` draws at
    an auxiliary site and copies the draw; here the site itself is normal, so that divergences are
    known in closed form, and handlers such as
    :func:`~pyro_ext.poutine.local_reparameterization` see it. All sites must be real.

    With a log-uniform prior this is the additive parametrisation of sparse variational dropout:
    weights of which :math:`\log \alpha` exceeds 3 may be set to zero.

    Args:
        model: the program.
        init_loc_fn: start of :math:`\theta`, as in Pyro's autoguides. By default it is zero, and
            small normal values for a :class:`~pyro_ext.distributions.LogUniform` prior.
        init_log_var: start of :math:`\log \sigma^2`.
        create_plates: as in Pyro's autoguides, for subsampled plates.

    Raises:
        ValueError: if ``init_log_var`` is not a finite number; when run, if a site is not real.

    References:
        Molchanov, Ashukha and Vetrov, *Variational Dropout Sparsifies Deep Neural Networks*,
        arXiv 1701.05369.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        >>> guide = AutoAdditiveNormal(model, init_log_var=-6.0)
        >>> guide()["w"].shape
        torch.Size([3])
        >>> guide.log_vars.w.detach()
        tensor([-6., -6., -6.])
    """

    def __init__(
        self,
        model: Callable,
        *,
        init_loc_fn: Callable = init_to_start,
        init_log_var: float = -10.0,
        create_plates: Callable | None = None,
    ):
        if not abs(float(init_log_var)) < float("inf"):
            raise ValueError(f"init_log_var must be a finite number, got {init_log_var}.")
        self.init_loc_fn = init_loc_fn
        self._init_log_var = float(init_log_var)
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)

    def _setup_prototype(self, *args, **kwargs) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.locs, self.log_vars = PyroModule(), PyroModule()
        self._latents = []
        trace: Any = self.prototype_trace
        for name, site in trace.iter_stochastic_nodes():
            refuse_unreal(name, site["fn"])
            loc, event_dim = full_size(site), site["fn"].event_dim
            log_var = torch.full_like(loc, self._init_log_var)
            for parameters, value in ((self.locs, loc), (self.log_vars, log_var)):
                deep_setattr(parameters, name, PyroParam(value, constraints.real, event_dim))
            self._latents.append(Latent.of(name, site, self.locs, self.log_vars))

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draws all latent variables; arguments are those of the model."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        return {latent.name: latent.sample(_law, plates) for latent in self._latents}

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        r""":math:`\log \alpha` of each weight, by site; infinite at :math:`\theta = 0`."""
        claim_loaded(self)
        pairs = {latent.name: latent.parameters() for latent in self._latents}
        return {name: log_var - loc.square().log() for name, (loc, log_var) in pairs.items()}

    @torch.no_grad()
    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        r""":math:`\theta` of each latent variable, by site."""
        claim_loaded(self)
        return {latent.name: latent.parameters()[0].clone() for latent in self._latents}


def _law(loc: Tensor, log_var: Tensor) -> LogVarianceNormal:
    return LogVarianceNormal(loc, log_var, validate_args=False)


def full_size(site: Any) -> Tensor:
    """The value, repeated along subsampled plates."""
    value = site["value"].detach()
    for frame in site["cond_indep_stack"]:
        full_size = frame.full_size or frame.size
        if full_size != frame.size:
            value = periodic_repeat(value, full_size, frame.dim - site["fn"].event_dim)
    return value.contiguous()


def refuse_unreal(name: str, fn: Any) -> None:
    """Raises if a site is not one of real numbers."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.real:
        raise ValueError(
            f"Site '{name}' has support {fn.support}, but this guide draws real numbers. Give the "
            "site a guide of its own: AutoGuideList of poutine.block(model, hide=[...]) and others."
        )
