"""Numbers that a context decides, whatever its kind."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.context_features import as_features, check_labels
from pyro_ext.nn.energy_parts import check_sizes
from pyro_ext.nn.perceptron import perceptron
from pyro_ext.ops.counts import count


class ContextHead(nn.Module):
    r"""Maps a context to ``output_dim`` numbers.

    Labels choose a row of a table, vectors pass a perceptron, and without a context the numbers
    are parameters themselves.

    Args:
        output_dim: number of numbers.
        num_classes: labels as context: integers below it.
        context_dim: vectors as context: numbers in each. One of the two, or none.
        hidden_dims: widths of the perceptron's hidden layers.
        activation: of the perceptron.

    Shape:
        labels ``(*batch)`` or vectors ``(*batch, context_dim)`` to ``(*batch, output_dim)``;
        without a context ``(output_dim,)``.

    Raises:
        ValueError: if a size is out of its range, or both kinds of context are given; later, if
            a context is of the wrong kind.

    Example:
        >>> ContextHead(3, num_classes=5)(torch.tensor([0, 4])).shape
        torch.Size([2, 3])
        >>> ContextHead(3, context_dim=2)(torch.zeros(7, 2)).shape, ContextHead(3)(None).shape
        (torch.Size([7, 3]), torch.Size([3]))
    """

    def __init__(
        self,
        output_dim: int,
        num_classes: int = 0,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (100,),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        super().__init__()
        self.num_classes = count(num_classes, "num_classes", 0)
        self.context_dim = count(context_dim, "context_dim", 0)
        if num_classes and context_dim:
            raise ValueError(
                f"A context is a label or a vector, got num_classes={num_classes} and "
                f"context_dim={context_dim}. Leave one of them zero."
            )
        output_dim = count(output_dim, "output_dim")
        self.layers: Any = None
        if context_dim:
            dims = [self.context_dim, *check_sizes(hidden_dims, "hidden_dims"), output_dim]
            self.layers = perceptron(dims, activation)
        else:
            self.table = nn.Parameter(torch.empty(max(self.num_classes, 1), output_dim))
            nn.init.xavier_uniform_(self.table)

    @property
    def last(self) -> nn.Parameter:
        """The parameters that are linear in the outputs, and make them zero if they are."""
        return self.table if self.layers is None else self.layers[-1].weight

    def forward(self, context: Tensor | None) -> Tensor:
        """The numbers of each context."""
        if self.num_classes and isinstance(context, Tensor):
            check_labels(context, self.num_classes)
            return self.table[context.long()]
        seen = as_features(context, self.num_classes, self.context_dim, self.last)
        return self.table[0] if seen is None else self.layers(seen)
