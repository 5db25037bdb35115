"""Contrastive bounds as pure functions of log-weights and scores."""

import math

import torch
from torch import Tensor


def ranking_nce(log_w_positive: Tensor, log_w_negative: Tensor) -> Tensor:
    r"""Ranking noise-contrastive estimation: the log probability of picking the datum out of noise.

    .. math::

        \log \frac{w(x)}{w(x) + \sum_{j=2}^K w(x_j)} \le 0, \qquad
        x \sim p, \quad x_{2:K} \sim \pi

    Its mean is maximal where :math:`w \propto p / \pi`. Added to :math:`\log \pi(x) + \log K` it is
    the lower bound that :class:`~pyro_ext.distributions.SelfNormalizedImportance` reports as
    ``log_prob`` with the proposals :math:`x_{2:K}`: training an energy-inspired model is ranking
    its data above its proposals.

    Args:
        log_w_positive: :math:`\log w(x)` of the data, in nats.
        log_w_negative: :math:`\log w(x_j)` of the noise, leftmost, shared or for each datum.

    Shape:
        ``(*batch), (K - 1, *batch) -> (*batch)``, or broadcastable; nats.

    Raises:
        ValueError: if the noise has no dimension of its own.

    References:
        Ma and Collins, *Noise Contrastive Estimation and Negative Sampling for Conditional
        Models*, arXiv 1809.01812. Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265, for
        the identity.

    Example:
        >>> ranking_nce(torch.tensor(0.0), torch.zeros(3)).exp()
        tensor(0.2500)
    """
    if log_w_negative.dim() < 1:
        raise ValueError(
            "ranking_nce takes log-weights of noise (K - 1, *batch), with the noise leftmost, got "
            f"shape {tuple(log_w_negative.shape)}."
        )
    shared = log_w_negative.logsumexp(0)
    return log_w_positive - torch.logaddexp(log_w_positive, shared)


def info_nce(scores: Tensor) -> Tensor:
    r"""InfoNCE, or contrastive predictive coding: a lower bound on mutual information.

    .. math::

        I(x; y) \ge \mathbb{E} \Bigl[ \frac1K \sum_{i=1}^K
            \log \frac{e^{f(x_i, y_i)}}{\frac1K \sum_j e^{f(x_i, y_j)}} \Bigr], \qquad
        (x_i, y_i) \sim p(x, y)

    The mean of :func:`ranking_nce` over the rows, plus :math:`\log K`: for each :math:`x_i` the
    other :math:`y_j` of the batch are the noise, drawn from the marginal of :math:`y`. It is the
    log-likelihood ratio :math:`\log p(y \mid x) / p(y)` of an energy-inspired model with the
    proposal :math:`p(y)` and the energy :math:`-f(x, y)`, and never more than :math:`\log K`,
    however large the information is. The best score is :math:`\log p(y \mid x) - \log p(y)`, up to
    any function of :math:`x`.

    Args:
        scores: :math:`f(x_i, y_j)` in nats; pairs that belong together are on the diagonal.

    Shape:
        ``(*batch, K, K) -> (*batch)``, nats.

    Raises:
        ValueError: if the last two dimensions are not a square.

    References:
        van den Oord, Li and Vinyals, *Representation Learning with Contrastive Predictive Coding*,
        arXiv 1807.03748.

    Example:
        >>> info_nce(torch.tensor([[9.0, 0.0], [0.0, 9.0]]))  # the logarithm of 2, almost
        tensor(0.6930)
    """
    if scores.dim() < 2 or scores.shape[-1] != scores.shape[-2] or scores.shape[-1] < 1:
        raise ValueError(
            "info_nce takes a square of scores f(x_i, y_j), pairs on the diagonal, got shape "
            f"{tuple(scores.shape)}."
        )
    matched = scores.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return matched.mean(-1) + math.log(scores.shape[-1])
