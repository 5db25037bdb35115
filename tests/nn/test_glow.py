"""Glow against Jacobians, closed forms, an independent step in NumPy and the entropy of noise."""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import conv2d, pad, pixel_shuffle, pixel_unshuffle

from pyro_ext.nn import ActNorm, Coupling, GlowLevel, GlowNet, InvertibleConv1x1
from pyro_ext.nn.coupling_law import law
from pyro_ext.nn.coupling_net import CouplingNet
from pyro_ext.nn.gaussian_split import GaussianSplit
from pyro_ext.nn.zero_conv import ZeroConv2d

LAWS = ["additive", "affine", "affine_bounded"]
DIM = 96


def perturb(module, scale=0.03):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def small(dtype=torch.float64, start=True, num=16, **options):
    """A net of 3x8x4 images whose parameters are all at work."""
    net = GlowNet((3, 8, 4), depth=2, levels=2, width=8, **options).to(dtype)
    if not start:
        return net
    context = None
    if net.num_classes:
        context = torch.randint(net.num_classes, (num,))
    elif net.context_dim:
        context = torch.randn(num, net.context_dim, dtype=dtype)
    return perturb(net.initialize(torch.randn(num, 3, 8, 4, dtype=dtype), context))


OPTIONS = {
    "plain": {},
    "edges": {"edge_bias": True, "lu": False},
    "labels": {"num_classes": 3},
    "labels everywhere": {"num_classes": 3, "condition_couplings": True},
    "vectors": {"context_dim": 2},
}


def context_of(net, *batch):
    if net.num_classes:
        return torch.randint(net.num_classes, batch)
    return torch.randn(*batch, net.context_dim).double() if net.context_dim else None


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("coupling", LAWS)
def test_both_directions_agree_with_the_jacobian(coupling, options):
    net = small(coupling=coupling, **options)
    x, context = torch.randn(3, 8, 4).double(), context_of(net)
    z, log_det = net.encode(x, context)
    again, back = net.decode(z, context)
    assert torch.allclose(again, x, atol=1e-12)
    assert torch.allclose(back, -log_det, atol=1e-12)
    jacobian = jacrev(lambda x: net.encode(x, context)[0])(x).reshape(DIM, DIM)
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, log_det, atol=1e-10)


