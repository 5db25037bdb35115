"""Multi-sample bounds on the log evidence as one Pyro objective."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_ext.infer.estimators import Estimator, Factors, auto
from pyro_ext.infer.particle_elbo import ParticleELBO
from pyro_ext.infer.particles import Particles
from pyro_ext.infer.surrogate import is_upper, surrogate
from pyro_ext.ops.bounds import iwae
from pyro_ext.ops.counts import count
from pyro_ext.ops.single_particle import SingleParticle

ESTIMATORS = "Take one of pyro_ext.infer: auto, dreg, pathwise, vimco, score, stl, rws, piwae."


class MultiSampleELBO(ParticleELBO):
    r"""A bound on the log evidence from several particles per datum.

    .. math::

        \mathcal{L} = c \sum_{n \in \text{batch}} f(\log w_{1n}, \dots, \log w_{Kn}), \qquad
        \log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} \mid x_n)

    where :math:`f` is a ``bound`` such as :func:`~pyro_ext.ops.iwae` and :math:`n` runs over the
    plates **common to all sites** of model and guide. Which terms go where:

    - A plate around every site keeps its dimension, so each datum has its own bound. Its
      subsampling scale is part of :math:`c`, outside of the logarithm, and the bound of a random
      subsample is an unbiased estimate of that of all data.
    - Global latent variables :math:`\theta` beside local ones make the bound **nested**:

      .. math::

          \mathcal{L} = \mathbb{E}_{q(\theta)} \Bigl[ \log \frac{p(\theta)}{q(\theta)}
          + c \sum_n f(\log w_{1n}(\theta), \dots, \log w_{Kn}(\theta)) \Bigr]

      It is chosen if no plate is around all sites, but the guide draws inside of a plate
      with observed data: of such plates, those with the most sites are kept. All particles of a
      bound share :math:`\theta`. It is valid for subsampled data and for each datum as tight as
      :math:`f`, but in :math:`\theta` no tighter than one particle.
    - Any other plate is summed into the joint weight, as all are for a guide that draws only
      outside of the plates, such as ``AutoDiagonalNormal``. It must not be subsampled, since
      the bound of a subsample would then not be one of the data: that raises. So do sequential
      plates, ``for i in pyro.plate(...)``: all of them make one joint weight.
    - :func:`pyro.poutine.scale` by the same number at every site is part of :math:`c`; different
      scales temper the densities of their sites, inside the logarithm.
    - :func:`pyro.poutine.mask` removes a term; :func:`pyro.deterministic` is none.
    - Sites with ``infer={"enumerate": "parallel"}``, in the model or in the guide, are summed out
      inside of each weight: :math:`w = \sum_y p(x, y, z_y) / q(z_y \mid y)`. Of an enumerated
      guide site the density cancels, so this bound does not train it.

    Gradients are unbiased estimates of that of :math:`\mathcal{L}` unless the estimator says
    otherwise. Reparameterised sites outside of a nested bound's plates have pathwise gradients.
    Only ``pathwise`` has second derivatives and works under transforms of ``torch.func``;
    networks under ``torch.compile`` need ``torch._functorch.config.donated_buffer = False`` for
    gradients along paths.
    No value is synchronised with the host but the float that ``loss`` and ``loss_and_grads``
    return, scales that are tensors and, with Pyro's validation, checks.

    Args:
        num_particles: :math:`K \ge 1`, drawn from the guide for each datum.
        bound: :math:`f`, a function ``(K, *rest) -> (*rest)`` in nats. If it has a true attribute
            ``upper``, it bounds the evidence from above, and the loss is plus the bound: it fits
            the guide of a fixed model.
        gradient: the estimator, a function of a :class:`~pyro_ext.ops.SingleParticle`;
            :func:`~pyro_ext.infer.auto` takes the best known one for each site.
        num_outer: the number :math:`M \ge 1` of bounds with :math:`K` particles each, of which
            the mean is taken; in a nested bound, of draws of :math:`\theta`.
        max_plate_nesting: the number of nested plates, as in :class:`pyro.infer.ELBO`, without
            the one of the particles (which Pyro's log message counts); guessed by one extra run.
        vectorize_particles: runs model and guide once for all particles, unlike Pyro's default.
            It needs programs that index dimensions from the right. ``False`` runs them
            once for each, on one and the same subsample of the data.
        retain_graph: passed to ``backward``.

    Raises:
        ValueError: if a number is not positive, ``bound`` or ``gradient`` is not callable or
            refuses the number of particles; when evaluated, if the bound's shape is not
            ``(*rest)``, if model and guide have not the same latent sites, if a plate is
            subsampled that weights do not keep, if sites are enumerated one by one, if a scale is
            not a scalar, if all weights of a datum are zero, if the programs run but not with
            vectorised particles, or if the estimator does not exist for a site.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.
        Rainforth et al., *Tighter Variational Bounds are Not Necessarily Better*, arXiv 1802.04537
        (``num_outer``: MIWAE; :func:`~pyro_ext.infer.piwae`).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> elbo = MultiSampleELBO(num_particles=5)
        >>> round(elbo.loss(model, guide, x), 4)  # the guide is exact: minus the log evidence
        2.781
        >>> elbo.log_weights(model, guide, x).shape
        torch.Size([5, 2])

        With modules, ``elbo(model, guide)`` is the loss as a module for any torch optimiser:
        ``loss = elbo(model, guide)``, then ``loss(x).backward()``.
    """

    def __init__(
        self,
        num_particles: int,
        bound: Callable[[Tensor], Tensor] = iwae,
        gradient: Estimator = auto,
        num_outer: int = 1,
        *,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ):
        num_particles = count(num_particles, "num_particles")
        _check_functions(bound, gradient)
        if max_plate_nesting != math.inf:
            max_plate_nesting = count(max_plate_nesting, "max_plate_nesting", 0)
        self.num_outer = count(num_outer, "num_outer")
        self.bound, self.gradient = bound, gradient
        factors = _probe(gradient, num_particles)
        self.has_path, self.has_score = factors.path is not None, factors.score is not None
        super().__init__(
            num_particles=num_particles * self.num_outer,  # Pyro's word for all that are drawn
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )

    def log_weights(self, model, guide, *args, **kwargs) -> Tensor:
        """Log importance weights in nats, without the factor c.

        Returns:
            ``(num_particles, *plates)``, or ``(num_particles, num_outer, *plates)`` with several
            outer particles. In a nested bound they are those of the sites inside of the plates,
            given the draws outside, which all particles of a column share.
        """
        return self.draw_particles(model, guide, args, kwargs).log_w()

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """The loss as a scalar tensor, whose gradient is that of the estimator."""
        particles = self.draw_particles(model, guide, args, kwargs)
        loss = self._loss(particles)
        if is_validation_enabled():
            _refuse_zero_weights(loss.item(), particles)
        return loss

    def loss(self, model, guide, *args, **kwargs) -> float:
        """The loss, without gradient: minus the bound, or plus an upper bound."""
        with torch.no_grad():
            particles = self.draw_particles(model, guide, args, kwargs)
            return _to_float(self._loss(particles), particles)

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The loss; adds its gradient to that of the parameters."""
        particles = self.draw_particles(model, guide, args, kwargs)
        loss = self._loss(particles)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return _to_float(loss, particles)

    def _loss(self, particles: Particles) -> Tensor:
        bound = surrogate(particles, self.bound, self.gradient)
        return bound if is_upper(self.bound) else -bound


def _probe(gradient: Estimator, num_particles: int) -> Factors:
    """What an estimator makes of one particle or of two, of equal weight."""
    particle = SingleParticle(iwae, torch.zeros(min(num_particles, 2)))
    try:
        factors = gradient(particle)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"gradient={gradient!r} is no estimator: {error}. {ESTIMATORS}") from error
    shapes = [getattr(f, "shape", None) for f in factors if f is not None]
    if not isinstance(factors, Factors) or any(s != particle.log_w.shape for s in shapes):
        raise ValueError(
            f"gradient={gradient!r} returned {factors!r}, expected Factors with one number per "
            f"particle. {ESTIMATORS}"
        )
    return factors


def _check_functions(bound: Any, gradient: Any) -> None:
    if not callable(bound):
        raise ValueError(
            f"bound must be a function of log_w (num_particles, *plates), got {bound!r}. "
            "pyro_ext.ops.iwae is one."
        )
    if not callable(gradient):
        raise ValueError(
            f"gradient must be a function of a SingleParticle, got {gradient!r}. {ESTIMATORS}"
        )


def _refuse_zero_weights(loss: float, particles: Particles) -> None:
    if not math.isfinite(loss):
        particles.refuse_zero_weights()


def _to_float(loss: Tensor, particles: Particles) -> float:
    value: Any = loss.item()
    _refuse_zero_weights(value, particles)
    warn_if_nan(value, "loss")
    return value
