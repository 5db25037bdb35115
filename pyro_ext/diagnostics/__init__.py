"""Reads posteriors, writes ArviZ."""

from pyro_ext.diagnostics.arviz import to_arviz
from pyro_ext.diagnostics.importance import pareto_k
from pyro_ext.diagnostics.importance_weights import ImportanceDiagnostics, importance_diagnostics
from pyro_ext.diagnostics.samplers import SamplerDiagnostics, sampler_diagnostics

__all__ = [
    "ImportanceDiagnostics",
    "SamplerDiagnostics",
    "importance_diagnostics",
    "pareto_k",
    "sampler_diagnostics",
    "to_arviz",
]