@pytest.mark.parametrize("memory", ["checkpoint", "invertible"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("coupling", LAWS)
def test_gradients_do_not_depend_on_memory(coupling, options, memory):
    net = small(coupling=coupling, **options)
    x, z = torch.randn(5, 3, 8, 4).double(), torch.randn(5, DIM).double()
    context = context_of(net, 5)

    def gradients(memory):
        for level in net.levels:
            level.memory = memory
        inputs = [x.clone().requires_grad_(), z.clone().requires_grad_()]
        contexts = [context.clone().requires_grad_()] if net.context_dim else [context]
        eps, log_det = net.encode(inputs[0], contexts[0])
        image, back = net.decode(inputs[1], contexts[0])
        loss = eps.sin().sum() + 2 * log_det.sum() + image.cos().sum() + 3 * back.sum()
        leaves = [*net.parameters(), *inputs, *(contexts if net.context_dim else [])]
        return torch.autograd.grad(loss, leaves)

    for seen, expected in zip(gradients(memory), gradients("none"), strict=True):
        assert torch.allclose(seen, expected, atol=1e-10)


def saved_bytes(net, x):
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = net(x).sum()
    own = sum(p.untyped_storage().nbytes() for p in net.parameters())
    loss.backward()
    return sum(sizes.values()) - own


def test_invertible_memory_is_small_and_constant_in_depth():
    x = torch.randn(64, 3, 16, 16)
    seen = {}
    for memory in ("none", "checkpoint", "invertible"):
        for depth in (2, 8):
            net = GlowNet((3, 16, 16), depth, 2, 16, memory=memory).initialize(x)
            few, many = (saved_bytes(net, x[:num]) for num in (8, 64))
            seen[memory, depth] = (many - few) / 56  # of an image
    image = 4 * 3 * 16 * 16
    assert seen["invertible", 8] == seen["invertible", 2] < 10 * image
    assert seen["invertible", 8] < seen["checkpoint", 8] < seen["none", 8] / 4


@pytest.mark.parametrize("memory", ["checkpoint", "invertible"])
def test_gradients_use_the_parameters_of_the_call(memory):
    net = small()
    others = {name: value + 0.02 for name, value in net.named_parameters()}
    x = torch.randn(2, 3, 8, 4).double()

    def gradient(memory):
        for level in net.levels:
            level.memory = memory
        leaves = {name: value.detach().requires_grad_() for name, value in others.items()}
        return torch.autograd.grad(functional_call(net, leaves, (x,)).sum(), list(leaves.values()))

    for seen, expected in zip(gradient(memory), gradient("none"), strict=True):
        assert torch.allclose(seen, expected, atol=1e-10)


def test_inputs_are_recomputed_in_full_precision():
    """Backward under autocast rounds gradients, as without; inputs in bf16 would be far off."""
    net, x = small(torch.float32, memory="invertible"), torch.randn(4, 3, 8, 4)
    expected = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        seen = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    for one, other in zip(seen, expected, strict=True):
        assert (one - other).abs().max() <= 0.015 * other.abs().max()


def test_second_derivatives():
    """Finite differences of the first; where they cannot be had, an error."""
    x, step = torch.randn(2, 3, 8, 4).double(), 1e-6

    def slope(net, x):
        return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0].square().sum()

    for memory in ("none", "checkpoint"):
        net = small(memory=memory)
        bias = net.levels[0].couplings[0].net.output.bias
        (seen,) = torch.autograd.grad(slope(net, x.requires_grad_()), [bias])
        values = []
        for shift in (step, -2 * step):
            bias.data[0] += shift
            values.append(slope(net, x).item())
        assert seen[0].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        slope(small(memory="invertible"), x)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_left_dimensions_of_images_and_contexts_broadcast(options):
    net = small(**options)
    x, context = torch.randn(4, 1, 3, 8, 4).double(), context_of(net, 3)
    seen = net(x, context)
    assert seen.shape == ((4, 3) if context is not None else (4, 1))
    for j in range(seen.shape[1]):
        one = None if context is None else context[j]
        expected = torch.stack([net(x[i, 0], one) for i in range(4)])
        assert torch.allclose(seen[:, j], expected, atol=1e-10)
    z = torch.randn(4, 1, DIM).double()
    images, _ = net.decode(z, context)
    assert torch.allclose(net.encode(images, context)[0], z.expand(*seen.shape, DIM), atol=1e-10)


@pytest.mark.parametrize("condition_couplings", [False, True])
def test_all_classes_are_scored_at_once(condition_couplings):
    net = small(num_classes=3, condition_couplings=condition_couplings)
    x = torch.randn(5, 2, 3, 8, 4).double()
    seen = net.log_prob_all_classes(x)
    expected = torch.stack([net(x, torch.full((), k)) for k in range(3)], -1)
    assert torch.allclose(seen, expected, atol=1e-10)
    calls = []
    hook = (
        net.levels[0].couplings[0].net.register_forward_hook(lambda *a: calls.append(len(a[1][0])))
    )
    net.log_prob_all_classes(x)
    hook.remove()
    assert calls == [30 if condition_couplings else 10]


def test_classifier_sees_the_mean_of_the_last_level():
    net = small(num_classes=3, classifier=True)
    x = torch.randn(5, 3, 8, 4).double()
    top = net.split(net.encode(x, torch.zeros(5, dtype=torch.long))[0])[0]
    bias, weight = net.top.bias[:, None, None], net.top.context.weight[:, 0, None, None]
    loc, log_scale = (bias + weight).chunk(2)
    mean = (loc + log_scale.exp() * top).mean((-2, -1))
    assert torch.allclose(net.class_logits(x), net.head(mean), atol=1e-10)


def test_latents_run_from_coarse_to_fine():
    net = small()
    z = net.encode(torch.randn(2, 3, 8, 4).double())[0]
    parts = net.split(z)
    assert [tuple(part.shape) for part in parts] == [(2, 24, 2, 1), (2, 6, 4, 2)]
    assert [tuple(shape) for shape in net.latent_shapes] == [(24, 2, 1), (6, 4, 2)]
    assert torch.equal(net.join(parts), z)


def test_split_prior_and_couplings_start_as_published():
    net = small(start=False, coupling="affine")
    x = torch.randn(16, 3, 8, 4).double()
    net.initialize(x)
    level = net.levels[0]
    u = x = pixel_unshuffle(x, 2)
    for norm, conv in zip(level.norms, level.convs, strict=True):
        u = conv.encode(norm.encode(u)[0])[0]
        standard = norm.encode(x)[0]
        mean, std = (stat((0, 2, 3)) for stat in (standard.mean, standard.std))
        assert torch.allclose(mean, torch.zeros(12).double(), atol=1e-6)
        assert torch.allclose(std, torch.ones(12).double(), atol=1e-2)
        kept, moved = u.chunk(2, 1)
        u = x = torch.cat([kept, moved * torch.sigmoid(torch.tensor(2.0).double())], 1)
    kept, eps, log_det = net.splits[0].encode(u)
    assert torch.equal(eps, u.chunk(2, 1)[1])
    assert torch.equal(log_det, torch.zeros(16).double())


def numpy_step(x, weights):
    """One published step of flow on (N, H, W, C), written from its description, in NumPy."""
    bias, logs, mix, convs, norms, last = weights
    x = (x + bias) * np.exp(3 * logs)
    x = np.einsum("nhwi,ij->nhwj", x, mix)
    half = x.shape[-1] // 2
    h = x[..., :half]
    for kernel, (shift, log_scale) in zip(convs, norms, strict=True):
        h = np.maximum((convolve(h, kernel) + shift) * np.exp(3 * log_scale), 0)
    kernel, shift, log_scale = last
    h = (convolve(h, kernel) + shift) * np.exp(3 * log_scale)
    scale = 1 / (1 + np.exp(-(h[..., 1::2] + 2)))
    moved = (x[..., half:] + h[..., 0::2]) * scale
    _, height, width, _ = x.shape
    log_det = height * width * (3 * logs.sum() + np.linalg.slogdet(mix)[1])
    return np.concatenate([x[..., :half], moved], -1), log_det + np.log(scale).sum((1, 2, 3))


def convolve(x, kernel):
    size = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (size, size), (size, size), (0, 0)))
    _, height, width, _ = x.shape
    return sum(
        np.einsum("nhwi,io->nhwo", padded[:, a : a + height, b : b + width], kernel[a, b])
        for a in range(kernel.shape[0])
        for b in range(kernel.shape[1])
    )


