r"""Gradient estimators of a multi-sample bound, as factors of the gradients they are made of.

A bound :math:`f(\log w_1, \dots, \log w_K)` with :math:`w_k = p_\theta(x, z_k) / q_\phi(z_k)` has
the gradient estimate

.. math::

    \sum_k a_k \nabla_\theta \log p_\theta(x, z_k)
    + \sum_k b_k \frac{\mathrm d \log w_k}{\mathrm d z_k} \frac{\partial z_k}{\partial \phi}
    + \sum_k c_k \nabla_\phi \log q_\phi(z_k)

with factors :math:`a` (``weight``), :math:`b` (``path``, at reparameterised sites) and :math:`c`
(``score``, at the other sites). An estimator is a function from a
:class:`~pyro_ext.ops.SingleParticle` to :class:`Factors`; a user's own is as good as these.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from pyro_ext.ops.log_weights import log_mean_exp
from pyro_ext.ops.single_particle import SingleParticle


class Factors(NamedTuple):
    """Factors of a gradient estimate, each ``(K, *rest)`` as the log-weights.

    Args:
        weight: of the gradient of the model.
        path: of the path derivative through reparameterised draws, the parameters of their
            densities held fixed. Without it and without ``score``, draws are not taken apart:
            the gradient is that of ``weight`` times the log-weights.
        score: of the score of a draw. Sites that are not reparameterised need it; without
            ``path`` it is used for all sites.

    Example:
        >>> def half_dreg(particle):  # any function of this form is an estimator
        ...     return Factors(particle.slope, path=(particle.slope - particle.curvature) / 2)
    """

    weight: Tensor
    path: Tensor | None = None
    score: Tensor | Any = None


Estimator = Callable[[SingleParticle], Factors]


def pathwise(particle: SingleParticle) -> Factors:
    r"""Differentiates through the draws: the reparameterisation gradient.

    .. math:: \sum_k f_k' \, \nabla \log w_k(z_k(\phi); \theta, \phi)

    For ``iwae`` the factor is the normalised weight. Unbiased; its signal-to-noise ratio for the
    guide falls with :math:`K`, where that of :func:`dreg` grows.

    Raises:
        ValueError: when used, at a guide site with parameters that is not reparameterised.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.
        Rainforth et al., *Tighter Variational Bounds are Not Necessarily Better*, arXiv 1802.04537.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5, gradient=pathwise)
    """
    return Factors(particle.slope)


def stl(particle: SingleParticle) -> Factors:
    r"""Sticking the landing: the path derivative alone, for one particle.

    .. math:: \frac{\mathrm d \log w}{\mathrm d z} \frac{\partial z}{\partial \phi}

    Without variance where the guide is exact. The score it leaves out has expectation zero only
    if its factor is constant, so several particles would give a biased gradient and are refused;
    :func:`dreg` is its unbiased form for them.

    Raises:
        ValueError: if there are several particles; when used, as :func:`pathwise`.

    References:
        Roeder, Wu and Duvenaud, *Sticking the Landing*, arXiv 1703.09194.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=1, gradient=stl)
    """
    if particle.num_particles > 1:
        raise ValueError(
            "stl is biased with more than one particle. Use num_particles=1, or dreg, which is the "
            "same for one particle and unbiased for several."
        )
    return Factors(particle.slope, path=particle.slope)


def dreg(particle: SingleParticle) -> Factors:
    r"""The doubly reparameterised gradient, of any bound.

    .. math::

        \sum_k (f_k' - f_k'') \,
        \frac{\mathrm d \log w_k}{\mathrm d z_k} \frac{\partial z_k}{\partial \phi}

    The score of each draw is itself reparameterised, which brings in the curvature. For ``iwae``
    the factor is :math:`\bar w_k^2`, for ``renyi`` it is
    :math:`\alpha \tilde w_k + (1 - \alpha) \tilde w_k^2`. Unbiased, without variance where the
    guide is exact, and its signal-to-noise ratio grows with :math:`K`.

    It evaluates the guide's density at a copy of each draw, and so needs the inverse of a
    normalising flow. Use :func:`pathwise` where that is missing or slow.

    Raises:
        ValueError: when used, as :func:`pathwise`.

    References:
        Tucker et al., *Doubly Reparameterized Gradient Estimators*, arXiv 1810.04152.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5, gradient=dreg)
    """
    return Factors(particle.slope, path=particle.slope - particle.curvature)


def score(particle: SingleParticle) -> Factors:
    r"""The score function, with the bound of the other particles as baseline.

    .. math::

        \sum_k \bigl(f(\ell_1, \dots, \ell_K) - f(\ell_{-k}) - f_k'\bigr) \nabla_\phi \log q(z_k)

    Unbiased for any guide, reparameterised or not. There is no baseline for one particle.

    References:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives*, arXiv 1602.06725.
        Kool, van Hoof and Welling, *Buy 4 REINFORCE Samples, Get a Baseline for Free!* (2019).

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5, gradient=score)
    """
    return _scored(particle, particle.dropped())


def vimco(particle: SingleParticle) -> Factors:
    r"""The score function; the baseline puts the others' geometric mean in a particle's place.

    .. math::

        \sum_k \bigl(f(\ell_1, \dots, \ell_K) - f_k(\hat\ell_{-k}) - f_k'\bigr)
        \nabla_\phi \log q(z_k), \qquad
        \hat\ell_{-k} = \frac{1}{K - 1} \sum_{j \ne k} \ell_j

    Unbiased for any guide, reparameterised or not.

    Raises:
        ValueError: for one particle, which has no others.

    References:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives*, arXiv 1602.06725.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5, gradient=vimco)
    """
    _refuse_one_particle(particle, "vimco")
    return _scored(particle, _geometric_baseline(particle))


def vimco_arithmetic(particle: SingleParticle) -> Factors:
    r"""As :func:`vimco`, with the arithmetic mean of the others' weights.

    .. math:: \hat\ell_{-k} = \log \frac{1}{K - 1} \sum_{j \ne k} w_j

    Raises:
        ValueError: for one particle, which has no others.

    References:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives*, arXiv 1602.06725.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5, gradient=vimco_arithmetic)
    """
    _refuse_one_particle(particle, "vimco_arithmetic")
    return _scored(particle, particle.replaced(log_mean_exp(particle.others)))


def rws(particle: SingleParticle) -> Factors:
    r"""Reweighted wake-sleep, its wake phase: the guide follows the weighted posterior.

    .. math::

        \sum_k f_k' \nabla_\phi \log q(z_k) \quad \text{or, reparameterised,} \quad
        \sum_k f_k'' \, \frac{\mathrm d \log w_k}{\mathrm d z_k}
        \frac{\partial z_k}{\partial \phi}

    With ``iwae``, :math:`f_k' = \bar w_k` and :math:`f_k'' = \bar w_k - \bar w_k^2`. The model is
    trained by the bound; the guide is not: it descends
    :math:`\mathrm{KL}(p(z \mid x) \,\|\, q(z))`, per datum, by self-normalised importance
    sampling, which is biased for finite :math:`K`. Sites drawn from a ``Delta`` follow the bound.

    Raises:
        ValueError: for one particle, whose weight says nothing; when used, if there are sites
            outside of the plates of the bound, if sites have different scales, if draws of the
            guide depend on enumerated ones, if a stochastic density of the guide draws along
            paths, if the bound is one from above.

    References:
        Bornschein and Bengio, *Reweighted Wake-Sleep*, arXiv 1406.2751.
        Tucker et al., *Doubly Reparameterized Gradient Estimators*, arXiv 1810.04152.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5, gradient=rws)
    """
    _refuse_one_particle(particle, "rws")
    return Factors(particle.slope, path=particle.curvature, score=particle.slope)


def piwae(particle: SingleParticle) -> Factors:
    r"""Partially importance-weighted: the model sees all particles at once, the guide groups.

    The guide has the gradient :func:`dreg` of the mean of ``num_outer`` bounds with
    ``num_particles`` particles each, the model that of one bound with all particles. Without
    groups it is :func:`dreg`.

    Raises:
        ValueError: when used, as :func:`pathwise`, and if there are sites outside of the plates of
            the bound.

    References:
        Rainforth et al., *Tighter Variational Bounds are Not Necessarily Better*, arXiv 1802.04537.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5, gradient=piwae, num_outer=4)
    """
    return dreg(particle)._replace(weight=particle.pooled_slope)


def auto(particle: SingleParticle) -> Factors:
    r"""The best known estimator for each site: :func:`dreg` if reparameterised, else :func:`vimco`.

    Both in one guide, with the terms that arise where a site of one kind depends on one of the
    other. Unbiased. For one particle it is the path derivative and the plain score function.

    References:
        Tucker et al., *Doubly Reparameterized Gradient Estimators*, arXiv 1810.04152.
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives*, arXiv 1602.06725.

    Example:
        >>> from pyro_ext.infer import MultiSampleELBO
        >>> elbo = MultiSampleELBO(num_particles=5)  # the default
    """
    alone = particle.num_particles == 1
    baseline = particle.dropped() if alone else _geometric_baseline(particle)
    return dreg(particle)._replace(score=_scored(particle, baseline).score)


def _geometric_baseline(particle: SingleParticle) -> Tensor:
    return particle.replaced(particle.others.mean(0))


def _scored(particle: SingleParticle, baseline: Tensor) -> Factors:
    """``slope`` is what the density of a draw in the denominator of its weight contributes.

    A baseline may be any function of the other particles: zero if it is not finite, as where all
    their weights are zero.
    """
    baseline = baseline.masked_fill(~baseline.isfinite(), 0.0)
    return Factors(particle.slope, score=particle.value - baseline - particle.slope)


def _refuse_one_particle(particle: SingleParticle, name: str) -> None:
    if particle.num_particles == 1:
        raise ValueError(f"{name} compares particles and needs num_particles >= 2, got 1.")
