"""An automatic guide of normals whose standard deviation is a multiple of their mean."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from pyro_ext.distributions.multiplicative_normal import MultiplicativeNormal
from pyro_ext.infer.auto_additive_normal import full_size, init_to_start, refuse_unreal
from pyro_ext.infer.latent import Latent
from pyro_ext.infer.store_names import claim_loaded

SHARING = ("weight", "input", "site")


class AutoMultiplicativeNormal(AutoGuide):
    r"""Draws each weight with noise that is proportional to its mean.

    .. math:: w = \theta (1 + \sqrt{\alpha}\, \epsilon), \quad \epsilon \sim N(0, 1), \qquad
        \alpha = p / (1 - p)

    with parameters :math:`\theta` and :math:`\log \alpha`, one per weight, input unit or site.
    :math:`p` is the rate of the dropout that has the same mean and variance. With
    ``trainable=False`` this is dropout of a fixed rate. See
    :func:`~pyro_ext.poutine.variational_dropout`. All sites must be real, outside of plates.

    Args:
        model: the program.
        rate: start of :math:`p`, in (0, 1).
        per: ``"weight"``; ``"input"``, the second dimension of a weight of two or more; ``"site"``.
        trainable: whether :math:`\log \alpha` is a parameter.
        init_loc_fn: start of :math:`\theta`, as in Pyro's autoguides; see
            :class:`AutoAdditiveNormal`. A weight that is exactly zero has no noise.

    Raises:
        ValueError: if ``rate`` or ``per`` is something else; when run, if a site is not real or in
            a plate.

    References:
        Kingma, Salimans and Welling, *Variational Dropout and the Local Reparameterization Trick*,
        arXiv 1506.02557.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("w", dist.Normal(0.0, 1.0).expand([5, 3]).to_event(2))
        >>> guide = AutoMultiplicativeNormal(model, rate=0.5, per="input")
        >>> guide()["w"].shape, guide.log_alpha()["w"]
        (torch.Size([5, 3]), tensor([[0., 0., 0.]]))
    """

    def __init__(
        self,
        model: Callable,
        *,
        rate: float = 0.05,
        per: str = "weight",
        trainable: bool = True,
        init_loc_fn: Callable = init_to_start,
    ):
        if not 0 < rate < 1:
            raise ValueError(f"rate must be in (0, 1), got {rate}.")
        if per not in SHARING:
            raise ValueError(f"per must be one of {SHARING}, got {per!r}.")
        self.rate, self.per, self.trainable = rate, per, trainable
        super().__init__(InitMessenger(init_loc_fn)(model))

    def _setup_prototype(self, *args, **kwargs) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.locs, self.log_alphas = PyroModule(), PyroModule()
        self._latents = []
        trace: Any = self.prototype_trace
        for name, site in trace.iter_stochastic_nodes():
            refuse_unreal(name, site["fn"])
            _refuse_plates(name, site)
            loc = full_size(site)
            deep_setattr(self.locs, name, PyroParam(loc, event_dim=loc.dim()))
            log_alpha = loc.new_full(_shape(self.per, loc.shape), _logit(self.rate))
            value = PyroParam(log_alpha, event_dim=loc.dim()) if self.trainable else log_alpha
            deep_setattr(self.log_alphas, name, value)
            self._latents.append(Latent.of(name, site, self.locs, self.log_alphas))
            if not self.trainable:
                self._latents[-1].hold_spread()

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draws all latent variables; arguments are those of the model."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {latent.name: latent.sample(_law, {}) for latent in self._latents}

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        r""":math:`\log \alpha`, by site."""
        claim_loaded(self)
        return {latent.name: latent.parameters()[1].clone() for latent in self._latents}

    @torch.no_grad()
    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        r""":math:`\theta` of each latent variable, by site."""
        claim_loaded(self)
        return {latent.name: latent.parameters()[0].clone() for latent in self._latents}


def _law(loc: Tensor, log_alpha: Tensor) -> MultiplicativeNormal:
    return MultiplicativeNormal(loc, log_alpha, validate_args=False)


def _logit(rate: float) -> float:
    return math.log(rate) - math.log1p(-rate)


def _shape(per: str, shape: torch.Size) -> torch.Size:
    if per == "weight":
        return shape
    inputs = {1} if per == "input" and len(shape) > 1 else set()
    if per == "input" and len(shape) == 1:
        return shape
    return torch.Size(size if i in inputs else 1 for i, size in enumerate(shape))


def _refuse_plates(name: str, site: Any) -> None:
    if site["cond_indep_stack"]:
        raise ValueError(
            f"Site '{name}' is in plates {[f.name for f in site['cond_indep_stack']]}, but this "
            "guide has weights of networks only. Use AutoAdditiveNormal."
        )
