"""What pruning made of a network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerWidths:
    """One layer with weights, before and after.

    Attributes:
        name: of the layer in the network.
        inputs: features or channels that it reads, before and after.
        outputs: features or channels that it writes, before and after.
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]


@dataclass(frozen=True, repr=False)
class PruneReport:
    """Sizes and times before and after :func:`~pyro_ext.models.prune`; printing it prints a table.

    The network before is the dense one, its gates folded into the weights.

    Attributes:
        layers: widths of the layers that were followed.
        parameters: their number before and after.
        flops: operations for the example batch, two for each multiplication and its addition.
        latency: median wall-clock milliseconds for the example batch; NaN if not measured.
        batch_size: of the example.
        masked: fraction of weights that a guide's noise masked, by parameter.
        left_dense: what was not followed, by name, with the reason.
        emptied: layers of which one dead unit stays, so that shapes stand.
    """

    layers: tuple[LayerWidths, ...]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    latency: tuple[float, float]
    batch_size: int
    nonzero: int
    masked: Mapping[str, float] = field(default_factory=dict)
    left_dense: Mapping[str, str] = field(default_factory=dict)
    emptied: tuple[str, ...] = ()

    @property
    def compression(self) -> float:
        """Parameters before, divided by those that are not zero after."""
        return self.parameters[0] / max(1, self.nonzero)

    @property
    def widths(self) -> dict[str, int]:
        """What each layer reads after pruning, by name."""
        return {layer.name: layer.inputs[1] for layer in self.layers}

    def __repr__(self) -> str:
        rows = [("layer", "inputs", "outputs")]
        rows += [(row.name, _arrow(row.inputs), _arrow(row.outputs)) for row in self.layers]
        sizes = [max(len(row[column]) for row in rows) for column in range(3)]
        table = [
            "  ".join(cell.ljust(n) for cell, n in zip(row, sizes, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*table, *self._totals(), *self._remarks()])

    def _totals(self) -> list[str]:
        lines = [
            f"parameters {_arrow(self.parameters)} ({_ratio(self.parameters)} fewer), "
            f"{self.nonzero:,} of them not zero",
            f"FLOPs      {_arrow(self.flops)} ({_ratio(self.flops)} fewer) for a batch of "
            f"{self.batch_size}",
        ]
        if math.isnan(self.latency[0]):
            return lines
        before, after = self.latency
        return [
            *lines,
            f"latency    {before:.3g} -> {after:.3g} ms ({_ratio(self.latency)} faster)",
        ]

    def _remarks(self) -> list[str]:
        masked = [f"masked     {share:.1%} of {name}" for name, share in self.masked.items()]
        dense = [f"left dense {name}: {reason}" for name, reason in self.left_dense.items()]
        emptied = [f"emptied    {name}: one dead unit stays" for name in self.emptied]
        return masked + dense + emptied


def _arrow(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,} -> {pair[1]:,}"


def _ratio(pair: tuple[float, float]) -> str:
    return f"{pair[0] / pair[1]:.1f}x" if pair[1] else "all"
