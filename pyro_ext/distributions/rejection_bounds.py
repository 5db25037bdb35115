"""Two ways to bound the density of a truncated rejection sampler: sum the index out, or guess it.

Each turns logits of candidates into auxiliaries, freshly drawn or those of a simulation, and these
into the logarithm of a weight over the proposal's density.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_ext.distributions.proposals import align, choose, others
from pyro_ext.ops.truncated_geometric import geometric_index, mean_rejection_sum


class Auxiliaries(NamedTuple):
    """What a bound needs of the candidates but the one returned."""

    terms: tuple[Tensor, ...]  # (num, *batch) each
    log_q: Tensor | float = 0.0  # (*batch): log density of the whole draw, up to a constant

    def aligned(self, batch_dim: int) -> list[Tensor]:
        """The terms, broadcasting against ``(*batch)``."""
        return [align(term, batch_dim) for term in self.terms]


class SummedIndex(NamedTuple):
    """Sums out how many of the others were tried first, and at which of them the tries began."""

    def fresh(self, logit: Tensor) -> Auxiliaries:
        """From logits ``(T - 1, num, *batch)`` of the others: logs of ``S`` and ``P``."""
        log_rejects = logsigmoid(-logit)
        return Auxiliaries((mean_rejection_sum(log_rejects.exp()).log(), log_rejects.sum(0)))

    def of_draw(self, logit: Tensor, index: Tensor) -> Auxiliaries:
        """From logits ``(T, *batch)`` of all, and the index of the accepted one."""
        return self.fresh(others(logit, index).unsqueeze(1))

    def log_ratio(self, log_accept: Tensor, auxiliaries: Auxiliaries) -> Tensor:
        """Log-weights ``(num, *batch)`` at ``log a(x)``, over the proposal's density."""
        log_sum, log_product = auxiliaries.aligned(log_accept.dim())
        return torch.logaddexp(log_accept + log_sum, log_product)


class GuessedIndex(NamedTuple):
    """Guesses the index as if each try were accepted with the same probability."""

    reverse_logit: Tensor | float
    num_tries: int

    def fresh(self, logit: Tensor) -> Auxiliaries:
        """From logits ``(T - 1, num, *batch)`` of the others: the mean log rejection."""
        return Auxiliaries((logsigmoid(-logit).mean(0),))

    def of_draw(self, logit: Tensor, index: Tensor) -> Auxiliaries:
        """From logits ``(T, *batch)`` of all, and the index of the accepted one."""
        log_rejected, _ = log_index(logit, index)
        return Auxiliaries((log_rejected.unsqueeze(0), index.to(logit.dtype).unsqueeze(0)))

    def log_ratio(self, log_accept: Tensor, auxiliaries: Auxiliaries) -> Tensor:
        """Log-weights ``(num, *batch)`` at ``log a(x)``, over the proposal's density."""
        reverse = torch.as_tensor(
            self.reverse_logit, dtype=log_accept.dtype, device=log_accept.device
        )
        log_reject = logsigmoid(-reverse)
        log_total, mean = geometric_index(log_accept, log_reject, self.num_tries)
        terms = auxiliaries.aligned(log_accept.dim())
        if len(terms) == 1:
            return log_total + (terms[0] - log_reject) * mean
        return log_total + terms[0] - log_reject * terms[1]


def log_index(logit: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of the rejections before ``index (*batch)``, and of the index itself.

    The last of the candidates with logits ``(T, *batch)`` is accepted anyway.
    """
    tries = torch.arange(len(logit), device=logit.device).reshape(-1, *(1,) * index.dim())
    log_rejected = logsigmoid(-logit).where(tries < index, 0.0).sum(0)
    log_accept = logsigmoid(choose(logit, index)).where(index < len(logit) - 1, 0.0)
    return log_rejected, log_rejected + log_accept