def test_step_is_the_published_one():
    rng, channels, width = np.random.default_rng(0), 4, 5
    half = channels // 2

    def normal(*shape):
        return 0.3 * rng.normal(size=shape)

    convs = [normal(3, 3, half, width), normal(1, 1, width, width)]
    norms = [(normal(width), normal(width)) for _ in convs]
    last = normal(3, 3, width, channels), normal(channels), normal(channels)
    weights = normal(channels), normal(channels), normal(channels, channels), convs, norms, last
    x = normal(2, 6, 4, channels)
    expected, expected_log_det = numpy_step(x, weights)
    level = GlowLevel(channels, 1, width, "affine", lu=False).double()
    order = torch.tensor([0, 2, 1, 3])  # published: shifts and logits in turns; ours: halves
    norm, conv, net = level.norms[0], level.convs[0], level.couplings[0].net
    with torch.no_grad():
        norm.bias.copy_(torch.tensor(weights[0]))
        norm.log_scale.copy_(torch.tensor(weights[1]))
        conv.matrix.copy_(torch.tensor(weights[2]).T)
        for own, kernel, layer, (shift, log_scale) in zip(
            net.weights, convs, net.norms, norms, strict=True
        ):
            own.copy_(torch.tensor(kernel).permute(3, 2, 0, 1))
            layer.bias.copy_(torch.tensor(shift))
            layer.log_scale.copy_(torch.tensor(log_scale))
        net.output.weight.copy_(torch.tensor(last[0]).permute(3, 2, 0, 1)[order])
        net.output.bias.copy_(torch.tensor(last[1])[order])
        net.output.log_scale.copy_(torch.tensor(last[2])[order])
    seen, log_det = level.encode(torch.tensor(x).movedim(-1, 1))
    assert np.allclose(seen.detach().movedim(1, -1), expected, atol=1e-10)
    assert np.allclose(log_det.detach(), expected_log_det, atol=1e-10)


