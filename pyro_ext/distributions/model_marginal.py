"""A Pyro program as a distribution: the marginal of one of its sites."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_ext.distributions.program import Sites, name_of, run
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.ops.leave_one_out import scored_rows


class _Latents(NamedTuple):
    """The latent sites beside a value, and who drew them."""

    sites: Sites
    by_model: bool


class ModelMarginal(StochasticDensity):
    r"""Stochastic: the marginal of one site of a Pyro model, bounded by its guide.

    .. math::

        p(x) = \int p(z)\, p(x \mid z)\, dz, \qquad
        W = \frac{p(z)\, p(x \mid z)}{q(z \mid x)}

    A model that draws latents :math:`z` and a site :math:`x` is a sampler like any other:
    ``log_prob(x)`` is :math:`\log W` for latents from the guide, the evidence lower bound, and
    ``score_parts(x)`` is :math:`\log W` for the latents that produced ``x``, an upper bound: see
    :class:`StochasticDensity`. ``tight(num)`` is the importance-weighted bound. With it a
    variational autoencoder is a proposal, a prior or a likelihood.

    **The convention.** ``model()`` draws the site and its latents, one event of each, and
    ``guide(x)`` draws the latents of an event ``x``; both observe nothing. Arguments of theirs are
    bound beforehand, by ``functools.partial`` or in a module. Many draws at once are made by
    running them once, with dimensions on the left: ``x`` has any dimensions to the left of its
    event, and so have the latents. If the site has a batch shape, by plates or parameters, all
    latents have the same one.

    Handlers and plates around the density do not see the sites of the program; parameters, of
    ``pyro.param``, ``pyro.module`` and ``PyroModule``, are seen and trained as any. Latents that
    are themselves stochastic densities enter with the side of the bound that is due.

    Gradients run along the paths of reparameterised sites; for the others the score function is
    owed, by the model's sites to a draw and by the guide's to ``log_prob``, which adds it, with
    the other weights of ``tight(num)`` as baseline. The gradient is that of the mean of
    ``log_prob``: inside of a nonlinear function it is biased where the guide has such sites.

    Args:
        model: a callable that draws the site and the latents.
        guide: a callable that draws the latents, given a value of the site.
        site: the site's name.
        validate_args: checks the guide's sites here, and later the values.

    Shape:
        ``batch_shape`` and ``event_shape`` are those of the site.

    Raises:
        ValueError: if the model has no such site, or draws it in other plates than a latent; if
            model and guide have other latent sites; if one of them observes, scales or masks.

    References:
        Lew, Cusumano-Towner and Mansinghka, *Recursive Auxiliary-Variable Inference*,
        arXiv 2203.02836. Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265, where a
        variational autoencoder is a proposal.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0))
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the exact posterior
        >>> d = ModelMarginal(model, guide)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.2))
        >>> torch.allclose(d.log_prob(torch.tensor(1.2)), exact)
        True
    """

    def __init__(
        self,
        model: Callable[[], Any],
        guide: Callable[[Tensor], Any],
        site: str = "x",
        *,
        validate_args: bool | None = None,
    ):
        _check_callable(model, guide)
        self.model, self.guide, self.site = model, guide, site
        with torch.no_grad():
            sites = run(model)
        _check_model(sites, site, name_of(model))
        fn = sites[site].fn
        self._support = fn.support
        self._own_batch_shape = fn.batch_shape
        self._numbers = sum(s.value.numel() for s in sites.values())
        self.has_rsample = all(s.fn.has_rsample for s in sites.values())
        self._has_paths = any(_has_path(s.fn) for s in sites.values())
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=validate_args)
        if self._validate_args:
            self._check_guide(sites)

    @constraints.dependent_property
    def support(self):
        """The site's support."""
        return self._support

    @property
    def is_partly_pathwise(self) -> bool:
        """Whether some of the model's sites are reparameterised, and some are not."""
        return self._has_paths and not self.has_rsample

    @property
    def draw_size(self) -> int:
        """Numbers of the site and its latents."""
        copies = self.batch_shape.numel() // max(1, self._own_batch_shape.numel())
        return self._numbers * copies

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: the arguments are programs, not tensors."""
        raise NotImplementedError("ModelMarginal takes its shapes from its model.")

    def simulate(self, sample_shape: torch.Size, pathwise: bool) -> tuple[Tensor, _Latents]:
        """Runs the model once, with the sample shape on the left."""
        shape = sample_shape + self.batch_shape
        sites = run(self.model, batch_shape=shape, pathwise=pathwise)
        value = sites[self.site].value
        return value.view_as(value), _Latents(sites, True)  # which must not hold what it is kept by

    def draw_conditional(self, sample_shape: torch.Size) -> Distribution:
        """The distribution of the site given latents that the model draws."""
        return run(self.model, batch_shape=sample_shape + self.batch_shape)[self.site].fn

    def draw_auxiliaries(self, value: Tensor, num: int) -> _Latents:
        """Runs the guide once, with ``num`` draws of the latents on the left."""
        value = self._spread(value)
        shape = torch.Size([num]) + self._batch_of(value, self._own_batch_shape)
        return _Latents(run(self.guide, value, batch_shape=shape), False)

    def log_weights(self, value: Tensor, auxiliaries: _Latents) -> Tensor:
        r"""Evaluates :math:`\log p(z) + \log p(x \mid z) - \log q(z \mid x)`."""
        value = self._spread(value)
        drawn = auxiliaries.sites
        latents = {name: site.value for name, site in drawn.items() if name != self.site}
        if auxiliaries.by_model:
            given = run(self.guide, value, values=latents)
            return (_log_density(drawn, False) - _log_density(given, False)).unsqueeze(0)
        given = run(self.model, values={**latents, self.site: value})
        log_w = _log_density(given, bool(latents)) - _log_density(drawn, bool(latents))
        if not latents:
            return log_w.unsqueeze(0)
        score = _score(drawn)
        owed = isinstance(score, Tensor) and score.requires_grad
        return scored_rows(log_w, score) if owed else log_w

    def score_function(self, auxiliaries: _Latents) -> Tensor | float:
        """Log density of the model's sites whose draws have no path."""
        return _score(auxiliaries.sites)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Stochastic upper bound, from the latents that produced ``value``.

        Raises:
            AuxiliaryLost: if this instance did not sample this very tensor.
            NotImplementedError: if several weights are averaged, and the guide's draws are owed
                a score function: a draw's own weight has no place in it.
        """
        if self._num_weights > 1 and torch.is_grad_enabled():
            _refuse_owing(self.draw_auxiliaries(value, 1), name_of(self.guide))
        return super().score_parts(value)

    def _spread(self, value: Tensor) -> Tensor:
        """The value with a dimension for each of the model's own batch."""
        return value.expand(self._batch_of(value, self._own_batch_shape) + self.event_shape)

    def _check_guide(self, model: Sites) -> None:
        with torch.no_grad():
            guide = run(self.guide, model[self.site].value, batch_shape=self.batch_shape)
        latents = {name: site for name, site in model.items() if name != self.site}
        shapes = [
            {name: tuple(s.value.shape) for name, s in sorted(sites.items())}
            for sites in (latents, guide)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name_of(self.guide)} draws sites of shapes {shapes[1]}, but the latent sites of "
                f"{name_of(self.model)} have shapes {shapes[0]}: they must be the same, and the "
                f"guide leaves out '{self.site}'."
            )

    def __repr__(self):
        return (
            f"ModelMarginal({name_of(self.model)}, {name_of(self.guide)}, site={self.site!r})"
            + self._variant
        )


