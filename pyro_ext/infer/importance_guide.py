"""The guide that a multi-sample bound trains."""

import math
from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyro_ext.infer.particle_elbo import GuideParticles
from pyro_ext.infer.particles import Particles
from pyro_ext.infer.plates import PARTICLES
from pyro_ext.infer.resampled import Resampled
from pyro_ext.ops.counts import count
from pyro_ext.poutine.frame_messenger import FrameMessenger
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger


class ImportanceGuide(nn.Module):
    r"""Self-normalised importance resampling of a guide, with the model's weights.

    .. math::

        z_1, \dots, z_K \sim q(z \mid x), \qquad i \sim \bar w, \qquad z = z_i, \qquad
        \bar w_k = \frac{w_k}{\sum_j w_j}, \quad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

    A guide trained by ``MultiSampleELBO(K)`` is a proposal; this is the posterior that the bound
    judges. It is a guide like any other, so that

    - in ``Trace_ELBO`` it gives the importance-weighted bound :math:`\mathbb{E} \log \frac1K
      \sum_k w_k`, since :math:`\log p(x, z_i)` less its stochastic density is just that; a
      trainable base guide is trained pathwise, with :func:`vimco` terms for draws that are not
      reparameterised;
    - in ``Predictive`` it gives draws nearer to the posterior than the base guide's:
      ``Predictive(guide, num_samples)(x)``. The model runs inside, so it needs the data; hand the
      draws to a second ``Predictive`` of the model as its ``posterior_samples``.

    It draws; medians and quantiles, which an ``AutoGuide`` has, are those of its draws.

    Weights are per datum, for plates common to all sites, or as in a nested bound of
    :class:`MultiSampleELBO`: then draws outside of the plates are not resampled.

    Args:
        model: the model.
        guide: the base guide, an ``AutoGuide`` or any other.
        num_particles: :math:`K`.
        psis: draws :math:`i` by Pareto-smoothed weights, which have less variance. The index then
            stays in the bound, so that it is valid but has no pathwise gradient: for use under
            ``torch.no_grad()``. Needs ArviZ and 25 particles.
        max_plate_nesting: as in :class:`MultiSampleELBO`.
        vectorize_particles: as in :class:`MultiSampleELBO`.

    Raises:
        ValueError: if ``num_particles < 1``, or below 25 with ``psis``; when called, as
            :class:`MultiSampleELBO`, if sites are enumerated, if a discrete draw with parameters
            lies outside of the plates of a nested bound, if ``psis`` is to be trained.

    References:
        Bachman and Precup, *Training Deep Generative Models: Variations on a Theme* (2015).
        Cremer, Morris and Duvenaud, *Reinterpreting Importance-Weighted Autoencoders*,
        arXiv 1704.02916.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        >>> better = ImportanceGuide(model, guide, num_particles=100)
        >>> better(torch.tensor([-1.0, 1.0]))["z"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        num_particles: int,
        *,
        psis: bool = False,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ):
        super().__init__()
        self._model = (model,)  # no submodule: its parameters are the model's
        self.guide = guide
        self.num_particles = count(num_particles, "num_particles", 25 if psis else 1)
        self.psis = psis
        self.max_plate_nesting = max_plate_nesting
        self.vectorize_particles = vectorize_particles
        self._samplers: dict[int, GuideParticles] = {}

    @property
    def model(self) -> Callable:
        """The model."""
        return self._model[0]

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draws the latent sites of the model.

        Returns:
            The values by site.
        """
        frames = _open_frames()
        with poutine.block(hide_types=["sample", "observe"]), SharedSubsampleMessenger() as inside:
            particles = self._draw(frames, args, kwargs)
        with SharedSubsampleMessenger() as outside:
            outside.subsamples.update(inside.subsamples)
            return Resampled(particles, inside.subsamples, self.psis).sample()

    def _draw(self, frames: list[Any], args, kwargs) -> Particles:
        if self.max_plate_nesting == math.inf:
            probe = GuideParticles()
            probe._guess_max_plate_nesting(self.model, self.guide, args, kwargs)
            self.max_plate_nesting = probe.max_plate_nesting
        model, guide = self.model, self.guide
        for frame in frames:
            model, guide = FrameMessenger(frame)(model), FrameMessenger(frame)(guide)
        return self._sampler(frames).draw_particles(model, guide, args, kwargs)

    def _sampler(self, frames: list[Any]) -> GuideParticles:
        nesting = max([int(self.max_plate_nesting), *(-frame.dim for frame in frames)])
        if nesting not in self._samplers:
            self._samplers[nesting] = GuideParticles(
                num_particles=self.num_particles,
                max_plate_nesting=nesting,
                vectorize_particles=self.vectorize_particles,
            )
        return self._samplers[nesting]


def _open_frames() -> list[Any]:
    """The vectorised plates around the caller, renamed as holding particles."""
    plates = [h for h in _PYRO_STACK if isinstance(h, IndepMessenger) and h._vectorized]
    return [
        CondIndepStackFrame(f"{PARTICLES}_around_{plate.name}", plate.dim, plate.size, 0)
        for plate in plates
    ]