def excess(scale):
    """Nats that a unit Normal wastes on a variable of standard deviation ``scale``."""
    return (scale**2 - 1) / 2 - math.log(scale)


SIGMOID = 1 / (1 + math.exp(-2))


def stratified(channels, num, height, width):
    """Uniform bytes with uniform noise, so evenly spread that their moments are exact."""
    size = num * height * width
    cells = torch.stack([torch.randperm(size) for _ in range(channels)]).double()
    x = ((cells + torch.rand(channels, size)) / size - 0.5).float()
    return x.unflatten(1, (num, height, width)).movedim(1, 0)


@pytest.mark.parametrize(("levels", "fraction"), [(1, 1 / 2), (2, 3 / 4), (3, 7 / 8)])
@pytest.mark.parametrize(
    ("coupling", "scale"),
    [("additive", 1.0), ("affine", SIGMOID), ("affine_bounded", 0.5 + 0.5 * SIGMOID)],
)
def test_bits_of_uniform_bytes(coupling, scale, levels, fraction):
    """8 + log2(2 pi e / 12) / 2 bits, and what the couplings' first scale wastes."""
    x = pixel_shuffle(stratified(12, 1500, 8, 8), 2)
    net = GlowNet((3, 16, 16), 2, levels, 8, coupling).initialize(x)
    with torch.no_grad():
        nats = -torch.cat([net(part) for part in x.split(250)]).mean().item()
    seen = 8 + nats / (768 * math.log(2))
    gaussian = math.log(2 * math.pi * math.e / 12) / 2
    expected = 8 + (gaussian + fraction * excess(scale)) / math.log(2)
    assert abs(seen - expected) < 3e-4  # channels are correlated by chance, to 1e-5 bits
    assert seen > 8  # the entropy


def test_a_linear_net_is_a_multivariate_normal():
    net = small(coupling="additive", start=False)
    net.initialize(torch.randn(64, 3, 8, 4).double())
    with torch.no_grad():
        for level in net.levels:
            perturb(level.norms)
            perturb(level.convs)
    at_zero = net.decode(torch.zeros(DIM).double())[0].flatten()
    matrix = torch.stack(
        [net.decode(row)[0].flatten() - at_zero for row in torch.eye(DIM).double()], -1
    )
    law = torch.distributions.MultivariateNormal(at_zero, matrix @ matrix.T)
    x = torch.randn(5, 3, 8, 4).double()
    assert (net(x) - law.log_prob(x.flatten(1))).abs().max() < 1e-8


def test_density_integrates_to_one():
    """Importance sampling with a wide Normal; five standard errors fail 6e-7 of the time."""
    net = GlowNet((1, 2, 2), depth=3, levels=1, width=8).double()
    perturb(net.initialize(torch.randn(100, 1, 2, 2).double()))
    wide = torch.distributions.Normal(torch.zeros(1, 2, 2).double(), 2.0)
    x = wide.sample((200_000,))
    with torch.no_grad():
        weights = (net(x) - wide.log_prob(x).sum((1, 2, 3))).exp()
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.02
    assert abs(weights.mean() - 1) < 5 * error


