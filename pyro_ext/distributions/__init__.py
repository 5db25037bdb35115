"""Densities that speak Pyro."""

from pyro_ext.distributions.importance_sampler import ImportanceSampler
from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.distributions.stochastic_density import AuxiliaryLost, StochasticDensity

__all__ = ["AuxiliaryLost", "ImportanceSampler", "SelfNormalizedImportance", "StochasticDensity"]
