"""Functions of torch that are linear in a weight, in one form."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ext.poutine.einsum_labels import EinsumLabels
from pyro_ext.poutine.lazy_normal import LazyNormal
from pyro_ext.poutine.lazy_views import overloads


class Contraction(NamedTuple):
    r"""A linear map with a weight, in which each output sums over other elements of the weight.

    .. math:: y = f(x, w, b), \qquad
        w_i \sim N(\mu_i, \sigma_i^2) \text{ independent} \implies
        y_j \sim N\bigl(f(x, \mu, b)_j,\, f(x^2, \sigma^2, 0)_j\bigr)

    Args:
        apply: :math:`f`; the bias may be ``None``.
        input: :math:`x`.
        weight: :math:`w`.
        bias: :math:`b`.
        kind: ``"conv"``, ``"linear"`` or ``"add"``, where :math:`f(x, w) = x + w`.
        is_shared: whether outputs of one datum use the same element of the weight, as the pixels
            of a convolution or the tokens of a sequence do.
        columns: the dimension of the weight that becomes one of the output, if the input has the
            other as its last; ``None`` if it is not so simple.
    """

    apply: Callable[[Tensor, Any, Any], Tensor]
    input: Any
    weight: Any
    bias: Any = None
    kind: str = "linear"
    is_shared: bool = False
    columns: int | None = None

    def has_own_biases(self) -> bool:
        """Whether no two outputs of a datum, or no two channels, share an element of the bias."""
        if self.kind == "conv" or self.columns is None:
            return self.kind == "conv"
        return self.bias.shape[-1:] == self.weight.shape[self.columns :][:1]


Contractions = Iterator[Contraction]


def linear(func: Any, input: Any, weight: Any, bias: Any = None) -> Contractions:
    """Of ``F.linear``."""
    columns = -2 if weight.dim() > 1 else None
    yield Contraction(F.linear, input, weight, bias, is_shared=input.dim() > 2, columns=columns)


def matmul(func: Any, left: Any, right: Any) -> Contractions:
    """Of ``matmul`` and its like, with the weight on either side."""
    yield from _products(left, right, None, lambda x, w, b: func(x, w))


def reversed_matmul(func: Any, right: Any, left: Any) -> Contractions:
    """Of ``__rmatmul__``."""
    yield from matmul(torch.matmul, left, right)


def addmm(func: Any, bias: Any, left: Any, right: Any, *, beta=1, alpha=1) -> Contractions:
    """Of ``addmm``, ``addmv`` and ``baddbmm``."""

    def apply(x, w, b):
        return torch.matmul(x, w) if b is None else func(b, x, w)

    if beta == alpha == 1:
        yield from _products(left, right, bias, apply)


def _products(left: Any, right: Any, bias: Any, apply: Any) -> Contractions:
    yield Contraction(
        apply,
        left,
        right,
        bias,
        is_shared=_uses(left.shape, right.shape, -2) > 1,
        columns=-1 if right.dim() > 1 else None,
    )
    yield Contraction(
        lambda x, w, b: apply(w, x, b),
        right,
        left,
        bias,
        is_shared=_uses(right.shape, left.shape, -1) > 1,
    )


def _uses(data: torch.Size, weight: torch.Size, free: int) -> int:
    """Along how many dimensions of the data of a product the same weight is used.

    A dimension of one counts, as a batch of one sequence does, but not beside particles.
    """
    has_particles = any(size > 1 for size in weight[:-2])
    is_row = len(data) > 1 and (data[free] > 1 or not has_particles)
    return is_row + _num_missing(data[:-2], weight[:-2])


def _num_missing(data: torch.Size, weight: torch.Size) -> int:
    """How many dimensions of data, aligned at the right, the weight has not."""
    own = tuple(itertools.dropwhile(lambda size: size == 1, weight))
    inner = zip(reversed(data), reversed(own), strict=False)
    return max(len(data) - len(own), 0) + sum(size == 1 < n for n, size in inner)


def conv(
    func: Any, input: Any, weight: Any, bias: Any = None, stride=1, padding=0, dilation=1, groups=1
) -> Contractions:
    """Of ``conv1d`` to ``conv3d``."""

    def apply(x, w, b):
        return func(x, w, b, stride, padding, dilation, groups)

    spatial = input.shape[2 - weight.dim() :], weight.shape[2:]
    positions = _positions(*spatial, stride, padding, dilation)
    yield Contraction(apply, input, weight, bias, "conv", is_shared=positions > 1)


def _positions(sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> int:
    if padding == "same":
        return math.prod(sizes)
    numbers = (0 if padding == "valid" else padding, stride, dilation)
    each = [n if isinstance(n, tuple | list) else (n,) * len(sizes) for n in numbers]
    each = [n * len(sizes) if len(n) == 1 else n for n in each]
    return math.prod(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, p, s, d in zip(sizes, kernel, *each, strict=True)
    )


def conv_transpose(
    func: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
) -> Contractions:
    """Of ``conv_transpose1d`` to ``conv_transpose3d``."""

    def apply(x, w, b):
        return func(x, w, b, stride, padding, output_padding, groups, dilation)

    is_pixel = math.prod(input.shape[2 - weight.dim() :]) == 1
    is_shared = not is_pixel or isinstance(bias, LazyNormal)  # which all outputs of a pixel share
    yield Contraction(apply, input, weight, bias, "conv", is_shared=is_shared)


def add(func: Any, left: Any, right: Any) -> Contractions:
    """Of a sum with a bias, which has fewer elements than the sum."""
    for input, weight in ((left, right), (right, left)):
        if isinstance(input, Tensor) and isinstance(weight, Tensor):
            is_wide = math.prod(weight.shape[-1:]) == 1 < math.prod(input.shape[-1:])
            is_shared = is_wide + _num_missing(input.shape[:-1], weight.shape[:-1]) > 1
            yield Contraction(lambda x, w, b: x + w, input, weight, None, "add", is_shared)


def einsum(func: Any, equation: Any, *operands: Any) -> Contractions:
    """Of an einsum with two operands."""
    tensors = operands[0] if isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or len(tensors) != 2:
        return
    for weight in (1, 0):
        labels = EinsumLabels.of(equation, tensors, weight)
        if labels.is_linear_map():
            yield Contraction(
                partial(_einsum, func, equation, weight),
                tensors[1 - weight],
                tensors[weight],
                is_shared=labels.num_uses() > 1,
            )


def _einsum(func: Any, equation: str, weight: int, x: Tensor, w: Tensor, bias: None) -> Tensor:
    return func(equation, *((x, w) if weight else (w, x)))


CONTRACTIONS: dict[Any, Callable[..., Contractions]] = {
    F.linear: linear,
    **dict.fromkeys(overloads("matmul mm bmm mv __matmul__"), matmul),
    Tensor.__rmatmul__: reversed_matmul,
    **dict.fromkeys(overloads("addmm addmv baddbmm"), addmm),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), conv),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), conv_transpose),
    **dict.fromkeys(overloads("add __add__ __radd__"), add),
    torch.einsum: einsum,
}
