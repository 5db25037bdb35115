"""What a factorised exponential family needs to know of one coordinate."""

from typing import Any, Protocol

from torch import Tensor


class CoordinateFamily(Protocol):
    r"""A law of one real number whose natural parameters a context decides.

    .. math:: p(z) = Q(z) \exp\bigl(T(z)^\top \lambda - A(\lambda)\bigr)

    Networks give *free* numbers, as many as there are statistics, which the family maps to natural
    parameters within bounds; zeros stand for a law of scale near one.
    """

    @property
    def num_statistics(self) -> int:
        r""":math:`k`, the length of :math:`T` and :math:`\lambda`."""

    @property
    def is_monotone(self) -> bool:
        """Whether there is one statistic only, and it is monotone."""

    def natural_parameters(self, free: Tensor) -> Tensor:
        r"""The :math:`\lambda` of free numbers, ``(..., k) -> (..., k)``."""

    def statistics(self, z: Tensor) -> Tensor:
        """The :math:`T` of values, ``(...) -> (..., k)``."""

    def log_base(self, z: Tensor) -> Tensor:
        r"""The :math:`\log Q` of values, ``(...) -> (...)``."""

    def log_normalizer(self, natural_parameters: Tensor) -> Tensor:
        """The :math:`A` of natural parameters, ``(..., k) -> (...)``."""

    def law(self, free: Tensor, validate_args: bool | None = None) -> Any:
        """The distribution of free numbers, of batch shape ``(...)``."""

    def from_natural(self, natural_parameters: Tensor) -> Any:
        """The distribution of natural parameters, of batch shape ``(...)``."""
