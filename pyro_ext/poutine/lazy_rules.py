"""What happens where a lazy weight meets a function of torch."""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyro_ext.poutine.contraction import CONTRACTIONS, Contraction
from pyro_ext.poutine.lazy_normal import LazyNormal
from pyro_ext.poutine.lazy_views import VIEWS, fits, unchanged
from pyro_ext.poutine.weight_state import Rule, Step

Contract = Callable[[Contraction], Any]


def rules(contract: Contract) -> dict[Any, Rule]:
    """A rule for each function that does not need a draw.

    Args:
        contract: computes a linear map with a lazy weight, or returns ``NotImplemented`` where
            it takes a draw.
    """
    contractions = {f: partial(_contract, contract, build) for f, build in CONTRACTIONS.items()}
    return {**contractions, **VIEWS, F.multi_head_attention_forward: attention}


def _contract(contract: Contract, build: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.pop("out", None) is not None or kwargs.get("alpha", 1) != 1:
        return NotImplemented
    if build is CONTRACTIONS[Tensor.add]:
        kwargs.pop("alpha", None)
    for contraction in build(func, *args, **kwargs):
        if _is_lazy(contraction):
            shifted = _shift(func, contraction)
            return contract(contraction) if shifted is None else shifted
    return NotImplemented


def _is_lazy(contraction: Contraction) -> bool:
    """Whether the one weight is lazy, and the input is none, nor a parameter."""
    x = contraction.input
    is_parameter = isinstance(x, Tensor) and x.is_leaf and x.requires_grad
    is_named = contraction.columns == -2 or contraction.kind == "conv"  # which is the weight
    return (
        isinstance(contraction.weight, LazyNormal)
        and not isinstance(x, LazyNormal)
        and (is_named or not is_parameter)
    )


def _shift(func: Any, contraction: Contraction) -> Any:
    """A sum with no more elements than the weight stays lazy."""
    weight, x = contraction.weight, contraction.input
    if contraction.kind != "add" or not fits(weight, x):
        return None
    return weight.derive(Step(lambda value: value + x, unchanged, unchanged))


def attention(func: Any, *args: Any, **kwargs: Any) -> Any:
    """The rule of multi-head attention: its own body, in which projections find their rules.

    The body begins by asking for overrides, ours, so it runs with globals where there are none. It
    ends with a linear map of all tokens of all data in one dimension.
    """
    changed = {"has_torch_function": lambda tensors: False, "linear": _linear_of_tokens}
    names = {**func.__globals__, **changed}
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body(*args, **kwargs)


def _linear_of_tokens(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(input.unsqueeze(0), weight, bias).squeeze(0)
