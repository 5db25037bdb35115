"""Densities that speak Pyro."""

from pyro_ext.distributions.autoregressive_shift import AutoregressiveShift
from pyro_ext.distributions.dequantized import Dequantized
from pyro_ext.distributions.discretized_logistic import DiscretizedLogistic
from pyro_ext.distributions.discretized_logistic_mixture import DiscretizedLogisticMixture
from pyro_ext.distributions.exponential_tilt import ExponentialTilt
from pyro_ext.distributions.gaussian_family import GaussianFamily
from pyro_ext.distributions.glow import Glow
from pyro_ext.distributions.hamiltonian_importance import HamiltonianImportance
from pyro_ext.distributions.hamiltonian_sampler import HamiltonianSampler
from pyro_ext.distributions.hard_concrete import HardConcrete
from pyro_ext.distributions.hard_kumaraswamy import HardKumaraswamy
from pyro_ext.distributions.identifiable_prior import IdentifiablePrior
from pyro_ext.distributions.imca_prior import IMCAPrior
from pyro_ext.distributions.importance_sampler import ImportanceSampler
from pyro_ext.distributions.invertible_transform import InvertibleTransform
from pyro_ext.distributions.l0_prior import L0Prior
from pyro_ext.distributions.laplace_family import LaplaceFamily
from pyro_ext.distributions.learned_accept_reject import LearnedAcceptReject
from pyro_ext.distributions.learned_accept_reject_sampler import LearnedAcceptRejectSampler
from pyro_ext.distributions.log_uniform import LogUniform
from pyro_ext.distributions.model_marginal import ModelMarginal
from pyro_ext.distributions.multiplicative_normal import MultiplicativeNormal
from pyro_ext.distributions.pixel_cnn import ConditionalPixelCNN, PixelCNN
from pyro_ext.distributions.proposal_gradients import (
    leave_one_out,
    reparameterized,
    stop_gradient,
    straight_through,
)
from pyro_ext.distributions.rectified import Rectified
from pyro_ext.distributions.self_normalized_importance import SelfNormalizedImportance
from pyro_ext.distributions.semi_implicit import SemiImplicit
from pyro_ext.distributions.statistics_family import StatisticsFamily
from pyro_ext.distributions.stochastic_density import AuxiliaryLost, StochasticDensity
from pyro_ext.distributions.truncated_log_normal import TruncatedLogNormal
from pyro_ext.distributions.truncated_log_uniform import TruncatedLogUniform
from pyro_ext.distributions.truncated_rejection import TruncatedRejection
from pyro_ext.distributions.truncated_rejection_sampler import TruncatedRejectionSampler

__all__ = [
    "AutoregressiveShift",
    "AuxiliaryLost",
    "ConditionalPixelCNN",
    "Dequantized",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "ExponentialTilt",
    "GaussianFamily",
    "Glow",
    "HamiltonianImportance",
    "HamiltonianSampler",
    "HardConcrete",
    "HardKumaraswamy",
    "IMCAPrior",
    "IdentifiablePrior",
    "ImportanceSampler",
    "InvertibleTransform",
    "L0Prior",
    "LaplaceFamily",
    "LearnedAcceptReject",
    "LearnedAcceptRejectSampler",
    "LogUniform",
    "ModelMarginal",
    "MultiplicativeNormal",
    "PixelCNN",
    "Rectified",
    "SelfNormalizedImportance",
    "SemiImplicit",
    "StatisticsFamily",
    "StochasticDensity",
    "TruncatedLogNormal",
    "TruncatedLogUniform",
    "TruncatedRejection",
    "TruncatedRejectionSampler",
    "leave_one_out",
    "reparameterized",
    "stop_gradient",
    "straight_through",
]
