"""Effect handlers."""

from pyro_ext.poutine.anneal_messenger import AnnealMessenger, anneal
from pyro_ext.poutine.flipout_messenger import FlipoutMessenger, flipout
from pyro_ext.poutine.local_reparameterization_messenger import (
    LocalReparameterizationMessenger,
    local_reparameterization,
)
from pyro_ext.poutine.named_auxiliaries import named_auxiliaries
from pyro_ext.poutine.named_auxiliaries_messenger import NamedAuxiliariesMessenger
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger
from pyro_ext.poutine.variational_dropout_messenger import (
    VariationalDropoutMessenger,
    variational_dropout,
)
from pyro_ext.poutine.weight_sampling_messenger import WeightSamplingMessenger, weight_sampling

__all__ = [
    "AnnealMessenger",
    "FlipoutMessenger",
    "LocalReparameterizationMessenger",
    "NamedAuxiliariesMessenger",
    "SharedSubsampleMessenger",
    "VariationalDropoutMessenger",
    "WeightSamplingMessenger",
    "anneal",
    "flipout",
    "local_reparameterization",
    "named_auxiliaries",
    "variational_dropout",
    "weight_sampling",
]
