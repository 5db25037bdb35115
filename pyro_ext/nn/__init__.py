"""Torch modules: networks that own parameters."""

from pyro_ext.nn.act_norm import ActNorm
from pyro_ext.nn.checkpoint import load_checkpoint, save_checkpoint
from pyro_ext.nn.conv_energy import ConvEnergyNet
from pyro_ext.nn.coupling import Coupling
from pyro_ext.nn.energy import EnergyNet
from pyro_ext.nn.glow import GlowNet
from pyro_ext.nn.glow_level import GlowLevel
from pyro_ext.nn.invertible_conv import InvertibleConv1x1
from pyro_ext.nn.l0_conv import L0Conv2d
from pyro_ext.nn.l0_gate import L0Gate
from pyro_ext.nn.l0_linear import L0Linear
from pyro_ext.nn.momentum import MomentumNet
from pyro_ext.nn.moving_normalizer import MovingNormalizer

__all__ = [
    "ActNorm",
    "ConvEnergyNet",
    "Coupling",
    "EnergyNet",
    "GlowLevel",
    "GlowNet",
    "InvertibleConv1x1",
    "L0Conv2d",
    "L0Gate",
    "L0Linear",
    "MomentumNet",
    "MovingNormalizer",
    "load_checkpoint",
    "save_checkpoint",
]
