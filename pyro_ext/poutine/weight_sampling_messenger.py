"""Weights that are drawn, whatever handlers are outside."""

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_ext.poutine.lazy_weights_messenger import DRAWN, Sites


class WeightSamplingMessenger(Messenger):
    r"""Draws each weight once, for all data, inside of handlers that would leave it lazy.

    .. math:: w \sim q(w), \qquad y_n = f(x_n, w) \text{ for all } n

    Without such handlers it changes nothing: it names the estimator. It is the one for joint
    predictions, coherent functions, MCMC and bounds with several particles inside of a logarithm.

    Args:
        sites: names of the weights; all sites if not given.

    Raises:
        ValueError: if ``sites`` is a string.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_ext.poutine import local_reparameterization
        >>> with local_reparameterization(), WeightSamplingMessenger():
        ...     type(pyro.sample("w", dist.Normal(0.0, 1.0))).__name__
        'Tensor'
    """

    def __init__(self, *, sites: Sites = None):
        super().__init__()
        if isinstance(sites, str):
            raise ValueError(f"sites is a collection of names, got '{sites}'. Give ['{sites}'].")
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if self.sites is None or msg["name"] in self.sites:
            msg["infer"] = {**msg["infer"], DRAWN: True}


def weight_sampling(fn: Callable | None = None, *, sites: Sites = None) -> Any:
    """Draws each weight once: a context manager, or a decorator of a program.

    Args:
        fn: a program; with none the messenger itself is returned.
        sites: as in :class:`WeightSamplingMessenger`.

    Example:
        >>> with weight_sampling():
        ...     pass  # svi.step(x, y)
    """
    messenger = WeightSamplingMessenger(sites=sites)
    return messenger if fn is None else messenger(fn)