def test_edge_bias_is_a_channel_of_ones_in_the_padding():
    layer = perturb(ZeroConv2d(2, 3, edge_bias=True).double(), 0.5)
    x = torch.randn(4, 2, 5, 6).double()
    edge = pad(torch.zeros(4, 1, 5, 6).double(), (1, 1, 1, 1), value=1.0)
    joined = torch.cat([pad(x, (1, 1, 1, 1)), edge], 1)
    weight = torch.cat([layer.weight, layer.edge], 1)
    expected = conv2d(joined, weight, layer.bias) * (3 * layer.log_scale).exp()[:, None, None]
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_plain_and_factored_matrices_are_one():
    factored, plain = InvertibleConv1x1(6).double(), InvertibleConv1x1(6, lu=False).double()
    perturb(factored, 0.2)
    with torch.no_grad():
        plain.matrix.copy_(factored.weight())
    x = torch.randn(2, 6, 3, 3).double()
    for layer in (factored, plain):
        layer.weight_seen = layer.weight()
        layer.weight_seen.retain_grad()
    for seen, expected in zip(factored.encode(x), plain.encode(x), strict=True):
        assert torch.allclose(seen, expected, atol=1e-12)
    for seen, expected in zip(factored.decode(x), plain.decode(x), strict=True):
        assert torch.allclose(seen, expected, atol=1e-12)


@pytest.mark.parametrize("size", [12, 48, 192])
def test_matrices_start_as_rotations(size):
    layer = InvertibleConv1x1(size)
    weight = layer.weight().double()
    assert torch.allclose(
        weight @ weight.T, torch.eye(size).double(), atol=2e-3 if size > 48 else 1e-4
    )
    assert layer.encode(torch.zeros(1, size, 1, 1))[1].abs() < 1e-4
    x = torch.randn(8, size, 4, 4)
    assert torch.allclose(layer.decode(layer.encode(x)[0])[0], x, atol=1e-4)


def test_actnorm_folded_into_the_net_is_the_one_that_started():
    net = CouplingNet(2, 4, 6, bound=4.0).double()
    x = 3 * torch.randn(50, 2, 6, 6).double()
    net.initialize(x)
    perturb(net)
    h = 4 * torch.tanh(x / 4)
    for weight, norm in zip(net.weights, net.norms, strict=True):
        h = norm.encode(conv2d(h, weight, padding="same"))[0].relu()
    assert torch.allclose(net(x), net.output(h), atol=1e-10)


@pytest.mark.parametrize("coupling", LAWS)
def test_round_trip_in_single_precision(coupling):
    x = torch.rand(8, 3, 16, 16) - 0.5
    net = GlowNet((3, 16, 16), 32, 2, 16, coupling)
    perturb(net.initialize(x), 0.005)
    odd = torch.stack([torch.full((3, 16, 16), v) for v in (-0.5, 0.5)])
    for images in (x, odd):
        assert torch.allclose(net.decode(net.encode(images)[0])[0], images, atol=1e-4)
    z = 6 * torch.randn(8, 768).tanh()
    assert torch.allclose(net.encode(net.decode(z)[0])[0], z, atol=1e-3)


def test_half_precision_nets_keep_latents_and_log_determinants_in_float32():
    x = torch.rand(8, 3, 16, 16) - 0.5
    net = perturb(GlowNet((3, 16, 16), 4, 2, 32).initialize(x), 0.01)
    half = GlowNet(**{**net.config, "compute_dtype": torch.bfloat16})
    half.load_state_dict(net.state_dict())
    (z, log_det), (expected, expected_log_det) = half.encode(x), net.encode(x)
    again = net.decode(expected)[0]
    assert z.dtype == log_det.dtype == torch.float32
    assert torch.allclose(z, expected, atol=0.05)
    assert (log_det - expected_log_det).abs().max() < 0.1  # of hundreds: bf16 would round to one
    assert log_det.abs().min() > 256
    assert torch.allclose(half.decode(z)[0], x, atol=5e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.encode(x)[0], expected)
        assert torch.equal(net.decode(expected)[0], again)


def clones(net, tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"config": {**net.config}, "state": net.state_dict()}, path)
    saved = torch.load(path, weights_only=True)
    loaded = GlowNet(**saved["config"])
    loaded.load_state_dict(saved["state"])
    return [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded]


def test_copies_are_equal_and_do_not_start_again(tmp_path):
    net = small(torch.float32)
    x = torch.randn(4, 3, 8, 4)
    expected = net(x)
    for clone in clones(net, tmp_path):
        assert torch.equal(clone.train()(x), expected)
        assert clone.is_initialized


