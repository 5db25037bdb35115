"""Deep generative models as ordinary Pyro distributions, guides, handlers and objectives.

The rooms, from the ground up: :mod:`~pyro_ext.ops`, :mod:`~pyro_ext.nn`,
:mod:`~pyro_ext.distributions`, :mod:`~pyro_ext.poutine`, :mod:`~pyro_ext.infer`,
:mod:`~pyro_ext.models`, :mod:`~pyro_ext.diagnostics`; beside them the islands
:mod:`~pyro_ext.data` and :mod:`~pyro_ext.testing`.
"""

from pyro_ext import data, diagnostics, distributions, infer, models, nn, ops, poutine, testing

__version__ = "0.1.0"

__all__ = [
    "data",
    "diagnostics",
    "distributions",
    "infer",
    "models",
    "nn",
    "ops",
    "poutine",
    "testing",
]
