"""Weight-normalised layers against torch's own, and by their defining properties."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pyro_ext.nn import (
    WeightNormConv2d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
    start_layers,
)

LAYERS = {
    "linear": (WeightNormLinear, (6, 5), nn.Linear, {}, (20, 6)),
    "conv": (
        WeightNormConv2d,
        (6, 5, (3, 2)),
        nn.Conv2d,
        {"stride": 2, "padding": 1},
        (9, 6, 8, 7),
    ),
    "groups": (WeightNormConv2d, (6, 4, 3), nn.Conv2d, {"groups": 2, "dilation": 2}, (9, 6, 8, 7)),
    "transposed": (
        WeightNormConvTranspose2d,
        (6, 5, (2, 3)),
        nn.ConvTranspose2d,
        {"stride": 2, "output_padding": 1},
        (9, 6, 4, 3),
    ),
}
ALL = pytest.mark.parametrize(("kind", "sizes", "torch_kind", "options", "shape"), LAYERS.values())


def moments(y):
    values = y.movedim(-1 if y.dim() == 2 else 1, 0).flatten(1)
    return values.mean(1), values.std(1, correction=0)


@ALL
def test_same_as_torch_with_and_without_its_weight_norm(kind, sizes, torch_kind, options, shape):
    x, plain = torch.randn(shape).double(), torch_kind(*sizes, **options).double()
    layer = kind(*sizes, **options).double().load_plain(plain)
    assert torch.allclose(layer(x), plain(x), atol=1e-12)
    assert torch.allclose(layer.plain()(x), plain(x), atol=1e-12)
    axis = 1 if torch_kind is nn.ConvTranspose2d else 0
    theirs = weight_norm(plain, dim=axis)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.mul_(1.3)
    assert torch.allclose(layer.load_plain(theirs)(x), theirs(x), atol=1e-12)
    assert torch.allclose(layer.g, theirs.parametrizations.weight.original0.flatten(), atol=1e-12)


@ALL
def test_start_standardises_outputs(kind, sizes, torch_kind, options, shape):
    layer = kind(*sizes, **options, init_scale=0.3).double()
    x = 2 + 3 * torch.randn(shape).double()
    y = layer.initialize(x)
    assert torch.allclose(layer(x), y, atol=1e-12)
    mean, std = moments(y)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-10)
    assert torch.allclose(std, torch.full_like(std, 0.3), atol=1e-10)
    with pytest.raises(ValueError, match="constant channels"):
        layer.initialize(torch.ones(shape).double()[..., :1] * 0 + torch.zeros(shape))


@ALL
def test_length_and_direction(kind, sizes, torch_kind, options, shape):
    """The output does not depend on the length of v, to which its gradient is orthogonal."""
    layer, x = kind(*sizes, **options).double(), torch.randn(shape).double()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sin().sum(), [layer.v])
    products = (gradient * layer.v).movedim(layer.axis, 0).flatten(1).sum(1)
    assert torch.allclose(products, torch.zeros_like(products), atol=1e-10)
    with torch.no_grad():
        layer.v.mul_(7.0)
    assert torch.allclose(layer(x), y, atol=1e-12)
    lengths = layer.weight().movedim(layer.axis, 0).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, layer.g, atol=1e-12)


@ALL
def test_mean_only_batch_norm(kind, sizes, torch_kind, options, shape):
    layer = kind(*sizes, **options, mean_only_batch_norm=True).double()
    x = 2 + torch.randn(shape).double()
    y = layer.initialize(x)
    assert torch.allclose(layer(x), y, atol=1e-10)
    assert torch.allclose(layer.eval()(x), y, atol=1e-10)
    assert torch.allclose(layer.plain()(x), y, atol=1e-10)
    mean, _ = moments(layer.train()(x + 5))
    assert torch.allclose(mean, layer.bias.detach(), atol=1e-10)
    y = layer.eval()(x)
    assert torch.allclose(layer.load_plain(layer.plain())(x), y, atol=1e-10)


def test_single_images_as_torch():
    layer = WeightNormConv2d(3, 7, 3, padding=1, mean_only_batch_norm=True).eval()
    x = torch.randn(3, 7, 5)
    layer.initialize(torch.randn(20, 3, 7, 5))
    assert torch.allclose(layer(x), layer(x[None])[0], atol=1e-6)


def test_slices_of_zeros_are_finite():
    layer = WeightNormLinear(3, 2)
    with torch.no_grad():
        layer.v[0] = 0
    y = layer(torch.randn(4, 3))
    y.sum().backward()
    assert torch.equal(y[:, 0], torch.zeros(4))
    assert layer.v.grad.isfinite().all()


def test_layers_start_in_the_order_of_a_run():
    net = nn.Sequential(*(WeightNormLinear(10, 10) for _ in range(5)))
    x = torch.randn(200, 10)
    y = start_layers(net, x)
    for layer in net:
        x = layer(x)
        mean, std = moments(x)
        assert torch.allclose(mean, torch.zeros(10), atol=1e-4)
        assert torch.allclose(std, torch.ones(10), atol=1e-4)
    assert torch.allclose(y, x, atol=1e-5)


def test_parameters_are_seen_by_the_store_and_copied():
    layer, x = WeightNormLinear(4, 3), torch.randn(20, 4)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), layer(x))
    pyro.module("layer", layer)
    layer.initialize(x)
    assert torch.equal(pyro.param("layer$$$g"), layer.g)


def test_weights_may_be_latent():
    """What torch's parametrisation silently ignores."""
    layer = WeightNormLinear(4, 3)
    to_pyro_module_(layer)
    layer.g = PyroSample(dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    x, y = torch.randn(20, 4), torch.randn(20, 3)

    def model():
        pyro.sample("y", dist.Normal(layer(x), 1.0).to_event(2), obs=y)

    trace = pyro.poutine.trace(model).get_trace()
    assert trace.nodes["g"]["type"] == "sample"
    guide = pyro.infer.autoguide.AutoNormal(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()


def test_bad_arguments():
    with pytest.raises(ValueError, match="init_scale"):
        WeightNormLinear(2, 2, init_scale=0.0)
    with pytest.raises(ValueError, match="in_features"):
        WeightNormLinear(2, 2).load_plain(nn.Linear(3, 2))
    layer = WeightNormConv2d(3, 3, 3)
    for other, what in (
        (nn.Conv2d(3, 3, 3, stride=2), "of other stride"),
        (nn.Conv2d(3, 3, 3, padding_mode="circular"), "of other padding_mode"),
        (nn.ConvTranspose2d(3, 3, 3), "takes the weights of Conv2d"),
    ):
        with pytest.raises(ValueError, match=what):
            layer.load_plain(other)
    with pytest.warns(FutureWarning):
        old = torch.nn.utils.weight_norm(nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match="remove_weight_norm"):
        layer.load_plain(old)


def test_layers_that_see_nothing_of_the_data_are_left():
    """The second sees the same of all data; the first and the third start."""
    net = nn.Sequential(WeightNormLinear(3, 4), Zeros(), WeightNormLinear(4, 5))
    before = net[2].g.clone()
    x = torch.randn(50, 3)
    start_layers(net, x)
    assert torch.allclose(moments(net[0](x))[1], torch.ones(4), atol=1e-4)
    assert torch.equal(net[2].g, before)
    for bad, what in ((x[:1].expand(50, 3), "all the same"), (x / 0, "not finite")):
        with pytest.raises(ValueError, match=what):
            start_layers(net, bad)


class Zeros(nn.Module):
    def forward(self, x):
        return 0 * x
