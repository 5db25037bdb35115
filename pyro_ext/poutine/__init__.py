"""Effect handlers."""

from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

__all__ = ["SharedSubsampleMessenger"]
