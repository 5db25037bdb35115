"""A factorised conditional prior whose latents can be identified."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_ext.distributions.coordinate_family import CoordinateFamily
from pyro_ext.distributions.gaussian_family import GaussianFamily
from pyro_ext.distributions.modulated_prior import ModulatedPrior


class IdentifiablePrior(ModulatedPrior):
    r"""A prior of independent coordinates, each of which a context modulates.

    .. math::

        p(z \mid u) = \prod_{i=1}^n Q(z_i)
            \exp\bigl(T(z_i)^\top \lambda_i(u) - A(\lambda_i(u))\bigr)

    With it a latent-variable model is identifiable under conditions that
    :func:`~pyro_ext.diagnostics.check_identifiability` reads off: among them :math:`n k + 1`
    contexts or more, for :math:`k` statistics.

    Calling the module, or ``condition``, gives Pyro's own ``Normal`` or ``Laplace`` (or
    :class:`ExponentialTilt`) as an event, so that divergences in closed form are found. Labels
    choose rows of a table, vectors pass a network. At the start contexts differ and scales are near
    one; scales and natural parameters stay within the family's bounds.

    Args:
        latent_dim: :math:`n`.
        num_classes: labels as context: integers below it.
        context_dim: vectors as context: numbers in each. One of the two.
        hidden_dims: widths of the network's hidden layers; with none natural parameters are a
            function of one affine map of the vector.
        family: of each coordinate; normal with location and scale modulated if not given.
        activation: of the network.
        validate_args: of the laws that it makes.

    Shape:
        labels ``(*batch)`` or vectors ``(*batch, context_dim)``: a distribution of batch shape
        ``(*batch)`` and event shape ``(latent_dim,)``.

    Raises:
        ValueError: if a size is out of its range, or not one kind of context is given; later, if
            a context is of the wrong kind.

    References:
        Khemakhem et al., *Variational Autoencoders and Nonlinear ICA: A Unifying Framework*,
        arXiv 1907.04809.

    Example:
        >>> import torch
        >>> prior = IdentifiablePrior(5, num_classes=20, family=GaussianFamily(("scale",)))
        >>> labels = torch.tensor([0, 7, 19])
        >>> prior(labels).sample().shape, prior.natural_parameters(labels).shape
        (torch.Size([3, 5]), torch.Size([3, 5, 1]))

        In a model:

        >>> import pyro
        >>> def model(labels):
        ...     pyro.module("prior", prior)
        ...     with pyro.plate("data", len(labels)):
        ...         return pyro.sample("z", prior(labels))
        >>> model(labels).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        latent_dim: int,
        num_classes: int = 0,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (),
        family: CoordinateFamily | None = None,
        *,
        activation: Callable[[], nn.Module] = nn.SiLU,
        validate_args: bool | None = None,
    ):
        family = _check_family(GaussianFamily() if family is None else family)
        seen = (num_classes, context_dim, hidden_dims, activation)
        super().__init__(latent_dim, family, *seen, validate_args)

    def forward(self, context: Tensor) -> Any:
        """The law given a context."""
        return self.family.law(self.free_parameters(context), self.validate_args).to_event(1)

    def natural_parameters(self, context: Tensor) -> Tensor:
        r"""The :math:`\lambda(u)` of contexts, ``(*batch, latent_dim, k)``."""
        return self.family.natural_parameters(self.free_parameters(context))

    def log_base(self, z: Tensor) -> Tensor:
        r"""The :math:`\sum_i \log Q(z_i)` of latents, ``(..., latent_dim) -> (...)``."""
        return self.family.log_base(z).sum(-1)

    def log_normalizer(self, natural_parameters: Tensor) -> Tensor:
        r"""The :math:`\sum_i A(\lambda_i)`, ``(..., latent_dim, k) -> (...)``, in nats."""
        return self.family.log_normalizer(natural_parameters).sum(-1)


def _check_family(family: Any) -> Any:
    if isinstance(family, type) or not hasattr(family, "from_natural"):
        raise ValueError(
            f"family must be an instance such as GaussianFamily(), LaplaceFamily() or "
            f"StatisticsFamily(...), got {family!r}."
        )
    return family
