"""Reads posteriors, writes ArviZ."""

from pyro_ext.diagnostics.arviz import to_arviz
from pyro_ext.diagnostics.importance import pareto_k

__all__ = ["pareto_k", "to_arviz"]
