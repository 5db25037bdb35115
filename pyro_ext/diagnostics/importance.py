"""How far importance weights can be trusted."""

from pyro_ext.ops.pareto_smoothing import pareto_k

__all__ = ["pareto_k"]
