"""PixelCNN++ against Jacobians, enumeration, and drawing without a memory."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from pyro_ext.nn import PixelCNNNet, check_causality
from pyro_ext.nn.causality import influence
from pyro_ext.nn.pixel_heads import LogisticHead
from pyro_ext.nn.weight_norm import WeightNorm

KINDS = {
    "logistic": {"levels": 256},
    "few levels": {"levels": 17, "stages": 2},
    "bernoulli": {"levels": 2, "head": "bernoulli"},
    "categorical": {"levels": 5, "head": "categorical", "stages": 1},
    "window": {"levels": 256, "window": (5, 2)},
    "even window": {"levels": 2, "window": (4, 3), "head": "bernoulli"},
    "pixels to the left": {"levels": 17, "window": (3, 0)},
}
CONTEXTS = {"none": {}, "label": {"num_classes": 3}, "vector": {"context_dim": 2}}
CONTEXTS["map"] = {"context_channels": 2}


def net_of(shape, perturb=0.2, **options):
    options = {"hidden_channels": 8, "num_resnets": 2, "num_components": 2, **options}
    net = PixelCNNNet(shape, **options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return net.eval()


def context_of(net, *batch):
    _, height, width = net.image_shape
    if net.num_classes:
        return torch.randint(net.num_classes, batch)
    if net.context_dim:
        return torch.randn(*batch, net.context_dim).double()
    if net.context_channels:
        return torch.randn(*batch, net.context_channels, height, width).double()
    return None


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (2, 6, 5), (4, 5, 4)])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_all_earlier_pixels_are_seen_and_no_other(shape, stages):
    net = net_of(shape, levels=256, stages=stages, num_resnets=3)
    seen = influence(net, torch.randint(256, shape))
    seen = seen.flatten(2).flatten(0, 1)  # (pixel, earlier pixel)
    is_earlier = torch.ones_like(seen).tril(-1).bool()
    assert torch.equal(seen[~is_earlier], torch.zeros_like(seen[~is_earlier]))
    if stages > 1:  # else some are out of reach
        assert (seen[is_earlier] > 0).all()


def test_influence_is_the_jacobian():
    net, x = net_of((2, 4, 3), levels=5), torch.randint(5, (2, 4, 3))
    jacobian = jacrev(lambda y: net.run(y, None).sum(1))(net.prepare(x.unsqueeze(0)))
    expected = jacobian[0, :, :, 0, :2, :4, :3].abs().sum(2)
    assert torch.allclose(influence(net, x), expected, atol=1e-12)


def test_a_leak_is_named():
    """A plain convolution instead of a causal one."""
    net, x = net_of((1, 4, 4), levels=5, stages=1), torch.randint(5, (1, 4, 4))
    check_causality(net, x)
    net.trunk.start.above = nn.Conv2d(2, 8, 3, padding=1).double()
    with pytest.raises(ValueError, match=r"pixel \(\d, \d\) depends on pixel \(\d, \d\)"):
        check_causality(net, x)


@torch.no_grad()
def test_a_pixel_that_sees_itself_is_named():
    """Windows of the present row, not of the row above."""
    net, x = net_of((1, 3, 3), levels=5, window=(1, 1)), torch.randint(5, (1, 3, 3))
    check_causality(net, x)
    net.trunk.start = lambda y, _: net.trunk.above(y.repeat(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"pixel \(0, 0\) depends on pixel \(0, 0\)"):
        check_causality(net, x)
    net.output.g.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        check_causality(net, x)


@pytest.mark.parametrize("context", ["label", "vector", "map"])
def test_contexts_do_not_leak(context):
    net = net_of((1, 4, 5), levels=5, **CONTEXTS[context])
    check_causality(net, torch.randint(5, (1, 4, 5)), context_of(net))


@pytest.mark.parametrize("window", [(3, 2), (5, 1), (4, 2), (2, 3), (1, 2), (3, 0), (1, 0)])
def test_windows_are_exact(window):
    width, height = window
    net = net_of((1, 9, 9), levels=256, window=window)
    seen = influence(net, torch.randint(256, (1, 9, 9)))[5, 4] > 0
    expected = torch.zeros(9, 9, dtype=torch.bool)
    left = math.ceil((width - 1) / 2)
    expected[5 - height : 5, 4 - left : 4 - left + width] = True
    expected[5, 4 - left : 4] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, 2), {"levels": 3}),
        ((3, 2, 2), {"levels": 2}),
        ((3, 2, 2), {"levels": 2, "head": "bernoulli"}),
        ((1, 4, 4), {"levels": 2, "head": "bernoulli"}),
        ((2, 2, 2), {"levels": 3, "head": "categorical"}),
        ((1, 2, 3), {"levels": 3, "window": (3, 2)}),
    ],
)
def test_probabilities_of_all_images_sum_to_one(shape, options):
    net = net_of(shape, **options)
    size = math.prod(shape)
    images = torch.cartesian_prod(*[torch.arange(net.levels)] * size).reshape(-1, *shape)
    with torch.no_grad():
        total = torch.cat([net(part) for part in images.split(4096)]).exp().sum()
    assert total == pytest.approx(1, abs=1e-10)


def naive(net, uniforms, context):
    """One pass over the image for each pixel."""
    x = torch.zeros(len(uniforms), *net.image_shape).double()
    for row in range(x.shape[-2]):
        for column in range(x.shape[-1]):
            outputs = net.outputs(x, context)[..., row, column]
            x[..., row, column] = net.head.sample(uniforms[:, row, column], outputs, 1.0)
    return x


def fixed_point(net, uniforms, context):
    """All pixels at once, until none changes."""
    x, last = torch.zeros(len(uniforms), *net.image_shape).double(), None
    while last is None or not torch.equal(x, last):
        outputs = net.outputs(x, context).movedim(1, -1)
        last, x = x, net.head.sample(uniforms, outputs, 1.0).movedim(-1, 1)
    return x


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 6)])
@torch.no_grad()
def test_equal_numbers_make_equal_images(shape, context, options):
    """With memory, without, and as a fixed point."""
    net = net_of(shape, **options, **context)
    uniforms = torch.rand(3, *shape[1:], net.num_uniforms).double()
    context = context_of(net, 3)
    seen = net.decode(uniforms, context)
    assert torch.equal(seen, naive(net, uniforms, context))
    assert torch.equal(seen, fixed_point(net, uniforms, context))


def test_left_dimensions_of_images_and_contexts_broadcast():
    net = net_of((1, 4, 4), levels=5, num_classes=3)
    x, labels = torch.randint(5, (6, 1, 1, 4, 4)), torch.arange(3)
    seen = net.log_prob_map(x, labels)
    assert seen.shape == (6, 3, 4, 4)
    for k in range(3):
        assert torch.allclose(seen[:, k], net.log_prob_map(x[:, 0], labels[k]), atol=1e-10)


def test_start_makes_outputs_small_and_layers_standard():
    net = PixelCNNNet((3, 8, 8), 256, 5, 16, 2, dropout=0.0)
    x = torch.randint(256, (20, 3, 8, 8))
    outputs = net.initialize(x).outputs(x)
    std = outputs.std((0, 2, 3), correction=0)
    assert torch.allclose(std, torch.full_like(std, 0.1), atol=1e-4)
    assert outputs.mean((0, 2, 3)).abs().max() < 1e-5
    for bad, what in ((x * 0, "all the same"), (x / 255, "rounded to levels"), (x + 1, "to 255")):
        with pytest.raises(ValueError, match=what):
            PixelCNNNet((3, 8, 8), 256, 5, 8, 1).initialize(bad)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 4, 4), {"stages": 3}),
        ((1, 4, 8), {"stages": 3}),
        ((1, 1, 6), {"stages": 1}),
        ((2, 1, 1), {"stages": 1}),
        ((1, 5, 5), {"window": (1, 0)}),
        ((1, 1, 5), {"window": (3, 2)}),
    ],
)
def test_nets_start_where_some_layers_see_nothing(shape, options):
    net = PixelCNNNet(shape, 5, 2, 8, 1, **options)
    x = torch.randint(5, (50, *shape))
    net.initialize(x)
    layers = [layer for layer in net.modules() if isinstance(layer, WeightNorm)]
    assert all(layer.g.abs().max() < 100 for layer in layers)
    assert net(x).isfinite().all()


def test_copies_are_equal():
    net = net_of((1, 5, 5), levels=4)
    x = torch.randint(4, (3, 1, 5, 5))
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again(x), net(x))
    loaded = PixelCNNNet(**net.config).double().eval()
    loaded.load_state_dict(net.state_dict())
    assert torch.equal(loaded(x), net(x))


def test_half_precision_keeps_outputs_and_laws_in_float32():
    net = net_of((3, 8, 8), levels=256).float()
    half = PixelCNNNet(**{**net.config, "compute_dtype": torch.bfloat16}).eval()
    half.load_state_dict(net.state_dict())
    x = torch.randint(256, (4, 3, 8, 8))
    assert half.outputs(x).dtype == half(x).dtype == torch.float32
    assert torch.allclose(half.outputs(x), net.outputs(x), atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x), net(x))
    assert torch.allclose(half(x), net(x), rtol=0.02)


@pytest.mark.parametrize("levels", [2, 256, 65_536])
def test_a_component_may_be_narrower_than_a_level(levels):
    """The law of a level with all of a scale that is the least: 97 % from 256 levels on."""
    head, half = LogisticHead(1, levels, 1), (levels - 1) / 2
    outputs = torch.tensor([0.0, 1 / half - 1, -100.0])  # logit, location of level one, log scale
    assert head.log_prob(torch.ones(1), outputs).exp() > 0.97


def test_published_size():
    """53.66 million parameters, as counted for the published net of 160 channels."""
    net = PixelCNNNet((3, 32, 32))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(53.66e6, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"levels": 1}, "levels"),
        ({"head": "normal"}, "head is one of"),
        ({"head": "bernoulli"}, "levels=2"),
        ({"window": (0, 2)}, "window"),
        ({"num_classes": 2, "context_dim": 2}, "one kind"),
        ({"dropout": 1.0}, "dropout"),
        ({"compute_dtype": "half"}, "compute_dtype"),
        ({"num_resnets": 0}, "num_resnets"),
        ({"num_classes": -1}, "num_classes"),
        ({"compute_dtype": torch.float64}, "compute_dtype"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PixelCNNNet(**{"image_shape": (1, 8, 8), "hidden_channels": 4, **options})


def test_bad_inputs():
    x = torch.randint(2, (3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"images \(\.\.\., \(1, 4, 4\)\)"):
        net_of((1, 4, 4), levels=2)(x[..., :3])
    with pytest.raises(ValueError, match="takes no context"):
        net_of((1, 4, 4), levels=2)(x, torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"shape \(\.\.\., \(2, 4, 4\)\)"):
        net_of((1, 4, 4), levels=2, context_channels=2)(x, torch.zeros(3, 2, 3, 3).double())
    with pytest.raises(ValueError, match="do not broadcast"):
        net_of((1, 4, 4), levels=2, num_classes=2)(x, torch.zeros(2).long())
    with pytest.raises(ValueError, match="Contexts are of"):
        net_of((1, 4, 4), levels=2, context_channels=2)(x, torch.zeros(3, 2, 4, 4).long())
    net = net_of((1, 4, 4), levels=2)
    with pytest.raises(ValueError, match="decoded from uniform numbers"):
        net.decode(torch.rand(3, 2, 2, net.num_uniforms).double())


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_exact_within_autocast_and_vmap(kind):
    net = net_of((2, 4, 4), **KINDS[kind]).float()
    uniforms = torch.rand(3, 5, 4, 4, net.num_uniforms)
    images = net.decode(uniforms)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.decode(uniforms), images)
    assert torch.equal(vmap(net.decode)(uniforms), images)


def test_less_precise_contexts_are_converted():
    net = net_of((1, 4, 4), levels=3, context_channels=2).float()
    maps = torch.randn(3, 2, 4, 4).bfloat16()
    x = torch.randint(3, (3, 1, 4, 4))
    assert torch.equal(net(x, maps), net(x, maps.float()))
