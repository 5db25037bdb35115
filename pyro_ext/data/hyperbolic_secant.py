"""The hyperbolic secant distribution."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints


class HyperbolicSecant(Distribution):
    r"""The standard hyperbolic secant law, between a normal and a Laplace in its tails.

    .. math:: p(x) = \frac{1}{\pi \cosh x}, \qquad F(x) = \frac{2}{\pi} \arctan e^x, \qquad
        \operatorname{Var} x = \frac{\pi^2}{4}

    A torch distribution (not one of Pyro's: not for ``pyro.sample``) without parameters.

    Args:
        validate_args: check the arguments of ``log_prob``.

    Shape:
        - sample: ``sample_shape``
        - log_prob, cdf, icdf: those of ``value``

    Example:
        >>> HyperbolicSecant().log_prob(torch.zeros(()))
        tensor(-1.1447)
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real

    def __init__(self, *, validate_args: bool | None = None) -> None:
        super().__init__(validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return torch.zeros(())

    @property
    def variance(self) -> Tensor:
        """A quarter of pi squared."""
        return torch.tensor(math.pi**2 / 4)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws, by the inverse of the distribution function."""
        uniform = torch.rand(sample_shape)
        return self.icdf(uniform.clamp_min(torch.finfo(uniform.dtype).tiny))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        size = value.abs()
        return math.log(2 / math.pi) - size - torch.log1p((-2 * size).exp())

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        return value.exp().atan() * (2 / math.pi)

    def icdf(self, value: Tensor) -> Tensor:
        """Its inverse."""
        return (value * (math.pi / 2)).tan().log()
