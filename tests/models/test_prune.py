"""Pruned networks against the gated ones they come from; counts against torch's own."""

import copy
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext.models import PruneReport, prune
from pyro_ext.nn import L0Conv2d, L0Gate, L0Linear


def scatter(network, spread=2.0):
    """Gates open and closed at random, norms that have seen data; in double precision."""
    for module in network.double().modules():
        if isinstance(module, L0Gate):
            module.log_alpha.data.normal_(-2.0, spread)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return network


def flops(network, *x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*x)
    return counter.get_total_flops()


def check(network, *x, fewer=True):
    """The pruned network: same outputs, fewer parameters and operations, counted right."""
    small, report = prune(network, x, timed=False)
    before, after = network.eval()(*x), small(*x)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert before.std() > 1e-3  # or equality would say nothing
    assert report.flops[1] == flops(small, *x)
    assert report.flops[0] == flops(network, *x)
    assert report.parameters[1] == sum(p.numel() for p in small.parameters())
    if fewer:
        assert report.parameters[1] < 0.9 * report.parameters[0]
        assert report.flops[1] < 0.9 * report.flops[0]
    return small, report


def images(channels=1, size=12):
    return torch.randn(4, channels, size, size, dtype=torch.float64)


# Dense chains.


def chain(*widths, activation=nn.ReLU):
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [L0Linear(fan_in, fan_out), activation()]
    return scatter(nn.Sequential(*layers[:-1]))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.GELU, nn.Identity])
def test_chains(activation):
    network = chain(30, 20, 10, 5, activation=activation)
    small, report = check(network, torch.randn(7, 30, dtype=torch.float64))
    gates = [m for m in network.modules() if isinstance(m, L0Gate)]
    open_ = [int((gate.test_gate() > 0).sum()) for gate in gates]
    assert [layer.inputs[1] for layer in report.layers] == open_
    assert [layer.outputs[1] for layer in report.layers] == [*open_[1:], 5]
    assert not any(isinstance(module, L0Gate) for module in small.modules())
    assert type(small) is nn.Sequential


def test_the_published_widths_have_the_published_sizes():
    # 219-214-100 of 784-300-100: 69 590 parameters, 0.139 MFLOP per image
    network = nn.Sequential(
        L0Linear(784, 300), nn.ReLU(), L0Linear(300, 100), nn.ReLU(), L0Linear(100, 10)
    )
    for layer, num in zip(network[::2], (219, 214, 100), strict=True):
        layer.gate.log_alpha.data = torch.where(torch.arange(layer.in_features) < num, 9.0, -9.0)
    _, report = prune(network, torch.randn(1, 784), timed=False)
    assert report.parameters == (266_610, 69_590)
    assert report.flops == (532_400, 2 * (219 * 214 + 214 * 100 + 100 * 10))
    assert report.widths == {"0": 219, "2": 214, "4": 100}


@pytest.mark.parametrize("kind", ["paper", "median"])
def test_single_precision_to_one_in_a_million(kind):
    network = nn.Sequential(
        L0Linear(100, 60, test_gate=kind), nn.ReLU(), L0Linear(60, 10, test_gate=kind)
    )
    scatter(network).float()
    x = torch.randn(50, 100)
    small, _ = prune(network, x, timed=False)
    torch.testing.assert_close(small(x), network.eval()(x), rtol=0, atol=1e-6)


def test_the_mean_gate_closes_nothing():
    network = nn.Sequential(L0Linear(9, 5, test_gate="mean"), nn.Tanh(), L0Linear(5, 2)).double()
    network[2].gate.log_alpha.data.fill_(3.0)
    x = torch.randn(6, 9, dtype=torch.float64)
    assert check(network, x, fewer=False)[1].widths == {"0": 9, "2": 5}


def test_tokens_and_batch_norm_of_features():
    network = scatter(
        nn.Sequential(L0Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), L0Linear(20, 3))
    )
    check(network, torch.randn(9, 12, dtype=torch.float64))
    check(chain(12, 20, 3), torch.randn(4, 5, 12, dtype=torch.float64))


