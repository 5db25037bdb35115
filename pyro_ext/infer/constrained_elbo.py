"""An objective under constraints, such as a given sparsity."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import ELBO, JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ext.infer.tensor_loss_elbo import to_float

Measure = Callable[[], Tensor]


class ConstrainedELBO(ELBO):
    r"""A bound that is maximised as far as constraints allow, by Lagrange multipliers.

    .. math::

        \min_\phi \max_{\lambda \ge 0} \; -\mathcal{L}(\phi)
        + \sum_i \lambda_i (m_i(\phi) - t_i), \qquad
        \lambda_i \leftarrow \max(0, \lambda_i + \eta s (m_i - t_i))

    Each evaluation with gradients is one step of the multipliers, which start at zero. Where a
    constraint holds, its multiplier starts again at zero: else it would fall only slowly, and drive
    the network far below its target.

    A target is thus given as it is meant, such as a tenth of the units, in place of the weight of a
    penalty found by trial. The bound itself should have no penalty of the same gates, or a small
    one.

    Args:
        elbo: the objective :math:`\mathcal{L}`, any with a ``differentiable_loss``.
        target: :math:`t_i` by name, at most which :math:`m_i` shall become. A name stands for a
            site of the guide whose distribution has ``prob_nonzero``, such as
            :class:`~pyro_ext.distributions.HardConcrete`: :math:`m_i` is the mean of it, the
            expected fraction of open gates.
        measures: :math:`m_i` for the other names, functions without arguments that return a
            scalar with gradients, in units of which one is much: fractions, such as
            :meth:`ExpectedFlops.fraction <pyro_ext.models.ExpectedFlops.fraction>`.
        rate: :math:`\eta > 0`, per step. Larger if a target is not reached in time, smaller if
            the network suffers before it can adapt.
        scale: :math:`s > 0` in nats, which makes the rate one of fractions; the magnitude of
            the first loss that is not zero, if not given.
        restart: whether multipliers of constraints that hold start again; if not, they fall as
            they rose.

    As a module, ``elbo(model, guide)``, it is an objective without state: save multipliers by
    :meth:`state_dict` of this object, not by that of the module.

    Attributes:
        multipliers: :math:`\lambda_i` in nats, by name.
        measured: :math:`m_i` at the last evaluation, by name.

    Raises:
        ValueError: if ``elbo`` has no ``differentiable_loss`` or is compiled; if there is no
            target, a target is not finite and positive, or one of a site
            is not below one; if ``rate`` or ``scale`` is not positive; if ``measures`` names
            what has no target; when evaluated, if the guide has no such site, a measure is no
            scalar, or the first loss, not finite, is to be the scale.

    References:
        Gallego-Posada et al., *Controlled Sparsity via Constrained Optimization*,
        arXiv 2208.04425.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_ext.nn import L0Linear
        >>> layer = L0Linear(10, 1, droprate=0.2)
        >>> def model(x, y):
        ...     pyro.module("layer", layer)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(layer(x).squeeze(-1), 1.0), obs=y)
        >>> def guide(x, y):
        ...     pass
        >>> elbo = ConstrainedELBO(
        ...     Trace_ELBO(),
        ...     target={"open inputs": 0.3},
        ...     measures={"open inputs": lambda: layer.gate.prob_nonzero().mean()},
        ... )
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        >>> loss = svi.step(torch.randn(20, 10), torch.randn(20))
        >>> bool(elbo.multipliers["open inputs"] > 0)
        True
    """

    def __init__(
        self,
        elbo: Any,
        target: Mapping[str, float],
        measures: Mapping[str, Measure] | None = None,
        *,
        rate: float = 1e-2,
        scale: float | None = None,
        restart: bool = True,
    ):
        _check_elbo(elbo)
        if not isinstance(target, Mapping):
            raise ValueError(f'target must be numbers by name, {{"z": 0.1}}, got {target!r}.')
        self.elbo, self.target, self.measures = elbo, dict(target), dict(measures or {})
        _check_targets(self.target, self.measures)
        _check_positive(rate=rate, scale=1.0 if scale is None else scale)
        self.rate, self.restart = rate, restart
        self._scale = None if scale is None else torch.tensor(float(scale))
        self.multipliers: dict[str, Tensor] = {name: torch.zeros(()) for name in self.target}
        self.measured: dict[str, Tensor] = {}
        super().__init__(
            num_particles=elbo.num_particles,
            max_plate_nesting=elbo.max_plate_nesting,
            vectorize_particles=elbo.vectorize_particles,
            retain_graph=elbo.retain_graph,
        )

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """The Lagrangian as a scalar tensor; a step of the multipliers where gradients are on."""
        sites = self._sites()
        loss = self.elbo.differentiable_loss(model, sites(guide), *args, **kwargs)
        excess = self._excess(sites)
        if torch.is_grad_enabled():
            self._ascend(torch.as_tensor(loss).detach(), excess)
        return loss + self._charge(excess)

    def loss(self, model, guide, *args, **kwargs) -> float:
        """The Lagrangian, without gradients or a step of the multipliers."""
        sites = self._sites()
        with torch.no_grad():
            loss = self.elbo.loss(model, sites(guide), *args, **kwargs)
            return to_float(loss + self._charge(self._excess(sites)))

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The Lagrangian; adds its gradient to that of the parameters, and moves multipliers."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(retain_graph=self.retain_graph)
        return to_float(loss)

    def state_dict(self) -> dict[str, Any]:
        """Multipliers and their scale, to go on from."""
        return {"multipliers": dict(self.multipliers), "scale": self._scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` returned.

        Raises:
            ValueError: if the state is one of other targets.
        """
        found = state.get("multipliers", {}).keys()
        if found != self.target.keys() or "scale" not in state:
            raise ValueError(
                f"The state has multipliers of {sorted(found)}, expected those of "
                f"{sorted(self.target)}, and their scale. Give what state_dict() returned."
            )
        self.multipliers, self._scale = dict(state["multipliers"]), state["scale"]

    def _sites(self) -> "SiteMessenger":
        return SiteMessenger(self.target.keys() - self.measures.keys())

    def _excess(self, sites: "SiteMessenger") -> dict[str, Tensor]:
        return {name: self._measure(name, sites) - t for name, t in self.target.items()}

    def _charge(self, excess: Mapping[str, Tensor]) -> Any:
        return sum(self.multipliers[name].to(part) * part for name, part in excess.items())

    def _measure(self, name: str, sites: "SiteMessenger") -> Tensor:
        value = self.measures[name]() if name in self.measures else sites.open_fraction(name)
        if not isinstance(value, Tensor) or value.dim():
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"The measure of {name!r} must be a scalar tensor, got {given}.")
        self.measured[name] = value.detach()
        return value

    def _ascend(self, loss: Tensor, excess: Mapping[str, Tensor]) -> None:
        if self._scale is None:
            if not loss:
                return
            self._scale = _first_scale(loss)
        for name, part in excess.items():
            part = part.detach()
            moved = self.multipliers[name].to(part) + self.rate * self._scale.to(part) * part
            moved = moved.clamp(min=0.0)
            self.multipliers[name] = torch.where(part > 0, moved, 0.0) if self.restart else moved

    def _get_trace(self, model, guide, args, kwargs):
        return self.elbo._get_trace(model, guide, args, kwargs)


