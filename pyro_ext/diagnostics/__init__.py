"""Reads posteriors, writes ArviZ."""

from pyro_ext.diagnostics.arviz import to_arviz
from pyro_ext.diagnostics.importance import pareto_k
from pyro_ext.diagnostics.importance_weights import ImportanceDiagnostics, importance_diagnostics

__all__ = ["ImportanceDiagnostics", "importance_diagnostics", "pareto_k", "to_arviz"]
