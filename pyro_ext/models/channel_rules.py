"""Which operations treat channels alone, and so let knowledge of them pass."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pyro_ext.models.channel_trace import shape_of

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.AlphaDropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
DROPOUT_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}
ELEMENTWISE_MODULES = (
    *DROPOUTS,
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
POOLS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)
ELEMENTWISE_FUNCTIONS = {
    F.celu,
    F.elu,
    F.gelu,
    F.hardsigmoid,
    F.hardswish,
    F.hardtanh,
    F.leaky_relu,
    F.logsigmoid,
    F.mish,
    F.relu,
    F.relu6,
    F.selu,
    F.sigmoid,
    F.silu,
    F.softplus,
    F.tanh,
    operator.neg,
    torch.abs,
    torch.exp,
    torch.relu,
    torch.sigmoid,
    torch.sin,
    torch.square,
    torch.tanh,
}
ELEMENTWISE_METHODS = {
    "abs",
    "clone",
    "contiguous",
    "detach",
    "exp",
    "neg",
    "relu",
    "relu_",
    "sigmoid",
    "square",
    "tanh",
}
POOL_FUNCTIONS: dict[Any, int] = {  # by how many dimensions they pool
    F.adaptive_avg_pool1d: 1,
    F.adaptive_avg_pool2d: 2,
    F.adaptive_avg_pool3d: 3,
    F.adaptive_max_pool1d: 1,
    F.adaptive_max_pool2d: 2,
    F.adaptive_max_pool3d: 3,
    F.avg_pool1d: 1,
    F.avg_pool2d: 2,
    F.avg_pool3d: 3,
    F.max_pool1d: 1,
    F.max_pool2d: 2,
    F.max_pool3d: 3,
}
BINARY = {
    operator.add,
    operator.iadd,
    operator.imul,
    operator.isub,
    operator.mul,
    operator.sub,
    operator.truediv,
    torch.add,
    torch.div,
    torch.mul,
    torch.sub,
    "add",
    "add_",
    "div",
    "mul",
    "mul_",
    "sub",
}
SUMS = {operator.add, operator.iadd, operator.isub, operator.sub, torch.add, torch.sub}
SUMS |= {"add", "add_", "sub"}  # type: ignore[arg-type]
PRODUCTS = {operator.imul, operator.mul, torch.mul, "mul", "mul_"}
RESHAPES = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}
MEANS = {torch.mean, torch.amax, "mean", "amax"}
SHAPES = {getattr, operator.getitem, "size", "dim", len}


def is_elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node maps each entry of one tensor by itself."""
    if module is not None:
        one_slope = isinstance(module, nn.PReLU) and module.num_parameters == 1
        return isinstance(module, ELEMENTWISE_MODULES) or one_slope
    known = node.target in ELEMENTWISE_FUNCTIONS or node.target in ELEMENTWISE_METHODS
    return known or is_dropout(node, module)


def is_dropout(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node does nothing in evaluation."""
    if module is not None:
        return isinstance(module, DROPOUTS)
    return node.target in DROPOUT_FUNCTIONS and argument(node, 2, "training", True) is False


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """What a node gives for an argument, by place or name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def unfollowed(node: fx.Node) -> str:
    """Why a function or method is not followed."""
    if node.target in DROPOUT_FUNCTIONS:
        return "its dropout is on in evaluation too"
    return "it may mix channels"


def is_pool(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node pools positions of a batch, channel by channel."""
    shape = shape_of(node)
    if shape is None or _divisor(node, module) is not None:
        return False
    if isinstance(module, POOLS):
        return len(shape) == int(type(module).__name__[-2]) + 2
    return module is None and len(shape) == POOL_FUNCTIONS.get(node.target, -3) + 2


def _divisor(node: fx.Node, module: nn.Module | None) -> Any:
    """What a mean divides by in place of the number of its entries."""
    if module is not None:
        return getattr(module, "divisor_override", None)
    is_mean = node.target in {F.avg_pool2d, F.avg_pool3d}
    return argument(node, 6, "divisor_override") if is_mean else None


def pads_zeros(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a pool averages zeros in, so that a constant does not stay one."""
    if module is not None:
        padding = getattr(module, "padding", 0) if "Avg" in type(module).__name__ else 0
        return padding not in (0, (0,), (0, 0), (0, 0, 0))
    if node.target not in {F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}:
        return False
    return len(node.args) > 3 or bool(node.kwargs.get("padding", 0))


def is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node reshapes a tensor."""
    return isinstance(module, nn.Flatten) if module is not None else node.target in RESHAPES


def is_shape(node: fx.Node) -> bool:
    """Whether a node reads a size that at most a reshape uses."""
    if node.op == "call_module" or node.target not in SHAPES or shape_of(node) is not None:
        return False
    return all(user.target in RESHAPES or is_shape(user) for user in node.users)


def apply(node: fx.Node, module: nn.Module | None, constants: dict[fx.Node, Tensor]) -> Tensor:
    """What an elementwise node makes of constants in place of its tensors."""
    constants = {key: value.clone() for key, value in constants.items()}
    args: Any = fx.node.map_arg(node.args, lambda arg: constants.get(arg, arg))
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda arg: constants.get(arg, arg))
    if is_dropout(node, module):
        return next(iter(constants.values()))
    if module is not None:
        return module(*args, **kwargs)
    if isinstance(node.target, str):
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def reduced(node: fx.Node, num_dims: int) -> tuple[list[int], bool] | None:
    """The dimensions that a mean or maximum takes away, and whether it keeps them as one."""
    if node.op == "call_module" or node.target not in MEANS:
        return None
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if dims is None:
        return None
    dims = [dims] if isinstance(dims, int) else list(dims)
    return [dim % num_dims for dim in dims], bool(keeps)
