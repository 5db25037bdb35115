"""PixelCNN++ beside the same net in plain torch, with equal weights."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import pixel_cnn_rivals as rivals

from pyro_ext.nn.weight_norm import WeightNorm


def layers_as_run(net, kinds, run):
    """Layers in the order in which a run comes to them."""
    found = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: found.append(layer))
        for layer in net.modules()
        if isinstance(layer, kinds)
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("shape", [(1, 12, 8), (3, 8, 12)])
def test_equal_weights_make_equal_laws(shape):
    """Outputs agree to rounding; so does the likelihood, but for cells of little probability."""
    net, peer = rivals.ours(shape).double().eval(), rivals.Plain(shape).double().eval()
    x = torch.randint(256, (5, *shape)).double()
    net.initialize(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = layers_as_run(net, WeightNorm, lambda: net(x))
    theirs = layers_as_run(peer, (nn.Conv2d, nn.ConvTranspose2d), lambda: peer.log_prob(x))
    assert len(ours) == len(theirs) > 50
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.weight = one.weight()
            other.bias.copy_(one.bias)
        assert torch.allclose(net.outputs(x), peer(x / 127.5 - 1), atol=1e-10)
        assert torch.allclose(net(x), peer.log_prob(x), rtol=1e-4)
