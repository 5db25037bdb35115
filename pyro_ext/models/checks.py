"""What the constructors of the models refuse."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn


def check_sizes(hidden_dims: Sequence[int], **sizes: int) -> None:
    """Refuses networks without hidden layers, and sizes that are not positive."""
    if not isinstance(hidden_dims, Sequence):
        raise ValueError(f"hidden_dims must be a sequence of widths, got {hidden_dims!r}.")
    if not hidden_dims or min([*sizes.values(), *hidden_dims]) < 1:
        listed = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"The model needs positive sizes and a hidden layer, got {listed}, "
            f"hidden_dims={hidden_dims}."
        )


def check_instance(part: Any, role: str) -> None:
    """Refuses a class where one of its instances is wanted."""
    if isinstance(part, type):
        raise ValueError(f"The {role} is the class {part.__name__}. Pass an instance of it.")


def check_trained(part: Any, distribution: Distribution, role: str) -> None:
    """Refuses a function that makes a distribution from parameters which nobody would train."""
    if isinstance(part, nn.Module):
        return
    if distribution.log_prob(distribution.sample()).requires_grad:
        raise ValueError(
            f"The {role} is a function with trainable parameters, {part!r}, which the model does "
            "not see. Pass a module that owns them and returns the distribution when it is called."
        )


def check_event(distribution: Distribution, dim: int, role: str) -> None:
    """Refuses a distribution over anything but one vector of size ``dim``."""
    if not hasattr(distribution, "event_shape"):
        raise ValueError(
            f"The {role} returned a {type(distribution).__name__}, expected a distribution. Pass "
            "what returns one when it is called: a module, or a function without parameters."
        )
    if distribution.event_shape != (dim,) or distribution.batch_shape != ():
        raise ValueError(
            f"The {role} draws events of shape {tuple(distribution.event_shape)} in batches of "
            f"{tuple(distribution.batch_shape)}, expected ({dim},) and (): the model's latent_dim "
            f"and the {role}'s must agree, and to_event(1) makes an event of a batch."
        )


def check_mean(data_mean: Tensor | None, input_dim: int) -> Tensor | None:
    """Refuses a mean of another size than the data."""
    if data_mean is not None and data_mean.shape != (input_dim,):
        raise ValueError(f"data_mean has shape {tuple(data_mean.shape)}, expected ({input_dim},).")
    return data_mean


def start_at_pixels(decoder: Any, data_mean: Tensor) -> None:
    """Starts a decoder's last bias at the logit of the pixels' mean."""
    if not ((data_mean >= 0) & (data_mean <= 1)).all():
        raise ValueError(
            f"Bernoulli pixels have a mean in [0, 1], but data_mean reaches from "
            f"{data_mean.min():.3g} to {data_mean.max():.3g}. Scale the data."
        )
    with torch.no_grad():
        decoder.layers[-1].bias.copy_(data_mean.clamp(1e-4, 1 - 1e-4).logit())


def check_labels(labels: Tensor, num_classes: int, batch: int | None) -> None:
    """Refuses labels of a wrong shape, type or, while Pyro validates, value."""
    if labels.dim() != 1 or batch not in (None, len(labels)):
        expected = "(batch,)" if batch is None else f"({batch},)"
        raise ValueError(f"Labels have shape {tuple(labels.shape)}, expected {expected}.")
    if labels.dtype != torch.long:
        raise ValueError(f"Labels are of {labels.dtype}, expected torch.int64: labels.long().")
    if is_validation_enabled() and not ((labels >= -1) & (labels < num_classes)).all():
        raise ValueError(
            f"Labels reach from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}, "
            "or -1 where missing."
        )
