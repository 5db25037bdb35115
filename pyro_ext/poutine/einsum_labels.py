"""The indices of an einsum, and which of them a weight has."""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple


class EinsumLabels(NamedTuple):
    """The sizes of the indices of input and weight, and the indices of the output.

    Example:
        >>> import torch
        >>> labels = EinsumLabels.of("...i,oi->...o", [torch.ones(5, 3), torch.ones(2, 3)], 1)
        >>> labels.output, labels.is_linear_map(), labels.num_uses()
        ('Ao', True, 1)
    """

    input: list[tuple[str, int]]
    weight: list[tuple[str, int]]
    output: str

    @classmethod
    def of(cls, equation: str, operands: Sequence[Any], weight: int) -> "EinsumLabels":
        """Reads an equation.

        Args:
            equation: with one comma.
            operands: two tensors.
            weight: which of them is the weight.
        """
        inputs, arrow, output = equation.replace(" ", "").partition("->")
        terms = inputs.split(",")
        hidden = [x.dim() - len(t.replace("...", "")) for x, t in zip(operands, terms, strict=True)]
        hidden = [n if "..." in t else 0 for n, t in zip(hidden, terms, strict=True)]
        letters = string.ascii_uppercase + string.ascii_lowercase
        names = [c for c in letters if c not in equation][: max(hidden)]
        full = [
            t.replace("...", "".join(names[len(names) - n :]))
            for t, n in zip(terms, hidden, strict=True)
        ]
        if not arrow:
            once = sorted(c for c in set("".join(terms)) - {"."} if "".join(terms).count(c) == 1)
            output = "..." * any(hidden) + "".join(once)
        output = output.replace("...", "".join(names))
        sized = [list(zip(t, x.shape, strict=True)) for t, x in zip(full, operands, strict=True)]
        return cls(sized[1 - weight], sized[weight], output)

    def is_linear_map(self) -> bool:
        """Whether each output is a sum over different elements of input and weight."""
        ours, theirs = dict(self.weight), dict(self.input)
        is_diagonal = len(ours) < len(self.weight) or len(theirs) < len(self.input)
        summed = set(theirs) - set(self.output)
        return not is_diagonal and all(ours.get(c) == theirs[c] for c in summed)

    def num_uses(self) -> int:
        """Along how many indices of the output the same weight is used."""
        ours, theirs = dict(self.weight), dict(self.input)
        missing = sum(c not in ours for c in self.output)
        return missing + sum(ours.get(c) == 1 < theirs.get(c, 1) for c in self.output)
