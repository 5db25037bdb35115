"""Objectives for models and guides, and estimators of their gradients."""

from pyro_ext.infer.auto_additive_normal import AutoAdditiveNormal
from pyro_ext.infer.auto_energy_inspired import AutoEnergyInspired
from pyro_ext.infer.auto_hamiltonian import AutoHamiltonian
from pyro_ext.infer.auto_multiplicative_normal import AutoMultiplicativeNormal
from pyro_ext.infer.auto_semi_implicit import AutoSemiImplicit
from pyro_ext.infer.bayesianize import BayesianModule, bayesianize
from pyro_ext.infer.constrained_elbo import ConstrainedELBO
from pyro_ext.infer.context_contrastive import ContextContrastive
from pyro_ext.infer.decomposed_elbo import DecomposedELBO
from pyro_ext.infer.decomposition_weights import DecompositionWeights
from pyro_ext.infer.denoising_score_matching import DenoisingScoreMatching
from pyro_ext.infer.estimators import (
    Factors,
    auto,
    dreg,
    pathwise,
    piwae,
    rws,
    score,
    stl,
    vimco,
    vimco_arithmetic,
)
from pyro_ext.infer.flow_contrastive import FlowContrastive
from pyro_ext.infer.free_bits import FreeBitsELBO
from pyro_ext.infer.hard_concrete_reparam import HardConcreteReparam
from pyro_ext.infer.importance_guide import ImportanceGuide
from pyro_ext.infer.mean_field_elbo import MeanFieldELBO
from pyro_ext.infer.multi_sample_elbo import MultiSampleELBO
from pyro_ext.infer.noise_contrastive import NoiseContrastive
from pyro_ext.infer.param_store_file import load_param_store, save_param_store
from pyro_ext.infer.sliced_score_matching import SlicedScoreMatching

__all__ = [
    "AutoAdditiveNormal",
    "AutoEnergyInspired",
    "AutoHamiltonian",
    "AutoMultiplicativeNormal",
    "AutoSemiImplicit",
    "BayesianModule",
    "ConstrainedELBO",
    "ContextContrastive",
    "DecomposedELBO",
    "DecompositionWeights",
    "DenoisingScoreMatching",
    "Factors",
    "FlowContrastive",
    "FreeBitsELBO",
    "HardConcreteReparam",
    "ImportanceGuide",
    "MeanFieldELBO",
    "MultiSampleELBO",
    "NoiseContrastive",
    "SlicedScoreMatching",
    "auto",
    "bayesianize",
    "dreg",
    "load_param_store",
    "pathwise",
    "piwae",
    "rws",
    "save_param_store",
    "score",
    "stl",
    "vimco",
    "vimco_arithmetic",
]
