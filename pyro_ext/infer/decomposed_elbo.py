"""The evidence lower bound in four parts, each with a weight."""

import math
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from pyro_ext.infer.decomposition_weights import DecompositionWeights, check_weights
from pyro_ext.infer.enumeration import Site
from pyro_ext.infer.mismatch import refuse_mismatch, refuse_score_function
from pyro_ext.infer.particle_traces import importance_traces, random_sites
from pyro_ext.infer.plates import holds_particles
from pyro_ext.infer.tensor_loss_elbo import TensorLossELBO
from pyro_ext.ops.counts import count


class DecomposedELBO(TensorLossELBO):
    r"""An objective that weighs reconstruction and three parts of the divergence.

    .. math::

        a \log p(x \mid z)
        - b \, \underbrace{\log \tfrac{q(z \mid x)}{q(z)}}_{\text{index-code mutual information}}
        - c \, \underbrace{\log \tfrac{q(z)}{\prod_i q(z_i)}}_{\text{total correlation}}
        - d \, \underbrace{\log \tfrac{\prod_i q(z_i)}{p(z)}}_{\text{of single coordinates}}

    With all weights one this is the evidence lower bound, the very same number for the same draw.
    **With any others it is no bound**, and no estimate of one: train by it, evaluate by
    ``Trace_ELBO`` or more particles. The weights published with identifiable variational
    autoencoders are :math:`a = 100, b = 1, c = 0, d = 10`. With :math:`c < d` they reward latents
    that depend on each other: started at the truth of a simulated mixture, they leave it. They
    found the sources of the published data, whose matrix has condition number 2, and not those
    behind four other draws of it, of 3.5 to 6. Contexts, if there are any, are given in
    :math:`q(z \mid x, u)` and :math:`p(z \mid u)`.

    The aggregate posterior :math:`q(z)` is estimated from the mini-batch of :math:`M` out of
    :math:`N` data, which is biased: its own datum is among them.

    .. math::

        \log q(z_m) \approx \log \frac{1}{N M} \sum_{j=1}^M q(z_m \mid x_j), \qquad
        \log q(z_{mi}) \approx \log \frac{1}{N M} \sum_{j=1}^M q(z_{mi} \mid x_j)

    Sizes only add constants. The cost is :math:`M^2` densities of single coordinates, none if
    :math:`b = c = d`.

    To anneal, assign :attr:`weights` between steps; see :meth:`DecompositionWeights.annealed`.

    Args:
        reconstruction: :math:`a \ge 0`, of all observed sites.
        mutual_information: :math:`b \ge 0`.
        total_correlation: :math:`c \ge 0`.
        dimension_kl: :math:`d \ge 0`.
        num_particles: number of draws for each datum, averaged.
        max_plate_nesting: as in :class:`pyro.infer.ELBO`.
        vectorize_particles: runs model and guide once for all particles.
        retain_graph: passed to ``backward``.

    Attributes:
        weights: the four, as :class:`DecompositionWeights`.

    Raises:
        ValueError: if a weight is negative or not finite; when evaluated, unless there is one
            latent site, a vector for each datum of one plate, which the guide draws with a path
            from independent coordinates or a normal law, and which has no mask.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA*, arXiv 1907.04809, its code;
        Chen et al., *Isolating Sources of Disentanglement in Variational Autoencoders*,
        arXiv 1802.04942, for the decomposition and its estimate.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))
        >>> elbo = DecomposedELBO(reconstruction=100.0, total_correlation=0.0, dimension_kl=10.0)
        >>> isinstance(elbo.loss(model, guide, torch.randn(5, 2)), float)
        True
        >>> elbo.weights = DecompositionWeights.annealed(step=10, num_steps=1000)
    """

    def __init__(
        self,
        reconstruction: float = 1.0,
        mutual_information: float = 1.0,
        total_correlation: float = 1.0,
        dimension_kl: float = 1.0,
        *,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ):
        given = reconstruction, mutual_information, total_correlation, dimension_kl
        self.weights = check_weights(DecompositionWeights(*given))
        super().__init__(
            num_particles=count(num_particles, "num_particles"),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """Minus the objective as a scalar tensor, to be differentiated."""
        pairs = self._get_traces(model, guide, args, kwargs)
        loss: Any = sum(self._loss(*pair) for pair in pairs)
        return loss / self.num_particles

    def _loss(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        sites = random_sites(model_trace)
        observed = [_total(s, s["unscaled_log_prob"]) for s in sites if s["is_observed"]]
        latent = _latent(sites, random_sites(guide_trace))
        a, b, c, d = check_weights(self.weights)
        prior = model_trace.nodes[latent["name"]]
        value = a * sum(observed) + d * _total(prior, prior["unscaled_log_prob"])
        value = value - b * _total(latent, latent["unscaled_log_prob"])
        if b == c == d:
            return -value
        joint, single = aggregate_log_prob(latent)
        return -value - (b - c) * _total(latent, joint) - (c - d) * _total(latent, single)

    def _get_trace(self, model, guide, args, kwargs):
        traces = importance_traces(self.max_plate_nesting, model, guide, args, kwargs)
        if torch.is_grad_enabled():
            refuse_score_function(random_sites(traces[1]))
        return traces


def aggregate_log_prob(site: Site) -> tuple[Tensor, Tensor]:
    r"""Estimates :math:`\log q(z_m)` and :math:`\sum_i \log q(z_{mi})`, each ``(*particles, M)``.

    Args:
        site: of a trace of the guide, checked.
    """
    plate = _data_plate(site)
    log_size = math.log(plate.size * (plate.full_size or plate.size))
    value = site["value"].movedim(-2, 0).unsqueeze(-2)  # (M, *particles, 1, D)
    pairs = single_laws(site["fn"]).log_prob(value)  # (M, *particles, M, D)
    is_joint = isinstance(site["fn"], MultivariateNormal)
    together = site["fn"].log_prob(value) if is_joint else pairs.sum(-1)
    joint = together.logsumexp(-1) - log_size
    single = (pairs.logsumexp(-2) - log_size).sum(-1)
    return joint.movedim(0, -1), single.movedim(0, -1)


def single_laws(fn: Any) -> Any:
    """The laws of single coordinates."""
    if isinstance(fn, MultivariateNormal):
        return Normal(fn.mean, fn.stddev)
    return fn.base_dist


def _latent(model_sites: list[Site], guide_sites: list[Site]) -> Site:
    """The guide's only site."""
    refuse_mismatch(model_sites, guide_sites)
    names = [site["name"] for site in guide_sites]
    if len(names) != 1:
        raise ValueError(f"The decomposition needs one latent site, got {names}.")
    _check_latent(guide_sites[0])
    return guide_sites[0]


def _check_latent(site: Site) -> None:
    fn = site["fn"]
    is_vector = isinstance(fn, Independent | MultivariateNormal) and len(fn.event_shape) == 1
    if not is_vector:
        raise ValueError(
            f"Guide site '{site['name']}' is {fn}, but the decomposition needs a vector whose "
            "single coordinates have densities: Normal(loc, scale).to_event(1), or another vector "
            "of independent coordinates, or a MultivariateNormal."
        )
    if site["mask"] is not None:
        raise ValueError(
            f"Guide site '{site['name']}' is masked: leave data without latents out of the batch."
        )
    if _data_plate(site).dim != -1:
        raise ValueError(f"The plate of guide site '{site['name']}' must be of dimension -1.")


def _data_plate(site: Site) -> Any:
    plates = [frame for frame in site["cond_indep_stack"] if not holds_particles(frame)]
    if len(plates) != 1:
        raise ValueError(
            f"Guide site '{site['name']}' must be in one plate, over the data, got "
            f"{[frame.name for frame in plates]}."
        )
    return plates[0]


def _total(site: Site, log_prob: Tensor) -> Tensor:
    return scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
