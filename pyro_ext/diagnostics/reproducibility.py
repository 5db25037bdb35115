"""Whether seeds agree on a representation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ext.diagnostics.effective_rank import effective_rank
from pyro_ext.diagnostics.mean_correlation import mean_correlation
from pyro_ext.diagnostics.representation_pair import Pair, representation, split_rows


@dataclass(frozen=True, eq=False, repr=False)
class Reproducibility:
    """How representations of the same data agree, pair by pair, on rows they were not matched on.

    Made by :func:`reproducibility`. Printing it prints a table.

    The diagonals are one: means over pairs of seeds are ``strong[pairs].mean()`` and the like.

    Attributes:
        strong: mean correlation of matched coordinates, symmetric, ``(S, S)``.
        mean_cca: mean canonical correlation, symmetric, ``(S, S)``.
        r2: share of the variance of representation ``j`` that a linear map of ``i`` explains,
            at ``[i, j]``, ``(S, S)``.
        effective_rank: of each, ``(S,)``.
        num_columns: coordinates of each, ``(S,)``, integers.
    """

    strong: Tensor
    mean_cca: Tensor
    r2: Tensor
    effective_rank: Tensor
    num_columns: Tensor

    @property
    def is_collapsed(self) -> Tensor:
        """Whether fewer than half of the coordinates are directions of their own, ``(S,)``."""
        return self.effective_rank < self.num_columns / 2

    @property
    def pairs(self) -> Tensor:
        """All entries off the diagonal, ``(S, S)``."""
        return ~torch.eye(len(self.strong), dtype=torch.bool)

    def __str__(self) -> str:
        """A table of means and extremes over pairs, and what it cannot show."""
        scores = {"strong MCC": self.strong, "mean CCA": self.mean_cca, "linear R2": self.r2}
        lines = [f"{len(self.strong)} representations", f"{'':14}    mean     min     max"]
        lines += [_line(name, value[self.pairs]) for name, value in scores.items()]
        lines.append(
            _line("effective rank", self.effective_rank) + f" of {_span(self.num_columns)}"
        )
        if self.is_collapsed.any():
            which = self.is_collapsed.nonzero().flatten().tolist()
            lines.append(f"COLLAPSED: {which}. Their coordinates are copies of each other, and")
            lines.append("agree whatever was learnt: strong MCC and R2 are no evidence here.")
        return "\n".join(lines)

    __repr__ = __str__


def reproducibility(
    representations: Sequence[Tensor], *, fit: Sequence[Tensor] | None = None
) -> Reproducibility:
    r"""Compares what several seeds made of the same data, on rows that nothing was fitted on.

    Three scores for each pair, since each can be fooled:

    - *strong*: :func:`mean_correlation`. One for seeds that agree up to permutation, sign, scale;
      but also if all coordinates are copies of one number.
    - *mean CCA*: the same after canonical correlation analysis. One for seeds that agree up to a
      linear map; each direction counts alike, be its variance small, so copies do not count.
    - *linear R2*, both directions: the mean over coordinates of the explained variance.
      Copies that share one direction reach one.

    And the *effective rank* (:func:`effective_rank`), which tells a collapse. None of these tells
    why seeds agree: principal components do so too. Compare with a control in which a condition
    of identifiability is violated.

    Args:
        representations: of the same data in the same order, each ``(N, D)``; at least two.
        fit: the same models' representations of other data, on which to match coordinates
            and to fit linear maps; every other row if omitted.

    Raises:
        ValueError: if there are fewer than two, if shapes do not fit, or as
            :func:`mean_correlation` does.
        ImportError: if SciPy is not installed.

    References:
        Roeder, Metz and Kingma, *On Linear Identifiability of Learned Representations*, arXiv
        2007.00810 (canonical correlations of seeds).

    Example:
        >>> s = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> print(reproducibility([s, -2 * s.flip(-1), s @ torch.tensor([[1.0, 1.0], [0.0, 1.0]])]))
        3 representations
                          mean     min     max
        strong MCC        0.9075  0.8613  1.0000
        mean CCA          1.0000  1.0000  1.0000
        linear R2         1.0000  1.0000  1.0000
        effective rank    1.8438  1.5315  1.9999 of 2
    """
    seeds = [representation(z, f"representations[{i}]") for i, z in enumerate(representations)]
    if len(seeds) < 2:
        raise ValueError(f"There must be at least two representations, got {len(seeds)}.")
    if fit is not None and len(fit) != len(seeds):
        raise ValueError(f"fit must have one part for each of {len(seeds)}, got {len(fit)}.")
    strong, mean_cca, r2 = (torch.eye(len(seeds)).double() for _ in range(3))
    for i in range(len(seeds)):
        for j in range(i):
            other = None if fit is None else (fit[i], fit[j])
            fitted, scored = split_rows(seeds[i], seeds[j], other)
            strong[i, j] = strong[j, i] = mean_correlation(*scored, fit=fitted).score
            mean_cca[i, j] = mean_cca[j, i] = mean_correlation(*scored, fit=fitted, weak=True).score
            r2[i, j], r2[j, i] = _r2(fitted, scored), _r2(fitted[::-1], scored[::-1])
    ranks = torch.tensor([effective_rank(z) for z in seeds], dtype=torch.double)
    return Reproducibility(strong, mean_cca, r2, ranks, torch.tensor([z.shape[1] for z in seeds]))


def _r2(fit: Pair, score: Pair) -> float:
    """Explained variance of the second by the first, on average over its coordinates."""
    (source, target), (source_new, target_new) = fit, score
    centre, goal = source.mean(0), target.mean(0)
    spread = source.std(0)
    weights = torch.linalg.lstsq((source - centre) / spread, target - goal, driver="gelsd").solution
    residual = target_new - goal - (source_new - centre) / spread @ weights
    total = (target_new - target_new.mean(0)).square().sum(0)
    return (1 - residual.square().sum(0) / total).mean().item()


def _line(name: str, value: Tensor) -> str:
    return f"{name:14}  {value.mean():8.4f}{value.min():8.4f}{value.max():8.4f}"


def _span(numbers: Tensor) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"
