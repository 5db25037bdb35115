"""Model and guide that both name the auxiliaries of their stochastic densities."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_messenger import TraceMessenger

from pyro_ext.distributions.auxiliary_sites import backwards
from pyro_ext.poutine.named_auxiliaries_messenger import (
    DENSITY,
    ForwardMessenger,
    Sites,
    is_named,
    refuse_unmet,
    sample_auxiliary,
)

BACKWARDS = "_is_backwards"  # in the infer of a site: it was drawn given a value


def named_auxiliaries(
    model: Callable, guide: Callable, sites: Sites = None
) -> tuple[Callable, Callable]:
    r"""Spells the stochastic densities of a model and its guide out, for any objective.

    A stochastic density :math:`p(x) = \int p(x, a)\, da` of one program is met by a conditional
    :math:`r(a \mid x)` in the other, so that both have the same sites:

    .. math::

        \text{in the model}: \quad & \mathbb{E}_{q(x)\, r(a \mid x)} \bigl[
            \log p(y \mid x) + \log p(x, a) - \log q(x) - \log r(a \mid x) \bigr] \\
        \text{in the guide}: \quad & \mathbb{E}_{q(x, a)} \bigl[
            \log p(y, x) + \log r(a \mid x) - \log q(x, a) \bigr]

    Each has the expectation of the objective with the single site, whose log density is a bound.
    Observed sites are met in the guide, too. :math:`r` draws an index uniformly, or as
    ``reverse_logit`` guesses it, and other candidates from the proposal; a momentum from
    ``momentum_net``; a mixing variable from ``reverse``, or else from its own distribution.

    *Prefer the single site*, which shares proposals over a batch, sums the index out in a prior,
    and does not run the model twice. Name the auxiliaries to inspect them, to condition on them,
    to train the proposal through candidates without ``rsample``, or to enumerate the index:

    - ``TraceEnum_ELBO`` with ``config_enumerate(guide)`` sums over the index, with the gradient
      :math:`\nabla \sum_k \bar w_k f(x_k)` instead of a score function.
    - In :class:`~pyro_ext.infer.MultiSampleELBO` the density of an enumerated index cancels. With
      self-normalised importance sampling in the guide, the bound is then the importance-weighted
      one of the proposal, and its energy is not trained.
    - What is enumerated may not depend on itself, as the ``reverse`` of a discrete mixing variable
      in a guide does. An index may.

    All scores of a guide's auxiliaries find their costs, in ``Trace_ELBO`` too, because the model
    has the same sites; of sites marked as auxiliary it would forget them.

    Args:
        model: the program with the observations.
        guide: of the same arguments. It must draw what the model's proposals depend on.
        sites: names of sites with stochastic densities, in the model or in the guide; all of them
            if not given.

    Returns:
        Model and guide with the sites of :class:`NamedAuxiliariesMessenger`. The guide also runs
        the model, hidden, to draw the auxiliaries of the model's densities.

    Raises:
        ValueError: as :class:`NamedAuxiliariesMessenger`; if a site has a stochastic density in
            both programs, or in the guide alone, or if there is none, as in automatic guides; if a
            :class:`~pyro_ext.distributions.TruncatedRejection` has no ``reverse_logit``.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265, for :math:`r` in the model;
        Agakov and Barber, *An Auxiliary Variational Method* (2004), and Ranganath, Tran and Blei,
        *Hierarchical Variational Models*, arXiv 1511.02386, for :math:`r` in the guide's place.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import TraceEnum_ELBO, config_enumerate
        >>> from pyro_ext.distributions import SelfNormalizedImportance
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...         pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> def guide(y):
        ...     with pyro.plate("data", len(y)):
        ...         q = SelfNormalizedImportance(dist.Normal(y, 1.0), lambda x: x**2 / 2, 4)
        ...         pyro.sample("x", q)
        >>> model, guide = named_auxiliaries(model, guide)
        >>> y = torch.tensor([0.0, 1.0])
        >>> pyro.poutine.trace(guide).get_trace(y).nodes["x_index"]["value"].shape
        torch.Size([2])
        >>> elbo = TraceEnum_ELBO(max_plate_nesting=1)
        >>> loss = elbo.loss(model, config_enumerate(guide), y)
    """
    named = ForwardMessenger(sites)

    def find(msg: Any) -> Any:  # what drew the value that is replayed from the guide
        return None if msg["name"] in named.named else msg["infer"].get(DENSITY)

    return _BackwardMessenger(find)(named(model)), _NamedGuide(model, guide, sites)


class _BackwardMessenger(Messenger):
    """Draws auxiliaries after a site, given its value.

    Args:
        find: the stochastic density of a site, if it has one.
    """

    def __init__(self, find: Callable[[Any], Any]):
        super().__init__()
        self.find = find
        self.met: set[str] = set()
        self.named: set[str] = set()

    def __enter__(self):
        self.named.clear()
        self.met.clear()
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        self.met.add(msg["name"])
        density = self.find(msg)
        if density is not None:
            self.named.add(msg["name"])
            backwards(
                density,
                msg["value"],
                partial(sample_auxiliary, msg["name"], infer={BACKWARDS: True}),
            )


class _NamedGuide:
    """A guide, followed by a hidden run of the model, for the auxiliaries of the model's sites."""

    def __init__(self, model: Callable, guide: Callable, sites: Sites):
        self.model, self.guide, self.sites = model, guide, sites

    def __call__(self, *args, **kwargs):
        forward, backward = ForwardMessenger(self.sites), _BackwardMessenger(self._find)
        with TraceMessenger() as tracer, forward:
            result = self.guide(*args, **kwargs)
        with _hide(tracer.trace), ReplayMessenger(tracer.trace), backward:
            self.model(*args, **kwargs)
        refuse_unmet(self.sites, forward.named | backward.named)
        _refuse_alone(forward.named - backward.met)
        _refuse_none(forward.named | backward.named)
        return result

    def _find(self, msg: Any) -> Any:
        if not is_named(msg, self.sites):
            return None
        if DENSITY in msg["infer"]:
            raise ValueError(
                f"Site '{msg['name']}' is a stochastic density in the model and in the guide, so "
                "the names of their auxiliaries would clash. Leave it single: give sites= the "
                "names of the others."
            )
        return msg["fn"]


def _refuse_alone(names: set[str]) -> None:
    if names:
        raise ValueError(
            f"Guide sites {sorted(names)} are stochastic densities that the model has no site "
            "for, so that nothing would score their auxiliaries. Leave them single."
        )


def _refuse_none(names: set[str]) -> None:
    if not names:
        raise ValueError(
            "Neither model nor guide has a site with a stochastic density, so there is nothing to "
            "name. Automatic guides keep theirs inside: write the guide out."
        )


def _hide(trace: Any) -> BlockMessenger:
    """Hides all sites but auxiliaries, and subsamples that are not in a trace."""

    def is_hidden(msg: Any) -> bool:
        is_new = isinstance(msg["fn"], _Subsample) and msg["name"] not in trace
        return msg["type"] == "sample" and not (is_new or BACKWARDS in msg["infer"])

    return BlockMessenger(hide_fn=is_hidden)
