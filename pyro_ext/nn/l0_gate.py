"""Gates that learn which units a network needs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.ops.counts import count
from pyro_ext.ops.hard_concrete import (
    check_stretch,
    check_temperature,
    gate,
    logistic_noise,
    mean_gate,
    median_gate,
    paper_gate,
    prob_nonzero,
)

OPTIONS = ("droprate", "temperature", "stretch", "per_example", "test_gate")
TEST_GATES: dict[str, Callable[..., Tensor]] = {
    "paper": paper_gate,
    "median": median_gate,
    "mean": mean_gate,
}


class L0Gate(nn.Module):
    r"""Multiplies each unit by a hard concrete gate, which is exactly zero with a probability.

    .. math::

        y_j = z_j x_j, \qquad z_j = \min(1, \max(0, \gamma + (\zeta - \gamma)
        \, \sigma((\log\alpha_j + L) / \beta))), \qquad L \sim \mathrm{Logistic}(0, 1)

    In training the gates are drawn, with gradients along their paths; in evaluation they are one
    fixed value, the test gate. A penalty on :math:`P(z_j \ne 0)` closes those that the data do not
    need, and :func:`~pyro_ext.models.prune` then removes their units.

    One instance used in several places is one set of gates, drawn anew in each: this is how the
    branches of a residual stream agree on the channels to lose.

    Args:
        num_units: the number of gates.
        droprate: :math:`p \in (0, 1)`; :math:`\log\alpha` starts at :math:`\log((1 - p) / p)` plus
            a normal of scale 0.01. It is not the probability of a zero: ``0.5`` starts with
            :math:`P(z \ne 0) = 0.83`, at the usual temperature and stretch.
        temperature: :math:`\beta \in (0, 1)`.
        stretch: :math:`(\gamma, \zeta)` with :math:`\gamma < 0` and :math:`\zeta > 1`.
        dim: the dimension of the units, counted from the right: -1 for features, -3 for the
            channels of images.
        per_example: draws a gate for each entry of the dimensions left of the units; if not, the
            whole batch shares one, which is cheaper and noisier.
        test_gate: the value in evaluation. ``"paper"`` is
            :math:`\min(1, \max(0, \gamma + (\zeta - \gamma) \sigma(\log\alpha)))`, as published,
            ``"median"`` that of the law, ``"mean"`` its mean, which is never zero: then no unit
            can be removed.
        device: of the parameter.
        dtype: of the parameter.

    Shape:
        ``(*batch, units, ...) -> (*batch, units, ...)``, where what follows the units is as long
        as ``dim`` says.

    Raises:
        ValueError: if an argument is outside of its range; if a value has another number of units.

    References:
        Louizos, Welling and Kingma, *Learning Sparse Neural Networks through L0 Regularization*,
        arXiv 1712.01312.

    Example:
        >>> gate = L0Gate(3)
        >>> gate(torch.ones(100, 3)).shape
        torch.Size([100, 3])
        >>> with torch.no_grad():
        ...     _ = gate.log_alpha.copy_(torch.tensor([-5.0, 0.0, 5.0]))
        >>> gate.eval()(torch.ones(3)).detach()
        tensor([0.0000, 0.5000, 1.0000])
        >>> gate.prob_nonzero().detach()
        tensor([0.0323, 0.8318, 0.9986])
    """

    def __init__(
        self,
        num_units: int,
        droprate: float = 0.5,
        temperature: float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
        *,
        dim: int = -1,
        per_example: bool = True,
        test_gate: str = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_units = count(num_units, "num_units")
        check_temperature(temperature)
        check_stretch(*stretch)
        _check(droprate, dim, test_gate)
        self.droprate, self.temperature, self.stretch = droprate, temperature, stretch
        self.dim, self.per_example, self.kind = dim, per_example, test_gate
        self.log_alpha = nn.Parameter(torch.empty(self.num_units, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts the gates at their rate, and a little apart."""
        nn.init.normal_(self.log_alpha, math.log1p(-self.droprate) - math.log(self.droprate), 0.01)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Multiplies the units by gates.

        Args:
            x: ``(*batch, units, ...)``.
            z: gates to use instead of the module's own, ``(*batch, units)``: such as the value of
                a sample site.
        """
        self._check_units(x)
        return x * self.align(self.gates(x) if z is None else z)

    def gates(self, x: Tensor) -> Tensor:
        """Gates for a value, ``(*batch, units)`` or ``(units,)``: drawn in training."""
        if not self.training:
            return self.test_gate()
        return self.sample(x.shape[: self.dim] if self.per_example else ())

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws gates with gradients, ``(*sample_shape, units)``."""
        noise = logistic_noise((*sample_shape, self.num_units), self.log_alpha)
        return gate(self.log_alpha + noise, self.temperature, *self.stretch)

    def test_gate(self) -> Tensor:
        """The gates in evaluation, ``(units,)``."""
        return TEST_GATES[self.kind](self.log_alpha, self.temperature, *self.stretch)

    def prob_nonzero(self) -> Tensor:
        r""":math:`P(z_j \ne 0)`, ``(units,)``."""
        return prob_nonzero(self.log_alpha, self.temperature, *self.stretch)

    def expected_l0(self) -> Tensor:
        r"""The expected number of open gates, :math:`\sum_j P(z_j \ne 0)`."""
        return self.prob_nonzero().sum()

    def align(self, z: Tensor) -> Tensor:
        """Appends to gates ``(*batch, units)`` the dimensions that follow the units."""
        return z[(..., *[None] * (-self.dim - 1))]

    def _check_units(self, x: Tensor) -> None:
        if x.dim() < -self.dim or x.shape[self.dim] != self.num_units:
            raise ValueError(
                f"{type(self).__name__} has {self.num_units} gates along dimension {self.dim}, but "
                f"the value has shape {tuple(x.shape)}. The dimension of the units counts from "
                "the right: dim=-1 for features, dim=-3 for the channels of images."
            )

    def extra_repr(self) -> str:
        """What the constructor was given."""
        return (
            f"{self.num_units}, dim={self.dim}, per_example={self.per_example}, "
            f"test_gate='{self.kind}'"
        )


