"""Rounded logistic laws."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions.parameters import broadcast, expanded
from pyro_ext.ops.counts import count
from pyro_ext.ops.discretized_logistic import discretized_logistic_log_prob, round_logistic


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic law, rounded to the integers :math:`0, \dots, L - 1`.

    .. math::

        P(x) = \sigma\Bigl(\frac{x - \mu + \frac12}{s}\Bigr)
        - \sigma\Bigl(\frac{x - \mu - \frac12}{s}\Bigr)

    where the first and the last integer have what lies beyond them too. Exact at any number of
    levels: no threshold, and no density instead of a small probability.

    Args:
        loc: :math:`\mu`, in units of a level; with pixels in :math:`[-1, 1]` it would be
            :math:`2 \mu / (L - 1) - 1`.
        scale: :math:`s > 0`, likewise.
        levels: :math:`L \ge 2`.
        validate_args: checks arguments and values.

    Shape:
        ``batch_shape`` is that of ``loc`` and ``scale``, ``event_shape`` is ``()``.

    Raises:
        ValueError: if there are fewer than two levels; when validating, if the scale is not
            positive, or values are no integers within the range.

    References:
        Salimans et al., *PixelCNN++*, arXiv 1701.05517; the published code approximates.

    Example:
        >>> d = DiscretizedLogistic(torch.tensor(100.0), 3.0, levels=256)
        >>> d.log_prob(torch.arange(256)).exp().sum()
        tensor(1.0000)
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(
        self,
        loc: float | Tensor,
        scale: float | Tensor,
        levels: int = 256,
        *,
        validate_args: bool | None = None,
    ):
        self.loc, self.scale = broadcast(loc, scale)
        self.levels = count(levels, "levels", 2)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        new = expanded(self, batch_shape, _instance, "loc", "scale")
        new.levels = self.levels
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        """The integers below the number of levels."""
        return constraints.integer_interval(0, self.levels - 1)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws integers, as real numbers."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        return round_logistic(uniform, self.loc, self.scale, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return discretized_logistic_log_prob(value, self.loc, self.scale, self.levels)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All integers, along a new left dimension."""
        values = torch.arange(self.levels, dtype=self.loc.dtype, device=self.loc.device)
        values = values.reshape(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values
