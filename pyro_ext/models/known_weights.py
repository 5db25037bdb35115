"""What the weights of a network with exact zeros say about its channels."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from pyro_ext.models.channel_flow import ChannelFlow, Use
from pyro_ext.models.channel_rules import CONVOLUTIONS, NORMS
from pyro_ext.models.channel_space import Flow
from pyro_ext.models.channel_trace import has_hooks
from pyro_ext.nn.channel_scale import ChannelScale

PLAIN = (nn.Linear, *CONVOLUTIONS)


class KnownWeights:
    """Reads zeros of plain layers.

    Args:
        graph: whose layers are read.
    """

    def __init__(self, graph: fx.GraphModule):
        self._graph, self._shared = graph, shared_parameters(graph)

    def module(self, name: str) -> nn.Module:
        """The layer of a name."""
        return self._graph.get_submodule(name)

    def refuses(self, module: Any) -> str | None:
        """Why a layer must stay as it is."""
        return refusal(module, self._shared) or custom_forward(module)

    def inputs(self, module: Any, flow: Flow) -> Tensor:
        """Entries that are not constant, or stand for constants, and have a weight."""
        return flow.alive * has_column(module) + carriers(module, flow)

    def outputs(self, module: Any) -> tuple[Tensor, Tensor]:
        """Channels without weights are as constant as their bias."""
        weight = module.weight.detach()
        alive = (weight != 0).flatten(1).any(1).to(weight.dtype)
        return alive, torch.zeros_like(alive) if module.bias is None else module.bias.detach()

    def scaled(self, module: Any, flow: Flow) -> Flow | None:
        """What fixed scales and batch normalisation make of channels."""
        if not isinstance(module, (ChannelScale, *NORMS)):
            return None
        factor = module.scale if isinstance(module, ChannelScale) else module.weight
        alive = flow.alive if factor is None else flow.alive * (factor.detach() != 0)
        return flow.known(alive, map_constant(module, flow.stopped))


def shared_parameters(network: nn.Module) -> set[int]:
    """Identities of the parameters that several modules have."""
    every = [
        id(parameter)
        for module in dict(network.named_modules(remove_duplicate=False)).values()
        for parameter in module.parameters(recurse=False)
    ]
    return {one for one, times in Counter(every).items() if times > 1}


def refusal(module: Any, shared: set[int]) -> str | None:
    """Why a layer with weights, or a norm, is left as it is; none if there is no reason.

    Args:
        module: the layer.
        shared: what :func:`shared_parameters` found.
    """
    own = (*PLAIN, *NORMS)
    if has_hooks(module):
        return "it has forward hooks"
    if isinstance(module, own) and any(id(p) in shared for p in module.parameters(recurse=False)):
        return "another layer shares its parameters"
    if parametrize.is_parametrized(module):
        return "its weight is parametrised"
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        return f"it has {module.groups} groups"
    if isinstance(module, NORMS) and module.running_mean is None:
        return "it normalises by the batch in evaluation too"
    if isinstance(module, nn.ConvTranspose2d):
        return "transposed convolutions are not known"
    return None


def custom_forward(module: Any) -> str | None:
    """Why a subclass of a plain layer is left as it is."""
    bases = [kind for kind in PLAIN if isinstance(module, kind)]
    if bases and type(module).forward is not bases[0].forward:
        return f"it is a {bases[0].__name__} with a forward of its own"
    return None


def has_column(module: Any) -> Tensor:
    """Whether an input entry has any weight, ``(inputs,)``."""
    return (module.weight.detach() != 0).transpose(0, 1).flatten(1).any(1)


def carriers(module: Any, flow: Flow) -> Tensor:
    """The constant input that stands for all others, under a padding with zeros."""
    carried = torch.zeros_like(flow.alive)
    offending = flow.stopped.abs() * has_column(module)
    if pads_zeros(module) and bool((offending > 0).any()):
        carried[offending.argmax()] = 1.0
    return carried


def pads_zeros(module: Any) -> bool:
    """Whether constants do not stay constant at the border."""
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and max(module.kernel_size) > 1
    return any(module.padding)


@torch.no_grad()
def settle(graph: fx.GraphModule) -> ChannelFlow:
    """Moves what is constant into biases and zeroes what nobody reads, until nothing changes."""
    while True:
        flow = ChannelFlow(graph, KnownWeights(graph))
        changes = [
            _settle_use(flow, graph.get_submodule(str(node.target)), use)
            for node, use in flow.uses.items()
        ]
        if not any(changes):
            return flow


def _settle_use(flow: ChannelFlow, module: Any, use: Use) -> bool:
    before = (module.weight != 0).sum()
    had_bias = module.bias is not None
    _fold_constants(module, use)
    unread = flow.spaces.needed(use.result.space) == 0
    module.weight[unread] = 0.0
    if module.bias is not None:
        module.bias[unread] = 0.0
    return bool((module.weight != 0).sum() != before) or (module.bias is not None) != had_bias


def _fold_constants(module: Any, use: Use) -> None:
    """Moves the constant inputs of a layer into its bias, or into one of them."""
    source = use.source
    stopped = source.alive == 0
    if not stopped.any():
        return
    carried = carriers(module, source).bool()
    spatial = (1,) * (module.weight.dim() - 2)
    shifts = module.weight.double() * source.stopped.double().view(-1, *spatial)
    if carried.any():
        total = shifts.sum(1) / source.constant[carried].double().view(*spatial)
        module.weight[:, stopped] = 0.0
        module.weight[:, carried] = total.to(module.weight.dtype).unsqueeze(1)
        return
    module.weight[:, stopped] = 0.0
    shift = shifts.flatten(1).sum(1).to(module.weight.dtype)
    if module.bias is not None:
        module.bias += shift
    elif shift.any():
        module.bias = nn.Parameter(shift)


def map_constant(module: Any, constant: Tensor) -> Tensor:
    """A norm or scale of constants, whatever the dimensions of the tensor."""
    if isinstance(module, ChannelScale):
        return constant * module.scale
    shifted = constant.double() - module.running_mean
    normed = shifted * (module.running_var.double() + module.eps).rsqrt()
    if module.weight is not None:
        normed = normed * module.weight.detach() + module.bias.detach()
    return normed.to(constant.dtype)
