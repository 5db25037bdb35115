"""Normal laws with modulated location, scale or both."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor

from pyro_ext.ops.soft_bound import soft_bound

HALF_LOG_TAU = math.log(2 * math.pi) / 2
MAX_LOG_SCALE = 6.0


class GaussianFamily:
    r"""Normal laws of a coordinate, of which a context modulates location, scale or both.

    .. math::

        \text{both}\colon &\; T = (z, z^2), \quad \lambda = (\mu / \sigma^2, -1 / 2 \sigma^2), \quad
            A = -\frac{\lambda_1^2}{4 \lambda_2} - \tfrac12 \log(-2 \lambda_2), \quad
            Q = 1 / \sqrt{2 \pi} \\
        \text{scale}\colon &\; T = z^2, \quad \lambda = -1 / 2 \sigma^2, \quad \mu = 0 \\
        \text{loc}\colon &\; T = z, \quad \lambda = \mu, \quad A = \lambda^2 / 2, \quad
            Q = \mathcal N(0, 1), \quad \sigma = 1

    What is not modulated is fixed, as a decoder makes up for any shift and scale. With the location
    alone the only statistic is monotone, and theory promises the latents up to a linear map only:
    any rotation of them explains the data as well.

    Free numbers are location and log scale; the latter is bounded smoothly.

    Args:
        modulated: ``("loc", "scale")``, ``("scale",)`` or ``("loc",)``.
        max_log_scale: log scales lie between plus and minus this number.

    Raises:
        ValueError: if nothing, or something else, is modulated, or the bound is not positive.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA*, arXiv 1907.04809.

    Example:
        >>> family = GaussianFamily(("scale",))
        >>> family.natural_parameters(torch.zeros(3, 1)), family.statistics(torch.tensor(2.0))
        (tensor([[-0.5000],
            [-0.5000],
            [-0.5000]]), tensor([4.]))
    """

    def __init__(
        self, modulated: Sequence[str] = ("loc", "scale"), max_log_scale: float = MAX_LOG_SCALE
    ):
        self.modulated = _check_modulated(modulated)
        self.max_log_scale = check_bound(max_log_scale, "max_log_scale")

    @property
    def num_statistics(self) -> int:
        """One or two."""
        return len(self.modulated)

    @property
    def is_monotone(self) -> bool:
        """Whether the location alone is modulated."""
        return self.modulated == ("loc",)

    def natural_parameters(self, free: Tensor) -> Tensor:
        """From location and log scale."""
        loc, log_scale = self._split(free)
        if self.is_monotone:
            return loc.unsqueeze(-1)
        precision = (-2 * log_scale).exp()
        parts = [loc * precision] * ("loc" in self.modulated)
        return torch.stack([*parts, -precision / 2], -1)

    def statistics(self, z: Tensor) -> Tensor:
        """Values, squares or both."""
        return torch.stack([{"loc": z, "scale": z.square()}[name] for name in self.modulated], -1)

    def log_base(self, z: Tensor) -> Tensor:
        """A constant, or the standard normal law if its location is modulated only."""
        constant = torch.full_like(z, -HALF_LOG_TAU)
        return constant - z.square() / 2 if self.is_monotone else constant

    def log_normalizer(self, natural_parameters: Tensor) -> Tensor:
        """In closed form, in nats."""
        first, last = natural_parameters[..., 0], natural_parameters[..., -1]
        if self.is_monotone:
            return first.square() / 2
        log_precision = (-2 * last).log()
        if self.num_statistics == 1:
            return -log_precision / 2
        return -first.square() / (4 * last) - log_precision / 2

    def law(self, free: Tensor, validate_args: bool | None = None) -> Any:
        """Pyro's ``Normal``."""
        loc, log_scale = self._split(free)
        return Normal(loc, log_scale.exp(), validate_args=validate_args)

    def from_natural(self, natural_parameters: Tensor) -> Any:
        """Pyro's ``Normal``."""
        first, last = natural_parameters[..., 0], natural_parameters[..., -1]
        if self.is_monotone:
            return Normal(first, torch.ones_like(first))
        variance = -1 / (2 * last)
        loc = first * variance if self.num_statistics == 2 else torch.zeros_like(last)
        return Normal(loc, variance.sqrt())

    def __repr__(self) -> str:
        return f"GaussianFamily({self.modulated})"

    def _split(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """Location and bounded log scale, zero if fixed."""
        zero = torch.zeros_like(free[..., 0])
        loc = free[..., 0] if "loc" in self.modulated else zero
        is_free = "scale" in self.modulated
        return loc, soft_bound(free[..., -1], self.max_log_scale) if is_free else zero


def check_bound(value: float, name: str) -> float:
    """A positive finite number.

    Raises:
        ValueError: if it is none.
    """
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return float(value)


def _check_modulated(modulated: Sequence[str]) -> tuple[str, ...]:
    names = ("loc", "scale")
    chosen = tuple(name for name in names if name in modulated)
    if isinstance(modulated, str) or not chosen or set(modulated) - set(names):
        raise ValueError(
            'modulated must be ("loc", "scale"), ("scale",) or ("loc",), a tuple even if it is of '
            f"one name; got {modulated!r}."
        )
    return chosen
