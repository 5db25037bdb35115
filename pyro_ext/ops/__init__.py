"""Pure functions on tensors: no Pyro, no state."""

from pyro_ext.ops.bounds import ciwae, cubo, iwae, renyi, tvo
from pyro_ext.ops.log_weights import effective_sample_size, log_mean_exp
from pyro_ext.ops.single_particle import SingleParticle

__all__ = [
    "SingleParticle",
    "ciwae",
    "cubo",
    "effective_sample_size",
    "iwae",
    "log_mean_exp",
    "renyi",
    "tvo",
]
