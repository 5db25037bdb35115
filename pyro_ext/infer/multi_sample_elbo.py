"""Multi-sample bounds on the log evidence as one Pyro objective."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_ext.infer.particle_traces import Weights, refuse_score_function, trace_weights
from pyro_ext.ops.bounds import iwae
from pyro_ext.ops.counts import count
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger


class MultiSampleELBO(ELBO):
    r"""A bound on the log evidence from several particles per datum.

    .. math::

        \mathcal{L} = c \sum_{n \in \text{batch}} f(\log w_{1n}, \dots, \log w_{Kn}), \qquad
        \log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} \mid x_n)

    where :math:`f` is a ``bound`` such as :func:`~pyro_ext.ops.iwae` and :math:`n` runs over the
    plates **common to all sites** of model and guide. Which terms go where:

    - A plate around every site keeps its dimension, so each datum has its own bound. Its
      subsampling scale is part of :math:`c`, outside of the logarithm, and the bound of a random
      subsample is an unbiased estimate of that of all data.
    - Any other plate is summed into the joint weight, as all are for a guide with one site
      outside of the plates, such as ``AutoDiagonalNormal``. It must not be subsampled, since the
      bound of a subsample would then not be one of the data: that raises.
    - :func:`pyro.poutine.scale` by the same number at every site is part of :math:`c`; different
      scales temper the densities of their sites, inside the logarithm.
    - :func:`pyro.poutine.mask` removes a term; :func:`pyro.deterministic` is none.

    The gradient is pathwise. A guide site with trainable parameters that is not reparameterised
    raises, since its gradient would miss a term. No value is synchronised with the host but the
    float that ``loss`` and ``loss_and_grads`` return, and scales that are tensors.

    Args:
        num_particles: :math:`K \ge 1`, drawn from the guide for each datum.
        bound: :math:`f`, a function ``(K, *plates) -> (*plates)`` in nats.
        max_plate_nesting: the number of nested plates, as in :class:`pyro.infer.ELBO`, without
            the one of the particles (which Pyro's log message counts); guessed by one extra run.
        vectorize_particles: runs model and guide once for all particles, unlike Pyro's default.
            It needs programs that index dimensions from the right. ``False`` runs them
            ``num_particles`` times, on one and the same subsample of the data.
        retain_graph: passed to ``backward``.

    Raises:
        ValueError: if ``num_particles < 1`` or ``bound`` is not callable; when evaluated, if the
            bound's shape is not ``(*plates)``, if a subsampled plate is not around every site,
            if a site asks for enumeration, if a scale is not a scalar, or if a pathwise gradient
            does not exist.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.

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
        *,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ):
        if not callable(bound):
            raise ValueError(
                f"bound must be a function of log_w (num_particles, *plates), got {bound!r}. "
                "pyro_ext.ops.iwae is one."
            )
        self.bound = bound
        super().__init__(
            num_particles=count(num_particles, "num_particles"),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )

    def log_weights(self, model, guide, *args, **kwargs) -> Tensor:
        """Log importance weights ``(num_particles, *plates)`` in nats, without the factor c."""
        return self._weights(model, guide, args, kwargs).log_w

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """The negative bound as a scalar tensor whose gradient is an unbiased estimate."""
        log_w, scale, _ = self._weights(model, guide, args, kwargs)
        bound = self.bound(log_w)
        if bound.shape != log_w.shape[1:]:
            raise ValueError(
                f"The bound {self.bound!r} returned shape {tuple(bound.shape)} for log-weights of "
                f"shape {tuple(log_w.shape)}, expected {tuple(log_w.shape[1:])}: it reduces the "
                "particles on the left and nothing else."
            )
        return -(scale * bound).sum()

    def loss(self, model, guide, *args, **kwargs) -> float:
        """The negative bound, without gradient."""
        with torch.no_grad():
            return _to_float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The negative bound; adds its gradient to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return _to_float(loss)

    def _weights(self, model, guide, args, kwargs) -> Weights:
        with SharedSubsampleMessenger():
            parts = [
                self._trace_weights(*traces)
                for traces in self._get_traces(model, guide, args, kwargs)
            ]
        if self._is_vectorized:
            return parts[0]
        return parts[0]._replace(log_w=torch.stack([part.log_w for part in parts]))

    def _trace_weights(self, model_trace, guide_trace) -> Weights:
        if torch.is_grad_enabled():
            refuse_score_function(guide_trace)
        particle_dim = -self.max_plate_nesting if self._is_vectorized else None
        return trace_weights(model_trace, guide_trace, particle_dim)

    @property
    def _is_vectorized(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    def _get_trace(self, model, guide, args, kwargs):
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


def _to_float(loss: Tensor) -> float:
    value: Any = loss.item()
    warn_if_nan(value, "loss")
    return value
