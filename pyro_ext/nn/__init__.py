"""Torch modules: networks that own parameters."""

from pyro_ext.nn.conv_energy import ConvEnergyNet
from pyro_ext.nn.energy import EnergyNet
from pyro_ext.nn.l0_conv import L0Conv2d
from pyro_ext.nn.l0_gate import L0Gate
from pyro_ext.nn.l0_linear import L0Linear
from pyro_ext.nn.momentum import MomentumNet
from pyro_ext.nn.moving_normalizer import MovingNormalizer

__all__ = [
    "ConvEnergyNet",
    "EnergyNet",
    "L0Conv2d",
    "L0Gate",
    "L0Linear",
    "MomentumNet",
    "MovingNormalizer",
]
