"""One line or more per public distribution and transform: what the contract is checked on.

The key is the public name, with a variant after a hyphen. Modules are defined here rather than in
functions, so that they can be pickled.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext.distributions import SelfNormalizedImportance
from pyro_ext.testing import check_distribution


class Fixture(NamedTuple):
    """``check(constructor, params, values=..., skip=...)`` must pass."""

    constructor: Callable[..., Any]
    params: dict[str, Any]
    values: Tensor | None = None
    skip: Sequence[str] = ()
    check: Callable[..., None] = check_distribution


class Energy(nn.Module):
    """A smooth energy of scalars or vectors."""

    def __init__(self, dim: int | None = None):
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(dim or 1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x if self.dim else x.unsqueeze(-1)).squeeze(-1)


def normal(loc: Tensor, event_dim: int, validate_args: bool | None) -> Any:
    scale = torch.ones_like(loc)
    base = dist.Normal(loc, scale, validate_args=validate_args)
    return dist.Independent(base, event_dim, validate_args=validate_args) if event_dim else base


def importance(loc, energy, event_dim=0, share_proposals=True, validate_args=None):
    return SelfNormalizedImportance(
        normal(loc, event_dim, validate_args),
        energy,
        num_proposals=5,
        share_proposals=share_proposals,
        validate_args=validate_args,
    )


FIXTURES: dict[str, Fixture] = {
    "SelfNormalizedImportance-scalar": Fixture(
        importance, {"loc": torch.zeros(()), "energy": Energy()}
    ),
    "SelfNormalizedImportance-scalar-batch": Fixture(
        importance, {"loc": torch.zeros(2, 3), "energy": Energy()}
    ),
    "SelfNormalizedImportance-scalar-unshared": Fixture(
        importance, {"loc": torch.zeros(3), "energy": Energy(), "share_proposals": False}
    ),
    "SelfNormalizedImportance-vector": Fixture(
        importance, {"loc": torch.zeros(2), "energy": Energy(2), "event_dim": 1}
    ),
    "SelfNormalizedImportance-vector-batch": Fixture(
        importance, {"loc": torch.randn(3, 2), "energy": Energy(2), "event_dim": 1}
    ),
    "SelfNormalizedImportance-vector-unshared": Fixture(
        importance,
        {
            "loc": torch.randn(3, 2),
            "energy": Energy(2),
            "event_dim": 1,
            "share_proposals": False,
        },
    ),
}

# Public names that are no concrete distribution, and why.
EXEMPT = {
    "AuxiliaryLost": "an exception",
    "ImportanceSampler": "a module that makes one",
    "StochasticDensity": "abstract",
}
