"""Stochastic densities whose auxiliaries are sites of their own."""

from collections.abc import Collection
from functools import partial
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ext.distributions.auxiliary_sites import forwards
from pyro_ext.distributions.stochastic_density import StochasticDensity
from pyro_ext.poutine.cut_messenger import innermost

Sites = Collection[str] | None

DENSITY = "_stochastic_density"  # in the infer of a site: what has drawn the value


class ForwardMessenger(Messenger):
    """Draws auxiliaries before the site of a stochastic density, and the value given them."""

    def __init__(self, sites: Sites = None):
        super().__init__()
        if isinstance(sites, str):
            raise ValueError(f"sites is a collection of names, got '{sites}'. Give ['{sites}'].")
        self.sites = sites
        self.named: set[str] = set()

    def __enter__(self):
        self.named.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if is_named(msg, self.sites):
            density = msg["fn"]
            self.named.add(msg["name"])
            msg["fn"] = forwards(density, partial(sample_auxiliary, msg["name"]))
            msg["infer"] = {**msg["infer"], DENSITY: density}


class NamedAuxiliariesMessenger(ForwardMessenger):
    r"""Spells a program's stochastic densities out: auxiliaries become sites of their own.

    .. math:: x \sim \int p(a)\, p(x \mid a)\, da
        \qquad \longrightarrow \qquad a \sim p(a), \quad x \sim p(x \mid a)

    Values are distributed as before. A site ``x`` gets the company of

    - ``x_candidates`` of event shape ``(K, *event_shape)`` and ``x_index``, from
      :class:`~pyro_ext.distributions.SelfNormalizedImportance` and
      :class:`~pyro_ext.distributions.TruncatedRejection`; ``x`` is the candidate at the index;
    - ``x_phase`` of event shape ``(2, *event_shape)``, where the path ends in position and
      momentum, from :class:`~pyro_ext.distributions.HamiltonianImportance`; ``x`` is the position;
    - ``x_mixing``, the mixing variable of :class:`~pyro_ext.distributions.SemiImplicit`.

    This is for one program, to look at draws. For inference see :func:`named_auxiliaries`.

    Args:
        sites: names of sites with stochastic densities; all of them if not given.

    Raises:
        ValueError: if ``sites`` is a string; when run, if one of ``sites`` has no stochastic
            density, if a density is of another class, is ``tight`` or ``frozen``, or has a
            proposal whose own density is only a bound.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_ext.distributions import SelfNormalizedImportance
        >>> def program():
        ...     return pyro.sample("x", SelfNormalizedImportance(dist.Normal(0.0, 1.0), abs, 5))
        >>> trace = pyro.poutine.trace(NamedAuxiliariesMessenger()(program)).get_trace()
        >>> candidates, index, x = (trace.nodes[n]["value"] for n in list(trace)[1:4])
        >>> candidates.shape, bool(x == candidates[index])
        (torch.Size([5]), True)
    """

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            refuse_unmet(self.sites, self.named)


def is_named(msg: Any, sites: Sites) -> bool:
    """Whether the site has a stochastic density and is among those asked for."""
    density = innermost(msg["fn"])
    if not isinstance(density, StochasticDensity) or (
        sites is not None and msg["name"] not in sites
    ):
        return False
    if density._num_weights > 1 or density._seed is not None:
        raise ValueError(
            f"Site '{msg['name']}' has a density that was made tight() or frozen(), but named "
            "auxiliaries make one random weight. Name those of the density itself."
        )
    return True


def refuse_unmet(sites: Sites, named: set[str]) -> None:
    """Raises if auxiliaries are asked for that there are not."""
    unmet = sorted(set(sites or ()) - named)
    if unmet:
        raise ValueError(
            f"The sites {unmet} have no auxiliaries: there is no stochastic density of that name. "
            f"Those with auxiliaries are {sorted(named)}."
        )


def sample_auxiliary(site: str, name: str, fn: Any, infer: Any = None) -> Tensor:
    """Draws an auxiliary of a site."""
    return pyro.sample(f"{site}_{name}", fn, infer=infer)
