"""Densities that speak Pyro."""

from pyro_ext.distributions.hamiltonian_importance import HamiltonianImportance
from pyro_ext.distributions.hamiltonian_sampler import HamiltonianSampler
from pyro_ext.distributions.importance_sampler import ImportanceSampler
from pyro_ext.distributions.learned_accept_reject import LearnedAcceptReject
from pyro_ext.distributions.learned_accept_reject_sampler import LearnedAcceptRejectSampler
from pyro_ext.distributions.model_marginal import ModelMarginal
from pyro_ext.distributions.proposal_gradients import (
    leave_one_out,
    reparameterized,
    stop_gradient,
    straight_through,
)
from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.distributions.semi_implicit import SemiImplicit
from pyro_ext.distributions.stochastic_density import AuxiliaryLost, StochasticDensity
from pyro_ext.distributions.truncated_rejection import TruncatedRejection
from pyro_ext.distributions.truncated_rejection_sampler import TruncatedRejectionSampler

__all__ = [
    "AuxiliaryLost",
    "HamiltonianImportance",
    "HamiltonianSampler",
    "ImportanceSampler",
    "LearnedAcceptReject",
    "LearnedAcceptRejectSampler",
    "ModelMarginal",
    "SelfNormalizedImportance",
    "SemiImplicit",
    "StochasticDensity",
    "TruncatedRejection",
    "TruncatedRejectionSampler",
    "leave_one_out",
    "reparameterized",
    "stop_gradient",
    "straight_through",
]
