"""Laws of sources given a context, each a row of a table."""

import math
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.distributions import Distribution

_TINY = 2.0**-53


class SourceLaw(Protocol):
    """Of sources ``(D,)``, for contexts 0 to U - 1."""

    @property
    def shape(self) -> torch.Size:
        """The pair U, D."""
        ...

    def sample(self, context: int, num: int, rng: Generator) -> Tensor:
        """Draws ``(num, D)``, in double precision; more of them begin with the same."""
        ...

    def log_prob(self, sources: Tensor, context: Tensor) -> Tensor:
        """Of ``(..., D)``, given integers ``(...)``: ``(...)``."""
        ...


class ModulatedSources:
    r"""Independent sources, moved and scaled by the context.

    .. math:: s_i = \mu_i(u) + \sigma_i(u)\, \epsilon_i, \qquad \epsilon_i \sim p

    Args:
        loc: :math:`\mu`, ``(U, D)``.
        scale: :math:`\sigma`, ``(U, D)``.
        base_dist: :math:`p`, a law of numbers with ``icdf``.
    """

    def __init__(self, loc: Tensor, scale: Tensor, base_dist: Distribution) -> None:
        self.loc = loc
        self.scale = scale
        self.base_dist = base_dist

    @property
    def shape(self) -> torch.Size:
        """The pair U, D."""
        return self.scale.shape

    def sample(self, context: int, num: int, rng: Generator) -> Tensor:
        """Draws ``(num, D)``."""
        uniform = torch.from_numpy(rng.random((num, self.shape[1])).clip(_TINY))
        return self.loc[context] + self.scale[context] * self.base_dist.icdf(uniform)

    def log_prob(self, sources: Tensor, context: Tensor) -> Tensor:
        """Of ``(..., D)``, given integers ``(...)``."""
        loc, scale = (table.to(sources)[context] for table in (self.loc, self.scale))
        return (self.base_dist.log_prob((sources - loc) / scale) - scale.log()).sum(-1)


class GaussianSources:
    r"""Centred Gaussian sources whose precision matrix depends on the context.

    .. math:: s \sim N(0, \Lambda(u)^{-1})

    Args:
        precision: :math:`\Lambda`, positive definite, ``(U, D, D)``.
        scale: what modulates it, ``(U, D)``.
    """

    def __init__(self, precision: Tensor, scale: Tensor) -> None:
        self.precision = precision
        self.scale = scale
        self._root = torch.linalg.cholesky(precision)

    @property
    def shape(self) -> torch.Size:
        """The pair U, D."""
        return self.precision.shape[:2]

    def sample(self, context: int, num: int, rng: Generator) -> Tensor:
        """Draws ``(num, D)``."""
        noise = torch.from_numpy(rng.standard_normal((num, self.shape[1])))
        return torch.linalg.solve_triangular(self._root[context], noise, upper=False, left=False)

    def log_prob(self, sources: Tensor, context: Tensor) -> Tensor:
        """Of ``(..., D)``, given integers ``(...)``."""
        root = self._root.to(sources)[context]
        white = (sources.unsqueeze(-2) @ root).squeeze(-2)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - (white.square().sum(-1) + self.shape[1] * math.log(2 * math.pi)) / 2


def standard_normal() -> Distribution:
    """In double precision."""
    return torch.distributions.Normal(*torch.from_numpy(np.array([0.0, 1.0])))
