r"""Data sets as dictionaries of tensors, and toy targets with exact densities.

An island: it needs torch and numpy, imports nothing else of ours, and nothing of ours imports it.
Importing it reads no file and opens no connection; only ``load(name, download=True)`` does.

Example:
    >>> from pyro_ext import data
    >>> data.load("digits")["x_train"].shape
    torch.Size([1500, 8, 8])
    >>> data.simulate.TwoRings().sample((5,)).shape
    torch.Size([5, 2])
"""

from pyro_ext.data import simulate
from pyro_ext.data.load import load, names

__all__ = ["load", "names", "simulate"]
