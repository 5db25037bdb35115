r"""Data whose truth is known: toy targets in the plane, and nonlinear mixtures of sources.

:class:`NineGaussians`, :class:`TwoRings` and :class:`Checkerboard` are torch distributions (not
Pyro's: not for ``pyro.sample``) with ``event_shape`` (2,) and no parameters; ``dtype`` and
``device`` say where their samples are made. Their docstrings give the *ceiling*
:math:`E_p[\log p]`: no model can reach a higher expected log likelihood on them.

:func:`tcl`, :func:`imca` and :func:`xtanh` make the problems on which nonlinear independent
component analysis is judged. Each returns :class:`MixedSources`: draws with their sources, and the
exact density of both.
"""

from pyro_ext.data.hyperbolic_secant import HyperbolicSecant
from pyro_ext.data.mixed_sources import MixedSources, SourceDraws
from pyro_ext.data.nonlinear_mixtures import imca, tcl, xtanh
from pyro_ext.data.plane import Checkerboard, NineGaussians, TwoRings

__all__ = [
    "Checkerboard",
    "HyperbolicSecant",
    "MixedSources",
    "NineGaussians",
    "SourceDraws",
    "TwoRings",
    "imca",
    "tcl",
    "xtanh",
]
