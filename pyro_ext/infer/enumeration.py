"""Sums over enumerated sites inside of log-weights."""

from collections import OrderedDict
from functools import reduce
from typing import Any, NamedTuple

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from torch import Tensor

Site = Any  # a sample site of a trace, a Message of Pyro's


class Term(NamedTuple):
    """A log density of a site, with its sign in the log-weight."""

    site: Site
    log_prob: Tensor


def is_enumerated(site: Site) -> bool:
    """Whether the value holds the site's whole support, along a dimension of its own."""
    return site["infer"].get("_enumerate_dim") is not None


def sum_out(terms: list[Term], model_trace: Trace, guide_trace: Trace, dims: list[int]) -> Any:
    r"""The log-weight :math:`\log \sum_y \prod_i e^{t_i(y)}` of terms :math:`t_i`.

    The sum is over the values of all enumerated sites, by Pyro's tensor contraction, which knows
    their plates. Of each term, or of each sum, only the dimensions ``dims`` are kept.
    """
    if not any(is_enumerated(site) for site, _ in terms):
        return sum(sum_except(log_prob, dims) for _, log_prob in terms)
    guide_trace.symbolize_dims()
    model_trace.symbolize_dims(guide_trace.plate_to_symbol)
    symbol_to_dim = {**guide_trace.symbol_to_dim, **model_trace.symbol_to_dim}
    tree = contract_tensor_tree(_tree(terms, model_trace.plate_to_symbol), _enum_symbols(terms))
    contracted = [
        packed.unpack(tensor, symbol_to_dim) for level in tree.values() for tensor in level
    ]
    return sum(sum_except(tensor, dims) for tensor in contracted)


def sum_except(log_prob: Tensor, dims: list[int]) -> Tensor:
    """Sums over all dimensions but ``dims``, which are negative, and keeps their places."""
    summed = [dim for dim in range(-log_prob.dim(), 0) if dim not in dims]
    return log_prob.sum(summed, keepdim=True) if summed else log_prob


def _tree(terms: list[Term], plate_to_symbol: dict[str, str]) -> OrderedDict:
    tree: OrderedDict = OrderedDict()
    dtype = reduce(torch.promote_types, (log_prob.dtype for _, log_prob in terms))
    for site, log_prob in terms:
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        ordinal = frozenset(plate_to_symbol[frame.name] for frame in frames)
        tensor = packed.pack(log_prob.to(dtype), site["infer"]["_dim_to_symbol"])
        tree.setdefault(ordinal, []).append(tensor)
    return tree


def _enum_symbols(terms: list[Term]) -> set[str]:
    return {site["infer"]["_enumerate_symbol"] for site, _ in terms if is_enumerated(site)}
