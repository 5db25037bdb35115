"""Reads posteriors, writes ArviZ."""

from pyro_ext.diagnostics.active_units import ActiveUnits, active_units
from pyro_ext.diagnostics.align_to import align_to
from pyro_ext.diagnostics.arviz import to_arviz
from pyro_ext.diagnostics.calibration import Calibration, calibration
from pyro_ext.diagnostics.correlations import pearson, spearman
from pyro_ext.diagnostics.effective_rank import effective_rank
from pyro_ext.diagnostics.fastica_baseline import FastICABaseline, fastica_baseline
from pyro_ext.diagnostics.identifiability import check_identifiability
from pyro_ext.diagnostics.identifiability_report import IdentifiabilityReport
from pyro_ext.diagnostics.images import bits_per_dim
from pyro_ext.diagnostics.importance import pareto_k
from pyro_ext.diagnostics.importance_weights import ImportanceDiagnostics, importance_diagnostics
from pyro_ext.diagnostics.mean_correlation import MeanCorrelation, mean_correlation
from pyro_ext.diagnostics.pointwise import pointwise_log_likelihood
from pyro_ext.diagnostics.reproducibility import Reproducibility, reproducibility
from pyro_ext.diagnostics.samplers import SamplerDiagnostics, sampler_diagnostics
from pyro_ext.diagnostics.simulation_based_calibration import (
    SimulationBasedCalibration,
    simulation_based_calibration,
)
from pyro_ext.diagnostics.widths import WidthPosterior, width_posterior

__all__ = [
    "ActiveUnits",
    "Calibration",
    "FastICABaseline",
    "IdentifiabilityReport",
    "ImportanceDiagnostics",
    "MeanCorrelation",
    "Reproducibility",
    "SamplerDiagnostics",
    "SimulationBasedCalibration",
    "WidthPosterior",
    "active_units",
    "align_to",
    "bits_per_dim",
    "calibration",
    "check_identifiability",
    "effective_rank",
    "fastica_baseline",
    "importance_diagnostics",
    "mean_correlation",
    "pareto_k",
    "pearson",
    "pointwise_log_likelihood",
    "reproducibility",
    "sampler_diagnostics",
    "simulation_based_calibration",
    "spearman",
    "to_arviz",
    "width_posterior",
]