def test_gates_on_their_own_and_before_a_norm():
    network = scatter(
        nn.Sequential(
            L0Gate(12), nn.Linear(12, 20), nn.Tanh(), L0Gate(20), nn.BatchNorm1d(20), nn.SiLU(),
            nn.Linear(20, 3),
        )
    )  # fmt: skip
    check(network, torch.randn(9, 12, dtype=torch.float64))


def test_a_layer_by_itself():
    small, report = prune(scatter(L0Linear(30, 5)), torch.randn(3, 30).double(), timed=False)
    assert report.layers[0].inputs[1] < 30
    assert len(small) == 2


def test_dead_units_without_gates_go_with_what_only_they_read():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    network.double()
    with torch.no_grad():
        network[4].weight[:, 0] = 0.0  # so unit 0 of layer 2 is not read,
        network[2].weight[1:, 3] = 0.0  # and unit 3 of layer 0 by nobody else,
        network[0].weight[[0, 1, 2], 4] = 0.0  # nor input 4
        network[0].weight[1] = 0.0  # and unit 1 is a constant
        network[0].bias[1] = 0.7
    _, report = check(network, torch.randn(6, 5, dtype=torch.float64))
    assert [layer.inputs[1] for layer in report.layers] == [4, 2, 2]


# Convolutions.


class LeNet(nn.Module):
    def __init__(self, padding=0, bias=True, norm=True, flat="flatten", per_example=True):
        super().__init__()
        side = 4 if padding else 1  # of what the second pooling leaves
        options = {"padding": padding, "bias": bias, "per_example": per_example}
        self.conv1, self.conv2 = L0Conv2d(1, 12, 3, **options), L0Conv2d(12, 16, 4, **options)
        self.norm1, self.norm2 = (
            (nn.BatchNorm2d(12), nn.BatchNorm2d(16)) if norm else (nn.Identity(), nn.Identity())
        )
        self.dense1, self.dense2 = L0Linear(16 * side * side, 20), L0Linear(20, 5)
        self.flat = flat

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.avg_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        if self.flat == "view":
            x = x.view(x.size(0), -1)
        elif self.flat == "reshape":
            x = x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])
        else:
            x = torch.flatten(x, 1)
        return self.dense2(self.dense1(x).relu())


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "unbiased"])
def test_convolutions_norms_and_flattening(padding, norm, bias):
    network = scatter(LeNet(padding, bias, norm))
    _, report = check(network, images())
    open_ = int((network.conv1.gate.test_gate() > 0).sum())
    carrier = report.layers[0].outputs[1] - open_
    # under padding with zeros, one channel stands for what norms make of closed ones
    assert carrier <= (1 if padding and norm else 0)
    assert report.left_dense == {}


@pytest.mark.parametrize("flat", ["view", "reshape"])
def test_other_ways_to_flatten(flat):
    check(scatter(LeNet(flat=flat)), images())


def test_a_carrier_stands_for_closed_channels_at_the_border():
    network = nn.Sequential(
        L0Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
    )
    scatter(network)
    network[1].bias.data.abs_().add_(1.0)
    network[1].running_mean.zero_()
    network[0].gate.log_alpha.data = torch.tensor([9.0, -9, -9, 9, -9, -9, -9, -9])
    network.double()
    _, report = check(network, images())
    assert report.layers[1].inputs == (8, 3)  # two open, one carrier
    network[3].padding_mode = "circular"  # constants stay constants
    network[3]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert check(network, images())[1].layers[1].inputs == (8, 2)


def test_pooling_over_positions_and_strides():
    network = scatter(
        nn.Sequential(
            L0Conv2d(2, 10, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), L0Conv2d(10, 12, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), L0Linear(12, 4),
        )
    )  # fmt: skip
    check(network, images(2, 16))


def test_padded_averages_of_constants_are_kept():
    network = scatter(
        nn.Sequential(
            L0Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AvgPool2d(2, padding=1), nn.Flatten(),
            nn.Linear(8 * 36, 4),
        )
    )  # fmt: skip
    check(network, images(), fewer=False)


@pytest.mark.parametrize(
    "pool",
    [
        nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Flatten()),
        lambda h: F.avg_pool2d(h, 2, divisor_override=3).flatten(1),
        lambda h: F.avg_pool2d(h, 2, 2, 0, False, True, 3).flatten(1),
    ],
)
def test_averages_with_a_divisor_of_their_own_are_left(pool):
    network = scatter(Head(pool, 8 * 25))
    _, report = check(network, images(), fewer=False)
    assert report.widths["head"] == 200
    assert report.left_dense


