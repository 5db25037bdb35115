"""Whether the probabilities of a classifier come true."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext.ops.counts import count
from pyro_ext.ops.log_weights import log_mean_exp


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    r"""Scores of predicted probabilities, and how confidence and accuracy agree.

    .. math::

        \mathrm{NLL} = -\frac{1}{N} \sum_n \log p_{n y_n}, \qquad
        \mathrm{Brier} = \frac{1}{N} \sum_n \sum_c (p_{nc} - \mathbb{1}[y_n = c])^2, \qquad
        \mathrm{ECE} = \sum_b \frac{N_b}{N} \lvert \mathrm{acc}_b - \mathrm{conf}_b \rvert

    where bin :math:`b` holds the predictions whose confidence, the largest probability, lies in the
    :math:`b`-th of equal parts of [0, 1]. AURC is the mean error rate among the :math:`k` most
    confident predictions over all :math:`k`, on average over the order of equal confidences: it
    judges their order alone.

    ECE is biased upwards where bins hold few predictions, and zero for a constant that happens to
    be right on average: read it beside NLL and Brier, which no such constant wins.

    Made by :func:`calibration`. Printing it prints one line.

    Attributes:
        accuracy: fraction of predictions whose most probable class is right.
        nll: in nats per datum; infinite if what happened had probability zero.
        brier: between 0 and 2.
        ece: between 0 and 1.
        aurc: between 0 and 1.
        bin_counts: :math:`N_b`, ``(bins,)``.
        bin_confidence: :math:`\mathrm{conf}_b`, mean confidence; NaN in an empty bin.
        bin_accuracy: :math:`\mathrm{acc}_b`; NaN in an empty bin.

    References:
        Guo et al., *On Calibration of Modern Neural Networks*, arXiv 1706.04599; Geifman, Uziel and
        El-Yaniv, *Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers*,
        arXiv 1805.08206 (AURC).
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    aurc: float
    bin_counts: Tensor
    bin_confidence: Tensor
    bin_accuracy: Tensor

    def __repr__(self) -> str:
        return (
            f"{int(self.bin_counts.sum())} predictions: accuracy {self.accuracy:.4f}, "
            f"NLL {self.nll:.4f} nats, Brier {self.brier:.4f}, ECE {self.ece:.4f}, "
            f"AURC {self.aurc:.4f}"
        )

    def plot(self, axis: Any = None) -> Any:
        """The reliability diagram: accuracy over confidence, points as large as their bins.

        Args:
            axis: of matplotlib; a new one if not given.

        Returns:
            The axis.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        axis = _axis() if axis is None else axis
        full = self.bin_counts > 0
        shares = self.bin_counts[full] / self.bin_counts.sum()
        axis.plot([0, 1], [0, 1], color="gray", linewidth=1)
        axis.plot(self.bin_confidence[full], self.bin_accuracy[full], color="C0", linewidth=1)
        axis.scatter(self.bin_confidence[full], self.bin_accuracy[full], s=10 + 300 * shares)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axis.set_title(f"ECE {self.ece:.3f}")
        return axis


def calibration(log_probs: Tensor, labels: Tensor, num_bins: int = 15) -> Calibration:
    r"""Scores a classifier's predictions against what happened.

    Predictions of several draws of a network are averaged first, as the posterior predictive asks:

    .. math:: p_{nc} = \frac{1}{K} \sum_k p(c \mid x_n, w_k)

    Args:
        log_probs: log probabilities ``(N, C)``, or ``(K, N, C)`` of ``K`` draws, in nats; such as
            ``logits.log_softmax(-1)``.
        labels: the classes that happened, ``(N,)``, integers from 0.
        num_bins: of the confidence.

    Raises:
        ValueError: if shapes or labels do not fit, if there are no data, or if probabilities do
            not sum to one.

    Example:
        >>> log_probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).log()
        >>> calibration(log_probs, torch.tensor([0, 1, 1]), num_bins=5)
        3 predictions: accuracy 0.6667, NLL 0.4149 nats, Brier 0.2733, ECE 0.3000, AURC 0.1111
    """
    num_bins = count(num_bins, "num_bins")
    log_probs = _check(log_probs, labels)
    confidence, predicted = log_probs.exp().max(-1)
    right = (predicted == labels).to(log_probs.dtype)
    bins = (confidence * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)
    counts = torch.bincount(bins, minlength=num_bins)
    conf, acc = (_bin_means(part, bins, counts) for part in (confidence, right))
    gaps = counts / len(labels) * (acc - conf).abs().nan_to_num()
    return Calibration(
        accuracy=right.mean().item(),
        nll=-log_probs.gather(1, labels[:, None]).mean().item(),
        brier=_brier(log_probs.exp(), labels),
        ece=gaps.sum().item(),
        aurc=_aurc(confidence, right),
        bin_counts=counts.cpu(),
        bin_confidence=conf.cpu(),
        bin_accuracy=acc.cpu(),
    )


def _check(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Log probabilities of the mixture of draws, in double precision."""
    if (
        log_probs.dim() not in (2, 3)
        or not log_probs.shape[-2]
        or not log_probs.is_floating_point()
    ):
        raise ValueError(
            "log_probs must be of shape (N, C), or (K, N, C) with K draws, and floating-point, got "
            f"{tuple(log_probs.shape)} of {log_probs.dtype}."
        )
    num_data, num_classes = log_probs.shape[-2:]
    if labels.shape != (num_data,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape ({num_data},), got {tuple(labels.shape)} of "
            f"{labels.dtype}."
        )
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(f"labels must lie in 0 to {num_classes - 1}.")
    total = log_probs.double().logsumexp(-1)
    if not (total.abs() < 1e-3).all():
        raise ValueError(
            f"Probabilities must sum to one, but the log of a sum is {total.abs().max():.3g}. Pass "
            "logits.log_softmax(-1)."
        )
    log_probs = (log_probs.double() - total.unsqueeze(-1)).detach()
    return log_probs if log_probs.dim() == 2 else log_mean_exp(log_probs)


def _bin_means(values: Tensor, bins: Tensor, counts: Tensor) -> Tensor:
    sums = values.new_zeros(len(counts)).index_add(0, bins, values)
    return torch.where(counts > 0, sums / counts, math.nan)


def _brier(probs: Tensor, labels: Tensor) -> float:
    happened = torch.nn.functional.one_hot(labels.long(), probs.shape[1])
    return (probs - happened).square().sum(1).mean().item()


def _aurc(confidence: Tensor, right: Tensor) -> float:
    """Predictions of the same confidence, in whatever order, have the mean of their errors."""
    _, tie, counts = confidence.unique(return_inverse=True, return_counts=True)
    wrong = _bin_means(1 - right, tie, counts)[tie]
    total = wrong[confidence.argsort(descending=True)].cumsum(0)
    return (total / torch.arange(1, len(total) + 1, device=total.device)).mean().item()


def _axis() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("This needs matplotlib: pip install 'pyro-ext[demo]'.") from error
    return plt.subplots(figsize=(4, 4), layout="constrained")[1]
