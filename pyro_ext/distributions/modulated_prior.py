"""What conditional priors of modulated coordinates have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import ConditionalDistribution
from torch import Tensor, nn

from pyro_ext.nn.context_head import ContextHead
from pyro_ext.ops.counts import count

START = 0.25  # scale of the first free numbers, so that contexts differ


class ModulatedPrior(nn.Module, ConditionalDistribution):
    """A module that makes laws of contexts, by the free numbers of a family.

    Args:
        latent_dim: coordinates.
        family: what statistics each has.
        num_classes: labels as context.
        context_dim: numbers of a vector as context.
        hidden_dims: of a network of vectors.
        activation: of the network.
        validate_args: of the laws that it makes.

    Raises:
        ValueError: if a size is out of its range, or not one kind of context is given.
    """

    def __init__(
        self,
        latent_dim: int,
        family: Any,
        num_classes: int,
        context_dim: int,
        hidden_dims: Sequence[int],
        activation: Callable[[], nn.Module],
        validate_args: bool | None,
    ):
        super().__init__()
        self.validate_args = validate_args
        self.latent_dim, self.family = count(latent_dim, "latent_dim"), family
        seen = (num_classes, context_dim, hidden_dims, activation)
        self.head = _modulation(self.latent_dim * self.num_statistics, *seen)

    @property
    def num_statistics(self) -> int:
        """Statistics of each coordinate, :math:`k`."""
        return self.family.num_statistics

    @property
    def is_monotone(self) -> bool:
        """Whether the only statistic is monotone, so that latents are known up to a linear map."""
        return self.family.is_monotone

    @property
    def num_classes(self) -> int:
        """Of the labels; zero if contexts are vectors."""
        return self.head.num_classes

    @property
    def context_dim(self) -> int:
        """Of the vectors; zero if contexts are labels."""
        return self.head.context_dim

    def condition(self, context: Tensor) -> Any:
        """The law given a context."""
        return self(context)

    def free_parameters(self, context: Tensor) -> Tensor:
        """What the family maps to natural parameters, ``(*batch, latent_dim, k)``."""
        return self.head(context).unflatten(-1, (self.latent_dim, self.num_statistics))

    def statistics(self, z: Tensor) -> Tensor:
        """The :math:`T` of latents, ``(..., latent_dim) -> (..., latent_dim, k)``."""
        return self.family.statistics(z)


def _modulation(
    output_dim: int,
    num_classes: int,
    context_dim: int,
    hidden_dims: Sequence[int],
    activation: Callable[[], nn.Module],
) -> ContextHead:
    """A head whose first outputs are small and differ between contexts.

    Raises:
        ValueError: if there is not one kind of context.
    """
    if not (num_classes or context_dim):
        raise ValueError(
            "An identifiable prior needs a context: give num_classes, if it is a label, or "
            "context_dim, if it is a vector. Without one the latents cannot be identified."
        )
    head = ContextHead(output_dim, num_classes, context_dim, hidden_dims, activation)
    with torch.no_grad():
        if num_classes:
            head.last.normal_(std=START)
        else:
            head.last.mul_(2 * START)
    return head