class Head(nn.Module):
    """A convolution with gates and a norm, something in the middle, and a dense layer."""

    def __init__(self, middle, inputs=8):
        super().__init__()
        self.conv, self.norm = L0Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.middle, self.head = middle, nn.Linear(inputs, 4)

    def forward(self, x):
        return self.head(self.middle(self.norm(self.conv(x))))


# Changes in place.


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(inplace=True),
        nn.ELU(inplace=True),
        nn.SiLU(inplace=True),
        nn.Hardtanh(inplace=True),
    ],
)
def test_activations_in_place_directly_after_a_layer(activation):
    network = scatter(nn.Sequential(nn.Linear(6, 8), activation, L0Linear(8, 3)))
    check(network, torch.randn(5, 6, dtype=torch.float64), fewer=False)
    network = scatter(nn.Sequential(L0Conv2d(1, 8, 3), activation, nn.Flatten(), L0Linear(800, 3)))
    assert check(network, images())[1].left_dense == {}
    network = scatter(
        nn.Sequential(L0Conv2d(1, 8, 3), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 3, 3))
    )
    assert check(network, images())[1].left_dense == {}


@pytest.mark.parametrize(
    "activation",
    [
        torch.relu_,
        lambda h: F.relu(h, inplace=True),
        lambda h: h.relu_(),
        lambda h: h.add_(1.0),
    ],
)
def test_functions_in_place_directly_after_a_layer(activation):
    check(scatter(Head(lambda h: activation(h).mean((2, 3)))), images(), fewer=False)


def relu_of(h):
    h.relu_()
    return h.mean((2, 3))


def relu_then_flat(h):
    h.relu_()
    return h.flatten(1)


def relu_then_view(h):
    F.relu(h, inplace=True)
    return h.view(h.size(0), -1)


def sum_of(h):
    other = h
    other += 1.0
    return h.mean((2, 3))


def through_a_view(h):
    flat = h.flatten(1)
    h.mul_(2.0).add_(1.0)
    return flat


def of_a_part(h):
    h[:, 1].fill_(3.0)
    return h.mean((2, 3))


def before_a_residual(h):
    return (F.relu(h, inplace=True) + torch.tanh(h)).mean((2, 3))


@pytest.mark.parametrize(
    "middle",
    [relu_of, relu_then_flat, relu_then_view, sum_of, through_a_view, of_a_part, before_a_residual],
)
def test_what_is_read_by_its_old_name_after_a_change_is_left(middle):
    inputs = 800 if middle in (relu_then_flat, relu_then_view, through_a_view) else 8
    network = scatter(Head(middle, inputs))
    _, report = check(network, images(), fewer=False)
    assert "it is changed in place" in repr(report)
    assert report.layers[0].outputs == (8, 8)


def test_modules_in_place_without_a_name():
    class Unnamed(Head):
        def forward(self, x):
            h = self.norm(self.conv(x))
            self.middle(h)
            return self.head(h.view(h.size(0), -1))

    _, report = check(scatter(Unnamed(nn.ReLU(inplace=True), 800)), images(), fewer=False)
    assert report.left_dense["norm"] == "BatchNorm2d: it is changed in place"


def test_sums_in_place_without_a_name():
    class Sum(Head):
        def forward(self, x):
            h, other = self.norm(self.conv(x)), self.middle(x)
            h.add_(other)
            return self.head(h.flatten(1))

    check(scatter(Sum(L0Conv2d(1, 8, 3), 800)), images(), fewer=False)


@pytest.mark.parametrize("inplace", [True, False])
def test_activations_before_residual_branches(inplace):
    class PreActivation(Head):
        def forward(self, x):
            h = self.norm(self.conv(x))
            return self.head((self.middle(F.relu(h, inplace=inplace)) + h).mean((2, 3)))

    _, report = check(scatter(PreActivation(nn.Conv2d(8, 8, 1))), images(), fewer=False)
    assert bool(report.left_dense) is inplace


