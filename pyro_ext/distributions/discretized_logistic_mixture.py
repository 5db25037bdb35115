"""Mixtures of rounded logistic laws, of all channels of a pixel."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions.parameters import expanded
from pyro_ext.ops.counts import count
from pyro_ext.ops.logistic_mixture import mixture_log_prob, sample_mixture


class DiscretizedLogisticMixture(TorchDistribution):
    r"""The channels of a pixel: mixtures of rounded logistic laws, each given those before it.

    .. math::

        P(x) = \sum_m \pi_m \prod_c P\bigl(x_c \mid \mu_{cm} + \sum_{j < c} a_{cjm}
        \bigl(x_j - \tfrac{L - 1}2\bigr), s_{cm}\bigr)

    with the :class:`DiscretizedLogistic` law of each channel. All channels are of one component,
    and its later channels move with the earlier ones. Draws are rounded before the next channel
    sees them, so that they have this very law.

    Args:
        logits: of the components, ``(*batch, M)``, normalised here.
        loc: :math:`\mu`, ``(*batch, C, M)``, in units of a level.
        scale: :math:`s > 0`, ``(*batch, C, M)``, likewise.
        coefficients: :math:`a`, ``(*batch, C * (C - 1) / 2, M)``, ordered as
            :math:`a_{10}, a_{20}, a_{21}, a_{30}, \dots`; zero if None.
        levels: :math:`L \ge 2`.
        validate_args: checks arguments and values.

    Shape:
        ``event_shape`` is ``(C,)``.

    Raises:
        ValueError: if shapes do not fit, or there are fewer than two levels; when validating, if
            the scale is not positive, or values are no integers within the range.

    References:
        Salimans et al., *PixelCNN++*, arXiv 1701.05517; there pixels lie in :math:`[-1, 1]`, and
        coefficients are bounded by one.

    Example:
        >>> logits, loc = torch.zeros(5), torch.linspace(0, 255, 15).reshape(3, 5)
        >>> d = DiscretizedLogisticMixture(logits, loc, torch.full((3, 5), 4.0), torch.rand(3, 5))
        >>> x = d.sample((7,))
        >>> x.shape, d.log_prob(x).shape
        (torch.Size([7, 3]), torch.Size([7]))
    """

    arg_constraints: dict = {  # noqa: RUF012
        "logits": constraints.independent(constraints.real, 1),
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "coefficients": constraints.independent(constraints.real, 2),
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        coefficients: Tensor | None = None,
        levels: int = 256,
        *,
        validate_args: bool | None = None,
    ):
        channels, num = _sizes(loc)
        pairs = channels * (channels - 1) // 2
        if coefficients is None:
            coefficients = loc.new_zeros(pairs, num)
        _check(logits, loc, scale, coefficients)
        batch = torch.broadcast_shapes(
            logits.shape[:-1], loc.shape[:-2], scale.shape[:-2], coefficients.shape[:-2]
        )
        self.logits = logits.expand(*batch, num)
        self.loc, self.scale = (x.expand(*batch, channels, num) for x in (loc, scale))
        self.coefficients = coefficients.expand(*batch, pairs, num)
        self.levels = count(levels, "levels", 2)
        super().__init__(batch, torch.Size([channels]), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        new: Any = expanded(self, batch_shape, _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(*batch_shape, -1)
        for name in ("loc", "scale", "coefficients"):
            setattr(new, name, getattr(self, name).expand(*batch_shape, -1, -1))
        new.levels = self.levels
        return new

    @classmethod
    def infer_shapes(cls, **arg_shapes):
        """Shapes of a distribution with arguments of these shapes."""
        loc = arg_shapes["loc"]
        matrices = [
            arg_shapes[name][:-2] for name in ("scale", "coefficients") if name in arg_shapes
        ]
        batch = torch.broadcast_shapes(arg_shapes["logits"][:-1], loc[:-2], *matrices)
        return batch, torch.Size(loc[-2:-1])

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        """Integers below the number of levels, one of each channel."""
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 1)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws integers, as real numbers, ``(*sample_shape, *batch_shape, C)``."""
        shape = (*sample_shape, *self.batch_shape)
        channels, num = self.loc.shape[-2:]
        options: Any = {"dtype": self.loc.dtype, "device": self.loc.device}
        uniforms = torch.rand(*shape, num, **options), torch.rand(*shape, channels, **options)
        return sample_mixture(*uniforms, *self._arguments)

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return mixture_log_prob(value, *self._arguments)

    @property
    def _arguments(self) -> Any:
        return self.logits, self.loc, self.scale, self.coefficients, self.levels


def _sizes(loc: Tensor) -> tuple[int, int]:
    """Numbers of channels and of components."""
    if loc.dim() < 2 or not loc.is_floating_point():
        raise ValueError(
            f"loc is real, of shape (..., C, M), got {loc.dtype} of shape {tuple(loc.shape)}."
        )
    return loc.shape[-2], loc.shape[-1]


def _check(logits: Tensor, loc: Tensor, scale: Tensor, coefficients: Tensor) -> None:
    channels, num = loc.shape[-2:]
    pairs = channels * (channels - 1) // 2
    shapes = [logits.shape[-1:], scale.shape[-2:], coefficients.shape[-2:]]
    if shapes != [(num,), (channels, num), (pairs, num)]:
        raise ValueError(
            f"With loc (..., {channels}, {num}), logits are (..., {num}), scales (..., {channels}, "
            f"{num}) and coefficients (..., {pairs}, {num}); got {tuple(logits.shape)}, "
            f"{tuple(scale.shape)} and {tuple(coefficients.shape)}."
        )
