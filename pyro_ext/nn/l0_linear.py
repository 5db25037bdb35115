"""A dense layer that learns which inputs it needs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_ext.nn.l0_gate import L0Gate, check_penalty, gate_of


class L0Linear(nn.Linear):
    r"""A dense layer with one hard concrete gate for each input.

    .. math::

        y = W (z \odot x) + b, \qquad
        R = \sum_i P(z_i \ne 0) \Bigl( \lambda n_\text{out} + \frac{\delta}{2} \lVert w_i \rVert^2
        \Bigr) + \frac{\delta}{2} \lVert b \rVert^2

    where :math:`w_i` is the column of input :math:`i`. The penalty :math:`R`, in nats, is minus the
    log prior of all data: add it to :math:`-\sum_n \log p(y_n \mid x_n)` over **all** :math:`N`
    data, or :math:`R / N` to the mean. A published :math:`\lambda = 0.1 / N` of the mean is
    ``weight=0.1`` here.

    Args:
        in_features: :math:`n_\text{in}`, one gate each.
        out_features: :math:`n_\text{out}`.
        bias: whether there is a bias, which no gate closes.
        gate: gates to share, ``L0Gate(in_features)``; new ones if not given.
        device: of the parameters.
        dtype: of the parameters.
        **options: of the new :class:`~pyro_ext.nn.L0Gate`: ``droprate``, ``temperature``,
            ``stretch``, ``per_example``, ``test_gate``.

    Shape:
        ``(*batch, in_features) -> (*batch, out_features)``.

    Raises:
        ValueError: if a size is not positive, or as :class:`~pyro_ext.nn.L0Gate` does.

    References:
        Louizos, Welling and Kingma, *Learning Sparse Neural Networks through L0 Regularization*,
        arXiv 1712.01312.

    Example:
        >>> layer = L0Linear(784, 300, droprate=0.2)
        >>> layer(torch.zeros(100, 784)).shape
        torch.Size([100, 300])
        >>> loss = 6.9 * 60_000 + layer.penalty(weight=0.1, weight_decay=5e-4)
        >>> loss.backward()

        In Pyro, the penalty is a factor of the model, or with the other sign of the guide:

        >>> import pyro
        >>> def model(x):
        ...     pyro.module("layer", layer)
        ...     pyro.factor("l0", -layer.penalty(weight=0.1))
        >>> def guide(x):
        ...     pyro.factor("l0", layer.penalty(weight=0.1), has_rsample=True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        gate: L0Gate | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ):
        place: Any = {"device": device, "dtype": dtype}
        gate = gate_of(gate, in_features, -1, options, type(self).__name__, **place)
        super().__init__(in_features, out_features, bias, **place)
        self.gate = gate

    def reset_parameters(self) -> None:
        """Starts the weights anew, and the gates with them."""
        super().reset_parameters()
        gate = self._modules.get("gate")  # none yet while the weights are made
        if isinstance(gate, L0Gate):
            gate.reset_parameters()

    def forward(self, input: Tensor, z: Tensor | None = None) -> Tensor:
        """Gates the inputs and maps them.

        Args:
            input: ``(*batch, in_features)``.
            z: gates in place of the layer's own, such as the value of a sample site,
                ``(in_features,)`` or ``(*batch, in_features)``.
        """
        return linear(self.gate(input, z), self.weight, self.bias)

    def penalty(self, weight: float = 1.0, weight_decay: float = 0.0) -> Tensor:
        r"""The penalty :math:`R` in nats, a scalar.

        Args:
            weight: :math:`\lambda \ge 0`, per weight.
            weight_decay: :math:`\delta \ge 0`, the precision of a normal prior of open weights.

        Raises:
            ValueError: if one is negative or not finite.
        """
        check_penalty(weight, weight_decay)
        per_unit = weight * self.out_features + weight_decay / 2 * self.weight.square().sum(0)
        total = self.gate.prob_nonzero() @ per_unit.expand(self.in_features)
        if self.bias is None:
            return total
        return total + weight_decay / 2 * self.bias.square().sum()

    def expected_l0(self) -> Tensor:
        """The expected number of parameters that are not zero, biases among them."""
        biases = 0 if self.bias is None else self.out_features
        return self.gate.expected_l0() * self.out_features + biases

    def expected_flops(self, positions: int = 1) -> Tensor:
        r"""Expected operations for one example, as this layer's own gates have it.

        .. math:: 2 \, n_\text{out} \sum_i P(z_i \ne 0)

        Two for each multiplication and its addition, none for the bias, as
        :class:`torch.utils.flop_counter.FlopCounterMode` counts. What the gates of the next layer
        save here is in the :class:`~pyro_ext.models.ExpectedFlops` of a whole network.

        Args:
            positions: how many vectors one example has.
        """
        return 2 * positions * self.out_features * self.gate.expected_l0()
