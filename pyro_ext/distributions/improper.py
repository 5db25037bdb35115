"""Improper laws: they are not drawn from, but a site of theirs can be given a start."""

from typing import Any

from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.runtime import _PYRO_STACK


def refuse_draws(law: Any, advice: str) -> None:
    """Raises unless Pyro asks for a value to start from, as automatic guides do.

    So does ``Predictive``, once, for the shapes of a program: none of these values is returned.

    Args:
        law: what was to be sampled.
        advice: what else to do.

    Raises:
        NotImplementedError: if the value would be taken for a draw.
    """
    if not any(isinstance(handler, InitMessenger) for handler in _PYRO_STACK):
        raise NotImplementedError(
            f"{type(law).__name__} is improper and cannot be sampled, so that there are no prior "
            "predictive draws either. Run the program with values from a guide: "
            "Predictive(model, guide=guide, num_samples=100)(...), or "
            f"poutine.condition(model, data=guide(...))(...). {advice}"
        )
