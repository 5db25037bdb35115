"""Follows channels through a network: which are constant, and which are needed."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from pyro_ext.models import channel_rules as rules
from pyro_ext.models.channel_space import Flow, Spaces, either, together
from pyro_ext.models.channel_trace import owners_read, shape_of
from pyro_ext.models.in_place import STALE
from pyro_ext.nn.l0_gate import L0Gate


class Knowledge(Protocol):
    """What is known of the layers themselves."""

    def module(self, name: str) -> nn.Module:
        """The layer of a name."""

    def refuses(self, module: nn.Module) -> str | None:
        """Why a layer must stay as it is; none if it need not."""

    def inputs(self, module: nn.Module, flow: Flow) -> Tensor:
        """How likely each input entry of a layer with weights matters."""

    def outputs(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """How likely each output channel is not constant, and the constants."""

    def scaled(self, module: nn.Module, flow: Flow) -> Flow | None:
        """What gates and norms make of channels; none if the module is neither."""


@dataclass(frozen=True, eq=False)
class Use:
    """A layer with weights, and the channels it reads and writes.

    Attributes:
        source: the tensor it reads.
        live: how likely each entry of its input matters.
        result: the tensor it writes.
    """

    source: Flow
    live: Tensor
    result: Flow


class ChannelFlow:
    """Walks a graph once.

    Args:
        graph: of :func:`~pyro_ext.models.channel_trace.trace_channels`.
        knowledge: of its layers.

    Attributes:
        flows: what is known of each tensor.
        uses: the layers with weights, by node.
        spaces: the sets of channels.
        left_dense: what keeps channels from being removed, by name, with the reason.
        outputs: what is known of the network's own outputs.
    """

    def __init__(self, graph: fx.GraphModule, knowledge: Knowledge):
        self.knowledge = knowledge
        self.spaces = Spaces(next(graph.parameters(), torch.zeros(())))
        self.flows: dict[fx.Node, Flow] = {}
        self.uses: dict[fx.Node, Use] = {}
        self.left_dense: dict[str, str] = {}
        self.outputs: list[Flow] = []
        self._opaque: dict[str, str] = graph.meta.get("opaque", {})
        self._read = owners_read(graph.graph)
        self._calls = Counter(node.target for node in graph.graph.nodes)
        for node in graph.graph.nodes:
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            self.outputs = self._sources(node)
            self._hold(node)
        elif node.op.startswith("call"):
            module = self.knowledge.module(str(node.target)) if node.op == "call_module" else None
            reason = self._reason(node, module)
            if reason is None:
                reason = self._follow(node, module)
            if reason is None and node in self.flows and STALE in node.meta:
                self.spaces.need_all(self.flows.pop(node).space)
                self._leave(node, module, "it is changed in place")
            if reason is not None:
                self._hold(node)
                self._leave(node, module, reason)

    def _reason(self, node: fx.Node, module: nn.Module | None) -> str | None:
        """Why a module is not followed."""
        name = str(node.target)
        if module is None:
            return None
        if name in self._opaque:
            return self._opaque[name]
        owns = list(module.parameters()) and not isinstance(module, L0Gate)
        if self._calls[node.target] > 1 and owns:
            return f"it is called {self._calls[node.target]} times"
        if name in self._read:
            return "its parameters are read beside its call"
        return self.knowledge.refuses(module)

    def _follow(self, node: fx.Node, module: nn.Module | None) -> str | None:
        """Notes what a node makes of channels; returns a reason if it cannot."""
        if isinstance(module, rules.WEIGHTED):
            return self._weigh(node, module)
        if rules.is_shape(node):
            return None
        sources = self._sources(node)
        if not sources:
            return None if self._is_known(node, module) else "it is not known"
        if len(sources) == 1 and self._pass(node, module, sources[0]):
            return None
        if len(sources) == 2 and node.target in rules.BINARY:
            return self._join(node, *sources)
        return "it is not known" if module is not None else rules.unfollowed(node)

    def _pass(self, node: fx.Node, module: nn.Module | None, flow: Flow) -> bool:
        """Follows an operation on one tensor."""
        followed = self._scale(node, module, flow)
        if followed is None and self._is_lone(node, module):
            constants = {arg: flow.constant for arg in node.all_input_nodes if arg in self.flows}
            followed = flow.known(flow.alive, rules.apply(node, module, constants))
        elif followed is None and rules.is_pool(node, module) and flow.axis == 1:
            moves = rules.pads_zeros(node, module) * (flow.stopped != 0)
            followed = flow.known(torch.maximum(flow.alive, moves.to(flow.alive)), flow.constant)
            followed = flow if not moves.any() else followed
        elif followed is None and rules.is_flatten(node, module):
            followed = self._flatten(node, flow)
        elif followed is None:
            followed = self._reduce(node, flow)
        if followed is not None:
            self.flows[node] = followed
        return followed is not None

    def _scale(self, node: fx.Node, module: Any, flow: Flow) -> Flow | None:
        """Follows a gate or norm along the dimension of the channels."""
        shape = shape_of(node)
        if module is None or shape is None:
            return None
        axis = 1 if isinstance(module, rules.NORMS) else getattr(module, "dim", None)
        if not isinstance(axis, int) or axis % len(shape) != flow.axis:
            return None
        return self.knowledge.scaled(module, flow)

    def _is_lone(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a node maps each entry of its only tensor by itself."""
        if rules.is_elementwise(node, module):
            return True
        return module is None and node.target in rules.BINARY and len(node.all_input_nodes) == 1

    def _is_known(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a node that no channel reaches is not worth a word."""
        return module is None or not list(module.parameters())

    def _flatten(self, node: fx.Node, flow: Flow) -> Flow | None:
        before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
        if before is None or after is None or flow.axis != 1:
            return None
        flat = torch.Size([before[0], before[1:].numel()])
        return flow.repeated(before[2:].numel()) if after == flat else None

    def _reduce(self, node: fx.Node, flow: Flow) -> Flow | None:
        shape = shape_of(node.all_input_nodes[0])
        found = None if shape is None else rules.reduced(node, len(shape))
        if found is None or flow.axis in found[0] or shape_of(node) is None:
            return None
        dims, keeps = found
        lost = 0 if keeps else sum(dim < flow.axis for dim in dims)
        return Flow(flow.space, flow.axis - lost, flow.block, flow.alive, flow.constant)

    def _join(self, node: fx.Node, one: Flow, other: Flow) -> str | None:
        """Follows an operation on two tensors of the same channels."""
        arguments = [arg for arg in node.all_input_nodes if arg in self.flows]
        shapes = [shape_of(arg) for arg in arguments]
        aligned = one.axis == other.axis and one.block == other.block
        if len(arguments) != 2 or not aligned or len(one.alive) != len(other.alive):
            return "its tensors have different channels"
        if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
            return "its tensors have different channels"
        constants = {arguments[0]: one.constant, arguments[1]: other.constant}
        constant = rules.apply(node, None, constants)
        alive = either(one.alive, other.alive)
        if node.target in rules.PRODUCTS:  # a zero stops the other factor
            alive = together(one, other)
            constant = constant.masked_fill((one.constant == 0) | (other.constant == 0), 0.0)
        self.spaces.join(one.space, other.space)
        self.flows[node] = one.known(alive, constant)
        return None

    def _weigh(self, node: fx.Node, module: Any) -> str | None:
        """Follows a layer with weights."""
        shape, result = shape_of(node.all_input_nodes[0]), shape_of(node)
        is_dense = isinstance(module, nn.Linear)
        if shape is None or result is None or (not is_dense and len(shape) != module.weight.dim()):
            return "its input has no dimension of examples"
        axis = len(shape) - 1 if is_dense else 1
        source = self._source(node, axis, shape[axis])
        if source is None:
            return "its input's channels lie elsewhere"
        live = self.knowledge.inputs(module, source)
        self.spaces.need(source.space, live, source.block)
        alive, constant = self.knowledge.outputs(module)
        flow = Flow(self.spaces.new(len(alive)), axis, 1, alive, constant)
        self.flows[node], self.uses[node] = flow, Use(source, live, flow)
        return None

    def _source(self, node: fx.Node, axis: int, size: int) -> Flow | None:
        """The channels that a layer reads: those of a tensor out of reach must all stay."""
        found = self._sources(node)
        if found:
            return found[0] if found[0].axis == axis else None
        return self.spaces.outside(size, axis)

    def _sources(self, node: fx.Node) -> list[Flow]:
        return [self.flows[arg] for arg in node.all_input_nodes if arg in self.flows]

    def _hold(self, node: fx.Node) -> None:
        """Nothing of what a node reads can go."""
        for flow in self._sources(node):
            self.spaces.need_all(flow.space)

    def _leave(self, node: fx.Node, module: nn.Module | None, reason: str) -> None:
        """Names what keeps channels from being removed."""
        kind = getattr(node.target, "__name__", str(node.target))
        name = f"{node.name} ({kind})" if module is None else str(node.target)
        self.left_dense[name] = reason if module is None else f"{type(module).__name__}: {reason}"
