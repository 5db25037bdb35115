"""Pure functions on tensors: no Pyro, no state."""

from pyro_ext.ops.annealed_importance import annealed_importance
from pyro_ext.ops.bounds import ciwae, cubo, iwae, renyi, tvo
from pyro_ext.ops.contrastive import info_nce, ranking_nce
from pyro_ext.ops.leapfrog import inverse_leapfrog, leapfrog
from pyro_ext.ops.log_uniform_kl import kingma_kl, log_uniform_kl, molchanov_kl
from pyro_ext.ops.log_weights import effective_sample_size, log_mean_exp
from pyro_ext.ops.single_particle import SingleParticle

__all__ = [
    "SingleParticle",
    "annealed_importance",
    "ciwae",
    "cubo",
    "effective_sample_size",
    "info_nce",
    "inverse_leapfrog",
    "iwae",
    "kingma_kl",
    "leapfrog",
    "log_mean_exp",
    "log_uniform_kl",
    "molchanov_kl",
    "ranking_nce",
    "renyi",
    "tvo",
]
