"""The contract of a distribution."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_ext.testing.case import Clause, Params, run_clauses
from pyro_ext.testing.density import DENSITY
from pyro_ext.testing.expansion import EXPANSION
from pyro_ext.testing.flyweight import STRUCTURE, DistributionCase
from pyro_ext.testing.inference import INFERENCE
from pyro_ext.testing.sandwich import SANDWICH
from pyro_ext.testing.shared import SHARED
from pyro_ext.testing.truth import TRUTH

DISTRIBUTION_CLAUSES: tuple[Clause, ...] = (
    *STRUCTURE,
    *DENSITY,
    *SANDWICH,
    *TRUTH,
    *EXPANSION,
    *INFERENCE,
    *SHARED,
)


def check_distribution(
    constructor: Callable[..., Any],
    /,
    params: Params,
    *,
    values: Tensor | None = None,
    skip: Sequence[str] = (),
) -> None:
    r"""Asserts the whole contract of a distribution, for one constructor and its parameters.

    The constructor is called as ``constructor(**params, validate_args=...)``, again and again:
    with the parameters in another dtype, requiring gradients, updated in place, under
    ``torch.compile``. Global state (generators, parameter store, settings, default dtype) is left
    as it was. Densities with an attribute ``density_kind`` other than ``"exact"`` may be random;
    they are compared under equal seeds, and where that is impossible by shape only.

    Args:
        constructor: the class, or a function that returns an instance of it.
        params: its arguments by name. Tensors and modules are copied, cast and differentiated,
            floats are made tensors; anything else is passed on. Let the constructor make nested
            distributions.
        values: where to evaluate the density, of shape ``(..., *batch_shape, *event_shape)``;
            three draws by default. Include the doubtful places: edges, tails, atoms.
        skip: clauses that do not apply, by name.

    Raises:
        ConformanceError: at the first broken clause, naming it, what was seen, what was expected
            and how to fix it.
        ValueError: if ``skip`` holds a name that is no clause, or the constructor does not take
            the parameters.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> params = {"loc": torch.zeros(3), "scale": torch.ones(3)}
        >>> check_distribution(dist.Logistic, params)
        >>> check_distribution(dist.Normal, params)  # takes validate_args by position
        Traceback (most recent call last):
        ...
        pyro_ext.testing.case.ConformanceError: signature: saw ..., expected keyword-only ...
    """
    run_clauses(DISTRIBUTION_CLAUSES, DistributionCase(constructor, params, values), skip)