def gate_of(
    given: L0Gate | None, num_units: int, dim: int, options: dict, layer: str, **place: Any
) -> L0Gate:
    """The gates of a layer: those given, or new ones.

    Args:
        given: if there are some.
        num_units: the number of gates.
        dim: of the units.
        options: of new gates.
        layer: the name of the layer's class.
        **place: ``device`` and ``dtype`` of new gates.

    Raises:
        ValueError: if they do not fit the layer, or options come with gates that exist.
        TypeError: if there is an option of another name.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(f"{layer} takes no {unknown}; options of its gates are {list(OPTIONS)}.")
    if given is None:
        return L0Gate(num_units, dim=dim, **options, **place)
    if options:
        raise ValueError(f"gate is given, so that {sorted(options)} cannot be: it has its own.")
    if not isinstance(given, L0Gate) or given.num_units != num_units or given.dim != dim:
        raise ValueError(f"gate must be an L0Gate({num_units}, dim={dim}), got {given!r}.")
    return given


def check_penalty(weight: float, weight_decay: float) -> None:
    """Refuses factors of the penalty that are negative or not finite."""
    for name, value in (("weight", weight), ("weight_decay", weight_decay)):
        if not (0 <= value < math.inf):
            raise ValueError(f"{name} must be a finite number >= 0, got {value}.")


def _check(droprate: float, dim: int, test_gate: str) -> None:
    if not 0 < droprate < 1:
        raise ValueError(f"droprate must lie strictly between 0 and 1, got {droprate}.")
    if not isinstance(dim, int) or dim >= 0:
        raise ValueError(f"dim counts from the right and must be negative, got {dim}.")
    if test_gate not in TEST_GATES:
        raise ValueError(f"test_gate must be one of {sorted(TEST_GATES)}, got {test_gate!r}.")
