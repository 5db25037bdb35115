"""Draws as one graph: they ask the host for nothing, and are those of the plain decoder."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_ext.nn import GraphedDecoder, PixelCNNNet
from pyro_ext.nn.pixel_sampler import draw

SIZES = {"hidden_channels": 8, "num_resnets": 1, "num_components": 2, "stages": 2}
KINDS = {
    "logistic": {"levels": 256},
    "bernoulli": {"levels": 2, "head": "bernoulli", "num_classes": 3},
    "categorical": {"levels": 5, "head": "categorical", "context_dim": 2},
    "window": {"levels": 17, "window": (3, 2), "context_channels": 2},
}
HOST = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "equal",
    "_unique2",
}


class Operations(TorchDispatchMode):
    """Notes the names of all operations, and the devices that they make tensors on."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def inputs_of(net, *batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(*batch, *net.image_shape[1:], net.num_uniforms, generator=generator)
    return uniforms, context_of(net, *batch), torch.full(batch, 0.7)


def context_of(net, *batch):
    if net.num_classes:
        return torch.zeros(batch, dtype=torch.long)
    if net.context_dim:
        return torch.ones(*batch, net.context_dim)
    if net.context_channels:
        return torch.ones(*batch, net.context_channels, *net.image_shape[1:])
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_draws_ask_the_host_for_nothing(kind):
    net = PixelCNNNet((2, 6, 5), **{**SIZES, **KINDS[kind]})
    inputs, _ = net.decode_inputs(*inputs_of(net, 3))
    with torch.no_grad(), Operations() as seen:
        draw(net, *inputs)
    assert "addmm" in seen.names
    assert not seen.names & HOST
    assert "lift_fresh" not in seen.names  # a tensor of Python numbers, copied from the host


def test_needs_a_gpu():
    with pytest.raises(ValueError, match=r"net\.decode"):
        GraphedDecoder(PixelCNNNet((1, 4, 4), 2, **SIZES))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_decoder(kind):
    """Also after the parameters have changed, and for another batch."""
    net = PixelCNNNet((2, 6, 5), **{**SIZES, **KINDS[kind]}).cuda()
    decode = GraphedDecoder(net)
    for seed, num in enumerate((3, 3, 2)):
        given = [None if x is None else x.cuda() for x in inputs_of(net, num, seed=seed)]
        assert torch.equal(decode(*given), net.decode(*given))
        with torch.no_grad():
            net.output.g.mul_(1.1)
    assert len(decode.recordings) == 2
