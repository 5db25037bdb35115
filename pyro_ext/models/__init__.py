"""Wired models: each has ``.model`` and ``.guide``."""

from pyro_ext.models.autoregressive_flow_prior import AutoregressiveFlowPrior
from pyro_ext.models.best_of import best_of
from pyro_ext.models.expected_flops import ExpectedFlops
from pyro_ext.models.export_csr import CsrLinear, export_csr
from pyro_ext.models.hierarchical_variational_autoencoder import HierarchicalVariationalAutoencoder
from pyro_ext.models.ice_beem import ICEBeeM
from pyro_ext.models.identifiable_flow import IdentifiableFlow
from pyro_ext.models.identifiable_vae import IdentifiableVAE
from pyro_ext.models.latent_images import attribute_direction, interpolate
from pyro_ext.models.lossy_autoencoder import LossyAutoencoder
from pyro_ext.models.observations import (
    NegativeBinomialObservation,
    NormalObservation,
    bernoulli,
    poisson,
)
from pyro_ext.models.posteriors import (
    DiagonalNormal,
    FullCovarianceNormal,
    InverseAutoregressiveFlow,
)
from pyro_ext.models.priors import EnergyInspiredPrior
from pyro_ext.models.prune import prune
from pyro_ext.models.prune_report import PruneReport
from pyro_ext.models.semi_supervised_variational_autoencoder import (
    SemiSupervisedVariationalAutoencoder,
)
from pyro_ext.models.variational_autoencoder import VariationalAutoencoder

__all__ = [
    "AutoregressiveFlowPrior",
    "CsrLinear",
    "DiagonalNormal",
    "EnergyInspiredPrior",
    "ExpectedFlops",
    "FullCovarianceNormal",
    "HierarchicalVariationalAutoencoder",
    "ICEBeeM",
    "IdentifiableFlow",
    "IdentifiableVAE",
    "InverseAutoregressiveFlow",
    "LossyAutoencoder",
    "NegativeBinomialObservation",
    "NormalObservation",
    "PruneReport",
    "SemiSupervisedVariationalAutoencoder",
    "VariationalAutoencoder",
    "attribute_direction",
    "bernoulli",
    "best_of",
    "export_csr",
    "interpolate",
    "poisson",
    "prune",
]