def test_in_inference_mode():
    network = scatter(Head(relu_of))
    with torch.inference_mode():
        check(network, images(), fewer=False)


# What calls do beside the forward.


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("before", [True, False])
def test_layers_with_hooks_are_left(place, before):
    network = scatter(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), L0Linear(8, 3)))
    if before:
        network[place].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0] + 1,))
    else:
        network[place].register_forward_hook(lambda module, inputs, output: 2 * output + 1)
    _, report = check(network, torch.randn(5, 6, dtype=torch.float64), fewer=False)
    assert "it has forward hooks" in report.left_dense[str(place)]


def test_hooks_of_gates_and_of_the_network_are_refused():
    x = torch.randn(5, 6)
    network = nn.Sequential(L0Linear(6, 8), nn.ReLU(), L0Linear(8, 3))
    handle = network.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match="Sequential has forward hooks of its own"):
        prune(network, x)
    handle.remove()
    network[2].gate.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match=r"'2.gate' has forward hooks, which go with its gates"):
        prune(network, x)


class Read(nn.Module):
    """Weights of an encoder, read beside its call."""

    def __init__(self, encoder, read):
        super().__init__()
        self.encoder, self.middle, self.out = encoder, L0Linear(8, 8), nn.Linear(8, 6)
        self.read = read

    def forward(self, x):
        h = torch.relu(self.middle(torch.relu(self.encoder(x))))
        return self.out(h) + self.read(self, h)


@pytest.mark.parametrize(
    "read",
    [
        lambda net, h: net.encoder.weight.sum() + net.encoder.bias.sum(),
        lambda net, h: F.linear(h, net.encoder.weight.t()),
    ],
)
def test_layers_whose_weights_are_read_beside_their_call_are_left(read):
    network, x = scatter(Read(nn.Linear(6, 8), read)), torch.randn(5, 6, dtype=torch.float64)
    _, report = check(network, x, fewer=False)
    assert "read beside its call" in report.left_dense["encoder"]
    with pytest.raises(ValueError, match="reads parameters of 'encoder' beside its call"):
        prune(Read(L0Linear(6, 8), read), x.float())


@pytest.mark.parametrize(
    "dropout",
    [
        F.dropout,
        lambda h: F.dropout(h, 0.5, True),
        lambda h: F.dropout2d(h, training=True),
    ],
)
def test_dropout_that_stays_on_is_left(dropout):
    network = scatter(Head(lambda h: dropout(h).mean((2, 3)))).eval()
    small, report = prune(network, images(), timed=False)
    assert "its dropout is on in evaluation too" in repr(report)
    x = images()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = network(x)
        torch.manual_seed(0)
        torch.testing.assert_close(small(x), expected)


def test_dropout_that_is_off_is_passed():
    class Off(Head):
        def forward(self, x):
            h = F.dropout(self.norm(self.conv(x)), 0.5, self.training)
            return self.head(F.dropout2d(h, training=self.training).mean((2, 3)))

    assert check(scatter(Off(None)), images())[1].left_dense == {}


def test_three_dimensions():
    network = nn.Sequential(nn.Conv3d(1, 6, 2), nn.ReLU(), nn.Conv3d(6, 2, 2)).double()
    network[0].weight.data[:3] = 0.0
    x = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64)
    assert check(network, x)[1].layers[1].inputs == (6, 3)


# Residual streams.


class Block(nn.Module):
    def __init__(self, width, gate):
        super().__init__()
        self.conv1 = L0Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = L0Conv2d(width, width, 3, padding=1, gate=gate)

    def forward(self, x):
        return x + self.conv2(F.relu(self.norm(self.conv1(x))))


