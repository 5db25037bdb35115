"""The hard concrete distribution."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.nn.functional import logsigmoid

from pyro_ext.distributions.constraints import open_unit_interval
from pyro_ext.distributions.parameters import broadcast
from pyro_ext.distributions.rectified import LogParts, Rectified, kl_rectified
from pyro_ext.ops import hard_concrete as ops
from pyro_ext.ops.hard_concrete_kl import hard_concrete_kl


class HardConcrete(Rectified):
    r"""A gate in [0, 1] that is often exactly 0 or 1, and still has a pathwise gradient.

    .. math::

        z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, \sigma(L / \beta))), \qquad
        L \sim \mathrm{Logistic}(\log\alpha, 1)

    .. math::

        P(z = 0) = \sigma(\beta \log(-\gamma / \zeta) - \log\alpha), \qquad
        P(z \le x) = \sigma\Bigl(\beta \log \frac{x - \gamma}{\zeta - x} - \log\alpha\Bigr),
        \quad 0 \le x < 1

    The density is with respect to :math:`\delta_0 + \delta_1 + \mathrm{Lebesgue}(0, 1)`; see
    :class:`Rectified` for what this means for gradients and guides. The divergence from another
    hard concrete of equal temperature and stretch has a closed form, that from :class:`L0Prior`
    too; from other rectified laws it is found by quadrature. As :math:`\beta \to 0` the law
    becomes Bernoulli with logit :math:`\log\alpha`.

    Nothing is clamped: everything is computed from logarithms, in float32 for
    :math:`|\log\alpha| \le 50` and beyond.

    Args:
        log_alpha: :math:`\log\alpha`, any real number.
        temperature: :math:`\beta \in (0, 1)`, a number or a tensor.
        stretch: the limits :math:`(\gamma, \zeta)`, numbers with :math:`\gamma < 0`,
            :math:`\zeta > 1`.
        validate_args: checks arguments and values.

    Shape:
        ``batch_shape`` is that of ``log_alpha`` and ``temperature``, broadcast; ``event_shape``
        is ``()``.

    Raises:
        ValueError: if temperature or stretch are out of range.

    References:
        Louizos, Welling and Kingma, *Learning Sparse Neural Networks through L0 Regularization*,
        arXiv 1712.01312.

    Example:
        >>> d = HardConcrete(torch.tensor([-4.0, 0.0, 4.0]))
        >>> d.prob_nonzero
        tensor([0.0831, 0.8318, 0.9963])
        >>> d.mean, d.median
        (tensor([0.0236, 0.5000, 0.9764]), tensor([0.0000, 0.5000, 1.0000]))
        >>> prior = HardConcrete(torch.tensor(0.5))
        >>> torch.distributions.kl_divergence(d, prior)
        tensor([1.8121, 0.0411, 1.0316])
    """

    arg_constraints: ClassVar = {"log_alpha": constraints.real, "temperature": open_unit_interval}

    def __init__(
        self,
        log_alpha: Tensor | float,
        temperature: Tensor | float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
        *,
        validate_args: bool | None = None,
    ):
        if not isinstance(temperature, Tensor):
            ops.check_temperature(temperature)
        self._temperature = temperature
        self.log_alpha, self.temperature = broadcast(log_alpha, temperature)
        super().__init__(self.log_alpha.shape, stretch, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """A copy with a larger batch shape."""
        new = super().expand(batch_shape, _instance)
        new._temperature = self._temperature
        return new

    def transport(self, logistic):
        """Shifts the noise to its location, and clips the stretched sigmoid."""
        temperature = self._shape[0]
        if isinstance(temperature, Tensor):
            return ops.gate(self.log_alpha + logistic, *self._shape)
        rate = 1 / temperature  # in one pass over the noise
        logit = torch.add(self.log_alpha * rate, logistic, alpha=rate)
        return ops.clip(logit.sigmoid(), *self.stretch)

    def log_parts(self, value):
        """From one logarithm of a sigmoid."""
        low, high = self.stretch
        log_left, log_right = (value - low).log(), (high - value).log()
        slope = self.temperature.log() + math.log(high - low)
        x = self.temperature * (log_left - log_right) - self.log_alpha
        below = logsigmoid(x)
        above = below - x
        return LogParts(below, above, below + above + slope - log_left - log_right)

    @property
    def prob_zero(self) -> Tensor:
        """Probability of exactly 0."""
        return ops.prob_zero(self.log_alpha, *self._shape)

    @property
    def prob_one(self) -> Tensor:
        """Probability of exactly 1."""
        return ops.prob_one(self.log_alpha, *self._shape)

    @property
    def prob_nonzero(self) -> Tensor:
        r"""Probability of anything but 0: the expected :math:`L_0` norm."""
        return ops.prob_nonzero(self.log_alpha, *self._shape)

    @property
    def mean(self) -> Tensor:
        """The mean, by quadrature."""
        return ops.mean_gate(self.log_alpha, *self._shape)

    def test_gate(self, kind: str = "paper") -> Tensor:
        r"""A deterministic stand-in for the draws at test time.

        Args:
            kind: ``"paper"``, the published :math:`\min(1, \max(0, \gamma + (\zeta - \gamma)
                \sigma(\log\alpha)))`, ``"median"`` or ``"mean"``. The first is zero where
                :math:`P(z \ne 0)` is below 0.31 at the usual constants, the median where it is
                below one half, the mean never.

        Raises:
            ValueError: if there is no such kind.

        Example:
            >>> HardConcrete(torch.tensor(-2.0)).test_gate("paper")
            tensor(0.0430)
        """
        return super().test_gate(kind)

    @property
    def _gates(self):
        paper = ops.paper_gate
        return {**super()._gates, "paper": lambda: paper(self.log_alpha, *self._shape)}

    @property
    def _shape(self) -> tuple[Tensor | float, float, float]:
        number = not isinstance(self._temperature, Tensor)
        return self._temperature if number else self.temperature, *self.stretch


@register_kl(HardConcrete, HardConcrete)
def _kl_hard_concrete(p, q):
    same = p._temperature is q._temperature or (
        not isinstance(p._temperature, Tensor)
        and not isinstance(q._temperature, Tensor)
        and p._temperature == q._temperature
    )
    if not same or p.stretch != q.stretch:
        return kl_rectified(p, q)
    return hard_concrete_kl(p.log_alpha, q.log_alpha, *p._shape)
