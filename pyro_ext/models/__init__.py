"""Wired models: each has ``.model`` and ``.guide``."""

from pyro_ext.models.priors import EnergyInspiredPrior
from pyro_ext.models.variational_autoencoder import VariationalAutoencoder

__all__ = ["EnergyInspiredPrior", "VariationalAutoencoder"]