def test_loading_a_net_that_had_not_started_leaves_it_so(tmp_path):
    for clone in clones(small(torch.float32, start=False), tmp_path):
        assert not clone.is_initialized
    net = small()
    net.load_state_dict(small(start=False).state_dict())
    assert not net.is_initialized


def test_starting(recwarn):
    x = 5 + 3 * torch.randn(32, 3, 8, 4)
    net = small(torch.float32, start=False)
    net.decode(torch.randn(2, DIM))
    assert not net.is_initialized
    net.eval()
    with pytest.raises(ValueError, match=r"net\.initialize"):
        net(x)
    net.train()
    first = net(x)
    assert net.is_initialized
    expected = small(torch.float32, start=False)
    expected.load_state_dict(net.state_dict())
    assert torch.equal(first, expected(x))
    with pytest.raises(ValueError, match="has started"):
        net.initialize(x)
    assert torch.equal(net(x), first)


def test_start_is_the_same_in_any_shape_and_under_autocast():
    x = torch.randn(32, 3, 8, 4)
    nets = [small(torch.float32, start=False)]
    nets += [copy.deepcopy(nets[0]) for _ in range(2)]
    nets[0].initialize(x)
    nets[1](x.reshape(4, 8, 3, 8, 4).expand(2, 4, 8, 3, 8, 4))
    with torch.autocast("cpu", torch.bfloat16):
        nets[2].initialize(x)
    for other in nets[1:]:
        for seen, expected in zip(other.parameters(), nets[0].parameters(), strict=True):
            assert seen.dtype == torch.float32
            assert torch.allclose(seen, expected, atol=1e-5)


