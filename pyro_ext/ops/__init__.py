"""Pure functions on tensors: no Pyro, no state."""

from pyro_ext.ops.bounds import iwae
from pyro_ext.ops.log_weights import effective_sample_size, log_mean_exp

__all__ = ["effective_sample_size", "iwae", "log_mean_exp"]