class ResNet(nn.Module):
    def __init__(self, width=10, shared=True):
        super().__init__()
        gate = L0Gate(width, dim=-3)
        self.stem = L0Conv2d(1, width, 3, padding=1, gate=gate)
        self.blocks = nn.Sequential(
            *(Block(width, gate if shared else L0Gate(width, dim=-3)) for _ in range(2))
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


def test_shared_gates_shrink_the_stream():
    network = scatter(ResNet())
    _, report = check(network, images())
    open_ = int((network.stem.gate.test_gate() > 0).sum())
    stream = {layer.name: layer.outputs[1] for layer in report.layers}
    assert stream["stem"] == stream["blocks.0.conv2"] == stream["blocks.1.conv2"] == open_ < 10
    assert report.widths["head"] == open_


def test_unshared_gates_shrink_what_all_close():
    _, report = check(scatter(ResNet(shared=False)), images())
    outputs = {layer.outputs[1] for layer in report.layers if "conv1" not in layer.name}
    assert len(outputs - {4}) == 1


def test_a_closed_branch_is_emptied_with_a_warning():
    network = scatter(ResNet())
    network.blocks[0].conv1.gate.log_alpha.data.fill_(-9.0)
    network.blocks[0].norm.running_mean.zero_()
    network.blocks[0].norm.bias.data.fill_(-1.0)  # relu of it is zero
    with pytest.warns(UserWarning, match=r"All units of \['blocks.0.conv1'"):
        _, report = check(network, images())
    assert "blocks.0.conv1" in report.emptied
    assert {row.name: row.outputs[1] for row in report.layers}["blocks.0.conv1"] == 1
    assert "emptied" in repr(report)


def test_a_closed_network_is_refused():
    network = chain(6, 5, 4)
    network[2].gate.log_alpha.data.fill_(-9.0)
    with pytest.raises(ValueError, match=r"all inputs of \['2'\] are closed. .* a smaller one"):
        prune(network, torch.randn(2, 6, dtype=torch.float64))


class Calls(nn.Module):
    """A gate and a norm without parameters, each called in two places."""

    def __init__(self, joined):
        super().__init__()
        self.gate, self.norm = L0Gate(9), nn.BatchNorm1d(9, affine=False)
        self.a, self.b, self.c = nn.Linear(4, 9), nn.Linear(9, 9), L0Linear(9, 3)
        self.joined = joined

    def forward(self, x):
        first = torch.tanh(self.norm(self.gate(self.a(x))))
        second = self.norm(self.gate(self.b(first)))
        return self.c(first + second if self.joined else torch.tanh(second))


@pytest.mark.parametrize("joined", [True, False])
def test_a_gate_and_a_norm_that_are_called_twice(joined):
    network = Calls(joined).double()
    network.gate.log_alpha.data.copy_(torch.tensor([-6.0, 2.0, 0.5] * 3))
    network.c.gate.log_alpha.data.copy_(torch.tensor([2.0, 2.0, -6.0] * 3))
    network.norm.running_mean.normal_()
    small, report = check(network, torch.randn(5, 4, dtype=torch.float64))
    widths = {row.name: row.outputs[1] for row in report.layers}
    assert widths == {"a": 6, "b": 6 if joined else 3, "c": 3}
    assert set(small.state_dict()) >= {"gate.scale", "gate_call_2.scale"}


class Gated(nn.Module):
    """A product of two branches: a zero of one closes both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = L0Linear(6, 8), nn.Linear(6, 8)
        self.gate = L0Gate(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.gate(self.a(x)) * torch.sigmoid(self.b(x)) * 2.0)


def test_products_of_branches():
    network = scatter(Gated())
    _, report = check(network, torch.randn(5, 6, dtype=torch.float64))
    open_ = int((network.gate.test_gate() > 0).sum())
    assert {row.name: row.outputs[1] for row in report.layers} == {"a": open_, "b": open_, "out": 2}


# What is not known.


class Unknown(nn.Module):
    def forward(self, x):
        return x.sort(-1).values


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.LayerNorm(9), "LayerNorm: it is not known"),
        (nn.PReLU(9), "PReLU: it is not known"),
        (Branching(), "Branching: its forward cannot be traced"),
        (weight_norm(nn.Linear(9, 9)), "ParametrizedLinear: its weight is parametrised"),
        (nn.BatchNorm1d(9, track_running_stats=False), "normalises by the batch"),
    ],
)
def test_unknown_modules_are_named_and_left(middle, reason):
    network = scatter(nn.Sequential(L0Linear(12, 9), middle, L0Linear(9, 3)))
    _, report = check(network, torch.randn(5, 12, dtype=torch.float64), fewer=False)
    assert reason in report.left_dense["1"]
    assert reason in repr(report)
    assert {row.name: row.outputs[1] for row in report.layers}["0"] == 9
    assert report.widths["2"] < 9  # what reads it is given an index


def test_unknown_functions_are_named():
    network = scatter(nn.Sequential(L0Linear(12, 9), Unknown(), L0Linear(9, 3)))
    _, report = check(network, torch.randn(5, 12, dtype=torch.float64))
    assert any("sort" in name for name in report.left_dense)


def test_groups_and_repeated_layers_are_left():
    shared = nn.Conv2d(6, 6, 3, padding=1)
    network = scatter(
        nn.Sequential(
            L0Conv2d(1, 6, 3), shared, nn.ReLU(), shared, L0Conv2d(6, 6, 3, groups=3),
            nn.Flatten(), L0Linear(6 * 64, 3),
        )
    )  # fmt: skip
    network[4].gate.log_alpha.data.fill_(3.0)
    _, report = check(network, images(), fewer=False)
    assert "called 2 times" in report.left_dense["1"]
    assert "3 groups" in report.left_dense["4"]


class Sizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), L0Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) / x.size(1)


def test_sizes_that_are_computed_with_are_kept():
    _, report = check(scatter(Sizes()), torch.randn(5, 6, dtype=torch.float64), fewer=False)
    assert report.layers[0].outputs == (8, 8)


class Tied(nn.Module):
    """Two layers with the same weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), L0Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def test_layers_that_share_weights_are_left():
    network = scatter(Tied())
    _, report = check(network, torch.randn(5, 8, dtype=torch.float64), fewer=False)
    assert {"a", "b"} == set(report.left_dense)
    assert "shares its parameters" in report.left_dense["a"]
    assert report.widths["c"] < 8


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = L0Linear(30, 20), L0Linear(20, 3)

    def forward(self, x):
        return self.b(input=1.0 / (2.0 + F.relu(input=self.a(input=x))))


