"""Warm-up of an objective: the latent sites count less at first."""

import math
from collections.abc import Callable, Collection
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample


class AnnealMessenger(Messenger):
    r"""Multiplies the log densities of latent sites by a factor that may change between runs.

    .. math:: \mathcal{L}_\beta = \mathbb{E}_q[\log p(x \mid z)] + \beta \,
        \mathbb{E}_q[\log p(z) - \log q(z \mid x)]

    when both model and guide are inside. Semantically equivalent to
    ``poutine.scale(scale=factor)`` around every latent site. With :math:`\beta = 1` it is the
    objective without it; with :math:`\beta = 0` the reconstruction alone is left. For
    :math:`\beta < 1` the objective may exceed the log evidence: judge a model at
    :math:`\beta = 1`.

    Args:
        factor: :math:`\beta \ge 0`. Set the attribute ``factor`` of the messenger to change it.
        sites: names of the latent sites to anneal; all if not given.

    Raises:
        ValueError: if the factor is negative or not finite; after a run, if none of ``sites`` was
            met.

    References:
        Bowman et al., *Generating Sentences from a Continuous Space*, arXiv 1511.06349;
        Sønderby et al., *Ladder Variational Autoencoders*, arXiv 1602.02282.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> warm_up = AnnealMessenger(0.5)
        >>> pyro.poutine.trace(warm_up(model)).get_trace().nodes["z"]["scale"]
        0.5
        >>> warm_up.factor = 1.0  # from now on, the model itself
    """

    def __init__(self, factor: float = 1.0, sites: Collection[str] | None = None):
        super().__init__()
        self.factor = factor
        self.sites = sites
        self._annealed: set[str] = set()

    @property
    def factor(self) -> float:
        r"""The present :math:`\beta`."""
        return self._factor

    @factor.setter
    def factor(self, factor: float) -> None:
        if not (factor >= 0 and math.isfinite(factor)):
            raise ValueError(f"factor must be a finite number >= 0, got {factor}.")
        self._factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        is_latent = not (msg["is_observed"] or isinstance(msg["fn"], _Subsample))
        if is_latent and (self.sites is None or msg["name"] in self.sites):
            self._annealed.add(msg["name"])
            msg["scale"] = self.factor * msg["scale"]

    def __enter__(self):
        self._annealed.clear()
        return super().__enter__()

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None and self.sites and not self._annealed:
            raise ValueError(
                f"None of the sites {list(self.sites)} to anneal is a latent site of the program."
            )


def anneal(fn: Callable | None = None, factor: float = 1.0, sites: Collection[str] | None = None):
    """Anneals a program, or makes an :class:`AnnealMessenger` that anneals several.

    Args:
        fn: a model or a guide; with none the messenger itself is returned, to wrap both and to
            be changed between steps.
        factor: as in :class:`AnnealMessenger`.
        sites: as in :class:`AnnealMessenger`.

    Raises:
        ValueError: as :class:`AnnealMessenger`, and if ``fn`` is no program.

    Example:
        >>> warm_up = anneal(factor=0.0)
        >>> for step in range(1000):
        ...     warm_up.factor = min(1.0, step / 500)
        ...     # svi.step(x), where svi has warm_up(model) and warm_up(guide)
    """
    if fn is not None and not callable(fn):
        raise ValueError(
            f"anneal takes a program first, got {fn!r}. Write anneal(model, 0.5), or "
            "anneal(factor=0.5) for a messenger that wraps several programs."
        )
    messenger = AnnealMessenger(factor, sites)
    return messenger if fn is None else messenger(fn)
