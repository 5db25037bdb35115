"""Supports that torch does not have."""

from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch.distributions import biject_to, constraints, transform_to


class _UnitIntervalWithAtoms(constraints.Constraint):
    """The closed unit interval under a measure with atoms at 0 and 1."""

    is_discrete = False
    event_dim = 0
    lower_bound, upper_bound = 0.0, 1.0

    def check(self, value):
        return (value >= 0) & (value <= 1)

    def __repr__(self):
        return "UnitIntervalWithAtoms()"


class _OpenUnitInterval(constraints.Constraint):
    """Numbers strictly between 0 and 1."""

    is_discrete = False
    event_dim = 0

    def check(self, value):
        return (value > 0) & (value < 1)

    def __repr__(self):
        return "OpenUnitInterval(0 < value < 1)"


unit_interval_with_atoms = _UnitIntervalWithAtoms()
open_unit_interval = _OpenUnitInterval()


@biject_to.register(_UnitIntervalWithAtoms)
def _no_bijection(constraint):
    raise NotImplementedError(
        "A variable with atoms at 0 and 1 has no bijection to the real line: a guide such as "
        "AutoNormal, or NUTS, would give it no exact zeros. Write a guide with HardConcrete or "
        "HardKumaraswamy and an analytic divergence, or make the variable continuous with "
        "HardConcreteReparam."
    )


@transform_to.register(_UnitIntervalWithAtoms)
def _only_to_initialize(constraint):
    """Pyro initialises a site before it reparameterises it, and needs some interior point."""
    if any(isinstance(handler, ReparamMessenger) for handler in _PYRO_STACK):
        return transform_to(constraints.unit_interval)
    return _no_bijection(constraint)
