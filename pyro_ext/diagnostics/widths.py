"""How many units the gates of a network leave open."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_ext.nn.l0_gate import L0Gate


@dataclass(frozen=True, eq=False, repr=False)
class WidthPosterior:
    r"""The distribution of the number of open gates, exactly.

    .. math:: P(n) = P\Bigl(\sum_j \mathbb{1}[z_j \ne 0] = n\Bigr)

    with independent gates, whose numbers follow a Poisson-binomial law.

    Attributes:
        probs: :math:`P(n)` for :math:`n = 0, \dots`, ``(units + 1,)``.
    """

    probs: Tensor

    @property
    def mean(self) -> float:
        """The expected number of open gates."""
        return (self.probs @ self._numbers).item()

    @property
    def stddev(self) -> float:
        """The standard deviation of their number."""
        return (self.probs @ (self._numbers - self.mean).square()).clamp(min=0).sqrt().item()

    def quantile(self, prob: float) -> int:
        """The smallest number that is not exceeded with this probability.

        Raises:
            ValueError: if it is none.
        """
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in [0, 1], got {prob}.")
        return int((self.probs.cumsum(0) < prob - 1e-12).sum().clamp(max=len(self.probs) - 1))

    def __repr__(self) -> str:
        return (
            f"{self.mean:.1f} +- {self.stddev:.1f} of {len(self.probs) - 1} open, 90 % within "
            f"{self.quantile(0.05)} to {self.quantile(0.95)}"
        )

    @property
    def _numbers(self) -> Tensor:
        return torch.arange(len(self.probs), dtype=self.probs.dtype, device=self.probs.device)


@torch.no_grad()
def width_posterior(network_or_guide: Callable, *args: Any) -> dict[str, WidthPosterior]:
    r"""How many units of each layer are open, under the gates' own distribution.

    Args:
        network_or_guide: a module with :class:`~pyro_ext.nn.L0Gate` in it; or a Pyro guide, or a
            network of :func:`~pyro_ext.infer.bayesianize`, which brings one. Its
            sites count if their distributions have ``prob_nonzero``, such as
            :class:`~pyro_ext.distributions.HardConcrete`.
        *args: arguments of a guide.

    Returns:
        One distribution for each set of gates, by the name of the module or site.

    Raises:
        ValueError: if there is no gate.

    Example:
        >>> from pyro_ext.nn import L0Linear
        >>> network = nn.Sequential(L0Linear(100, 50), nn.ReLU(), L0Linear(50, 10))
        >>> width_posterior(network)["0.gate"]
        83.2 +- 3.7 of 100 open, 90 % within 77 to 89
    """
    probs = _gates(network_or_guide) if isinstance(network_or_guide, nn.Module) else {}
    if not probs and _may_draw(network_or_guide):
        probs = _sites(getattr(network_or_guide, "guide", network_or_guide), args)
    if not probs:
        raise ValueError(
            "There is no gate: neither a module L0Gate, nor a guide's site whose distribution has "
            "prob_nonzero."
        )
    return {name: WidthPosterior(_poisson_binomial(prob)) for name, prob in probs.items()}


def _gates(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: module.prob_nonzero()
        for name, module in network.named_modules()
        if isinstance(module, L0Gate)
    }


def _may_draw(network_or_guide: Callable) -> bool:
    """Whether this is a program of Pyro: modules of torch alone draw nothing."""
    plain = isinstance(network_or_guide, nn.Module) and not isinstance(network_or_guide, PyroModule)
    return not plain


def _sites(guide: Callable, args: tuple) -> dict[str, Tensor]:
    found = {}
    for name, site in poutine.trace(guide).get_trace(*args).nodes.items():
        law: Any = site.get("fn") if site["type"] == "sample" else None
        while not hasattr(law, "prob_nonzero") and hasattr(law, "base_dist"):
            law = law.base_dist
        if hasattr(law, "prob_nonzero"):
            found[name] = law.prob_nonzero.detach()
    return found


def _poisson_binomial(probs: Tensor) -> Tensor:
    """Convolves the numbers of one gate after the other; none of its terms is negative."""
    flat = probs.detach().double().flatten().cpu()
    law = torch.zeros(len(flat) + 1, dtype=torch.double)
    law[0] = 1.0
    for prob in flat:
        law[1:] = law[1:] * (1 - prob) + law[:-1] * prob
        law[0] *= 1 - prob
    return law