def test_arguments_by_keyword_and_scalars_first():
    check(scatter(Keywords()), torch.randn(5, 30, dtype=torch.float64))


class GatesFromOutside(Keywords):
    def forward(self, x):
        return self.b(self.a(x, x))


def test_gates_from_outside_are_refused():
    with pytest.raises(ValueError, match="'a' is given gates from outside"):
        prune(GatesFromOutside(), torch.randn(5, 30))


class OtherAxes(nn.Module):
    """Gates and norms along other dimensions than that of the features."""

    def __init__(self, middle):
        super().__init__()
        self.a, self.middle, self.b = L0Linear(8, 6), middle, L0Linear(6, 3)

    def forward(self, x):
        return self.b(self.middle(self.a(x).reshape(4, 5, 6)).view(4, 5, 6))


@pytest.mark.parametrize("make", [lambda: L0Gate(5, dim=-2), lambda: nn.BatchNorm1d(5)])
def test_gates_and_norms_of_other_dimensions_are_left(make):
    network = scatter(OtherAxes(make()))
    _, report = check(network, torch.randn(4, 5, 8, dtype=torch.float64), fewer=False)
    assert report.layers[0].outputs == (6, 6)


def test_a_gate_along_the_width_of_images_is_left():
    network = scatter(nn.Sequential(L0Conv2d(1, 10, 3), L0Gate(10), nn.Conv2d(10, 2, 3)))
    _, report = check(network, images(), fewer=False)
    assert report.layers[0].outputs == (10, 10)
    assert "1" in report.left_dense


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2)])
def test_pools_over_features_are_left(pool):
    network = scatter(nn.Sequential(L0Linear(8, 6), pool, L0Linear(3, 2)))
    _, report = check(network, torch.randn(5, 8, dtype=torch.float64), fewer=False)
    assert report.layers[0].outputs == (6, 6)


def test_dropout_of_channels_is_passed():
    network = scatter(nn.Sequential(L0Conv2d(1, 10, 3), nn.Dropout2d(), nn.Conv2d(10, 2, 3)))
    assert check(network, images())[1].left_dense == {}


