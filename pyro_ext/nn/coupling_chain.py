"""A chain of affine maps of channels and couplings, and what it keeps for the backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pyro_ext.nn.coupling import Coupling
from pyro_ext.nn.invertible_conv import mix_channels
from pyro_ext.ops.tracing import is_transformed

MEMORY = ("none", "checkpoint", "invertible")


class Chain(NamedTuple):
    """Couplings, each behind (``is_encoding``) or before an affine map, last to first then."""

    couplings: nn.ModuleList
    is_encoding: bool

    def order(self) -> Sequence[int]:
        """Indices of the steps as they are applied."""
        steps = range(len(self.couplings))
        return steps if self.is_encoding else steps[::-1]

    def step(
        self,
        index: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        context: Tensor | None,
        parameters: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One coupling and its affine map, with the coupling's log determinant."""
        move = self._coupling(index, parameters)
        if self.is_encoding:
            return move(mix_channels(x, weight, bias), context)
        x, log_det = move(x, context)
        return mix_channels(x, weight, bias), log_det

    def _coupling(self, index: int, parameters: dict[str, Tensor] | None) -> Callable:
        """A coupling in the chain's direction, with its own parameters or given ones."""
        options = {"inverse": not self.is_encoding}
        if parameters is None:
            return partial(self.couplings[index], **options)
        return lambda *args: functional_call(self.couplings[index], parameters, args, options)


def run_chain(
    couplings: nn.ModuleList,
    x: Tensor,
    weights: Tensor,
    biases: Tensor,
    context: Tensor | None,
    memory: str,
    is_encoding: bool,
) -> tuple[Tensor, Tensor]:
    """Applies a chain to ``x``, with the log determinant of its couplings, ``(N,)``.

    Inside the transforms of ``torch.func`` no memory is saved, as they cannot be combined with it.

    Args:
        couplings: of the steps.
        x: ``(N, C, H, W)``.
        weights: ``(depth, C, C)``, the affine map of each step.
        biases: ``(depth, C)``.
        context: ``(N, U)`` or None.
        memory: one of :data:`MEMORY`.
        is_encoding: the direction.
    """
    chain = Chain(couplings, is_encoding)
    if not torch.is_grad_enabled() or is_transformed():
        memory = "none"
    if memory == "invertible":
        parameters = [p for coupling in couplings for p in coupling.parameters()]
        return _Reversible.apply(chain, x, weights, biases, context, *parameters)
    return _run(chain, x, weights, biases, context, memory == "checkpoint")


def _run(
    chain: Chain,
    x: Tensor,
    weights: Tensor,
    biases: Tensor,
    context: Tensor | None,
    checkpointed: bool = False,
) -> tuple[Tensor, Tensor]:
    weight, bias = weights.unbind(0), biases.unbind(0)
    couplings: Any = chain.couplings
    log_det: Any = 0.0
    for k in chain.order():
        if checkpointed:
            parameters = dict(couplings[k].named_parameters())  # those of this call
            step = (chain.step, k, x, weight[k], bias[k], context, parameters)
            x, added = checkpoint(*step, use_reentrant=False, preserve_rng_state=False)
        else:
            x, added = chain.step(k, x, weight[k], bias[k], context)
        log_det = log_det + added
    return x, log_det


class _Reversible(Function):
    """The chain, whose inputs are computed again from its output."""

    @staticmethod
    def forward(ctx, chain, x, weights, biases, context, *parameters):
        ctx.chain = chain
        y, log_det = _run(chain, x, weights, biases, context)
        ctx.save_for_backward(y, weights, biases, context, *parameters)
        return y, log_det

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(
                'memory="invertible" has no second derivatives. Build the net with '
                'memory="checkpoint" or "none".'
            )
        y, weights, biases, context, *parameters = ctx.saved_tensors
        back = _Backward(ctx.chain, weights, biases, context, parameters)
        with torch.autocast(y.device.type, enabled=False):
            return None, *back.run(y, *grads)


class _Backward:
    """Walks back through a chain, from its output and the gradients there."""

    def __init__(self, chain, weights, biases, context, parameters):
        self.chain = chain
        self.weights, self.biases = weights, biases
        self.inverse = torch.linalg.inv(weights.double()).to(weights.dtype)
        self.context = context
        self.size = len(parameters) // len(chain.couplings)
        self.parameters = parameters
        self.weight_grads, self.bias_grads = torch.empty_like(weights), torch.empty_like(biases)
        self.context_grad = None if context is None else torch.zeros_like(context)
        self.parameter_grads: list[Any] = [None] * len(parameters)

    def run(self, y: Tensor, y_grad: Tensor, log_det_grad: Tensor) -> tuple:
        undo = [self._unmix, self._uncouple]
        if self.chain.is_encoding:
            undo.reverse()
        for k in reversed(self.chain.order()):
            for part in undo:
                y, y_grad = part(k, y, y_grad, log_det_grad)
        grads = (self.weight_grads, self.bias_grads, self.context_grad)
        return y_grad, *grads, *self.parameter_grads

    def _unmix(self, k: int, y: Tensor, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        x = mix_channels(y - self.biases[k][:, None, None], self.inverse[k])
        rows = grad.movedim(1, -1).flatten(0, -2)
        self.weight_grads[k] = rows.T @ x.movedim(1, -1).flatten(0, -2)
        self.bias_grads[k] = rows.sum(0)
        return x, mix_channels(grad, self.weights[k].T)

    def _uncouple(
        self, k: int, y: Tensor, grad: Tensor, log_det_grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        part = slice(k * self.size, (k + 1) * self.size)
        leaves = [p.detach().requires_grad_() for p in self.parameters[part]]
        context = None if self.context is None else self.context.detach().requires_grad_()
        with torch.enable_grad():
            inputs, outputs = self._recompute(self.chain.couplings[k], y, leaves, context)
        sources = [*inputs, *leaves] + ([] if context is None else [context])
        if not outputs[1].requires_grad:  # of a law that keeps volumes
            outputs = outputs[:1]
        weights = (grad, log_det_grad)[: len(outputs)]
        grads = torch.autograd.grad(outputs, sources, weights, materialize_grads=True)
        self.parameter_grads[part] = grads[2 : 2 + self.size]
        if self.context_grad is not None:
            self.context_grad += grads[-1]
        return torch.cat([x.detach() for x in inputs], 1), torch.cat(grads[:2], 1)

    def _recompute(
        self, coupling: Coupling, y: Tensor, leaves: list[Tensor], context: Tensor | None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The two halves of the input as leaves, and output and log determinant made of them."""
        rules = coupling.law.apply, coupling.law.undo
        rule, undo = rules if self.chain.is_encoding else rules[::-1]
        kept, moved = y.chunk(2, 1)
        kept = kept.detach().requires_grad_()
        names = (name for name, _ in coupling.net.named_parameters())
        h = functional_call(coupling.net, dict(zip(names, leaves, strict=True)), (kept, context))
        with torch.no_grad():
            source = undo(h, moved)[0]
        source.requires_grad_()
        moved, log_det = rule(h, source)
        return [kept, source], (torch.cat([kept, moved], 1), log_det)
