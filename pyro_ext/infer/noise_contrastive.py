"""Noise-contrastive estimation of conditional energies."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from pyro_ext.distributions.noise import batch_of, check_noise, draw, noise_given
from pyro_ext.infer.energy_objective import EnergyObjective, check_energies, check_energy, energy_of
from pyro_ext.ops.contrastive import ranking_nce
from pyro_ext.ops.counts import count


class NoiseContrastive:
    r"""Learns an energy by telling data from noise of a known density.

    .. math::

        \mathcal L = -\frac1B \sum_n \Bigl[ \log \sigma(h(x_n, u_n))
        + \sum_{j=1}^{\nu} \log \sigma(-h(x_{nj}, u_n)) \Bigr], \qquad
        h(x, u) = \log \frac{p_\theta(x \mid u)}{\nu\, q(x \mid u)}

    with noise :math:`x_{nj} \sim q(\cdot \mid u_n)` and :math:`\log p_\theta = -E - \log Z`. Each
    noise row takes the context of a datum, so that contexts are as frequent among noise as among
    data and say nothing about which is which. The population loss is minimal where
    :math:`p_\theta = p`, the learned normaliser then being that of the energy; it is
    :math:`2 \log 2` where data, energy and noise agree and :math:`\nu = 1`. Logits enter through
    :math:`\log \sigma`, so that gradients are exact however far data and noise are apart.

    With ``ranking`` the datum is to be picked out of :math:`K = \nu + 1` candidates,

    .. math::

        \mathcal L = -\frac1B \sum_n \log \frac{w(x_n, u_n)}{w(x_n, u_n) + \sum_j w(x_{nj}, u_n)},
        \qquad w(x, u) = \frac{e^{-E(x, u)}}{q(x \mid u)}

    which needs no normaliser and leaves a learned one as it is: see
    :func:`~pyro_ext.ops.ranking_nce`. At :math:`p_\theta = q` it is :math:`\log K`.

    The energy is the model and the noise its guide: an instance, called with both, returns the
    loss as a module, as ``pyro.infer.Trace_ELBO()(model, guide)`` does. The module owns the
    parameters of both; this objective trains those of the energy only. Fit the noise first, by
    ``-noise(context).log_prob(x).mean()``, or use :class:`FlowContrastive`. Noise that was fitted
    to the very same rows is denser there than beside them, by about its number of parameters per
    row, and the learned :math:`\log Z` is too small by as much: fit it to others, or to many.
    Features that contexts identify are found better with :class:`ContextContrastive` added.

    Args:
        num_noise: :math:`\nu \ge 1`, draws of noise for each datum.
        ranking: whether the datum is ranked above its noise.
        share_noise: whether all data of a batch are told from the same ``num_noise`` draws, of
            which each is scored at each context: for noise that knows no context, many draws at
            the cost of their features.

    Shape:
        the module maps ``x (*batch, *event_shape)`` and contexts to a scalar, the mean over the
        batch in nats. Energies must broadcast: with ``share_noise`` they get
        ``(num_noise, 1, ..., *event_shape)``, else ``(num_noise, *batch, *event_shape)``.

    Raises:
        ValueError: if ``num_noise < 1``; when called, if the ebm is no module or lacks
            ``log_density`` without ``ranking``, or if the noise is no distribution, nor a
            callable from contexts to one; when evaluated, if noise and data do not fit, if the
            density of the noise is only bounded, if shared noise depends on the context, or,
            while Pyro validates, if data are not finite.

    References:
        Gutmann and Hyvärinen, *Noise-contrastive estimation* (2010). Ma and Collins, *Noise
        Contrastive Estimation and Negative Sampling for Conditional Models*, arXiv 1809.01812.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.nn import ConditionalEnergy
        >>> x, label = torch.randn(256, 2), torch.randint(3, (256,))
        >>> noise = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        >>> loss = NoiseContrastive(num_noise=5)(ConditionalEnergy(2, 4, num_classes=3), noise)
        >>> optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss(x, label).backward()
        ...     optimizer.step()

        Ranking takes any energy; a plain one is called without a context:

        >>> from pyro_ext.nn import EnergyNet
        >>> ranking = NoiseContrastive(1000, ranking=True, share_noise=True)
        >>> ranking(EnergyNet(2), noise)(x).shape
        torch.Size([])
    """

    def __init__(self, num_noise: int = 1, *, ranking: bool = False, share_noise: bool = False):
        self.num_noise = count(num_noise, "num_noise")
        self.ranking, self.share_noise = ranking, share_noise

    def __call__(self, ebm: nn.Module, noise: Any) -> EnergyObjective:
        """The loss as a module.

        Args:
            ebm: a module from ``(x, context)`` to energies with, unless ``ranking``, a method
                ``log_density(x, context)``.
            noise: a distribution, or a callable from contexts to one, of batch shape ``(*batch)``
                or ``()``.
        """
        method = None if self.ranking else "log_density"
        check_energy(ebm, method, ", or ranking=True, which needs no normaliser")
        check_noise(noise)
        return EnergyObjective(self, ebm, noise)

    def differentiable_loss(
        self, ebm: Any, noise: Any, x: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The loss as a scalar tensor."""
        with torch.no_grad():
            given = noise_given(noise, context, x)
            log_q = given.log_prob(x)
            draws, log_q_draws = draw(given, self._sample_shape(given, x))
        of_data, of_noise = self._scores(ebm, x, context), self._scores(ebm, draws, context)
        check_energies(of_data, log_q.shape)
        check_energies(of_noise, torch.Size((self.num_noise, *log_q.shape)), "noise")
        if self.ranking:
            return -ranking_nce(of_data - log_q, of_noise - log_q_draws).mean()
        return binary_loss(of_data - log_q, of_noise - log_q_draws)

    def _scores(self, ebm: Any, x: Tensor, context: Tensor | None) -> Tensor:
        """Log densities; for ranking without their normaliser."""
        return -energy_of(ebm, x, context) if self.ranking else ebm.log_density(x, context)

    def _sample_shape(self, given: Distribution, x: Tensor) -> torch.Size:
        batch = batch_of(given, x)
        if self.share_noise:
            if given.batch_shape != ():
                raise ValueError(
                    f"share_noise draws one set for all data, but the noise depends on the datum: "
                    f"its batch shape is {tuple(given.batch_shape)}. Leave share_noise=False."
                )
            return torch.Size((self.num_noise, *(1 for _ in batch)))
        missing = batch if given.batch_shape == () else ()
        return torch.Size((self.num_noise, *missing))


def binary_loss(logits: Tensor, noise_logits: Tensor) -> Tensor:
    r"""Cross-entropy of data ``(*batch)`` against noise ``(num_noise, *batch)``.

    Args:
        logits: :math:`\log p / q` of the data, without the offset :math:`\log \nu`.
        noise_logits: that of the noise.
    """
    offset = math.log(len(noise_logits))
    noise_terms = logsigmoid(offset - noise_logits).sum(0)
    return -(logsigmoid(logits - offset).mean() + noise_terms.mean())
