"""One subsample of each plate for all runs inside a context."""

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor


class SharedSubsampleMessenger(Messenger):
    """Draws the subsample of each plate once, however often a program runs inside the context.

    Semantically equivalent to giving every :class:`pyro.plate` the ``subsample=`` that its first
    occurrence drew. It keeps the particles of a multi-sample bound on the same data when they are
    run one after the other.

    Example:
        >>> import pyro
        >>> def program():
        ...     with pyro.plate("data", 1000, subsample_size=3) as index:
        ...         return index
        >>> with SharedSubsampleMessenger():
        ...     bool((program() == program()).all())
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.subsamples: dict[str, Tensor] = {}

    def __enter__(self):
        self.subsamples.clear()
        return super().__enter__()

    def _pyro_sample(self, msg) -> None:
        if isinstance(msg["fn"], _Subsample) and msg["name"] in self.subsamples:
            msg["value"] = self.subsamples[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.subsamples[msg["name"]] = msg["value"]
