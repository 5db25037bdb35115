"""Objectives for models and guides, and estimators of their gradients."""

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
