"""From a network with closed gates to a smaller one."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_ext.models.channel_flow import ChannelFlow
from pyro_ext.models.channel_trace import as_tuple, refuse_computed, trace_channels
from pyro_ext.models.gate_folding import fold_gates
from pyro_ext.models.guide_weights import check_threshold, plain_network, read_guide
from pyro_ext.models.known_weights import KnownWeights, settle
from pyro_ext.models.network_cost import latencies, num_flops, num_nonzero, num_parameters
from pyro_ext.models.prune_report import LayerWidths, PruneReport
from pyro_ext.models.smaller import rewrite

Shapes = dict[str, tuple[int, int]]


def prune(
    network: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    guide: Callable | None = None,
    guide_args: Sequence[Any] = (),
    threshold: float = 3.0,
    timed: bool = True,
) -> tuple[nn.Module, PruneReport]:
    r"""Removes what a network's closed gates and zero weights make superfluous.

    .. math:: f_\text{small}(x) = f(x) \quad \text{for all } x, \text{ in evaluation}

    This holds for what the example shows: a forward that takes another path, or other shapes
    beside the batch, for other inputs is not known here.

    The test gates of :class:`~pyro_ext.nn.L0Linear`, :class:`~pyro_ext.nn.L0Conv2d` and
    :class:`~pyro_ext.nn.L0Gate` are folded into the weights. Then, until nothing changes:

    - a unit or channel that no layer reads goes, here and in the layer that makes it; in a
      residual stream, if it goes from all layers that write the stream;
    - one that is constant goes too, and its constant moves into the next bias: so does a closed
      channel after batch normalisation. Under padding with zeros, where a constant is none at the
      border, one constant channel stays to stand for all.

    A layer that reads only a part of what must stay, such as of the network's inputs, is given an
    index of that part. Norms, flattening and pooling follow. What the function does not know keeps
    all of its channels and is named in the report, with the reason: among it layers with forward
    hooks, parameters that are read beside a call of their layer, tensors that are changed in place
    and read by their old name, and functional dropout that is on in evaluation.

    With a ``guide``, normal sites with the names of parameters give the weights:

    .. math::

        w = \mu \, \mathbb{1}[\log \sigma^2 - \log \mu^2 \le \tau]

    as sparse variational dropout prescribes for its log-uniform prior. It is no published rule for
    other priors, such as the standard normal of :func:`~pyro_ext.infer.bayesianize`:
    ``threshold=math.inf`` takes the means alone.

    Args:
        network: in training or evaluation, not changed; that of
            :func:`~pyro_ext.infer.bayesianize` brings its guide along.
        example: a batch of inputs, or a tuple of them: for shapes, operations and times.
        guide: a Pyro guide of the network's weights.
        guide_args: arguments of the guide.
        threshold: :math:`\tau` of the guide's weights.
        timed: whether to measure how long both networks take, for about half a second.

    Returns:
        The smaller network, a plain module in evaluation; and the report.

    Raises:
        ValueError: if the forward of the network cannot be traced, if all units of a layer are
            closed so that the output is constant, if the guide has no site with the name of a
            parameter, or if the example is no tensor; if weights are computed before each call,
            as by :mod:`torch.nn.utils.prune`; if the network or a layer with gates has hooks.

    Warns:
        UserWarning: if a layer of a branch is closed altogether; one dead unit of it stays.

    References:
        Louizos, Welling and Kingma, arXiv 1712.01312; Molchanov, Ashukha and Vetrov, *Variational
        Dropout Sparsifies Deep Neural Networks*, arXiv 1701.05369.

    Example:
        >>> from pyro_ext.nn import L0Linear
        >>> network = nn.Sequential(L0Linear(20, 10), nn.ReLU(), L0Linear(10, 3)).eval()
        >>> with torch.no_grad():
        ...     network[0].gate.log_alpha[:15] = -5.0
        ...     network[2].gate.log_alpha[4:] = -5.0
        >>> x = torch.randn(8, 20)
        >>> small, report = prune(network, x)
        >>> small
        Sequential(
          (inputs_0): ChannelSelect(5, dim=1)
          (0): Linear(in_features=5, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=3, bias=True)
        )
        >>> torch.allclose(small(x), network(x), atol=1e-6)
        True
        >>> report.parameters, report.flops
        ((243, 39), (3680, 512))
    """
    example = as_tuple(example)
    check_threshold(threshold)
    refuse_computed(network)
    with torch.no_grad():
        network, guide = plain_network(network, guide)
        masked = {} if guide is None else read_guide(network, guide, tuple(guide_args), threshold)
        graph = trace_channels(network, example)
        fold_gates(graph)
        dense = copy.deepcopy(graph)
        before = _shapes(graph)
        closed = _closed(ChannelFlow(graph, KnownWeights(graph)))
        flow = settle(graph)
        _refuse_constant(flow, closed, masked)
        emptied = _emptied(flow)
        left_dense, names = dict(flow.left_dense), {str(node.target) for node in flow.uses}
        shrunk = rewrite(graph, flow)
        after = _shapes(graph)
        times = latencies([dense, shrunk], example) if timed else [math.nan, math.nan]
    return shrunk, PruneReport(
        layers=tuple(_layer(name, before, after) for name in before if name in names),
        parameters=(num_parameters(dense), num_parameters(shrunk)),
        flops=(num_flops(dense, example), num_flops(shrunk, example)),
        latency=(times[0], times[1]),
        batch_size=len(example[0]),
        nonzero=num_nonzero(shrunk),
        masked=masked,
        left_dense=left_dense,
        emptied=emptied,
    )


def _shapes(graph: fx.GraphModule) -> Shapes:
    """Outputs and inputs of the layers with weights."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in graph.named_modules()
        if isinstance(module, kinds)
    }


def _layer(name: str, before: Shapes, after: Shapes) -> LayerWidths:
    (outputs, inputs), (fewer_outputs, fewer_inputs) = before[name], after[name]
    return LayerWidths(name, (inputs, fewer_inputs), (outputs, fewer_outputs))


def _closed(flow: ChannelFlow) -> list[str]:
    """Layers that read nothing."""
    return [str(node.target) for node, use in flow.uses.items() if not use.live.any()]


def _refuse_constant(flow: ChannelFlow, closed: list[str], masked: dict[str, float]) -> None:
    if flow.outputs and not any(bool((output.alive > 0).any()) for output in flow.outputs):
        raise ValueError(
            "Nothing of the input reaches the output, so that the network is constant: "
            + (f"all inputs of {closed} are closed. " if closed else "its weights are zero. ")
            + _advice(masked)
        )


def _advice(masked: dict[str, float]) -> str:
    """What to do about a constant network: the guide's noise may have closed it, or gates."""
    if any(masked.values()):
        shares = ", ".join(f"{share:.1%} of {name}" for name, share in masked.items())
        return f"The guide's noise masks {shares}: train it longer, or raise the threshold."
    return (
        "If a penalty closed gates, train with a smaller one, or start them more open with a "
        "smaller droprate; if there are none, look at the weights that the network has."
    )


def _emptied(flow: ChannelFlow) -> tuple[str, ...]:
    """Layers without a unit that is needed, with a warning."""
    names = tuple(
        str(node.target)
        for node, use in flow.uses.items()
        if flow.spaces.is_empty(use.result.space) or not use.live.any()
    )
    if names:
        warnings.warn(
            f"All units of {list(names)} are closed: the branch is constant, and one dead unit "
            "of each layer stays so that shapes stand.",
            UserWarning,
            stacklevel=3,
        )
    return names
