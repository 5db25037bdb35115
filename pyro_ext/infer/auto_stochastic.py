"""Automatic guides whose posterior over all latent variables is a stochastic density."""

import math
from abc import abstractmethod
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Normal, constraints
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule, PyroParam
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.infer.point_mass import Drawn, Weighed

Site = Any  # of a trace, a Message of Pyro's


class AutoStochastic(AutoContinuous):
    r"""Abstract: an automatic guide whose posterior is a :class:`StochasticDensity`.

    The latent sites are unpacked from one draw of :meth:`get_posterior` in unconstrained space.
    Its sample statements are

    - ``_<name>_latent``, auxiliary: the draw, with its score function but no density;
    - ``_<name>_density``, auxiliary: the value is the stochastic upper bound on the log density of
      the draw, again without a density;
    - the sites of the model, point masses with the Jacobian of their transform as density, **one**
      of which also carries the upper bound.

    Pyro's ``Trace_ELBO`` weighs a score function with the log density ratios of the model's sites
    only, so a density that is charged to an auxiliary site would be missing there.

    Args:
        model: the model, whose latent variables are continuous and of fixed size.
        init_loc_fn: finds initial values of the latent sites, as in Pyro's automatic guides.
        init_scale: initial scale of the base distribution in unconstrained space.

    Attributes:
        loc: location of the base distribution, a parameter of shape ``(latent_dim,)``.
        scale: its scale, a positive parameter of the same shape.
        num_draws: from which :meth:`median` and :meth:`quantiles` are estimated.

    Raises:
        ValueError: if ``init_scale`` is not positive; when called, if a latent site lies inside of
            a plate that is subsampled.
    """

    loc: Any
    scale: Any
    num_draws = 1_000

    def __init__(self, model, init_loc_fn=init_to_median, init_scale: float = 0.1):
        if not (isinstance(init_scale, int | float) and 0 < init_scale < math.inf):
            raise ValueError(f"init_scale must be a positive number, got {init_scale!r}.")
        self._init_scale = float(init_scale)
        super().__init__(model, init_loc_fn=init_loc_fn)

    @abstractmethod
    def get_posterior(self, *args, **kwargs) -> StochasticDensity:
        """The posterior of the unconstrained latent vector, of event shape ``(latent_dim,)``."""

    def get_base_dist(self) -> Any:
        """The diagonal normal that the posterior is made from.

        Raises:
            ValueError: if training has made its location NaN.
        """
        if is_validation_enabled() and bool(self.loc.isnan().any()):
            raise ValueError(
                f"The location of {type(self).__name__} became NaN in an earlier step. Lower the "
                "learning rate; for Hamiltonian paths lower step_size, too, which must stay below "
                "the width of the narrowest direction of the posterior."
            )
        return Normal(self.loc, self.scale).to_event(1)

    def _setup_prototype(self, *args, **kwargs) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._refuse_subsampled()
        self.loc = nn.Parameter(self._init_loc())
        self.scale = PyroParam(
            torch.full_like(self.loc.detach(), self._init_scale), constraints.softplus_positive
        )

    def _refuse_subsampled(self) -> None:
        for name, stack in self._cond_indep_stacks.items():
            for frame in stack:
                if (frame.full_size or frame.size) > frame.size:
                    raise ValueError(
                        f"Latent site '{name}' lies inside of plate '{frame.name}', which is "
                        f"subsampled ({frame.size} of {frame.full_size}), so it is another "
                        f"variable at each step and {type(self).__name__} cannot own its "
                        "posterior. Use all data, put only observations inside, or hide the site "
                        "from this guide and add an amortised one (AutoGuideList)."
                    )

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draws the latent sites of the model.

        Returns:
            The values by site.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        latent, log_q = self._sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        carrier = min(self._cond_indep_stacks, key=self._num_elements)
        result = {}
        for site, unconstrained in self._unpack_latent(latent):
            name = site["name"]
            extra = log_q / self._num_elements(name) if name == carrier else None
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, _point_mass(site, unconstrained, extra))
        return result

    def sample_latent(self, *args, **kwargs) -> Tensor:
        """Draws the unconstrained latent vector."""
        return self._sample_latent(*args, **kwargs)[0]

    def _sample_latent(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """The draw, and the upper bound on its log density."""
        name = f"_{self._pyro_name}"
        auxiliary: Any = {"is_auxiliary": True}
        density = self.get_posterior(*args, **kwargs).expand(_open_batch(name, self.loc))
        draw = density()
        upper, score = draw.new_zeros(density.batch_shape), 0.0
        if poutine.get_mask() is not False:
            upper, score, _ = density.score_parts(draw)
        latent = pyro.sample(f"{name}_latent", Drawn(draw, score, event_dim=1), infer=auxiliary)
        upper = track_provenance(upper, get_provenance(latent))
        return latent, pyro.sample(f"{name}_density", Drawn(upper), infer=auxiliary)

    def _network(self, name: str) -> Any:
        """A submodule, with the values that the parameter store may have for its parameters."""
        module = getattr(self, name)
        is_plain = isinstance(module, nn.Module) and not isinstance(module, PyroModule)
        if is_plain and self._pyro_context.active and not pyro.settings.get("module_local_params"):
            pyro.module(self._pyro_get_fullname(name), module, update_module_params=True)
        return module

    def _num_elements(self, name: str) -> int:
        """Over how many elements of its plates the density of a site is summed."""
        return math.prod(frame.size for frame in self._cond_indep_stacks[name])

    @torch.no_grad()
    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        """Median of each latent variable in unconstrained space, of ``num_draws`` draws."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, Tensor]:
        """Quantiles of each latent variable in unconstrained space, of ``num_draws`` draws.

        Args:
            quantiles: numbers between 0 and 1.
            args: those of the model.
            kwargs: those of the model.

        Returns:
            For each site a tensor with the quantiles along its first dimension.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        draws = self.get_posterior(*args, **kwargs).sample((self.num_draws,))
        levels = torch.as_tensor(quantiles, dtype=draws.dtype, device=draws.device).reshape(-1)
        latents = torch.stack([column.quantile(levels) for column in draws.unbind(-1)], -1)
        rows = [
            {site["name"]: biject_to(site["fn"].support)(x) for site, x in self._unpack_latent(row)}
            for row in latents
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _open_batch(name: str, like: Tensor) -> torch.Size:
    """The batch shape that open plates, and whatever stands for particles, give to a site."""
    nothing = Delta(like.new_zeros(()), validate_args=False)
    infer: Any = {"is_auxiliary": True, "_do_not_trace": True}
    return pyro.sample(f"{name}_batch", nothing, infer=infer).shape


def _point_mass(site: Site, unconstrained: Tensor, extra: Tensor | None) -> "Weighed":
    """The constrained value, with its Jacobian and perhaps more as log density."""
    event_dim = site["fn"].event_dim
    transform = biject_to(site["fn"].support)
    value = transform(unconstrained)
    if poutine.get_mask() is False:
        return Weighed(value, event_dim=event_dim)
    jacobian = transform.inv.log_abs_det_jacobian(value, unconstrained)
    log_density = sum_rightmost(jacobian, jacobian.dim() - value.dim() + event_dim)
    if extra is not None:
        log_density = log_density + extra
    return Weighed(value, log_density, event_dim=event_dim)
