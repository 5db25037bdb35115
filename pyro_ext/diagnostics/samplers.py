"""What a sampler's own draws say about its bounds and its work."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_ext.diagnostics.sampler_kinds import kind_of
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.ops.counts import count

BLOCK = 2**18  # numbers that the draws of one run hold; networks inside hold many times more
TIGHT, LOOSE = 0.1, 1.0  # nats


@dataclass(frozen=True, eq=False, repr=False)
class SamplerDiagnostics:
    """Averages over a sampler's own draws, with standard errors; printing it prints the verdict.

    Made by :func:`sampler_diagnostics`, which says what the statistics are.

    Attributes:
        statistics: the averages by name, each of the shape of the sampler's batch.
        standard_errors: theirs, over independent draws; NaN for a single one.
        summary: what they say in words.
    """

    statistics: dict[str, Tensor]
    standard_errors: dict[str, Tensor]
    summary: str

    @property
    def verdict(self) -> str:
        """One line in plain words.

        By the largest gap of the batch: "Exact" if there is none, "Tight" up to 0.1 nats, "Loose"
        up to 1 nat, else "Very loose"; "No bounds to compare" if the sampler has no upper one.
        """
        if "gap" not in self.statistics:
            return f"No bounds to compare: {self.summary}."
        gap, error = self.statistics["gap"], self.standard_errors["gap"]
        if not gap.any():
            return f"Exact: {self.summary}."
        worst = f", at most {gap.max():.2g}" if gap.numel() > 1 else ""
        return (
            f"{self._advice}: {gap.mean():.2g} +- {error.mean():.1g} nats{worst} between the "
            f"bounds at the sampler's own draws; {self.summary}."
        )

    @property
    def _advice(self) -> str:
        largest = self.statistics["gap"].max()
        if largest <= TIGHT:
            return "Tight"
        return "Loose" if largest <= LOOSE else "Very loose"

    def __repr__(self) -> str:
        return self.verdict


def sampler_diagnostics(distribution: Any, num_draws: int = 1000) -> SamplerDiagnostics:
    r"""Says how loose the bounds of a stochastic density are, and how well its sampler works.

    .. math::

        \mathrm{gap} = \mathbb{E}_{x \sim p} \bigl[ \mathbb{E}[\mathrm{upper}(x)]
        - \mathbb{E}[\mathrm{lower}(x)] \bigr]
        \ge \mathbb{E}_{x \sim p} \bigl[ \log p(x) - \mathbb{E}[\mathrm{lower}(x)] \bigr] \ge 0

    On average over the sampler's own draws, ``log_prob`` is low by at most the gap, in nats; it is
    zero for an exact density and falls with ``.tight(num)``. At values that the sampler seldom
    draws, such as data that it does not fit, ``log_prob`` may be low by more. Besides, there is

    - of :class:`~pyro_ext.distributions.SelfNormalizedImportance`: ``effective_proposals``, Kish's
      :math:`(\sum_k w_k)^2 / \sum_k w_k^2 \in [1, K]` of the weights of its candidates, and
      ``largest_share``, :math:`\max_k w_k / \sum_k w_k`. Near 1 both, a draw is the only candidate
      that counts: the proposal misses the energy's valleys.
    - of :class:`~pyro_ext.distributions.TruncatedRejection` and
      :class:`~pyro_ext.distributions.LearnedAcceptReject`: ``acceptance_rate``, :math:`Z`;
      ``tries``, :math:`(1 - (1 - Z)^T) / Z`, how many a draw needs; and ``forced``,
      :math:`(1 - Z)^{T-1}`, how often the last one is taken as it is.
    - of :class:`~pyro_ext.distributions.HamiltonianImportance`: ``effective_momenta``, Kish's
      number for the weights of 100 fresh momenta at a draw, all of which count with a perfect
      ``momentum_net``; and ``potential_change``, :math:`\mathbb{E}[U(x_T) - U(x_0)]` in nats,
      negative where the dynamics lead downhill.

    There are no gradients. Draws are independent, even where the density shares fresh
    auxiliaries or is frozen, and come in runs that hold little memory.

    Args:
        distribution: a :class:`~pyro_ext.distributions.StochasticDensity`, perhaps wrapped by its
            ``to_event`` or ``mask``; then the results are those of the density inside.
        num_draws: the number of draws of the whole batch, each with candidates of its own.

    Raises:
        ValueError: if there is no stochastic density, or ``num_draws < 1``.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.distributions import SelfNormalizedImportance
        >>> _ = torch.manual_seed(0)
        >>> proposal = dist.Normal(0.0, 1.0)
        >>> d = SelfNormalizedImportance(proposal, lambda x: (x - 1) ** 2, num_proposals=100)
        >>> sampler_diagnostics(d)
        Tight: ...
    """
    num_draws = count(num_draws, "num_draws")
    density = _independent(_unwrap(distribution))
    kind = kind_of(density)
    rows = max(1, BLOCK // max(1, density.draw_size * density._num_weights, kind.size))
    runs = []
    with torch.no_grad(), tqdm(total=num_draws, desc="draws", delay=5) as progress:
        for start in range(0, num_draws, rows):
            num = min(rows, num_draws - start)
            runs.append({**_gap(density, num), **kind.measure(num)})
            progress.update(num)
    return _summarize(runs, kind.summary)


def _unwrap(distribution: Any) -> StochasticDensity:
    density = distribution
    while not isinstance(density, StochasticDensity):
        if not hasattr(density, "base_dist"):
            raise ValueError(
                "sampler_diagnostics takes a StochasticDensity, whose log_prob is a random bound, "
                f"got {distribution!r}. An exact density needs no diagnosis."
            )
        density = density.base_dist
    return density


def _independent(density: StochasticDensity) -> Any:
    """A copy whose values share no auxiliaries."""
    new: Any = copy.copy(density)
    new._seed = None
    if hasattr(new, "share_proposals"):
        new.share_proposals = False
    return new


def _gap(density: StochasticDensity, num: int) -> dict[str, Tensor]:
    value = density.sample(torch.Size((num,)))
    try:
        upper = density.score_parts(value).log_prob
    except NotImplementedError:  # no upper bound
        return {}
    return {"gap": upper - density.log_prob(value)}


def _summarize(runs: list[dict[str, Tensor]], summary: str) -> SamplerDiagnostics:
    draws = {name: torch.cat([run[name] for run in runs]) for name in runs[0]}
    means = {name: draw.mean(0) for name, draw in draws.items()}
    errors = {name: _standard_error(draw) for name, draw in draws.items()}
    words = summary.format(**{name: mean.mean().item() for name, mean in means.items()})
    return SamplerDiagnostics(means, errors, words)


def _standard_error(draws: Tensor) -> Tensor:
    if len(draws) == 1:
        return torch.full_like(draws[0], math.nan)
    return draws.std(0) / math.sqrt(len(draws))
