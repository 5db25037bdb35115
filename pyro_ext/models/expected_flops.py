"""Expected operations of a network with gates, as a function to be differentiated."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_ext.models.channel_flow import ChannelFlow, Use
from pyro_ext.models.channel_rules import CONVOLUTIONS, NORMS
from pyro_ext.models.channel_space import Flow
from pyro_ext.models.channel_trace import as_root, as_tuple, shape_of, trace_channels
from pyro_ext.models.known_weights import (
    custom_forward,
    map_constant,
    refusal,
    shared_parameters,
)
from pyro_ext.models.network_cost import num_flops
from pyro_ext.nn.channel_scale import ChannelScale
from pyro_ext.nn.l0_conv import L0Conv2d
from pyro_ext.nn.l0_gate import L0Gate
from pyro_ext.nn.l0_linear import L0Linear


class ExpectedFlops:
    r"""The expected operations of a network that is pruned after its gates are drawn.

    .. math::

        \mathbb{E}[\mathrm{FLOPs}] = c + \sum_l 2 P_l K_l \,
        \mathbb{E}[n_l^\text{in}] \, \mathbb{E}[n_l^\text{out}]

    over the layers :math:`l` with weights, where :math:`P_l` is the number of positions of the
    output in the batch, :math:`K_l` the size of the kernel, and :math:`c` what other operations
    take. The widths count the gates on both sides of a layer, those that share gates together;
    different gates are independent, and so are, for simplicity, those on the two sides of a layer
    even where they are the same. Two operations for each multiplication and its addition, none
    for a bias, as :class:`torch.utils.flop_counter.FlopCounterMode` counts: where all gates are
    decided it is the count of the pruned network, but for channels that
    :func:`~pyro_ext.models.prune` keeps to stand for constants.

    Args:
        network: whose gates are read at each call; not changed.
        example: a batch of inputs, or a tuple of them, for shapes.

    Attributes:
        dense: operations with all gates open.

    Raises:
        ValueError: if the forward of the network cannot be traced.

    Warns:
        UserWarning: if no gate changes the operations, so that there is nothing to differentiate.

    Example:
        >>> network = nn.Sequential(L0Linear(20, 10), nn.ReLU(), L0Linear(10, 3))
        >>> flops = ExpectedFlops(network, torch.zeros(1, 20))
        >>> flops.dense
        460
        >>> with torch.no_grad():
        ...     network[0].gate.log_alpha.fill_(50.0)[:15] = -50.0
        ...     network[2].gate.log_alpha.fill_(50.0)[4:] = -50.0
        >>> round(flops().item(), 3)  # 2 * 5 * 4 + 2 * 4 * 3
        64.0
        >>> flops.fraction().backward()  # or a measure of ConstrainedELBO
    """

    def __init__(self, network: nn.Module, example: Tensor | Sequence[Tensor]):
        example = as_tuple(example)
        self._network, self._graph = as_root(network), trace_channels(network, example)
        self.dense = num_flops(self._graph, example)
        with torch.no_grad():
            followed, halved = float(self._count(1.0)), float(self._count(0.5))
        self._rest = self.dense - followed
        if followed == halved:
            warnings.warn(
                "No gate changes the operations of this network: there is none, or what reads its "
                "channels is not followed (prune reports the reason).",
                UserWarning,
                stacklevel=2,
            )

    def __call__(self) -> Tensor:
        """Expected operations for the batch, a scalar."""
        return self._count() + self._rest

    def _count(self, prob: float | None = None) -> Any:
        flow = ChannelFlow(self._graph, GateKnowledge(self._network, prob))
        return sum(_flops(flow, *use) for use in flow.uses.items())

    def fraction(self) -> Tensor:
        """Expected operations, divided by those with all gates open."""
        return self() / self.dense


class GateKnowledge:
    """Reads probabilities of gates.

    Args:
        network: whose gates are read.
        prob: to be open, of all gates instead.
    """

    def __init__(self, network: nn.Module, prob: float | None = None):
        self._network, self._prob = network, prob
        self._probs: dict[int, Tensor] = {}
        self._ones: dict[int, Tensor] = {}
        self._products: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._shared = shared_parameters(network)

    def module(self, name: str) -> nn.Module:
        """The layer of a name."""
        return self._network.get_submodule(name)

    def refuses(self, module: nn.Module) -> str | None:
        """Why a layer must stay as it is."""
        gated = isinstance(module, L0Linear | L0Conv2d)
        return refusal(module, self._shared) or (None if gated else custom_forward(module))

    def inputs(self, module: nn.Module, flow: Flow) -> Tensor:
        """Entries that are not constant, and whose gate is open."""
        return self._gated(flow, module.gate) if isinstance(module, L0Linear) else flow.alive

    def outputs(self, module: Any) -> tuple[Tensor, Tensor]:
        """Channels whose gate is open."""
        size = module.weight.shape[0]
        constant = module.weight.new_zeros(size)
        if isinstance(module, L0Conv2d):
            return self._open(module.gate), constant
        return self._ones.setdefault(size, torch.ones_like(constant)), constant

    def scaled(self, module: nn.Module, flow: Flow) -> Flow | None:
        """What gates, fixed scales and norms make of channels."""
        if isinstance(module, L0Gate):
            return flow.known(self._gated(flow, module), flow.constant)
        if not isinstance(module, (ChannelScale, *NORMS)):
            return None
        return flow.known(flow.alive, map_constant(module, flow.constant))

    def _gated(self, flow: Flow, gate: L0Gate) -> Tensor:
        """One and the same tensor where gates meet the same channels: they are one event."""
        product = flow.alive * self._open(gate)
        key = (id(flow.alive), id(gate))
        return self._products.setdefault(key, (product, flow.alive))[0]

    def _open(self, gate: L0Gate) -> Tensor:
        if id(gate) not in self._probs:
            probs = gate.prob_nonzero()
            fixed = self._prob
            self._probs[id(gate)] = probs if fixed is None else torch.full_like(probs, fixed)
        return self._probs[id(gate)]


def _flops(flow: ChannelFlow, node: fx.Node, use: Use) -> Tensor:
    """Operations of one layer: the example's share of its positions, times widths."""
    shape = shape_of(node)
    assert shape is not None
    channels = flow.spaces.size(use.result.space)
    outputs = flow.spaces.needed(use.result.space).sum()
    return 2 * shape.numel() / channels * _kernel(flow, node) * use.live.sum() * outputs


def _kernel(flow: ChannelFlow, node: fx.Node) -> int:
    module = flow.knowledge.module(str(node.target))
    return module.weight[0, 0].numel() if isinstance(module, CONVOLUTIONS) else 1
