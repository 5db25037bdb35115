"""A conditional prior of components that depend on each other, but are modulated independently."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from pyro_ext.distributions.gaussian_family import HALF_LOG_TAU, GaussianFamily
from pyro_ext.distributions.modulated_prior import ModulatedPrior
from pyro_ext.ops.soft_bound import soft_bound

MAX_LOG_SCALE = 4.0
SHARE = 0.5  # of the precision that is the base measure's, at the start


class IMCAPrior(ModulatedPrior):
    r"""Independently modulated components: a normal prior whose base measure does not factorise.

    .. math::

        p(z \mid u) = Q(z) \exp\Bigl(\sum_i T(z_i)^\top \lambda_i(u) - A(\lambda(u))\Bigr), \qquad
        Q(z) \propto e^{-z^\top P_0 z / 2}

    which is a normal law of precision :math:`P(u) = P_0 - 2 \operatorname{diag} \lambda(u)`, with
    the statistics of :class:`GaussianFamily`: squares, or values and squares, when its mean is
    :math:`P(u)^{-1} h(u)` with the natural parameters :math:`h` of the values. The matrix
    :math:`P_0 = L L^\top` is learned; a constant may pass between its diagonal and the modulation.
    Conditions for identifiability are those of :class:`IdentifiablePrior`.

    Args:
        latent_dim: :math:`n`.
        num_classes: labels as context: integers below it.
        context_dim: vectors as context: numbers in each. One of the two.
        hidden_dims: widths of the hidden layers of a network of vectors.
        modulated: ``("scale",)`` or ``("loc", "scale")``.
        activation: of the network.
        validate_args: of the laws that it makes.

    Shape:
        labels ``(*batch)`` or vectors ``(*batch, context_dim)``: Pyro's ``MultivariateNormal`` of
        batch shape ``(*batch)`` and event shape ``(latent_dim,)``.

    Raises:
        ValueError: if a size is out of its range, not one kind of context is given, or the scale
            is not modulated.

    References:
        Khemakhem et al., *ICE-BeeM: Identifiable Conditional Energy-Based Deep Models Based on
        Nonlinear ICA*, arXiv 2002.11537.

    Example:
        >>> prior = IMCAPrior(5, num_classes=20)
        >>> law = prior(torch.tensor([0, 7, 19]))
        >>> law.precision_matrix.shape, law.sample().shape
        (torch.Size([3, 5, 5]), torch.Size([3, 5]))
    """

    def __init__(
        self,
        latent_dim: int,
        num_classes: int = 0,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (),
        modulated: Sequence[str] = ("scale",),
        *,
        activation: Callable[[], nn.Module] = nn.SiLU,
        validate_args: bool | None = None,
    ):
        family = GaussianFamily(modulated, MAX_LOG_SCALE)
        if "scale" not in family.modulated:
            raise ValueError(f'modulated must hold "scale", got {modulated!r}.')
        seen = (num_classes, context_dim, hidden_dims, activation)
        super().__init__(latent_dim, family, *seen, validate_args)
        self.log_diagonal = nn.Parameter(torch.zeros(self.latent_dim))
        self.below = nn.Parameter(torch.zeros(self.latent_dim, self.latent_dim))

    @property
    def base_precision(self) -> Tensor:
        """The :math:`P_0`, ``(latent_dim, latent_dim)``."""
        diagonal = soft_bound(self.log_diagonal, MAX_LOG_SCALE).exp()
        lower = SHARE**0.5 * (self.below.tril(-1) + diagonal.diag())
        return lower @ lower.mT

    def forward(self, context: Tensor) -> Any:
        """The law given a context."""
        natural = self.natural_parameters(context)
        precision = self._precision(natural)
        loc = self._solve(torch.linalg.cholesky(precision), natural)
        return MultivariateNormal(loc, precision_matrix=precision, validate_args=self.validate_args)

    def natural_parameters(self, context: Tensor) -> Tensor:
        r"""The :math:`\lambda(u)` of contexts, ``(*batch, latent_dim, k)``."""
        free = self.free_parameters(context)
        precision = (1 - SHARE) * (-2 * soft_bound(free[..., -1], MAX_LOG_SCALE)).exp()
        return torch.stack([*free[..., :-1].unbind(-1), -precision / 2], -1)

    def log_base(self, z: Tensor) -> Tensor:
        r"""The :math:`\log Q(z)` of latents, ``(..., latent_dim) -> (...)``."""
        return -((z @ self.base_precision) * z).sum(-1) / 2 - self.latent_dim * HALF_LOG_TAU

    def log_normalizer(self, natural_parameters: Tensor) -> Tensor:
        r"""The :math:`A(\lambda)`, ``(..., latent_dim, k) -> (...)``, in nats."""
        factor = torch.linalg.cholesky(self._precision(natural_parameters))
        tilt = (self._solve(factor, natural_parameters) * self._linear(natural_parameters)).sum(-1)
        return tilt / 2 - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _precision(self, natural_parameters: Tensor) -> Tensor:
        return self.base_precision + (-2 * natural_parameters[..., -1]).diag_embed()

    def _linear(self, natural_parameters: Tensor) -> Tensor:
        """The natural parameters of values, zero if these are no statistics."""
        first = natural_parameters[..., 0]
        return first if self.num_statistics == 2 else torch.zeros_like(first)

    def _solve(self, factor: Tensor, natural_parameters: Tensor) -> Tensor:
        """The mean, from the Cholesky factor of the precision."""
        return torch.cholesky_solve(self._linear(natural_parameters).unsqueeze(-1), factor)[..., 0]
