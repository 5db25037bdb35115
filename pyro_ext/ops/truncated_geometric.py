"""Formulas of truncated rejection: sums over the number of rejected tries."""

import torch
from torch import Tensor


def log_geometric_sum(probs: Tensor, num_terms: int) -> Tensor:
    r"""Logarithm of a finite geometric series, without cancellation.

    .. math:: \log \sum_{i=0}^{n-1} (1 - Z)^i = \log \frac{1 - (1 - Z)^n}{Z}

    which is the expected number of tries if each is accepted with probability :math:`Z` and the
    :math:`n`-th at the latest. At :math:`Z = 0` it is :math:`\log n`.

    Args:
        probs: :math:`Z \in [0, 1]`.
        num_terms: :math:`n \ge 1`.

    Shape:
        Any, kept.

    Example:
        >>> log_geometric_sum(torch.tensor([0.0, 0.5, 1.0]), 2).exp()
        tensor([2.0000, 1.5000, 1.0000])
    """
    probs = _inside(probs)
    return (-torch.expm1(num_terms * torch.log1p(-probs)) / probs).log()


def log_truncated_ratio(log_accept: Tensor, probs: Tensor, num_tries: int) -> Tensor:
    r"""Logarithm of a truncated rejection sampler's density over that of its proposal.

    .. math:: \log \Bigl( a(x) \frac{1 - (1 - Z)^{T-1}}{Z} + (1 - Z)^{T-1} \Bigr)

    Args:
        log_accept: :math:`\log a(x)`.
        probs: :math:`Z \in [0, 1]`, the mean acceptance.
        num_tries: :math:`T \ge 1`, the last of which is never rejected.

    Shape:
        Those of ``log_accept`` and ``probs``, broadcast.

    Example:
        >>> log_truncated_ratio(torch.tensor(0.9).log(), torch.tensor(0.6), 2).exp()
        tensor(1.3000)
    """
    if num_tries == 1:
        return torch.zeros_like(log_accept + probs)
    forced = (num_tries - 1) * torch.log1p(-_inside(probs))
    return torch.logaddexp(log_accept + log_geometric_sum(probs, num_tries - 1), forced)


def mean_rejection_sum(rejects: Tensor) -> Tensor:
    r"""Sum over the number of rejections that came first, averaged over cyclic orders.

    .. math:: \frac1n \sum_{s=0}^{n-1} \sum_{i=0}^{n-1} \prod_{j=1}^{i} b_{(s + j) \bmod n}

    A window is put together from two of half its length, and one more term if that is odd, so
    that there are only positive terms, :math:`O(n \log n)` of them, and the rounding error grows
    like :math:`\log n`. Products may underflow: they stand beside a one.

    Args:
        rejects: probabilities of rejection :math:`b_j \in [0, 1]`, the candidates leftmost.

    Shape:
        ``(n, *batch) -> (*batch)``, with :math:`n \ge 1`.

    Example:
        >>> mean_rejection_sum(torch.tensor([0.5, 0.25]))
        tensor(1.3750)
    """
    length = 1
    total, product = torch.ones_like(rejects), rejects  # windows of one
    for bit in bin(len(rejects))[3:]:
        total = total + product * total.roll(-length, 0)
        product = product * product.roll(-length, 0)
        length *= 2
        if bit == "1":
            total = 1 + rejects * total.roll(-1, 0)
            product = rejects * product.roll(-1, 0)
            length += 1
    return total.mean(0)


def geometric_index(
    log_accept: Tensor, log_reject: Tensor, num_tries: int
) -> tuple[Tensor, Tensor]:
    r"""Log normaliser and mean of a geometric guess at which try was accepted.

    .. math::

        q(i \mid x) = \frac{1}{N} \begin{cases} r^i a(x) & i < T - 1 \\ r^i & i = T - 1 \end{cases}

    Args:
        log_accept: :math:`\log a(x)`.
        log_reject: :math:`\log r \le 0`.
        num_tries: :math:`T \ge 2`.

    Returns:
        :math:`\log N(x)` and :math:`\mathbb{E}_q[i]`.

    Shape:
        Those of ``log_accept`` and ``log_reject``, broadcast.

    Example:
        >>> log_total, mean = geometric_index(torch.tensor(0.0), torch.tensor(0.5).log(), 3)
        >>> log_total.exp(), mean
        (tensor(1.7500), tensor(0.5714))
    """
    last = num_tries - 1
    index = torch.arange(last, dtype=log_reject.dtype, device=log_reject.device)
    powers = index * log_reject.unsqueeze(-1)  # (*batch, T - 1)
    forced = last * log_reject
    log_total = torch.logaddexp(log_accept + powers.logsumexp(-1), forced)
    early = (log_accept - log_total).exp() * (index * powers.exp()).sum(-1)
    return log_total, early + last * (forced - log_total).exp()


def _inside(probs: Tensor) -> Tensor:
    """Moves 0 and 1, where derivatives are not finite, by less than rounding does."""
    info = torch.finfo(probs.dtype)
    return probs.clamp(info.tiny, 1 - info.eps / 2)
