"""Effect handlers."""

from pyro_ext.poutine.anneal_messenger import AnnealMessenger, anneal
from pyro_ext.poutine.named_auxiliaries import named_auxiliaries
from pyro_ext.poutine.named_auxiliaries_messenger import NamedAuxiliariesMessenger
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

__all__ = [
    "AnnealMessenger",
    "NamedAuxiliariesMessenger",
    "SharedSubsampleMessenger",
    "anneal",
    "named_auxiliaries",
]
