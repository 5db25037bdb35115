"""Dropout with normal or Bernoulli noise as a handler of weights."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_ext.poutine.contraction import Contraction
from pyro_ext.poutine.lazy_weights_messenger import LazyWeightsMessenger, Sites
from pyro_ext.poutine.local_reparameterization_messenger import bias_of, local
from pyro_ext.poutine.shared_use import SharedUse

NOISES = ("weights", "inputs", "bernoulli")


class VariationalDropoutMessenger(LazyWeightsMessenger):
    r"""Multiplicative noise of a guide's weights, at the inputs of linear maps.

    .. math::

        \text{weights (type B):} \quad & w_{ij} \sim N(\theta_{ij}, \alpha_{ij} \theta_{ij}^2)
        \quad \text{independent} \\
        \text{inputs (type A):} \quad & y_{nj} = \sum_i x_{ni} \xi_{ni} \theta_{ij}, \quad
        \xi_{ni} \sim N(1, \alpha_i) \\
        \text{bernoulli:} \quad & y_{nj} = \sum_i x_{ni} \xi_{ni} \theta_{ij}, \quad
        \xi_{ni} (1 - p_i) \sim \text{Bernoulli}(1 - p_i), \quad \alpha_i = p_i / (1 - p_i)

    The weights are those of any guide with normal sites, :math:`\theta` being the mean and
    :math:`\alpha = \sigma^2 / \theta^2`. Its other half is the guide:
    :class:`~pyro_ext.infer.AutoMultiplicativeNormal` has a parameter :math:`\log \alpha` per
    weight, input or site; with :math:`\alpha` fixed this is (Monte Carlo) dropout of a fixed rate.
    :class:`~pyro_ext.infer.AutoAdditiveNormal` has free :math:`\log \sigma^2`, the additive
    parametrisation, for type B. With a log-uniform prior the divergence depends on :math:`\alpha`
    alone.

    Noise at inputs needs one :math:`\alpha` for all weights of an input. It is defined for
    ``linear`` and products of matrices with the weight on the right; convolutions raise. A weight
    that is drawn, because another function needs it, is of type B. The tokens of a sequence have
    noise at inputs of their own.

    Args:
        noise: ``"weights"``, ``"inputs"`` or ``"bernoulli"``.
        conv: of noise of weights, as in :class:`LocalReparameterizationMessenger`.
        tokens: of noise of weights, as in :class:`LocalReparameterizationMessenger`.
        sites: names of the weights; all normal sites outside of plates if not given.

    Raises:
        ValueError: if ``noise`` is something else; when run, if noise at inputs meets another
            function than above, or (with Pyro's validation) weights of one input have several
            :math:`\alpha`.

    References:
        Kingma, Salimans and Welling, *Variational Dropout and the Local Reparameterization Trick*,
        arXiv 1506.02557; Molchanov, Ashukha and Vetrov, arXiv 1701.05369; Gal and Ghahramani,
        *Dropout as a Bayesian Approximation*, arXiv 1506.02142.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> theta = torch.ones(2, 3)
        >>> with VariationalDropoutMessenger("bernoulli"):  # alpha = 1: half of the inputs
        ...     w = pyro.sample("w", dist.Normal(theta, theta).to_event(2))
        ...     y = torch.nn.functional.linear(torch.ones(100, 3), w)
        >>> sorted(set(y.flatten().tolist()))
        [0.0, 2.0, 4.0, 6.0]
    """

    def __init__(
        self,
        noise: str = "weights",
        *,
        conv: str | None = None,
        tokens: str | None = None,
        sites: Sites = None,
    ):
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {NOISES}, got {noise!r}.")
        self.noise, self._shared_use = noise, SharedUse(conv, tokens)
        super().__init__(self._contract, sites)

    def _contract(self, contraction: Contraction) -> Any:
        if self.noise != "weights" and not _has_inputs(contraction):
            raise ValueError(
                f"Weight '{contraction.weight.state.name}' meets a function that noise at its "
                "inputs is not defined for. Leave it out of sites=, or take noise='weights'."
            )
        is_drawn = self.noise == "weights" and self._shared_use.takes_draw(contraction)
        if is_drawn or not contraction.weight.integrate_out():
            return NotImplemented
        is_local = self.noise == "weights" or contraction.kind == "add"
        return local(contraction) if is_local else self._noisy(contraction)

    def _noisy(self, contraction: Contraction) -> Tensor:
        c = contraction
        alpha = _alpha(c)
        x = c.input.expand(torch.broadcast_shapes(c.input.shape, alpha.shape))
        x = x * (_bernoulli if self.noise == "bernoulli" else _normal)(x, alpha)
        loc, bias = bias_of(c)
        mean = c.apply(x, c.weight.loc, loc)
        return mean if bias is None else mean + torch.randn_like(mean) * bias.scale


def _has_inputs(contraction: Contraction) -> bool:
    is_matrix = contraction.input.dim() > 1 or contraction.weight.dim() == 2
    return contraction.kind == "add" or (contraction.columns is not None and is_matrix)


def _alpha(contraction: Contraction) -> Tensor:
    """Of each input; zero where all its weights are; with a dimension of data beside particles."""
    weight, columns = contraction.weight, contraction.columns
    squares, variance = weight.loc * weight.loc, weight.variance
    size = squares.sum(columns, keepdim=True)
    alpha = variance.sum(columns, keepdim=True) / size.masked_fill(size == 0, 1.0)
    if is_validation_enabled() and not torch.allclose(variance, alpha * squares, 1e-3, 0.0):
        raise ValueError(
            f"The weights '{weight.state.name}' of one input differ in alpha = variance / mean^2, "
            "so that they have no noise in common. Use AutoMultiplicativeNormal(per='input') or "
            "(per='site'), or noise='weights'."
        )
    alpha = alpha.squeeze(columns)
    return alpha.unsqueeze(-2) if alpha.dim() > 1 else alpha


def _normal(x: Tensor, alpha: Tensor) -> Tensor:
    tiny = torch.finfo(x.dtype).tiny
    return 1 + (alpha + tiny).sqrt() * torch.randn_like(x)


def _bernoulli(x: Tensor, alpha: Tensor) -> Tensor:
    kept = (1 / (1 + alpha)).expand_as(x)
    return torch.bernoulli(kept) / kept


def variational_dropout(
    fn: Callable | None = None,
    *,
    noise: str = "weights",
    conv: str | None = None,
    tokens: str | None = None,
    sites: Sites = None,
) -> Any:
    """Multiplicative noise for each datum: a context manager, or a decorator of a program.

    Args:
        fn: a program, usually a guide; with none the messenger itself is returned.
        noise: as in :class:`VariationalDropoutMessenger`.
        conv: as in :class:`VariationalDropoutMessenger`.
        tokens: as in :class:`VariationalDropoutMessenger`.
        sites: as in :class:`VariationalDropoutMessenger`.

    Example:
        >>> with variational_dropout(noise="inputs"):
        ...     pass  # svi.step(x, y)
    """
    messenger = VariationalDropoutMessenger(noise, conv=conv, tokens=tokens, sites=sites)
    return messenger if fn is None else messenger(fn)
