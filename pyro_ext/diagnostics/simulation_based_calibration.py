"""Whether a procedure's posteriors have the widths that they claim."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from pyro_ext.diagnostics.arviz_sites import is_latent, is_likelihood, sites
from pyro_ext.ops.counts import count


@dataclass(frozen=True, eq=False, repr=False)
class SimulationBasedCalibration:
    """Where true values lie among posterior draws, over many simulated data sets.

    Made by :func:`simulation_based_calibration`. Printing it prints a verdict for each site.

    Attributes:
        ranks: by site, the number of posterior draws below the truth, ``(num_simulations,
            *shape)``, between 0 and ``num_draws``.
        uniforms: the ranks spread over the unit interval at random: exactly uniform if the
            posterior is exact.
        num_draws: posterior draws of each simulation.
    """

    ranks: dict[str, Tensor]
    uniforms: dict[str, Tensor]
    num_draws: int

    @property
    def p_values(self) -> dict[str, Tensor]:
        """Of the Kolmogorov-Smirnov test of each number of each site, ``(*shape)``."""
        return {name: _p_values(values) for name, values in self.uniforms.items()}

    def plot(self, name: str, ax: Any = None, level: float = 0.95) -> Any:
        """Distribution functions of a site's ranks minus that of a uniform law; returns the axis.

        The band holds a whole curve with probability ``level`` if the posterior is exact. Curves
        that fall and then rise again are of posteriors too narrow; the reverse of too wide.

        Args:
            name: of the site.
            ax: matplotlib's axis; a new one if not given.
            level: of the band.
        """
        import matplotlib.pyplot as plt
        from scipy.stats import kstwo

        ax = plt.subplots()[1] if ax is None else ax
        ordered = self.uniforms[name].reshape(len(self.uniforms[name]), -1).sort(0).values
        steps = torch.arange(1, len(ordered) + 1) / len(ordered)
        band = kstwo.ppf(level, len(ordered))
        ax.fill_between([0, 1], -band, band, alpha=0.2, color="gray", linewidth=0)
        for column in ordered.mT:
            ax.plot(column, steps - column, drawstyle="steps-post", linewidth=1)
        ax.set(xlabel="rank of the truth", ylabel="ECDF - uniform", title=name, xlim=(0, 1))
        return ax

    def __repr__(self) -> str:
        rows = [f"  {name}: {_verdict(values)}" for name, values in self.p_values.items()]
        sizes = f"{len(next(iter(self.ranks.values())))} simulations of {self.num_draws} draws"
        return "\n".join([f"simulation-based calibration, {sizes}", *rows])


def simulation_based_calibration(
    model: Callable,
    posterior: Callable[[dict[str, Tensor]], Any],
    *args,
    num_simulations: int = 300,
    num_draws: int = 99,
    **kwargs,
) -> SimulationBasedCalibration:
    r"""Draws truths from the prior and data from them, and ranks truths among posterior draws.

    .. math::

        \theta \sim p(\theta), \quad x \sim p(x \mid \theta), \quad
        \theta_l \sim q(\theta \mid x), \qquad
        r = \sum_{l=1}^L \mathbb 1[\theta_l < \theta]

    If :math:`q` is the posterior, :math:`r` is uniform on :math:`0, \dots, L`, for each number of
    each latent site. The converse is not true: a posterior that never looks at the data, and is
    the prior, has uniform ranks too.

    Args:
        model: a Pyro model; its data are drawn anew.
        posterior: from the simulated data, by observed site, to a guide without arguments, or to
            draws ``(num_draws, *shape)`` by latent site. An amortised guide is
            ``lambda data: partial(guide, data["x"])``; otherwise it fits one and returns it.
        *args: arguments of the model, such as data of the right shape.
        num_simulations: data sets.
        num_draws: :math:`L`, independent; of a Markov chain thinned ones.
        **kwargs: keyword arguments of the model.

    Raises:
        ValueError: if a number is not positive, or the posterior is neither, lacks a site, or
            has draws of another shape.

    References:
        Talts et al., *Validating Bayesian Inference Algorithms with Simulation-Based Calibration*,
        arXiv 1804.06788.

    Example:
        >>> from functools import partial
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x / 2, 0.1))
        >>> narrow = simulation_based_calibration(
        ...     model, lambda data: partial(guide, data["x"]), torch.tensor(0.0), num_simulations=50
        ... )
        >>> bool(narrow.p_values["z"] < 1e-3)
        True
    """
    count(num_simulations, "num_simulations")
    count(num_draws, "num_draws")
    found = []
    for _ in tqdm(range(num_simulations), desc="simulations", delay=5):
        truth, data = _simulate(model, args, kwargs)
        found.append(_ranks(truth, _draws(posterior(data), list(truth), num_draws)))
    ranks = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    spread = {name: (r + torch.rand(r.shape)) / (num_draws + 1) for name, r in ranks.items()}
    return SimulationBasedCalibration(ranks, spread, num_draws)


@torch.no_grad()
def _simulate(model: Callable, args: Any, kwargs: Any) -> tuple[dict[str, Tensor], ...]:
    """Latent values and data of one draw of the model."""
    trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    return tuple(
        {site["name"]: site["value"] for site in sites(trace) if is_kind(site)}
        for is_kind in (is_latent, is_likelihood)
    )


@torch.no_grad()
def _draws(drawn: Any, names: list[str], num_draws: int) -> dict[str, Tensor]:
    if isinstance(drawn, Mapping):
        _check_sites(names, drawn)
        return {name: drawn[name] for name in names}
    if not callable(drawn):
        raise ValueError(
            f"posterior returned {type(drawn).__name__}, expected a guide without arguments, or a "
            "dictionary of draws."
        )
    traces: Any = [poutine.trace(drawn).get_trace() for _ in range(num_draws)]
    _check_sites(names, traces[0])
    return {name: torch.stack([t.nodes[name]["value"] for t in traces]) for name in names}


def _check_sites(names: list[str], drawn: Any) -> None:
    missing = [name for name in names if name not in drawn]
    if missing:
        raise ValueError(f"The posterior draws no {missing}, latent sites of the model.")


def _ranks(truth: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """How many draws are below the truth; where some are equal, a random share of these."""
    ranks = {}
    for name, true in truth.items():
        if draws[name].shape[1:] != true.shape:
            raise ValueError(
                f"Posterior draws of '{name}' have shape {tuple(draws[name].shape[1:])}, but the "
                f"model's {tuple(true.shape)}."
            )
        below, equal = (draws[name] < true).sum(0).cpu(), (draws[name] == true).sum(0).cpu()
        ranks[name] = below + (torch.rand(equal.shape) * (equal + 1)).long()
    return ranks


def _p_values(uniforms: Tensor) -> Tensor:
    from scipy.stats import kstest

    columns = uniforms.reshape(len(uniforms), -1).double().numpy().T
    found = [kstest(column, "uniform").pvalue for column in columns]
    return torch.tensor(found, dtype=torch.float64).reshape(uniforms.shape[1:])


def _verdict(p_values: Tensor) -> str:
    """By the smallest p-value, multiplied by their number."""
    lowest = min(1.0, float(p_values.min()) * p_values.numel())
    advice = "not calibrated" if lowest < 0.01 else "no sign of miscalibration"
    numbers = f"{p_values.numel()} numbers" if p_values.numel() > 1 else "1 number"
    return f"{advice}: smallest p-value of {numbers}, Bonferroni-corrected, {lowest:.2g}"
