"""Integers as densities of real numbers see them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform, constraints

from pyro_ext.distributions.proposals import draw_candidates
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.distributions.wrappers import density_kind
from pyro_ext.ops.counts import count

REMEDY = "or leave it out"


class _Points(NamedTuple):
    """Points in the cells of values."""

    u: Tensor  # (num, *batch, *event)
    y: Tensor | None = None  # (*batch, *event): the real number that was rounded


class Dequantized(StochasticDensity):
    r"""Stochastic: integers as rounded draws of a density, whose ``log_prob`` is a lower bound.

    .. math::

        P(x) = \int_{[0, 1)^D} p(y_u)\, 2^{-bD} du, \qquad
        y_u = 2^{-b} (x + u) - \tfrac12, \qquad
        W = \frac{2^{-bD}\, p(y_u)}{q(u \mid x)}, \qquad x \in \{0, \dots, 2^b - 1\}^D

    An image of ``b`` bits is a cell of :math:`[-\tfrac12, \tfrac12)^D`, whose probability is
    estimated at a random point of the cell, uniform by default: so integer data are observed in an
    ordinary model, and ``-log_prob / (D log 2)`` is in bits per dimension. ``tight(num)`` averages
    over points, a learned ``noise`` chooses them well (variational dequantisation).

    Draws are rounded down and, where they leave the range, clipped to it, as published. What they
    so put into the first and the last integer is more than the cell's own probability: there too
    ``log_prob`` is a lower bound. On a guide's side, a clipped draw has the bound
    :math:`+\infty`.

    Args:
        base_dist: :math:`p`, a density of real numbers, with an exact ``log_prob``.
        bits: :math:`b \ge 1`.
        noise: :math:`x \mapsto q(u \mid x)`, a callable from values ``(..., *event_shape)``, as
            real numbers, to a distribution over :math:`(0, 1)` of the same event shape.
        validate_args: checks that values are integers within the range.

    Shape:
        Those of ``base_dist``.

    Raises:
        ValueError: if ``base_dist`` has no exact density or not one of real numbers, or ``bits``
            is below one; when validating, if values are no integers within the range.

    References:
        Theis, van den Oord and Bethge, *A note on the evaluation of generative models*,
        arXiv 1511.01844; Ho et al., *Flow++*, arXiv 1902.00275, for variational dequantisation.

    Example:
        >>> import pyro.distributions as dist
        >>> d = Dequantized(dist.Normal(torch.zeros(3, 8, 8), 0.25).to_event(3), bits=8)
        >>> images = d.sample((5,))
        >>> bool(((images >= 0) & (images <= 255)).all()), d.log_prob(images.byte()).shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        base_dist: Distribution,
        bits: int = 8,
        noise: Callable[[Tensor], Distribution] | None = None,
        *,
        validate_args: bool | None = None,
    ):
        _check(base_dist, noise)
        self.base_dist = base_dist
        self.bits = count(bits, "bits")
        self.noise = noise
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        """The integers below :math:`2^b`."""
        cells = constraints.integer_interval(0, 2**self.bits - 1)
        return constraints.independent(cells, self.event_dim)

    @staticmethod
    def infer_shapes(**arg_shapes):
        """Not possible: an argument is a distribution, not a tensor."""
        raise NotImplementedError("Dequantized takes its shapes from base_dist.")

    def simulate(self, sample_shape: torch.Size, pathwise: bool) -> tuple[Tensor, _Points]:
        """Draws a real number, rounds it down and clips it; the remainder is the auxiliary."""
        y = self._base().sample(sample_shape)
        place = (y + 0.5) * 2**self.bits
        value = place.floor().clamp(0, 2**self.bits - 1)
        return value, _Points((place - value).unsqueeze(0), y)

    def draw_auxiliaries(self, value: Tensor, num: int) -> _Points:
        """Draws ``num`` points in the cell of each value."""
        value = self._real(value).expand(self._batch_of(value) + self.event_shape)
        return _Points(draw_candidates(self._noise(value), torch.Size([num]), "noise", REMEDY))

    def log_weights(self, value: Tensor, auxiliaries: _Points) -> Tensor:
        r"""Evaluates :math:`\log p(y_u) - b D \log 2 - \log q(u \mid x)`."""
        value = self._real(value)
        inside = torch.nextafter(value + 1, value)  # a sum may be rounded up to the next cell
        y = torch.minimum(value + auxiliaries.u, inside) / 2**self.bits - 0.5
        cell = self.bits * self.event_shape.numel() * math.log(2)
        return self.base_dist.log_prob(y) - cell - self._noise(value).log_prob(auxiliaries.u)

    def score_function(self, auxiliaries: _Points) -> Tensor | float:
        """Log density of the real number that was rounded."""
        return 0.0 if auxiliaries.y is None else self._base().log_prob(auxiliaries.y)

    def _base(self) -> Any:
        """The density, in this batch shape."""
        base: Any = self.base_dist
        return base if base.batch_shape == self.batch_shape else base.expand(self.batch_shape)

    def _real(self, value: Tensor) -> Tensor:
        """Integers as real numbers of the density's dtype, if it says which."""
        if value.is_floating_point():
            return value
        return value.to(getattr(self.base_dist, "dtype", torch.get_default_dtype()))

    def _noise(self, x: Tensor) -> Any:
        if self.noise is not None:
            return self.noise(x)
        zeros = torch.zeros_like(x)
        return Independent(Uniform(zeros, zeros + 1, validate_args=False), self.event_dim)

    def __repr__(self):
        return f"Dequantized({self.base_dist}, bits={self.bits})" + self._variant


def _check(base_dist: Any, noise: Any) -> None:
    if not isinstance(base_dist, Distribution) or density_kind(base_dist) != "exact":
        raise ValueError(f"Dequantized needs a base_dist with an exact density, got {base_dist!r}.")
    support: Any = base_dist.support
    if support.is_discrete:
        raise ValueError(f"Dequantized needs a density of real numbers, got {base_dist!r}.")
    if not (noise is None or callable(noise)):
        raise ValueError(f"noise is a callable that returns a distribution, got {noise!r}.")
