"""Which tensors of a graph are read by their old name after they were changed in place."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

STALE = "stale"  # the key of a node's meta


class WriteProp(ShapeProp):
    """Runs a graph, notes the shapes of its tensors, and marks what later changes make stale."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self._nodes = list(module.graph.nodes)
        self._seen: dict[fx.Node, tuple[Tensor, int]] = {}
        self._writes: list[tuple[fx.Node, fx.Node]] = []

    def propagate(self, *args: Any) -> Any:
        """Runs the graph, outside of inference mode, which counts no changes."""
        with torch.inference_mode(False), torch.no_grad():
            result = super().propagate(*args)
        self._mark()
        return result

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node and looks which earlier tensors it changed: views count with their base."""
        result = super().run_node(n)
        for node, (value, version) in self._seen.items():
            if _version(value) != version:
                self._writes.append((n, node))
                self._seen[node] = value, _version(value)
        if isinstance(result, Tensor):
            self._seen[n] = result, _version(result)
        return result

    def _mark(self) -> None:
        order = {node: place for place, node in enumerate(self._nodes)}
        for writer, node in self._writes:
            later = [user for user in node.users if order[user] > order[writer]]
            if any(user.op == "output" or "tensor_meta" in user.meta for user in later):
                node.meta[STALE] = True


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version
