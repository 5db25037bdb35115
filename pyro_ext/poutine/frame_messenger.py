"""A plate's dimension without the plate."""

from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger


class FrameMessenger(Messenger):
    """Puts a frame around all sites and expands their distributions along it.

    Semantically equivalent to a vectorised :class:`pyro.plate` without subsampling, but allocates
    nothing, so that the frame may lie along the dimension of a plate that is already open.

    Args:
        frame: name, dimension and size.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with FrameMessenger(CondIndepStackFrame("draws", -1, 3, 0)):
        ...     pyro.sample("z", dist.Normal(0.0, 1.0)).shape
        torch.Size([3])
    """

    def __init__(self, frame: CondIndepStackFrame):
        super().__init__()
        self.frame = frame

    def _pyro_sample(self, msg) -> None:
        msg["cond_indep_stack"] = (self.frame, *msg["cond_indep_stack"])
        BroadcastMessenger._pyro_sample(msg)
