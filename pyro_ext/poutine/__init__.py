"""Effect handlers."""

from pyro_ext.poutine.anneal_messenger import AnnealMessenger, anneal
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

__all__ = ["AnnealMessenger", "SharedSubsampleMessenger", "anneal"]
