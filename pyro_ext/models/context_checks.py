"""What models with a conditional prior have in common."""

import warnings
from typing import Any

from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_ext.models.mini_batch import data_plate


def latent_dim_of(prior: Any) -> int:
    """The size of a conditional prior's latents; warns if there are too few labels for them.

    Raises:
        ValueError: if it is no module that makes laws of contexts.
    """
    is_conditional = hasattr(prior, "num_classes") and hasattr(prior, "context_dim")
    if not (isinstance(prior, nn.Module) and is_conditional and hasattr(prior, "latent_dim")):
        raise ValueError(
            f"The prior is {prior!r}, expected a module that returns a law given a context, with "
            "attributes latent_dim, num_classes and context_dim, such as "
            "IdentifiablePrior(5, num_classes=20)."
        )
    _warn_of_few_labels(prior)
    return int(prior.latent_dim)  # type: ignore[arg-type]


def _warn_of_few_labels(prior: Any) -> None:
    each = getattr(prior, "num_statistics", 1)
    needed = prior.latent_dim * each + 1
    if 0 < prior.num_classes < needed:
        warnings.warn(
            f"{prior.num_classes} labels cannot identify {prior.latent_dim} latents with {each} "
            f"statistics each: {needed} are needed. Take fewer latents "
            "or statistics, or more labels; pyro_ext.diagnostics.check_identifiability says more.",
            UserWarning,
            stacklevel=4,
        )


def context_plate(x: Tensor | None, context: Tensor, size: int | None, like: Tensor) -> Any:
    """The plate of a mini-batch, or of one draw for each context.

    Args:
        x: data, or None.
        context: of each.
        size: of all data, or None.
        like: a datum, for size and dtype.

    Raises:
        ValueError: if there is no context, or not one for each datum; as ``data_plate`` does.
    """
    if not isinstance(context, Tensor) or context.dim() == 0:
        raise ValueError(f"The model needs a context for each datum, got {context!r}.")
    if x is not None:
        _check_data(x, context, like)
    if is_validation_enabled():
        _check_finite(context, "Contexts")
    return data_plate(x, len(context) if x is None else size, len(like))


def _check_data(x: Tensor, context: Tensor, like: Tensor) -> None:
    if len(x) != len(context):
        raise ValueError(f"There are {len(x)} data, but {len(context)} contexts.")
    if x.is_floating_point() and x.dtype != like.dtype:
        raise ValueError(
            f"Data are of {x.dtype}, but the model of {like.dtype}. Convert one of them: "
            "x.float(), or model.double()."
        )
    if is_validation_enabled():
        _check_finite(x, "Data")


def _check_finite(values: Tensor, what: str) -> None:
    if values.is_floating_point() and not values.isfinite().all():
        raise ValueError(f"{what} hold NaN or infinite numbers. Leave out such rows.")
