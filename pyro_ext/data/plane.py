"""Toy targets in the plane."""

import copy
import math
from abc import abstractmethod

import torch
from torch.distributions import Distribution, constraints

_TWO_PI = 2 * math.pi
_Shape = torch.Size | list[int] | tuple[int, ...]


class _Plane(Distribution):
    """A fixed distribution on the plane; abstract."""

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._zero = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(), torch.Size((2,)), validate_args=validate_args)

    @abstractmethod
    def _draw(self, shape: torch.Size) -> torch.Tensor:
        """Draw points, shape ``(*shape, 2)``."""

    @abstractmethod
    def _log_density(self, value: torch.Tensor) -> torch.Tensor:
        """Evaluate log p, shape ``value.shape[:-1]``."""

    def expand(self, batch_shape: _Shape, _instance: Distribution | None = None) -> Distribution:
        new = copy.copy(self)
        new._batch_shape = self._zero.expand(self.batch_shape).expand(batch_shape).shape
        return new

    def sample(self, sample_shape: _Shape = ()) -> torch.Tensor:
        return self._draw(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return self._log_density(value).expand(shape)

    def _uniform(self, shape: _Shape) -> torch.Tensor:
        return torch.rand(shape, dtype=self._zero.dtype, device=self._zero.device)

    def _normal(self, shape: _Shape) -> torch.Tensor:
        return torch.randn(shape, dtype=self._zero.dtype, device=self._zero.device)


class NineGaussians(_Plane):
    r"""Nine equal Gaussians of variance 0.01 on the grid :math:`\{-1, 0, 1\}^2`.

    .. math:: p(x) = \frac19 \sum_{c \in \{-1,0,1\}^2} N(x; c, 0.01\, I), \qquad E[\log p] = -0.4299

    Args:
        dtype: of the samples; the default dtype if omitted.
        device: of the samples; the default device if omitted.
        validate_args: check the arguments of ``log_prob``.

    Shape:
        - sample: ``(*sample_shape, *batch_shape, 2)``
        - log_prob: ``(..., 2) -> (...)``

    Example:
        >>> target = NineGaussians(dtype=torch.float64)
        >>> target.log_prob(torch.zeros(2, dtype=torch.float64))
        tensor(0.5701, dtype=torch.float64)
    """

    _SCALE = 0.1

    def _draw(self, shape: torch.Size) -> torch.Tensor:
        centre = torch.floor(3 * self._uniform((*shape, 2))) - 1
        return centre + self._SCALE * self._normal((*shape, 2))

    def _log_density(self, value: torch.Tensor) -> torch.Tensor:
        # The grid is a product, so the density is one too: of two mixtures of three.
        offset = torch.stack([value + 1, value, value - 1]) / self._SCALE  # (3, ..., 2)
        log_norm = math.log(3) + math.log(self._SCALE) + 0.5 * math.log(_TWO_PI)
        return (torch.logsumexp(-0.5 * offset.square(), 0) - log_norm).sum(-1)


class TwoRings(_Plane):
    r"""Two noisy rings of radius 0.6 and 1.3, at a uniform angle.

    The radius is :math:`r \sim \frac12 N(0.6, 0.1^2) + \frac12 N(1.3, 0.1^2)`. A negative one (once
    in :math:`10^9`) lands on the opposite side, which the density accounts for:

    .. math::
        p(x) = \frac{p_r(\|x\|) + p_r(-\|x\|)}{2 \pi \|x\|}, \qquad E[\log p] = -1.5137

    The density is infinite at the origin itself, as :math:`1 / \|x\|` is; there ``log_prob``
    returns its value at the smallest distance the dtype can square, with zero gradient.

    Args:
        dtype: of the samples; the default dtype if omitted.
        device: of the samples; the default device if omitted.
        validate_args: check the arguments of ``log_prob``.

    Shape:
        - sample: ``(*sample_shape, *batch_shape, 2)``
        - log_prob: ``(..., 2) -> (...)``

    Example:
        >>> target = TwoRings(dtype=torch.float64)
        >>> target.log_prob(torch.tensor([0.6, 0.0], dtype=torch.float64))
        tensor(-0.6366, dtype=torch.float64)
    """

    _RADII = (0.6, 1.3)
    _SCALE = 0.1

    def _draw(self, shape: torch.Size) -> torch.Tensor:
        inner, outer = self._RADII
        chosen = torch.floor(2 * self._uniform(shape))
        radius = inner + (outer - inner) * chosen + self._SCALE * self._normal(shape)
        angle = _TWO_PI * self._uniform(shape)
        return radius.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)

    def _log_density(self, value: torch.Tensor) -> torch.Tensor:
        square = value.square().sum(-1).clamp_min(torch.finfo(value.dtype).tiny)
        radius = square.sqrt()
        offset = torch.stack([s * radius - c for s in (1, -1) for c in self._RADII]) / self._SCALE
        log_norm = math.log(2) + math.log(self._SCALE) + 1.5 * math.log(_TWO_PI)
        return torch.logsumexp(-0.5 * offset.square(), 0) - log_norm - 0.5 * square.log()


class Checkerboard(_Plane):
    r"""Uniform on the eight black squares of a 4 x 4 board on :math:`[-2, 2]^2`.

    .. math::
        p(x) = \tfrac18 \; \mathbf 1[x \in [-2, 2)^2,\ \lfloor x_1 \rfloor + \lfloor x_2 \rfloor
        \text{ even}], \qquad E[\log p] = -\log 8 = -2.0794

    Off the black squares ``log_prob`` is minus infinity.

    Args:
        dtype: of the samples; the default dtype if omitted.
        device: of the samples; the default device if omitted.
        validate_args: check the arguments of ``log_prob``.

    Shape:
        - sample: ``(*sample_shape, *batch_shape, 2)``
        - log_prob: ``(..., 2) -> (...)``

    Example:
        >>> Checkerboard().log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5]]))
        tensor([-2.0794,    -inf])
    """

    def _draw(self, shape: torch.Size) -> torch.Tensor:
        column = torch.floor(4 * self._uniform(shape)) - 2
        row = 2 * torch.floor(2 * self._uniform(shape)) - 2 + column.remainder(2)
        corner = torch.stack([column, row], -1)
        # Rounding may carry a point over to the next square, a white one: keep it out.
        edge = torch.nextafter(corner + 1, corner)
        return torch.minimum(corner + self._uniform((*shape, 2)), edge)

    def _log_density(self, value: torch.Tensor) -> torch.Tensor:
        square = value.floor()
        black = (square.sum(-1).remainder(2) == 0) & ((square >= -2) & (square < 2)).all(-1)
        return torch.where(black, value.new_full((), -math.log(8)), value.new_full((), -math.inf))