def test_per_sample_gradients():
    net = small()
    x = torch.randn(3, 3, 8, 4).double()
    parameters = dict(net.named_parameters())

    def loss(parameters, x):
        return functional_call(net, parameters, (x,))

    seen = vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    expected = torch.autograd.grad(net(x[1]), list(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):
        assert torch.allclose(seen[name][1], gradient, atol=1e-10)


@pytest.mark.parametrize("memory", ["none", "checkpoint"])
def test_both_directions_are_one_graph(memory):
    """For torch.compile; the invertible backward pass is a break in it."""
    x, label = torch.randn(5, 3, 8, 8), torch.randint(3, (5,))
    net = GlowNet((3, 8, 8), 2, 2, 8, num_classes=3, memory=memory).initialize(x)
    compile_ = partial(torch.compile, backend="eager", fullgraph=True)
    with pyro.validation_enabled(False):  # which the compiler turns off, for good
        seen = compile_(net)(x, label)
        seen.sum().backward()
        z = net.encode(x, label)[0].detach()
        back = compile_(net.decode)(z, label)[0]
    assert torch.allclose(seen, net(x, label), atol=1e-4)
    assert torch.allclose(back, x, atol=1e-4)


@pytest.mark.parametrize("memory", ["none", "checkpoint", "invertible"])
def test_loaded_nets_are_ensembles(memory):
    """A net that was loaded knows at once that it has started, and so can be transformed."""
    nets, x = [small() for _ in range(3)], torch.randn(5, 3, 8, 4).double()
    skeleton = GlowNet(**{**nets[0].config, "memory": memory}).double()
    skeleton.load_state_dict(nets[0].state_dict())
    states = {
        name: torch.stack([dict(net.named_parameters())[name] for net in nets])
        for name, _ in skeleton.named_parameters()
    }
    seen = vmap(lambda state: functional_call(skeleton, state, (x,)))(states)
    assert torch.allclose(seen, torch.stack([net(x) for net in nets]), atol=1e-10)


@pytest.mark.parametrize("memory", ["none", "checkpoint", "invertible"])
def test_no_images(memory):
    net = small(num_classes=3, classifier=True, memory=memory)
    none, labels = torch.empty(0, 3, 8, 4).double(), torch.empty(0, dtype=torch.long)
    net(none, labels).sum().backward()
    assert net.class_logits(none).shape == net.log_prob_all_classes(none).shape == (0, 3)
    assert net.decode(torch.empty(0, DIM).double(), labels)[0].shape == none.shape


def test_labels_of_any_integer_type():
    net, x = small(num_classes=3), torch.randn(3, 3, 8, 4).double()
    labels = torch.tensor([0, 2, 1])
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(net(x, labels.to(dtype)), net(x, labels))


def test_start_needs_a_context_only_where_couplings_see_it():
    x = torch.randn(5, 3, 8, 8)
    GlowNet((3, 8, 8), 1, 2, 8, num_classes=3).initialize(x)
    with pytest.raises(ValueError, match="context"):
        GlowNet((3, 8, 8), 1, 2, 8, num_classes=3, condition_couplings=True).initialize(x)


def test_inputs_are_left_alone():
    net = small()
    x, z = torch.randn(3, 3, 8, 4).double(), torch.randn(3, DIM).double()
    before = x.clone(), z.clone()
    net.encode(x)
    net.decode(z)
    assert torch.equal(x, before[0])
    assert torch.equal(z, before[1])


def test_samples_stay_finite_while_a_published_net_explodes():
    """The regression that likelihood and reconstruction do not see."""
    scale = torch.tensor(-25.0)
    outcomes = {}
    for coupling in ("affine", "affine_bounded"):
        net = GlowNet((3, 16, 16), 32, 3, 16, coupling).initialize(torch.randn(64, 3, 16, 16))
        with torch.no_grad():
            for level in net.levels:
                for layer in level.couplings:
                    layer.net.output.bias.chunk(2)[1].fill_(scale)
        outcomes[coupling] = net.decode(torch.randn(16, 768))[0].isfinite().float().mean()
    assert outcomes["affine_bounded"] == 1
    assert outcomes["affine"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_samples_stay_sane_through_training(seed):
    """Pixels reach some fifteen at first, then the data's range; those of "affine" are NaN."""
    torch.manual_seed(seed)
    data = torch.rand(512, 3, 16, 16).cumsum(-1) / 16 - 0.5
    net = GlowNet((3, 16, 16), 8, 3, 32).initialize(data)
    adamax = torch.optim.Adamax(net.parameters(), 4e-3)
    for step in range(1, 121):
        adamax.zero_grad()
        (-net(data[torch.randint(512, (32,))]).mean()).backward()
        adamax.step()
        if step % 20 == 0:
            with torch.no_grad():
                images = net.decode(torch.randn(64, 768))[0]
            assert images.abs().max() < 200
    assert images.abs().max() < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (3, 12, 16), "levels": 3}, "divisible"),
        ({"image_shape": (16, 16)}, "image_shape"),
        ({"depth": 0}, "depth"),
        ({"coupling": "nice"}, "additive, affine, affine_bounded"),
        ({"memory": "all"}, "memory"),
        ({"num_classes": 2, "context_dim": 2}, "num_classes or context_dim"),
        ({"classifier": True}, "num_classes"),
        ({"num_classes": 2, "condition_couplings": True, "classifier": True}, "do not see"),
        ({"condition_couplings": True}, "needs a context"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype"),
        ({"compute_dtype": torch.int8}, "compute_dtype"),
        ({"width": 2.5}, "width"),
    ],
)
def test_bad_arguments(options, message):
    arguments = {"image_shape": (3, 16, 16), "depth": 1, "levels": 1, "width": 4, **options}
    with pytest.raises(ValueError, match=message):
        GlowNet(**arguments)


