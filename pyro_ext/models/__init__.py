"""Wired models: each has ``.model`` and ``.guide``."""

from pyro_ext.models.hierarchical_variational_autoencoder import HierarchicalVariationalAutoencoder
from pyro_ext.models.posteriors import (
    DiagonalNormal,
    FullCovarianceNormal,
    InverseAutoregressiveFlow,
)
from pyro_ext.models.priors import EnergyInspiredPrior
from pyro_ext.models.semi_supervised_variational_autoencoder import (
    SemiSupervisedVariationalAutoencoder,
)
from pyro_ext.models.variational_autoencoder import VariationalAutoencoder

__all__ = [
    "DiagonalNormal",
    "EnergyInspiredPrior",
    "FullCovarianceNormal",
    "HierarchicalVariationalAutoencoder",
    "InverseAutoregressiveFlow",
    "SemiSupervisedVariationalAutoencoder",
    "VariationalAutoencoder",
]
