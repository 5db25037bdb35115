"""Groups of named arrays as what ArviZ works with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Groups = dict[str, dict[str, np.ndarray]]
Names = Mapping[str, Sequence[str]]

WITHOUT_DRAWS = ("observed_data", "constant_data")


def convert(
    arviz: Any, groups: Groups, coords: Mapping[str, Any], dims: Names, attributes: Mapping
) -> Any:
    """``InferenceData`` for ArviZ 0.x, a ``DataTree`` for 1.x.

    Args:
        arviz: the module.
        groups: arrays ``(chains, draws, *dims)``, or ``(*dims)`` of data.
        coords: by dimension.
        dims: names of leading dimensions by variable; others are called ``NAME_dim_I``.
        attributes: of each group.
    """
    datasets = {
        group: _dataset(variables, coords, dims, group not in WITHOUT_DRAWS, attributes)
        for group, variables in groups.items()
    }
    if hasattr(arviz, "InferenceData") and hasattr(arviz, "psislw"):
        return arviz.InferenceData(**datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)


def _dataset(
    variables: Mapping[str, np.ndarray],
    coords: Mapping[str, Any],
    dims: Names,
    is_drawn: bool,
    attributes: Mapping,
) -> Any:
    import xarray

    front = ["chain", "draw"] if is_drawn else []
    named = {
        name: (front + _dims(name, values.ndim - len(front), dims.get(name, ())), values)
        for name, values in variables.items()
    }
    chosen = {
        dim: coords.get(dim, np.arange(size))
        for names, values in named.values()
        for dim, size in zip(names, values.shape, strict=True)
    }
    return xarray.Dataset(named, chosen, dict(attributes))


def _dims(name: str, num: int, names: Sequence[str]) -> list[str]:
    """As many as there are: scores lack the dimensions of an event."""
    return [*names[:num], *(f"{name}_dim_{i}" for i in range(len(names), num))]


def array(values: Any) -> np.ndarray:
    """Of a tensor, or of what NumPy makes one of."""
    return values.detach().cpu().numpy() if torch.is_tensor(values) else np.asarray(values)