def test_bad_inputs():
    net, labelled = small(), small(num_classes=3)
    x = torch.randn(2, 3, 8, 4).double()
    for bad, message in [
        (x.byte(), "Dequantized"),
        (x[:, :2], r"images \(\.\.\., \(3, 8, 4\)\)"),
        (x.float(), "float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            net(bad)
    for arguments, message in [
        ((), "labels below 3"),
        ((torch.zeros(2),), "integers"),
        ((torch.ones(2).bool(),), "integers"),
        ((torch.tensor([0, 3]),), "from 0 to 2"),
        ((torch.tensor([0, -1]),), "from 0 to 2"),
        (([0, 1],), "tensor"),
        ((torch.tensor([0, 1, 2]),), "do not broadcast"),
    ]:
        with pytest.raises(ValueError, match=message):
            labelled(x, *arguments)
    with pytest.raises(ValueError, match="do not broadcast"):
        labelled.decode(torch.zeros(2, DIM).double(), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="float64"):
        net.decode(torch.zeros(2, DIM))
    with pytest.raises(ValueError, match="float64"):
        small(context_dim=2)(x, torch.zeros(2, 2).long())
    assert small(context_dim=2)(x, torch.zeros(2, 2))[0].dtype == torch.float64
    with pytest.raises(ValueError, match="float32"):
        small(context_dim=2).float()(x.float(), torch.zeros(2, 2).double())
    with pytest.raises(ValueError, match="has not started"):
        small(num_classes=3, classifier=True, start=False).eval().class_logits(x)
    with pytest.raises(ValueError, match="memory is one of"):
        GlowLevel(4, 2, 8, memory="typo")
    with pytest.raises(ValueError, match="takes no context"):
        net(x, torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(\.\.\., 96\)"):
        net.decode(torch.zeros(5).double())
    with pytest.raises(ValueError, match="num_classes"):
        net.log_prob_all_classes(x)
    with pytest.raises(ValueError, match="classifier=True"):
        labelled.class_logits(x)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2\)"):
        small(context_dim=2)(x, torch.zeros(2, 3).double())
    with pytest.raises(ValueError, match="even"):
        Coupling(3, 4)


def test_degenerate_data_are_refused():
    net = small(torch.float32, start=False)
    x = torch.randn(4, 3, 8, 4)
    with pytest.raises(ValueError, match=r"constant channels: \[0, 1, 2, 3\] of 12"):
        net.initialize(torch.cat([torch.zeros(4, 1, 8, 4), x[:, 1:]], 1))
    with pytest.raises(ValueError, match="not finite"):
        small(torch.float32, start=False).initialize(x * torch.inf)
    pair = GlowNet((1, 4, 4), 1, 2, 4)
    half = torch.randn(1, 1, 4, 4)  # the second level then has one value in each channel
    with pytest.raises(ValueError, match="two values or more"):
        pair.initialize(half)
    assert not pair.is_initialized
    assert torch.equal(pair.levels[0].norms[0].bias, torch.zeros(4))
    one_pixel = GlowNet((1, 2, 2), 1, 1, 4)
    with pytest.raises(ValueError, match="two values or more"):
        one_pixel.initialize(torch.randn(1, 1, 2, 2))
    one_pixel.initialize(torch.randn(8, 1, 2, 2))


def test_layers_of_other_devices_and_dtypes_follow_their_parameters():
    layer = nn.ModuleList([ActNorm(2), InvertibleConv1x1(2), Coupling(2, 4)]).to(torch.float64)
    x = torch.randn(4, 2, 3, 3).double()
    for part in layer:
        z, log_det = part(x)
        assert z.dtype == log_det.dtype == torch.float64


def test_far_inputs_are_all_alike_to_bounded_networks():
    """Where an inverse may lead, shifts and scales are those of the bound."""
    net = perturb(CouplingNet(2, 4, 8, bound=4.0), 0.3)
    split = perturb(GaussianSplit(4, bound=4.0), 0.3)
    near, far, other = (torch.full((1, 2, 4, 4), value) for value in (0.5, 1e6, 1e7))
    eps = torch.randn(1, 2, 4, 4)
    for run in (net, lambda kept: split.decode(kept, eps)[0][:, 2:]):
        assert torch.equal(run(far), run(other))
        assert not torch.allclose(run(far), run(near), atol=1e-2)


def test_laws_are_named():
    assert law("affine").bound is None


@pytest.mark.gpu
def test_gpu():
    net = small(torch.float32)
    x = torch.randn(4, 3, 8, 4)
    expected = net(x)
    seen = net.cuda()(x.cuda())
    assert torch.allclose(seen.cpu(), expected, atol=1e-2)
    seen.sum().backward()
