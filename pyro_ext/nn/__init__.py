"""Torch modules: networks that own parameters."""

from pyro_ext.nn.act_norm import ActNorm
from pyro_ext.nn.causality import check_causality
from pyro_ext.nn.checkpoint import load_checkpoint, save_checkpoint
from pyro_ext.nn.conditional_energy import ConditionalEnergy
from pyro_ext.nn.conv_energy import ConvEnergyNet
from pyro_ext.nn.coupling import Coupling
from pyro_ext.nn.coupling_flow import CouplingFlow
from pyro_ext.nn.data_init import start_layers
from pyro_ext.nn.energy import EnergyNet
from pyro_ext.nn.glow import GlowNet
from pyro_ext.nn.glow_level import GlowLevel
from pyro_ext.nn.graphed_decoder import GraphedDecoder
from pyro_ext.nn.invertible_conv import InvertibleConv1x1
from pyro_ext.nn.l0_conv import L0Conv2d
from pyro_ext.nn.l0_gate import L0Gate
from pyro_ext.nn.l0_linear import L0Linear
from pyro_ext.nn.momentum import MomentumNet
from pyro_ext.nn.moving_normalizer import MovingNormalizer
from pyro_ext.nn.pixel_cnn import PixelCNNNet
from pyro_ext.nn.weight_norm_layers import (
    WeightNormConv2d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
)

__all__ = [
    "ActNorm",
    "ConditionalEnergy",
    "ConvEnergyNet",
    "Coupling",
    "CouplingFlow",
    "EnergyNet",
    "GlowLevel",
    "GlowNet",
    "GraphedDecoder",
    "InvertibleConv1x1",
    "L0Conv2d",
    "L0Gate",
    "L0Linear",
    "MomentumNet",
    "MovingNormalizer",
    "PixelCNNNet",
    "WeightNormConv2d",
    "WeightNormConvTranspose2d",
    "WeightNormLinear",
    "check_causality",
    "load_checkpoint",
    "save_checkpoint",
    "start_layers",
]
