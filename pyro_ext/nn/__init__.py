"""Torch modules: networks that own parameters."""

from pyro_ext.nn.conv_energy import ConvEnergyNet
from pyro_ext.nn.energy import EnergyNet
from pyro_ext.nn.momentum import MomentumNet
from pyro_ext.nn.moving_normalizer import MovingNormalizer

__all__ = [
    "ConvEnergyNet",
    "EnergyNet",
    "MomentumNet",
    "MovingNormalizer",
]
