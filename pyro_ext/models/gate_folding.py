"""Gates as exact zeros in plain layers."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_ext.models.channel_trace import has_hooks, owners_read, replace
from pyro_ext.nn.channel_scale import ChannelScale
from pyro_ext.nn.l0_conv import L0Conv2d
from pyro_ext.nn.l0_gate import L0Gate
from pyro_ext.nn.l0_linear import L0Linear


@torch.no_grad()
def fold_gates(root: fx.GraphModule) -> None:
    """Replaces the layers with gates by plain ones, in place: weights times test gates.

    Raises:
        ValueError: if a layer with gates has hooks, or if its parameters are read beside its call.
    """
    found = dict(root.named_modules(remove_duplicate=False))
    _refuse_beside(found, owners_read(root.graph))
    inside = {
        f"{name}.gate" for name, module in found.items() if isinstance(module, L0Linear | L0Conv2d)
    }
    folded: dict[int, nn.Module] = {}
    for name, module in found.items():
        if isinstance(module, L0Linear | L0Conv2d | L0Gate) and name not in inside:
            folded.setdefault(id(module), _fold(module))
            replace(root, {name: folded[id(module)]})


def _refuse_beside(found: dict[str, nn.Module], read: set[str]) -> None:
    """Refuses what plain layers would not do any more."""
    for name, module in found.items():
        if not isinstance(module, L0Linear | L0Conv2d | L0Gate):
            continue
        if has_hooks(module):
            raise ValueError(f"'{name}' has forward hooks, which go with its gates: remove them.")
        if name in read:
            raise ValueError(
                f"The forward reads parameters of '{name}' beside its call, but gates are folded "
                "into them. Move it out of the forward, such as a penalty into the loss."
            )


def _fold(module: nn.Module) -> nn.Module:
    if isinstance(module, L0Gate):
        return ChannelScale(module.test_gate().detach(), module.dim)
    z = module.gate.test_gate()  # type: ignore[union-attr, operator]
    if isinstance(module, L0Linear):
        plain: nn.Module = like_linear(module, module.weight * z, module.bias)
    else:
        assert isinstance(module, L0Conv2d)
        bias = None if module.bias is None else module.bias * z
        plain = like_conv(module, module.weight * z[:, None, None, None], bias)
    return plain.eval()


def like_linear(module: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain layer with these weights."""
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _own(plain, weight, bias)


def like_conv(module: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """A plain convolution like another, with these weights."""
    kinds: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    plain = kinds[weight.dim()](
        weight.shape[1] * module.groups,
        weight.shape[0],
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        bias is not None,
        module.padding_mode,
        device="meta",
    )
    return _own(plain, weight, bias)


def _own(plain: Any, weight: Tensor, bias: Tensor | None) -> Any:
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain.eval()
