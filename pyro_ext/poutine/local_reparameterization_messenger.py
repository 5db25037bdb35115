"""Noise on the outputs of linear maps instead of noise on their weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ext.poutine.contraction import Contraction
from pyro_ext.poutine.lazy_normal import LazyNormal, forced
from pyro_ext.poutine.lazy_weights_messenger import LazyWeightsMessenger, Sites
from pyro_ext.poutine.shared_use import SharedUse


class LocalReparameterizationMessenger(LazyWeightsMessenger):
    r"""Draws the outputs of linear maps with normal weights, each datum with noise of its own.

    .. math:: y_{nj} = \sum_i x_{ni} w_{ij} + b_j, \quad
        w_{ij} \sim N(\mu_{ij}, \sigma_{ij}^2) \quad \longrightarrow \quad
        y_{nj} \sim N\Bigl(\sum_i x_{ni} \mu_{ij} + \mu_j,\;
        \sum_i x_{ni}^2 \sigma_{ij}^2 + \sigma_j^2\Bigr)

    For each datum this is the law of the output, but the data of a batch do not share the draw of
    the weight, and so the covariance between their gradients vanishes. An objective that is a sum
    over data, such as the ELBO, keeps its expectation. Joint predictions for several
    inputs, and bounds with several particles inside of a logarithm, do not: use
    :func:`weight_sampling` there.

    Latent normal sites outside of plates of data become lazy. They may meet ``linear``,
    ``conv1d`` to ``conv3d`` and their transposes, products of matrices (the weight on either side;
    the free dimension of the other factor runs over data), ``einsum`` of two operands, sums with a
    bias, and multi-head attention, after any transposing, reshaping, slicing and multiplication by
    constants. All else takes one draw of the weight, which later uses share. Observed sites and
    parameters are left alone. Nothing of torch is patched.

    Where one datum uses a weight more than once, noise at each use is not the law of one weight:

    - the pixels of a convolution: see ``conv``;
    - the tokens of a sequence, that is any input with two or more leading dimensions: ``tokens``;
    - a second linear map with the same elements (a recurrent net, tied weights) takes one draw of
      the weight, with a warning, since the first map had noise of its own. In a backward pass, as
      ``torch.utils.checkpoint`` makes it, it raises.

    Which dimension runs over data is taken from shapes: a program that reshapes tokens, nodes or
    patches to rows makes data of them, and one that multiplies a weight by a matrix that is no data
    should do so inside of :func:`weight_sampling`. Inside of :func:`torch.func.vmap` noise needs
    ``randomness="different"``.

    Args:
        conv: ``None`` takes one draw of the weight, exact, with a warning; ``"weights"`` the same
            without a warning; ``"independent"`` gives each pixel noise of its own, which is the
            right law for each pixel, but not for a datum, and another objective.
        tokens: the same for linear maps of sequences.
        sites: names of the weights; all normal sites outside of plates if not given.

    Raises:
        ValueError: if ``conv`` or ``tokens`` is something else, if ``sites`` is a string; when
            run, if a site of ``sites`` is not normal, or not met.

    References:
        Kingma, Salimans and Welling, *Variational Dropout and the Local Reparameterization Trick*,
        arXiv 1506.02557.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     weight = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        ...     return torch.nn.functional.linear(x, weight)
        >>> with LocalReparameterizationMessenger():
        ...     y = model(torch.ones(5, 3))
        >>> bool((y[0] == y[1]).any())  # five data, ten draws
        False
    """

    def __init__(self, *, conv: str | None = None, tokens: str | None = None, sites: Sites = None):
        self._shared_use = SharedUse(conv, tokens)
        super().__init__(self._contract, sites)

    def _contract(self, contraction: Contraction) -> Any:
        is_drawn = self._shared_use.takes_draw(contraction)
        if is_drawn or not contraction.weight.integrate_out():
            return NotImplemented
        return local(contraction)


def local(contraction: Contraction) -> Tensor:
    """Output of a linear map with lazy weight and bias, drawn from its own normal law."""
    loc, bias = bias_of(contraction)
    mean = contraction.apply(contraction.input, contraction.weight.loc, loc)
    deviation = _half_deviation if mean.dtype is torch.float16 else _deviation
    return torch.addcmul(mean, torch.randn_like(mean), deviation(contraction, bias))


def _deviation(contraction: Contraction, bias: LazyNormal | None) -> Tensor:
    c = contraction
    data = torch.zeros_like(c.input) if c.kind == "add" else c.input * c.input
    variance = c.apply(data, c.weight.variance, None if bias is None else bias.variance)
    return standard_deviation(variance)


def _half_deviation(contraction: Contraction, bias: LazyNormal | None) -> Tensor:
    """The same of 16-bit numbers, in which squares are too small or too large."""
    c = contraction._replace(input=contraction.input.float(), weight=contraction.weight.float())
    wide: Any = None if bias is None else bias.float()
    with torch.autocast(c.input.device.type, enabled=False):
        return _deviation(c, wide).half()


def bias_of(contraction: Contraction) -> tuple[Any, LazyNormal | None]:
    """Mean of the bias, and the bias if it is left lazy; otherwise its draw and ``None``."""
    bias = contraction.bias
    if isinstance(bias, LazyNormal) and contraction.has_own_biases() and bias.integrate_out():
        return bias.loc, bias
    return forced(bias), None


def standard_deviation(variance: Tensor) -> Tensor:
    """The root, with a finite gradient where the variance is zero.

    The smallest normal number is added, which changes no variance that is much larger.
    """
    return (variance + torch.finfo(variance.dtype).tiny).sqrt()


def local_reparameterization(
    fn: Callable | None = None,
    *,
    conv: str | None = None,
    tokens: str | None = None,
    sites: Sites = None,
) -> Any:
    """Gives each datum noise of its own: a context manager, or a decorator of a program.

    Args:
        fn: a program, usually a guide; with none the messenger itself is returned.
        conv: as in :class:`LocalReparameterizationMessenger`.
        tokens: as in :class:`LocalReparameterizationMessenger`.
        sites: as in :class:`LocalReparameterizationMessenger`.

    Example:
        >>> with local_reparameterization(conv="weights"):
        ...     pass  # svi.step(x, y)
    """
    messenger = LocalReparameterizationMessenger(conv=conv, tokens=tokens, sites=sites)
    return messenger if fn is None else messenger(fn)
