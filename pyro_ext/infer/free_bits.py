"""An evidence lower bound that leaves each group of latents some information for free."""

import math
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext.infer.enumeration import Site
from pyro_ext.infer.particle_traces import importance_traces, random_sites
from pyro_ext.infer.tensor_loss_elbo import TensorLossELBO
from pyro_ext.ops.counts import count

SOFT_STEP, SOFT_MARGIN = 1.1, 1.05


class FreeBitsELBO(TensorLossELBO):
    r"""A lower bound with a floor under the information in each group of latents.

    .. math::

        \mathcal{L}_\lambda = \sum_n \mathbb{E}_q[\log p(x_n \mid z_n)]
        - \sum_j \max\Bigl(\lambda N, \; \sum_n \mathbb{E}_q \log
        \frac{q(z_{nj} \mid x_n)}{p(z_{nj})} \Bigr)
        \; \le \; \text{ELBO} \; \le \; \log p(x)

    A group :math:`j` that holds less than :math:`\lambda` nats per datum, averaged over the
    mini-batch, costs the same as one that holds :math:`\lambda`, and has no gradient from this
    term: it is not driven to the prior. A group is a latent site; with ``per_coordinate`` every
    coordinate of a site that both model and guide make by ``to_event`` is one.

    With ``soft``, in place of the maximum the divergence of each group is multiplied by a weight
    :math:`\gamma_j \le 1`, which starts at one, is divided by 1.1 at each step with gradients
    at which the group holds less than :math:`\lambda`, and multiplied by 1.1 where it holds more
    than :math:`1.05 \lambda`. So there is a gradient at all times, and the group is held near
    :math:`\lambda`; but below one this is no bound: evaluate by ``Trace_ELBO``.

    The divergence is estimated from the draws, so that any density will do, under conditional
    priors and guides too. The maximum is taken after the mean over particles and data: its noise
    can only lower the expected bound, and less so for large mini-batches.

    Args:
        free_nats: :math:`\lambda \ge 0`, per group and datum. Bits times ``log(2)``.
        per_coordinate: whether coordinates of a site are groups of their own.
        soft: whether groups are weighted instead.
        num_particles: number of draws for each datum, averaged.
        max_plate_nesting: as in :class:`pyro.infer.ELBO`.
        vectorize_particles: runs model and guide once for all particles.
        retain_graph: passed to ``backward``.

    Attributes:
        weights: :math:`\gamma` of the groups of each site, by name, if ``soft``.

    Raises:
        ValueError: if ``free_nats`` is negative or not finite; when evaluated, if a latent site
            is in only one of model and guide, if it is enumerated, or if a gradient is asked for
            that the draws do not carry.

    References:
        Kingma et al., *Improving Variational Inference with Inverse Autoregressive Flow*,
        arXiv 1606.04934, section on free bits; Chen et al., *Variational Lossy Autoencoder*,
        arXiv 1611.02731, for soft ones.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> def guide(x):  # the prior: the latent holds nothing
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> x = torch.tensor(0.0)
        >>> losses = [FreeBitsELBO(free_nats).loss(model, guide, x) for free_nats in (0.0, 0.5)]
        >>> round(losses[1] - losses[0], 4)
        0.5
    """

    def __init__(
        self,
        free_nats: float,
        *,
        per_coordinate: bool = False,
        soft: bool = False,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ):
        if not (free_nats >= 0 and math.isfinite(free_nats)):
            raise ValueError(f"free_nats must be a finite number >= 0, got {free_nats}.")
        self.free_nats, self.per_coordinate, self.soft = free_nats, per_coordinate, soft
        self.weights: dict[str, Tensor] = {}
        super().__init__(
            num_particles=count(num_particles, "num_particles"),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """The negative bound as a scalar tensor, to be differentiated."""
        pairs = list(self._get_traces(model, guide, args, kwargs))
        loss: Any = sum(_observed(theirs) - _observed(ours) for ours, theirs in pairs)
        for name in _latents(*pairs[0]):
            groups = [self._group(*(trace.nodes[name] for trace in pair)) for pair in pairs]
            divergence, data = (sum(parts) for parts in zip(*groups, strict=True))
            loss = loss + self._charge(name, divergence, self.free_nats * data).sum()
        return loss / self.num_particles

    def _charge(self, name: str, divergence: Tensor, free: Tensor) -> Tensor:
        """What the groups of a site cost."""
        if not self.soft:
            return torch.maximum(divergence, free)
        weight = self.weights.get(name, torch.ones_like(free))
        if torch.is_grad_enabled():
            held = divergence.detach()
            weight = torch.where(held < free, weight / SOFT_STEP, weight)
            weight = torch.where(held > SOFT_MARGIN * free, weight * SOFT_STEP, weight)
            self.weights[name] = weight = weight.clamp_max(1.0)
        return weight * divergence

    def _group(self, model_site: Site, guide_site: Site) -> tuple[Tensor, Tensor]:
        """Divergence of every group of a site, and the number of data, each times particles."""
        log_p, log_q = self._log_prob(model_site), self._log_prob(guide_site)
        if log_p.shape[-1] != log_q.shape[-1]:  # one of them has no coordinates
            log_p, log_q = log_p.sum(-1, keepdim=True), log_q.sum(-1, keepdim=True)
        divergence = _total(guide_site, log_q) - _total(model_site, log_p)
        return divergence, _total(guide_site, torch.ones_like(log_q))

    def _log_prob(self, site: Site) -> Tensor:
        """Log densities ``(*batch, groups)``."""
        fn, value = site["fn"], site["value"]
        if self.per_coordinate and isinstance(fn, Independent) and not fn.base_dist.event_shape:
            return fn.base_dist.log_prob(value).flatten(-fn.event_dim)
        return site["unscaled_log_prob"].unsqueeze(-1)

    def _get_trace(self, model, guide, args, kwargs):
        model_trace, guide_trace = importance_traces(
            self.max_plate_nesting, model, guide, args, kwargs
        )
        for site in random_sites(guide_trace):
            _refuse_score_function(site)
        return model_trace, guide_trace


def _observed(trace: Trace) -> Any:
    return sum(site["log_prob"].sum() for site in random_sites(trace) if site["is_observed"])


def _latents(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Names of the latent sites, which model and guide must share."""
    drawn, needed = (
        {site["name"] for site in random_sites(trace) if not site["is_observed"]}
        for trace in (guide_trace, model_trace)
    )
    if drawn != needed:
        raise ValueError(
            f"Latent sites {sorted(drawn ^ needed)} are in only one of model and guide. Free bits "
            "compare both densities of each latent site: draw all of them, and no others, in the "
            "guide."
        )
    return sorted(drawn)


def _refuse_score_function(site: Site) -> None:
    if site["infer"].get("enumerate"):
        raise ValueError(
            f"Site '{site['name']}' asks for enumeration, which FreeBitsELBO does not do. Use "
            "TraceEnum_ELBO, or remove infer={'enumerate': ...}."
        )
    score = site["score_parts"].score_function
    if not is_identically_zero(score) and score.requires_grad:
        raise ValueError(
            f"Guide site '{site['name']}' ({type(site['fn']).__name__}) has trainable parameters "
            "but is not reparameterised, so that the gradient would miss a term. Use a "
            "reparameterised distribution, or detach its parameters."
        )


def _total(site: Site, tensor: Tensor) -> Tensor:
    """Sums ``(*batch, groups)`` over the batch, as scaled and masked as the site is."""
    scale, mask = (
        part.unsqueeze(-1) if isinstance(part, Tensor) and part.dim() else part
        for part in (site["scale"], site["mask"])
    )
    return scale_and_mask(tensor, scale, mask).sum(list(range(tensor.dim() - 1)))
