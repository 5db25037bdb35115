"""Expected operations against torch's counter on pruned networks, and against enumeration."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_ext.models import ExpectedFlops, prune
from pyro_ext.nn import L0Conv2d, L0Gate, L0Linear


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = L0Conv2d(1, 8, 3, padding=1), L0Conv2d(8, 10, 3, stride=2)
        self.dense1, self.dense2 = L0Linear(250, 12), L0Linear(12, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 1)
        return self.dense2(F.relu(self.dense1(x.flatten(1))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        gate = L0Gate(6, dim=-3)
        self.stem, self.head = L0Conv2d(1, 6, 3, gate=gate), nn.Linear(6, 3)
        self.inner = L0Conv2d(6, 6, 3, padding=1)
        self.outer = L0Conv2d(6, 6, 3, padding=1, gate=gate)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


def decide(network, prob=0.6):
    gates = [module for module in network.modules() if isinstance(module, L0Gate)]
    for gate in gates:
        gate.log_alpha.data = torch.where(torch.rand(gate.num_units) < prob, 60.0, -60.0)
    return gates


IMAGES = torch.randn(3, 1, 12, 12)


class Perceptron(nn.Module):
    """Gates that are called twice, on channels of their own."""

    def __init__(self):
        super().__init__()
        self.gate = L0Gate(9)
        self.a, self.b, self.c = nn.Linear(144, 9), nn.Linear(9, 9), L0Linear(9, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.gate(self.b(F.relu(self.gate(self.a(x.flatten(1))))))))


@pytest.mark.parametrize("make", [Convolutional, Residual, Perceptron])
def test_decided_gates_have_the_count_of_the_pruned_network(make):
    network = make()
    measure = ExpectedFlops(network, IMAGES)
    for _ in range(5):
        decide(network)
        _, report = prune(network, IMAGES, timed=False)
        assert measure.dense == report.flops[0]
        assert measure().item() == pytest.approx(report.flops[1], rel=1e-5)
        assert 0 < measure.fraction().item() == pytest.approx(report.flops[1] / measure.dense)


def test_undecided_gates_have_the_mean_over_all_their_states():
    network = nn.Sequential(L0Linear(3, 4), nn.ReLU(), L0Linear(4, 2)).double()
    measure = ExpectedFlops(network, torch.zeros(1, 3, dtype=torch.float64))
    first, second = (network[i].gate.log_alpha.data.normal_() for i in (0, 2))
    p = torch.cat([network[i].gate.prob_nonzero() for i in (0, 2)]).detach()
    expected = 0.0
    for states in itertools.product([0, 1], repeat=7):
        open_ = torch.tensor(states)
        prob = torch.where(open_ == 1, p, 1 - p).prod()
        inputs, hidden = sum(states[:3]), sum(states[3:])
        expected += prob * (2 * inputs * hidden + 2 * hidden * 2)
    torch.testing.assert_close(measure().detach(), expected)
    assert len(first) + len(second) == 7


def test_gradients_reach_the_gates_of_both_sides():
    network = nn.Sequential(L0Linear(3, 4), nn.ReLU(), L0Linear(4, 2)).double()
    measure = ExpectedFlops(network, torch.zeros(1, 3, dtype=torch.float64))
    measure().backward()
    inputs, hidden = (network[i].gate.prob_nonzero().detach() for i in (0, 2))
    slope = hidden * (1 - hidden) * (2 * inputs.sum() + 2 * 2)
    torch.testing.assert_close(network[2].gate.log_alpha.grad, slope)


def test_shared_gates_are_one_event():
    network = Residual().double()
    measure = ExpectedFlops(network, IMAGES.double())
    stream, inner = (g.prob_nonzero().sum() for g in (network.stem.gate, network.inner.gate))
    # stem: 10 x 10 positions of 3 images; two convolutions between stream and branch; head
    expected = 2 * 300 * 9 * stream + 2 * 2 * 300 * 9 * stream * inner + 2 * 3 * 3 * stream
    torch.testing.assert_close(measure(), expected)


class Twice(nn.Module):
    """One module of gates called in two branches, and gates that two heads share."""

    def __init__(self):
        super().__init__()
        self.gate, self.a, self.b = L0Gate(9), nn.Linear(4, 9), nn.Linear(4, 9)
        gate = L0Gate(6)
        self.c = nn.Linear(9, 6)
        self.heads = nn.ModuleList(L0Linear(6, size, gate=gate) for size in (2, 3))

    def forward(self, x):
        h = F.relu(self.c(self.gate(self.a(x)) + self.gate(F.relu(self.b(x)))))
        return [head(h) for head in self.heads]


def test_gates_in_several_places_are_one_event():
    network = Twice().double()
    measure = ExpectedFlops(network, torch.zeros(1, 4, dtype=torch.float64))
    stream, hidden = (g.prob_nonzero().sum() for g in (network.gate, network.heads[0].gate))
    expected = 2 * (2 * 4 * stream + stream * hidden + hidden * (2 + 3))
    torch.testing.assert_close(measure(), expected)


def test_what_is_not_known_counts_as_dense():
    network = nn.Sequential(
        L0Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 6, bias=False), nn.ReLU(), L0Linear(6, 2)
    )
    decide(network, 1.0)
    measure = ExpectedFlops(network, torch.zeros(1, 8))
    network[4].gate.log_alpha.data[3:] = -60.0
    assert measure.dense == 2 * (48 + 36 + 12)
    assert measure().item() == pytest.approx(2 * (48 + 18 + 6))


def test_the_network_keeps_its_mode_and_norms_their_statistics():
    network = nn.Sequential(L0Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(300, 2))
    ExpectedFlops(network, IMAGES)()
    assert network.training
    assert not network[1].running_mean.any()


def test_networks_that_cannot_be_traced_are_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="forward of Branching cannot be traced"):
        ExpectedFlops(Branching(), torch.zeros(1, 2))


def test_a_single_layer_agrees_with_its_own_count():
    layer = L0Linear(20, 5)
    measure = ExpectedFlops(layer, torch.zeros(1, 20))
    assert measure().item() == pytest.approx(layer.expected_flops().item(), rel=1e-6)
    conv = L0Conv2d(2, 5, 3, stride=2, padding=1)
    with pytest.warns(UserWarning, match="No gate changes"):  # its channels are the output
        measure = ExpectedFlops(nn.Sequential(conv, nn.Flatten()), torch.zeros(1, 2, 9, 8))
    assert math.isclose(measure.dense, 2 * 5 * 4 * 5 * 18)


class Product(nn.Module):
    """Two branches with gates of their own, or the same, and norms that move zeros, or none."""

    def __init__(self, shared=False, norm=False):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)
        self.one = L0Gate(8)
        self.other = self.one if shared else L0Gate(8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()

    def forward(self, x):
        return self.head(self.one(self.a(x)).relu() * torch.tanh(self.norm(self.other(self.b(x)))))


def move(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)


@pytest.mark.parametrize("norm", [False, True])
def test_products_of_gated_branches_have_the_count_of_the_pruned_network(norm):
    network, x = Product(norm=norm), torch.randn(3, 6)
    if norm:
        move(network.norm)
    measure = ExpectedFlops(network, x)
    for _ in range(5):
        for gate in decide(network):
            gate.log_alpha.data[0] = 60.0  # one at least is open on both sides
        _, report = prune(network, x, timed=False)
        assert measure().item() == pytest.approx(report.flops[1], rel=1e-5)


def test_products_are_open_where_both_factors_are():
    x = torch.zeros(1, 6, dtype=torch.float64)
    network = Product().double()
    p, q = (gate.prob_nonzero() for gate in (network.one, network.other))
    torch.testing.assert_close(ExpectedFlops(network, x)(), 2 * (6 + 6 + 5) * (p * q).sum())
    network = Product(shared=True).double()
    p = network.one.prob_nonzero()
    torch.testing.assert_close(ExpectedFlops(network, x)(), 2 * (6 + 6 + 5) * p.sum())


@pytest.mark.parametrize(
    "head", [nn.ConvTranspose2d(6, 2, 3), nn.Conv2d(6, 6, 3, groups=3), nn.GroupNorm(2, 6)]
)
def test_networks_of_which_no_gate_acts_are_warned_of(head):
    network = nn.Sequential(L0Conv2d(1, 6, 3), nn.ReLU(), head)
    with pytest.warns(UserWarning, match="No gate changes the operations"):
        ExpectedFlops(network, IMAGES)
