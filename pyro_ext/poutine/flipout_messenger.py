"""One perturbation of each weight, with random signs for each datum."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ext.poutine.contraction import Contraction
from pyro_ext.poutine.lazy_weights_messenger import LazyWeightsMessenger, Sites
from pyro_ext.poutine.local_reparameterization_messenger import bias_of, local
from pyro_ext.poutine.shared_use import SharedUse


class FlipoutMessenger(LazyWeightsMessenger):
    r"""Draws one perturbation of each normal weight, and signs for each datum.

    .. math:: y_n = f(x_n, \mu) + r_n \odot f(s_n \odot x_n, \sigma \odot \epsilon), \qquad
        \epsilon \sim N(0, I), \quad r_n, s_n \in \{-1, 1\}

    Because the perturbation is symmetric, each datum sees the exact law of the weight, in
    convolutions, too, whose pixels share the signs of a datum and a channel. The perturbations of
    two data are uncorrelated, but not independent. Biases get noise for each datum. Linear maps
    of sequences, in which it is not known which dimension runs over data, and all other uses take
    one draw of the weight; what is lazy, and the warning at a second linear map, are as in
    :class:`LocalReparameterizationMessenger`.

    Args:
        tokens: as there; ``"independent"`` gives each token signs of its own.
        sites: names of the weights; all normal sites outside of plates if not given.

    Raises:
        ValueError: as :class:`LocalReparameterizationMessenger`.

    References:
        Wen, Vicol, Ba, Tran and Grosse, *Flipout: Efficient Pseudo-Independent Weight
        Perturbations on Mini-Batches*, arXiv 1803.04386.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     weight = pyro.sample("w", dist.Normal(torch.zeros(2, 1), 1.0).to_event(2))
        ...     return torch.nn.functional.linear(x, weight)
        >>> with FlipoutMessenger():
        ...     y = model(torch.ones(5, 1))
        >>> bool((y.abs() == y[0].abs()).all())
        True
    """

    def __init__(self, *, tokens: str | None = None, sites: Sites = None):
        self._shared_use = SharedUse("independent", tokens)
        super().__init__(self._contract, sites)

    def _contract(self, contraction: Contraction) -> Any:
        is_drawn = self._shared_use.takes_draw(contraction)
        if is_drawn or not contraction.weight.integrate_out():
            return NotImplemented
        return local(contraction) if contraction.kind == "add" else flip(contraction)


def flip(contraction: Contraction) -> Tensor:
    """Output of a linear map with a lazy weight."""
    c, weight = contraction, contraction.weight
    loc, bias = bias_of(c)
    perturbation = weight.scale * torch.randn_like(weight.loc)
    mean = c.apply(c.input, weight.loc, loc)
    noise = c.apply(c.input * _signs(c, c.input), perturbation, None)
    if bias is not None:
        mean = mean + _bias_noise(c, bias.scale.to(mean.dtype), mean)
    return torch.addcmul(mean, noise, _signs(c, mean))


def _signs(contraction: Contraction, values: Tensor) -> Tensor:
    values = _one_position(contraction, values)
    return torch.randint_like(values, 2).mul_(2).sub_(1)  # faster than torch.bernoulli


def _bias_noise(contraction: Contraction, scale: Tensor, mean: Tensor) -> Tensor:
    noise = torch.randn_like(_one_position(contraction, mean))
    ones = (1,) * (contraction.weight.dim() - 2 if contraction.kind == "conv" else 0)
    return scale.reshape(*scale.shape, *ones) * noise


def _one_position(contraction: Contraction, values: Tensor) -> Tensor:
    """Values for each datum and feature, which the positions of a convolution share."""
    for dim in range(-1, 1 - contraction.weight.dim(), -1) if contraction.kind == "conv" else ():
        values = values.narrow(dim, 0, 1)
    return values


def flipout(fn: Callable | None = None, *, tokens: str | None = None, sites: Sites = None) -> Any:
    """Gives each datum random signs: a context manager, or a decorator of a program.

    Args:
        fn: a program, usually a guide; with none the messenger itself is returned.
        tokens: as in :class:`FlipoutMessenger`.
        sites: as in :class:`FlipoutMessenger`.

    Example:
        >>> with flipout():
        ...     pass  # svi.step(x, y)
    """
    messenger = FlipoutMessenger(tokens=tokens, sites=sites)
    return messenger if fn is None else messenger(fn)
