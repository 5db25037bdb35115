"""Learning a conditional energy by telling contexts apart."""

import math
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_ext.infer.energy_objective import EnergyObjective, check_energy
from pyro_ext.infer.score import event_dims
from pyro_ext.ops.contrastive import info_nce


class ContextContrastive:
    r"""Learns a conditional energy by telling which context a datum came with.

    .. math::

        \mathcal L = -\frac1B \sum_n \log p_\theta(u_n \mid x_n), \qquad
        p_\theta(u \mid x) = \frac{\pi(u)\, p_\theta(x \mid u)}{\sum_v \pi(v)\, p_\theta(x \mid v)}

    By Bayes' rule this is noise-contrastive estimation in its ranking form, the noise of a context
    being the data of all others. With labels it is the cross-entropy of ``class_logits``, and
    :math:`\pi` are their frequencies: in the batch by default, which is right however frequent they
    are. Vectors are told from the vectors of the other rows,

    .. math::

        \mathcal L = -\frac1B \sum_n \log
        \frac{p_\theta(x_n \mid u_n)}{\sum_m p_\theta(x_n \mid u_m)},

    see :func:`~pyro_ext.ops.info_nce`. Either loss is minimal where :math:`p_\theta(x \mid u)` is
    the density of the data **up to a factor that depends on** :math:`x` **alone**. That determines
    the features, as far as the theorem says, and how their weights and :math:`\log Z(u)` differ
    between contexts: often better than noise of a known density does, which is seldom as close to
    the data of a context as those of the others are. It determines neither the base term nor what
    all contexts share, so that an energy trained by this alone is a classifier and **no density**:
    add an objective that has the same minimum and sees the rest,

    .. math::

        \mathcal L = \mathcal L_{contexts} + \mathcal L_{noise},

    such as :class:`NoiseContrastive`. Train them together from the start: after this alone, weights
    may be positive in all contexts, and the energy fall without bound where no data are.

    *Time-contrastive learning* is this objective alone: multinomial regression on features that are
    magnitudes, see the example. *Generalised contrastive learning* asks the same of a vector and
    one from another row as a question of yes or no.

    Args:
        frequencies: :math:`\pi` of all labels, as numbers or as counts; for many labels and small
            batches, which lack most of them. Those of the data, or else the learned normalisers
            take up the difference, and agree with no other objective. Not for vectors.

    Shape:
        the module maps ``x (*batch, *event_shape)`` and contexts to a scalar, the mean over the
        batch in nats.

    Raises:
        ValueError: if frequencies are not finite numbers :math:`\ge 0`, or none is positive; when
            called, if the ebm is no module or lacks ``class_logits`` for them; when evaluated, if
            there is no context, or not one for each datum, if the ebm lacks the method that their
            kind needs or has other labels, or, while Pyro validates, if data are not finite, all
            contexts are the same or one has a frequency of zero.

    References:
        Hyvarinen and Morioka, *Unsupervised Feature Extraction by Time-Contrastive Learning and
        Nonlinear ICA*, arXiv 1605.06336. Hyvarinen, Sasaki and Turner, *Nonlinear ICA Using
        Auxiliary Variables and Generalized Contrastive Learning*, arXiv 1805.08651. Ma and Collins,
        arXiv 1809.01812, for the ranking form.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.infer import NoiseContrastive
        >>> from pyro_ext.nn import ConditionalEnergy, EnergyNet
        >>> x, label = torch.randn(256, 2), torch.randint(5, (256,))
        >>> ebm = ConditionalEnergy(2, 2, num_classes=5, base=EnergyNet(2))
        >>> noise = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        >>> contrast, density = ContextContrastive()(ebm), NoiseContrastive(5)(ebm, noise)
        >>> optimizer = torch.optim.Adam(ebm.parameters(), lr=1e-2)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     (contrast(x, label) + density(x, label)).backward()
        ...     optimizer.step()

        Time-contrastive learning, a plain classifier:

        >>> class Magnitude(nn.Module):
        ...     def forward(self, x):
        ...         return x.abs()
        >>> net = nn.Sequential(nn.Linear(2, 20), nn.LeakyReLU(), nn.Linear(20, 2), Magnitude())
        >>> tcl = ContextContrastive()(ConditionalEnergy(2, 2, num_classes=5, feature_net=net))
        >>> tcl(x, label).backward()
    """

    def __init__(self, frequencies: Tensor | None = None):
        self.frequencies = None if frequencies is None else _check_frequencies(frequencies)

    def __call__(self, ebm: nn.Module) -> EnergyObjective:
        """The loss as a module.

        Args:
            ebm: a module with ``class_logits(x)`` for labels, or with ``log_density(x, context)``
                for vectors, that broadcasts: ``(B, 1, *event_shape)`` and ``(B, context_dim)`` make
                ``(B, B)``. :class:`~pyro_ext.nn.ConditionalEnergy` has both.
        """
        check_energy(ebm, None if self.frequencies is None else "class_logits")
        return EnergyObjective(self, ebm)

    def differentiable_loss(self, ebm: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The loss as a scalar tensor."""
        shape = x.shape[: x.dim() - len(event_dims(ebm, x))]
        context = _check_context(context, shape)
        events = x.reshape(shape.numel(), *x.shape[len(shape) :])
        if context.is_floating_point():
            return self._rank_vectors(ebm, events, context.flatten(0, len(shape) - 1))
        return self._classify(ebm, events, context.flatten())

    def _classify(self, ebm: Any, x: Tensor, labels: Tensor) -> Tensor:
        check_energy(ebm, "class_logits")
        logits, labels = ebm.class_logits(x), labels.long()
        _check_labels(labels, logits.shape[-1])
        frequencies = self._frequencies(logits, labels)
        _check_contrast(frequencies, labels)
        log_frequencies = (frequencies / frequencies.sum()).log()
        return cross_entropy(logits + log_frequencies.to(logits), labels)

    def _frequencies(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of all labels, without a sync with the device."""
        num, dtype = logits.shape[-1], torch.promote_types(logits.dtype, torch.float32)
        if self.frequencies is None:
            ones = torch.ones_like(labels, dtype=dtype)
            return ones.new_zeros(num).index_add(0, labels, ones)
        if len(self.frequencies) != num:
            raise ValueError(f"There are {len(self.frequencies)} frequencies, but {num} labels.")
        return self.frequencies.to(logits.device, dtype)

    def _rank_vectors(self, ebm: Any, x: Tensor, vectors: Tensor) -> Tensor:
        if self.frequencies is not None:
            raise ValueError("frequencies are those of labels, but the contexts are vectors.")
        check_energy(ebm, "log_density")
        if is_validation_enabled() and bool((vectors == vectors[:1]).all()):
            raise ValueError(_ONE.format("vectors"))
        return math.log(len(x)) - info_nce(ebm.log_density(x.unsqueeze(1), vectors))


_ONE = "All {} of the batch are the same: there is nothing to tell apart. Mix contexts in batches."


def _check_frequencies(frequencies: Tensor) -> Tensor:
    frequencies = torch.as_tensor(frequencies)
    is_vector = frequencies.dim() == 1 and len(frequencies) > 1
    if not (is_vector and (frequencies >= 0).all() and frequencies.isfinite().all()):
        raise ValueError(
            "frequencies are finite numbers >= 0 of two labels or more, such as "
            f"labels.bincount(), got {frequencies}."
        )
    if (frequencies > 0).sum() < 2:
        raise ValueError(f"Two labels or more must be frequent, got frequencies {frequencies}.")
    return frequencies


def _check_context(context: Tensor | None, batch: torch.Size) -> Tensor:
    """One for each datum."""
    if not isinstance(context, Tensor):
        raise ValueError(f"ContextContrastive tells contexts apart, got context={context!r}.")
    found = context.shape[:-1] if context.is_floating_point() else context.shape
    if found != batch or not batch:
        raise ValueError(
            f"Give a context for each datum: data have the batch {tuple(batch)}, but contexts "
            f"{tuple(found)}."
        )
    return context


def _check_labels(labels: Tensor, num: int) -> None:
    if is_validation_enabled() and not ((labels >= 0) & (labels < num)).all():
        raise ValueError(
            f"Labels reach from {labels.min()} to {labels.max()}, expected 0 to {num - 1}."
        )


def _check_contrast(frequencies: Tensor, labels: Tensor) -> None:
    if not is_validation_enabled():
        return
    if (frequencies > 0).sum() < 2:
        raise ValueError(_ONE.format("labels"))
    missing = labels[frequencies[labels] == 0].unique().tolist()
    if missing:
        raise ValueError(f"The labels {missing} occur, but their frequencies are zero.")
