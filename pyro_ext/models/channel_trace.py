"""The graph of a network, with the shapes of its tensors."""

import copy
import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_ext.models.in_place import WriteProp
from pyro_ext.nn.channel_scale import ChannelScale
from pyro_ext.nn.l0_conv import L0Conv2d
from pyro_ext.nn.l0_gate import L0Gate
from pyro_ext.nn.l0_linear import L0Linear

OURS = (L0Gate, L0Linear, L0Conv2d, ChannelScale)


class InPlaceProxy(fx.Proxy):
    """Records ``x += y`` as what it does: the usual one would make a new tensor of it."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._write(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._write(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._write(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._write(operator.itruediv, other)

    def _write(self, operation: Any, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})


class ChannelTracer(fx.Tracer):
    """Records calls of modules whose insides do not matter, or cannot be seen.

    Attributes:
        opaque: the modules whose forward cannot be traced, by name, with the reason.
    """

    def __init__(self):
        super().__init__()
        self.opaque: dict[str, str] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a tensor."""
        return InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        if isinstance(m, OURS) or super().is_leaf_module(m, module_qualified_name):
            return True
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return True
        reason = _refusal(m)
        if reason is not None:
            self.opaque[module_qualified_name] = reason
        return reason is not None


def trace_channels(model: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """A copy of a network in evaluation as a graph, each node with the shape of its tensor.

    Raises:
        ValueError: if the forward of the network itself cannot be traced, or gives gates to a
            layer from outside, or if the network has hooks of its own or computed weights.
    """
    refuse_computed(model)
    model = as_root(copy.deepcopy(model).eval())
    with torch.no_grad():
        model(*example)  # what fails here is told by the network itself
    _refuse_hooks(model)
    tracer = ChannelTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise ValueError(
            f"The forward of {type(model).__name__} cannot be traced: {error} {_advice(model)}"
        ) from error
    _refuse_gates(graph, model)
    module = fx.GraphModule(tracer.root, graph, type(model).__name__)
    module.meta["opaque"] = tracer.opaque
    WriteProp(module).propagate(*example)
    return module


def owners_read(graph: fx.Graph) -> set[str]:
    """Names of the modules whose parameters or buffers are read beside a call of the module."""
    reads = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    return {name.rpartition(".")[0] for name in reads}


def has_hooks(module: nn.Module) -> bool:
    """Whether what a call returns may be another value than that of the forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def shape_of(node: fx.Node) -> torch.Size | None:
    """The shape of a node's tensor; none if it is something else."""
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def parent_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a submodule, and its name there."""
    path, _, last = name.rpartition(".")
    return root.get_submodule(path), last


def replace(root: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Puts modules in the place of others, by name."""
    for name, module in modules.items():
        parent, last = parent_of(root, name)
        parent.add_module(last, module)


def as_tuple(example: Any) -> tuple[Tensor, ...]:
    """The arguments of a network: one tensor stands for a tuple of one."""
    if isinstance(example, Tensor):
        return (example,)
    example = tuple(example) if isinstance(example, Sequence) else (example,)
    if not example or not all(isinstance(part, Tensor) for part in example):
        raise ValueError(
            "example must be a batch of inputs, a tensor or a tuple of them, got "
            f"{[type(part).__name__ for part in example]}."
        )
    return example


def as_root(model: nn.Module) -> nn.Module:
    """The network; a single layer, which has no graph, in a sequence."""
    leaf = isinstance(model, OURS) or type(model).__module__.startswith("torch.nn")
    return nn.Sequential(model) if leaf and not isinstance(model, nn.Sequential) else model


def refuse_computed(model: nn.Module) -> None:
    """Refuses weights that are computed before each call, and so cannot be copied.

    Raises:
        ValueError: if there are some.
    """
    for name, module in model.named_modules():
        computed = [key for key, value in vars(module).items() if _is_computed(value)]
        if computed:
            raise ValueError(
                f"'{name}' computes {computed} before each call, as torch.nn.utils.prune, "
                "weight_norm and spectral_norm do. Make them parameters first: call "
                "torch.nn.utils.prune.remove, remove_weight_norm or remove_spectral_norm."
            )


def _is_computed(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf


def _refuse_hooks(model: nn.Module) -> None:
    if has_hooks(model):
        raise ValueError(
            f"The {type(model).__name__} has forward hooks of its own, which the graph would lose. "
            "Remove them, or wrap it: nn.Sequential(network)."
        )


def _advice(model: nn.Module) -> str:
    """What to do about a forward that cannot be traced."""
    kinds = {part.kind for part in inspect.signature(model.forward).parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return "Give its forward named arguments instead of *args or **kwargs."
    return "Move what depends on values into a submodule of its own: it is then left as it is."


def _refuse_gates(graph: fx.Graph, model: nn.Module) -> None:
    for node in graph.nodes:
        gated = node.op == "call_module" and isinstance(model.get_submodule(node.target), OURS)
        if gated and len(node.args) + len(node.kwargs) > 1:
            raise ValueError(
                f"'{node.target}' is given gates from outside, such as a site's value, which are "
                "not known here. Copy their law's log_alpha into the layer's own gates, and call "
                "it with its input alone."
            )


def _refusal(module: nn.Module) -> str | None:
    try:
        ChannelTracer().trace(module)
    except Exception as error:
        return f"its forward cannot be traced: {str(error).splitlines()[0][:80]}"
    return None
