"""Objectives for models and guides, and estimators of their gradients."""

from pyro_ext.infer.auto_energy_inspired import AutoEnergyInspired
from pyro_ext.infer.auto_hamiltonian import AutoHamiltonian
from pyro_ext.infer.auto_semi_implicit import AutoSemiImplicit
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
from pyro_ext.infer.free_bits import FreeBitsELBO
from pyro_ext.infer.importance_guide import ImportanceGuide
from pyro_ext.infer.multi_sample_elbo import MultiSampleELBO

__all__ = [
    "AutoEnergyInspired",
    "AutoHamiltonian",
    "AutoSemiImplicit",
    "Factors",
    "FreeBitsELBO",
    "ImportanceGuide",
    "MultiSampleELBO",
    "auto",
    "dreg",
    "pathwise",
    "piwae",
    "rws",
    "score",
    "stl",
    "vimco",
    "vimco_arithmetic",
]
