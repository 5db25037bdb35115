"""Makes hard concrete variables continuous."""

import pyro
import torch
from pyro.distributions import Delta, Logistic
from pyro.infer.reparam.reparam import Reparam

from pyro_ext.distributions.hard_concrete import HardConcrete
from pyro_ext.ops.hard_concrete import gate


class HardConcreteReparam(Reparam):
    r"""Draws the continuous variable inside a :class:`HardConcrete` one, and clips it afterwards.

    .. math::

        x \sim \mathrm{Logistic}(\log\alpha / \beta, 1 / \beta), \qquad
        z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, \sigma(x)))

    The gate becomes a deterministic site, and the site ``<name>_logit`` of :math:`x` is absolutely
    continuous: Monte Carlo objectives (``Trace_ELBO``, multi-sample bounds) have unbiased
    gradients, ``AutoNormal`` and NUTS apply, and the gate still has its exact zeros. The price is
    in the bound: between two hard concretes the divergence of :math:`x`,
    :math:`d \coth(d / 2) - 2` at equal temperatures, exceeds that of :math:`z`.

    Apply it to the model and, if that has the same site, to the guide too, where the site is then
    to be marked ``infer={"is_auxiliary": True}``. Their stretches must agree; their temperatures
    may differ.

    Raises:
        NotImplementedError: at a site that is observed.
        ValueError: at a site of another distribution.

    Example:
        >>> from pyro import poutine
        >>> def model():
        ...     return pyro.sample("z", HardConcrete(torch.zeros(3)).to_event(1))
        >>> smooth = poutine.reparam(model, {"z": HardConcreteReparam()})
        >>> trace = poutine.trace(smooth).get_trace()
        >>> trace.nodes["z_logit"]["fn"].base_dist, trace.nodes["z"]["value"].shape
        (Logistic(loc: torch.Size([3]), scale: torch.Size([3])), torch.Size([3]))
    """

    def apply(self, msg):
        """Replaces the site."""
        name, value = msg["name"], msg["value"]
        fn, event_dim = self._unwrap(msg["fn"])
        if not isinstance(fn, HardConcrete):
            raise ValueError(
                f"Site '{name}' is a {type(fn).__name__}, but HardConcreteReparam needs a "
                "HardConcrete. Leave the site out of the configuration."
            )
        if msg["is_observed"]:
            raise NotImplementedError(
                f"Site '{name}' is observed: a clipped value does not say what was clipped. "
                "Observe it without HardConcreteReparam; its own density is exact."
            )
        logistic = Logistic(fn.log_alpha / fn.temperature, 1 / fn.temperature)
        start = None if value is None else _logit(value, fn.stretch)
        logit = pyro.sample(
            f"{name}_logit",
            self._wrap(logistic, event_dim),
            obs=start,
            infer={"is_observed": msg["is_observed"]},
        )
        opened = gate(logit, 1.0, *fn.stretch) if value is None else value
        delta = Delta(opened, event_dim=event_dim).mask(False)
        return {"fn": delta, "value": opened, "is_observed": True}


def _logit(value, stretch):
    """A logit that gives this gate; the edge of all that do, for gates of 0 and 1."""
    low, high = stretch
    return torch.log(value - low) - torch.log(high - value)