def _log_density(sites: Sites, has_rows: bool) -> Any:
    return sum(site.log_density(has_rows) for site in sites.values())


def _score(sites: Sites) -> Any:
    return sum(site.score for site in sites.values())


def _has_path(fn: Any) -> bool:
    return bool(fn.has_rsample or getattr(fn, "is_partly_pathwise", False))


def _refuse_owing(latents: _Latents, name: str) -> None:
    score = _score(latents.sites)
    if isinstance(score, Tensor) and score.requires_grad:
        raise NotImplementedError(
            f"A tight upper bound has no gradient here: {name} draws latents that are not "
            "reparameterised. Leave out tight(num), or detach the parameters of those latents."
        )


def _check_callable(model: Any, guide: Any) -> None:
    for role, program in (("model", model), ("guide", guide)):
        if not callable(program) or isinstance(program, type):
            raise ValueError(f"The {role} of a ModelMarginal is a callable, got {program!r}.")


def _check_model(sites: Sites, site: str, name: str) -> None:
    if site not in sites:
        raise ValueError(f"{name} has no sample site '{site}', only {sorted(sites)}.")
    batch_shape = sites[site].fn.batch_shape
    for latent, drawn in sites.items():
        if drawn.fn.batch_shape != batch_shape:
            raise ValueError(
                f"{name} draws '{latent}' with batch shape {tuple(drawn.fn.batch_shape)}, but the "
                f"site '{site}' has {tuple(batch_shape)}: the elements of a batch do not share "
                "latents. Draw both in the same plates, or turn other dimensions into the event's "
                "with to_event(n)."
            )