def test_networks_that_cannot_be_traced_are_refused():
    with pytest.raises(ValueError, match="forward of Branching cannot be traced"):
        prune(Branching(), torch.randn(2, 3))
    with pytest.raises(ValueError, match="example must be a batch of inputs"):
        prune(chain(4, 3), [])
    with pytest.raises(ValueError, match="example must be a batch of inputs"):
        prune(chain(4, 3), ["a"])
    with pytest.raises(ValueError, match=r"a tuple of them, got \['NoneType'\]"):
        prune(chain(4, 3), None)


def test_arguments_without_names_are_refused():
    class Any(nn.Sequential):
        def forward(self, *x):
            return super().forward(*x)

    with pytest.raises(ValueError, match="Give its forward named arguments instead of"):
        prune(Any(nn.Linear(3, 2)), torch.randn(5, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda layer: torch_prune.ln_structured(layer, "weight", 0.5, 2, 0),
        torch.nn.utils.weight_norm,
    ],
)
def test_weights_that_hooks_compute_are_refused(make):
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    make(network[0])
    with pytest.raises(
        ValueError, match=r"'0' computes \['weight'\].* torch.nn.utils.prune.remove"
    ):
        prune(network, torch.randn(5, 6))


# What is returned.


def test_the_network_itself_is_not_changed():
    network = scatter(LeNet()).train()
    before = copy.deepcopy(network.state_dict())
    small, _ = prune(network, images(), timed=False)
    assert network.training
    assert not small.training
    assert all(torch.equal(network.state_dict()[name], part) for name, part in before.items())


@pytest.mark.parametrize("make", [lambda: chain(20, 15, 3), LeNet, ResNet])
def test_export_pickle_and_state(make):
    network = scatter(make())
    x = torch.randn(4, 20).double() if isinstance(network, nn.Sequential) else images()
    small, _ = prune(network, x, timed=False)
    expected, more = small(x), torch.cat([x, x.flip(0)])[:7]
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(small, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(more), small(more))
    torch.testing.assert_close(pickle.loads(pickle.dumps(small))(x), expected)
    other, _ = prune(network, x, timed=False)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(x), expected)


def test_onnx(tmp_path):
    pytest.importorskip("onnxscript", reason="torch's ONNX export needs onnxscript")
    small, _ = prune(chain(20, 15, 3).float(), torch.randn(4, 20), timed=False)
    torch.onnx.export(small, (torch.randn(4, 20),), tmp_path / "small.onnx", dynamo=True)
    assert (tmp_path / "small.onnx").stat().st_size > 0


def test_the_small_network_trains_on():
    small, _ = prune(chain(20, 15, 3), torch.randn(4, 20).double(), timed=False)
    small(torch.randn(4, 20).double()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in small.parameters())


def test_the_report():
    network = chain(30, 20, 5)
    _small, report = prune(network, torch.randn(8, 30, dtype=torch.float64))
    assert isinstance(report, PruneReport)
    assert all(time > 0 for time in report.latency)
    lines = repr(report).splitlines()
    assert lines[0].split() == ["layer", "inputs", "outputs"]
    assert lines[1].startswith(f"0      30 -> {report.widths['0']}")
    assert "batch of 8" in repr(report)
    assert report.compression == pytest.approx(report.parameters[0] / report.nonzero)
    assert "latency" in repr(report)
    untimed = prune(network, torch.randn(8, 30).double(), timed=False)[1]
    assert math.isnan(untimed.latency[0])
    assert "nan" not in repr(untimed)


def test_fewer_units_are_faster():
    network = nn.Sequential(L0Linear(2000, 2000), nn.ReLU(), L0Linear(2000, 10))
    for layer in network[::2]:
        layer.gate.log_alpha.data[100:] = -9.0
    _, report = prune(network, torch.randn(200, 2000))
    assert report.latency[1] < report.latency[0] / 2  # of about 100 times fewer operations


# Weights of a guide.


def perceptron():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def guide_of(network, noisy):
    """Normal sites, of which those in the masks have log alpha 4, the others 2."""

    def guide():
        for name, loc in network.named_parameters():
            log_alpha = torch.where(noisy[name], 4.0, 2.0)
            scale = (log_alpha / 2).exp() * loc.abs()
            pyro.sample(f"net.{name}", dist.Normal(loc.detach() * 3, 3 * scale).to_event(loc.dim()))

    return guide