class SiteMessenger(Messenger):
    """Remembers the distributions of sites.

    Args:
        names: of the sites.
    """

    def __init__(self, names):
        super().__init__()
        self.names = frozenset(names)
        self.found: dict[str, Any] = {}

    def open_fraction(self, name: str) -> Tensor:
        """The expected fraction of a site's entries that are not zero.

        Raises:
            ValueError: if there was no such site, or its distribution has no ``prob_nonzero``.
        """
        if name not in self.found:
            raise ValueError(
                f"target names {name!r}, but the guide draws at no such site. Give measures a "
                "function for what is none."
            )
        law = self.found[name]
        while not hasattr(law, "prob_nonzero") and hasattr(law, "base_dist"):
            law = law.base_dist
        if not hasattr(law, "prob_nonzero"):
            raise ValueError(
                f"Guide site {name!r} draws from {type(law).__name__}, which has no prob_nonzero: "
                "only gates such as HardConcrete have a sparsity."
            )
        return law.prob_nonzero.mean()

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] in self.names:
            self.found[msg["name"]] = msg["fn"]


def _first_scale(loss: Tensor) -> Tensor:
    if not loss.isfinite():
        raise ValueError(
            f"The first loss is {loss.item()}, whose magnitude cannot be the scale of the "
            "multipliers. Give scale=, in nats."
        )
    return loss.abs()


def _check_elbo(elbo: Any) -> None:
    if isinstance(elbo, type) or not callable(getattr(elbo, "differentiable_loss", None)):
        raise ValueError(
            f"elbo must be an objective with a differentiable_loss, got {elbo!r}. "
            "pyro.infer.Trace_ELBO() is one."
        )
    if isinstance(elbo, (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceMeanField_ELBO)):
        raise ValueError(
            f"{type(elbo).__name__} is compiled, so that no measure of its sites is seen after the "
            "first step. Take the same objective without Jit."
        )


def _check_targets(target: Mapping[str, float], measures: Mapping[str, Measure]) -> None:
    if not target:
        raise ValueError("target is empty: without one, take the objective itself.")
    unknown = sorted(measures.keys() - target.keys())
    if unknown:
        raise ValueError(f"measures names {unknown}, which have no target; got {sorted(target)}.")
    for name, value in target.items():
        limit = math.inf if name in measures else 1.0
        if not 0 < value < limit:
            raise ValueError(f"target[{name!r}] must lie in (0, {limit:g}), got {value}.")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite positive number, got {value}.")
