"""Torch modules: networks that own parameters."""

from pyro_ext.nn.energy import EnergyNet

__all__ = ["EnergyNet"]
