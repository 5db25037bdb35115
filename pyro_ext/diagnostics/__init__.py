"""Reads posteriors, writes ArviZ."""

from pyro_ext.diagnostics.active_units import ActiveUnits, active_units
from pyro_ext.diagnostics.arviz import to_arviz
from pyro_ext.diagnostics.calibration import Calibration, calibration
from pyro_ext.diagnostics.images import bits_per_dim
from pyro_ext.diagnostics.importance import pareto_k
from pyro_ext.diagnostics.importance_weights import ImportanceDiagnostics, importance_diagnostics
from pyro_ext.diagnostics.pointwise import pointwise_log_likelihood
from pyro_ext.diagnostics.samplers import SamplerDiagnostics, sampler_diagnostics
from pyro_ext.diagnostics.widths import WidthPosterior, width_posterior

__all__ = [
    "ActiveUnits",
    "Calibration",
    "ImportanceDiagnostics",
    "SamplerDiagnostics",
    "WidthPosterior",
    "active_units",
    "bits_per_dim",
    "calibration",
    "importance_diagnostics",
    "pareto_k",
    "pointwise_log_likelihood",
    "sampler_diagnostics",
    "to_arviz",
    "width_posterior",
]
