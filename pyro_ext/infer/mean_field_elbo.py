"""The ELBO of guides that factorise, with divergences in closed form."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_ext.infer.divergence import analytic_divergence
from pyro_ext.infer.enumeration import Site
from pyro_ext.infer.mean_field_sites import (
    draw_of,
    is_mixed,
    merge_lazy_points,
    refuse_enumeration,
    refuse_scales,
    warn_of_order,
)
from pyro_ext.infer.mismatch import refuse_mismatch, refuse_score_function
from pyro_ext.infer.tensor_loss_elbo import TensorLossELBO, to_float

NUM_PLATES: Any = math.inf  # every dimension of a batch is a plate's: none is enumerated


class MeanFieldELBO(TensorLossELBO):
    r"""The evidence lower bound with divergences in closed form wherever they are known.

    .. math:: \mathcal{L} = \mathbb{E}_{q(z)}[\log p(x \mid z)] - \sum_i D(q(z_i) \,\|\, p(z_i))

    in nats. Site by site, :math:`D` is what is registered with
    :func:`torch.distributions.kl.register_kl`; without, it is estimated by the draw. Where it is
    known, neither the density of the prior nor that of the guide is evaluated, so that a weight
    that a handler such as :func:`~pyro_ext.poutine.local_reparameterization` leaves lazy is never
    drawn. The value equals that of Pyro's ``TraceMeanField_ELBO``, which evaluates all densities,
    refuses nothing, and leaves out the Jacobian of ``AutoNormal`` at sites that are not real.

    The guide must factorise: no parent in the model of a site may depend on that site in the
    guide, such as in ``p(z1) p(z2 | z1)`` with ``q(z2) q(z1 | z2)``. All its sites need
    reparameterised draws.

    Args:
        num_particles: draws of the guide, of which the mean is taken.
        max_plate_nesting: the number of nested plates, as in :class:`pyro.infer.ELBO`.
        vectorize_particles: draws all particles at once.
        retain_graph: passed to ``backward``.

    Raises:
        ValueError: when evaluated, if a site has atoms and a density, and no known divergence,
            since the gradient along paths of its log density is wrong; if model and guide have not
            the same latent sites, or other scales or masks at them; if a site is enumerated; if a
            site of the guide has parameters but is not reparameterised.

    Warns:
        UserWarning: if the guide may not factorise: it draws a site, of known divergence, before
            another one that stands before it in the model. Pyro's objective warns of any other
            order.

    References:
        Kingma and Welling, *Auto-Encoding Variational Bayes*, arXiv 1312.6114.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> round(MeanFieldELBO().loss(model, guide, torch.tensor(0.0)), 4)  # 1/2 + log(2 pi)/2
        1.4189

        With modules, ``elbo = MeanFieldELBO()(model, guide)`` is the loss as a module for any
        torch optimiser: ``elbo(x).backward()``.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
        retain_graph: bool | None = None,
    ):
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """The loss as a scalar tensor."""
        return sum(self._losses(model, guide, args, kwargs), torch.zeros(()))

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The loss; adds its gradient to that of the parameters."""
        losses = []
        for loss in self._losses(model, guide, args, kwargs):
            if loss.requires_grad:
                loss.backward(retain_graph=self.retain_graph)
            losses.append(loss.detach())
        return to_float(sum(losses))

    def _losses(self, model, guide, args, kwargs) -> Iterator[Tensor]:
        for traces in self._get_traces(model, guide, args, kwargs):
            yield self._elbo(*traces) * (-1 / self.num_particles)

    def _get_trace(self, model, guide, args, kwargs):
        with TraceMessenger() as guide_tracer:
            guide(*args, **kwargs)
        guide_trace = guide_tracer.trace
        with TraceMessenger() as model_tracer, ReplayMessenger(guide_trace):
            model(*args, **kwargs)
        model_trace = model_tracer.trace
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    def _elbo(self, model_trace, guide_trace) -> Tensor:
        sites, drawn = _sample_sites(model_trace), _sample_sites(guide_trace)
        refuse_mismatch(list(sites.values()), list(drawn.values()))
        refuse_enumeration([*sites.values(), *drawn.values()])
        merge_lazy_points(drawn, sites)
        warn_of_order(drawn, sites)
        terms = [_log_prob(site) for site in sites.values() if site["is_observed"]]
        terms += [-_divergence(drawn[n], s) for n, s in sites.items() if not s["is_observed"]]
        terms += [-_entropy_term(site) for name, site in drawn.items() if name not in sites]
        if is_validation_enabled():
            for site in sites.values():
                check_site_shape(site, NUM_PLATES)
        return sum(_total(term) for term in terms)


def _sample_sites(trace: Any) -> dict[str, Site]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def _log_prob(site: Site, value: Any = None) -> Any:
    value = site["value"] if value is None else value
    log_prob = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    site["log_prob"] = log_prob
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def _divergence(guide: Site, model: Site) -> Any:
    """Of shape ``batch_shape``, or summed."""
    refuse_scales(guide, model)
    divergence = analytic_divergence(guide["fn"], model["fn"])
    if divergence is None:
        return _estimate(guide, model)
    _refuse_score(guide)
    if "log_density" in guide:
        divergence = divergence + guide["log_density"]
    model["log_prob"] = divergence
    return scale_and_mask(divergence, guide["scale"], guide["mask"])


def _estimate(guide: Site, model: Site) -> Any:
    """The divergence by a draw, summed."""
    for site in (guide, model):
        if is_mixed(site["fn"]):
            raise ValueError(
                f"Site '{model['name']}' has atoms ({guide['fn']} in the guide, {model['fn']} in "
                "the model), and no divergence between them is known in closed form. A log "
                "density that jumps has no right gradient along paths: take a prior with a known "
                "divergence, such as L0Prior, or HardConcreteReparam."
            )
    value = draw_of(guide)
    return _total(_entropy_term(guide, value)) - _total(_log_prob(model, value))


def _entropy_term(site: Site, value: Any = None) -> Any:
    value = draw_of(site) if value is None else value
    fn, scale, mask = site["fn"], site["scale"], site["mask"]
    parts = fn.score_parts(value, *site["args"], **site["kwargs"])
    site["score_parts"] = parts.scale_and_mask(scale, mask)
    if torch.is_grad_enabled():
        refuse_score_function([site])
    site["log_prob"] = parts.log_prob
    is_plain = is_identically_zero(parts.entropy_term)
    entropy_term = parts.log_prob if is_plain else parts.entropy_term
    return scale_and_mask(entropy_term, scale, mask)


def _refuse_score(site: Site) -> None:
    """Refuses draws without a path, even if their divergence is known."""
    if torch.is_grad_enabled() and not site["fn"].has_rsample:
        _entropy_term(site)


def _total(term: Any) -> Any:
    return term.sum() if isinstance(term, Tensor) and term.dim() else term
