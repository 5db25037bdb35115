"""Rewrites a settled graph with the layers that are left."""

import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_ext.models.channel_flow import ChannelFlow, Use
from pyro_ext.models.channel_rules import NORMS, RESHAPES, SHAPES
from pyro_ext.models.channel_space import Flow, entries_of, indices
from pyro_ext.models.channel_trace import parent_of, replace, shape_of
from pyro_ext.models.gate_folding import like_conv, like_linear
from pyro_ext.nn.channel_scale import ChannelScale, ChannelSelect


@torch.no_grad()
def rewrite(graph: fx.GraphModule, flow: ChannelFlow) -> nn.Module:
    """The smaller network; the graph is used up."""
    nodes = list(graph.graph.nodes)
    _unshare(graph, flow)
    for node in nodes:
        if node in flow.uses:
            _shrink_layer(graph, node, flow, flow.uses[node])
        elif node in flow.flows:
            _shrink_rest(graph, node, flow)
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()
    return _as_sequence(graph)


def _unshare(graph: fx.GraphModule, flow: ChannelFlow) -> None:
    """Gives later calls of a scale or norm modules of their own: each may lose other channels."""
    calls: Counter[str] = Counter()
    for node in flow.flows:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (ChannelScale, *NORMS)):
            target = str(node.target)
            calls[target] += 1
            if calls[target] > 1:
                node.target = f"{target}_call_{calls[target]}"
                graph.add_submodule(node.target, module)


def _shrink_layer(graph: fx.GraphModule, node: fx.Node, flow: ChannelFlow, use: Use) -> None:
    module: Any = graph.get_submodule(str(node.target))
    present = present_entries(flow, use.source)
    columns = indices(use.live) if bool((use.live > 0).any()) else present[:1]
    if len(columns) < len(present):
        chosen = torch.searchsorted(present, columns)
        _insert_select(graph, node, chosen, use.source.axis)
    rows = flow.spaces.kept(use.result.space)
    weight = module.weight[rows][:, columns]
    bias = None if module.bias is None else module.bias[rows]
    like = like_linear if isinstance(module, nn.Linear) else like_conv
    replace(graph, {str(node.target): like(module, weight, bias)})


def present_entries(flow: ChannelFlow, source: Flow) -> Tensor:
    """Indices of the entries that a tensor still has."""
    return entries_of(flow.spaces.kept(source.space), source.block)


def _insert_select(graph: fx.GraphModule, node: fx.Node, index: Tensor, axis: int) -> None:
    parent, last = parent_of(graph, str(node.target))
    path = str(node.target).rpartition(".")[0]
    name = f"{last}_inputs" if not last.isdigit() else f"inputs_{last}"
    parent.add_module(name, ChannelSelect(index, axis))
    target = f"{path}.{name}" if path else name
    source = node.all_input_nodes[0]
    with graph.graph.inserting_before(node):
        chosen = graph.graph.call_module(target, (source,))
    node.replace_input_with(source, chosen)


def _shrink_rest(graph: fx.GraphModule, node: fx.Node, flow: ChannelFlow) -> None:
    kept = present_entries(flow, flow.flows[node])
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, ChannelScale):
        replace(graph, {str(node.target): ChannelScale(module.scale[kept], module.dim)})
    elif isinstance(module, NORMS):
        replace(graph, {str(node.target): _shrink_norm(module, kept)})
    elif node.target in RESHAPES and flow.flows[node].axis == 1:
        _flatten(graph, node)


def _shrink_norm(module: Any, kept: Tensor) -> nn.Module:
    small = type(module)(
        len(kept), module.eps, module.momentum, module.affine, module.track_running_stats
    ).to(module.running_mean)
    state = {name: part[kept] if part.dim() else part for name, part in module.state_dict().items()}
    small.load_state_dict(state)
    return small.eval()


def _flatten(graph: fx.GraphModule, node: fx.Node) -> None:
    """A reshape to given sizes would keep the old ones."""
    with graph.graph.inserting_before(node):
        flat = graph.graph.call_function(torch.flatten, (node.all_input_nodes[0], 1))
    node.replace_all_uses_with(flat)
    _erase(graph.graph, node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erases a node, and the sizes that only it used."""
    sources = node.all_input_nodes
    graph.erase_node(node)
    for source in sources:
        is_size = shape_of(source) is None and source.target in {*SHAPES, operator.mul}
        if is_size and not source.users:
            _erase(graph, source)


def _as_sequence(graph: fx.GraphModule) -> nn.Module:
    """A chain of modules as a plain sequence."""
    start, *calls, end = graph.graph.nodes
    chain = [start, *calls]
    links = all(
        node.op == "call_module" and list(node.args) == [before] and not node.kwargs
        for before, node in zip(chain, calls, strict=False)
    )
    if start.op != "placeholder" or not links or end.args != (chain[-1],):
        return graph
    parts = [
        (str(node.target).replace(".", "_"), graph.get_submodule(str(node.target)))
        for node in calls
    ]
    if len({name for name, _ in parts}) < len(parts):
        return nn.Sequential(*(module for _, module in parts))
    sequence = nn.Sequential()
    for name, module in parts:
        sequence.add_module(name, module)
    return sequence.eval()