def test_weights_of_a_guide_with_more_noise_than_signal_are_zero():
    network, x = perceptron(), torch.randn(7, 8, dtype=torch.float64)
    noisy = {name: torch.rand(p.shape) < 0.4 for name, p in network.named_parameters()}
    noisy["2.weight"][:, 2] = True  # unit 2 is not read
    noisy["0.weight"][:, 5] = True  # nor input 5
    small, report = prune(network, x, guide=guide_of(network, noisy), timed=False)
    expected = copy.deepcopy(network)
    for name, parameter in expected.named_parameters():
        parameter.data = 3 * parameter.data.masked_fill(noisy[name], 0.0)
    torch.testing.assert_close(small(x), expected(x))
    assert report.widths["0"] <= 7
    assert report.widths["2"] <= 5
    assert report.masked["0.weight"] == pytest.approx(noisy["0.weight"].double().mean().item())
    assert report.nonzero < report.parameters[1]
    low, _ = prune(network, x, guide=guide_of(network, noisy), threshold=5.0, timed=False)
    torch.testing.assert_close(low(x), prune(low, x, timed=False)[0](x))
    assert sum((p != 0).sum() for p in low.parameters()) == 8 * 6 + 6 + 6 * 2 + 2


def test_bayesian_modules_bring_their_guide():
    from pyro_ext.infer.bayesianize import bayesianize

    network, x = perceptron(), torch.randn(7, 8, dtype=torch.float64)
    model = bayesianize(network)
    small, report = prune(model, x, timed=False)
    torch.testing.assert_close(small(x), network(x))
    assert set(report.masked) == {name for name, _ in network.named_parameters()}


def test_bayesian_modules_with_tied_weights():
    from pyro_ext.infer.bayesianize import bayesianize

    network, x = Tied().double(), torch.randn(7, 8, dtype=torch.float64)
    network.c.gate.log_alpha.data.fill_(9.0)
    model = bayesianize(network, lambda name, _: None if "gate" in name else dist.Normal(0.0, 1.0))
    small, report = prune(model, x, threshold=math.inf, timed=False)
    torch.testing.assert_close(small(x), network.eval()(x))
    assert report.parameters[1] == sum(p.numel() for p in small.parameters())
    assert small.a.weight is small.b.weight
    assert {"a", "b"} == set(report.left_dense)


def test_a_network_that_the_guide_masks_is_refused_with_the_cause():
    network, x = perceptron(), torch.randn(7, 8, dtype=torch.float64)
    noisy = {name: torch.ones(p.shape, dtype=bool) for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match=r"noise masks 100.0% of 0.weight, .* raise the thresh"):
        prune(network, x, guide=guide_of(network, noisy), timed=False)


def test_a_network_without_gates_or_guide_is_refused_by_its_weights():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    network[2].weight.data.zero_()
    with pytest.raises(ValueError, match="look at the weights"):
        prune(network, torch.randn(2, 4), timed=False)


def test_guides_of_pyro():
    network, x = perceptron(), torch.randn(7, 8, dtype=torch.float64)

    def model():
        for name, loc in network.named_parameters():
            pyro.sample(name, dist.Normal(torch.zeros_like(loc), 1.0).to_event(loc.dim()))

    values = {name: loc.detach() for name, loc in network.named_parameters()}
    guide = pyro.infer.autoguide.AutoNormal(
        model, init_loc_fn=pyro.infer.autoguide.init_to_value(values=values), init_scale=1e-3
    )
    guide()
    small, report = prune(network, x, guide=guide, threshold=math.inf, timed=False)
    torch.testing.assert_close(small(x), network(x))
    assert not any(report.masked.values())


def test_guides_that_do_not_fit_are_refused():
    network, x = perceptron(), torch.randn(7, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="no normal distribution at a site with the name"):
        prune(network, x, guide=lambda: pyro.sample("w", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match="threshold must be a number, got NaN"):
        prune(network, x, threshold=math.nan)


@pytest.mark.gpu
def test_on_a_gpu():
    network = scatter(LeNet(2)).cuda()
    x = images().cuda()
    small, report = prune(network, x)
    torch.testing.assert_close(small(x), network.eval()(x))
    assert report.flops[1] < report.flops[0]
