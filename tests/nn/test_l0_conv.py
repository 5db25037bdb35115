"""The convolution with gates: output, penalty, counts; the defects of the published code."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext.nn import L0Conv2d, L0Gate


def decided(layer, open_):
    layer.gate.log_alpha.data = torch.where(torch.as_tensor(open_), 40.0, -40.0).to(layer.weight)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_folded_gates_equal_multiplied_ones(bias, groups):
    layer = L0Conv2d(4, 6, 3, padding=1, groups=groups, bias=bias).double()
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=groups, bias=bias).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "gate" not in k})
    x, z = (torch.rand(*shape, dtype=torch.float64) for shape in ((5, 4, 7, 7), (6,)))
    torch.testing.assert_close(layer(x, z), plain(x) * z[:, None, None])
    each = torch.rand(5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x, each), plain(x) * each[:, :, None, None])
    expected = plain(x) * layer.gate.test_gate()[:, None, None]
    torch.testing.assert_close(layer.eval()(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])


@pytest.mark.parametrize("per_example", [True, False])
def test_the_bias_is_there_in_training(per_example):
    # the published code drops it if gates are shared by the batch
    layer = decided(L0Conv2d(1, 2, 3, per_example=per_example), [True, True])
    layer.weight.data.zero_()
    layer.bias.data.fill_(7.0)
    x = torch.zeros(5, 1, 4, 4)
    assert (layer.train()(x) == 7).all()
    assert (layer.eval()(x) == 7).all()


def test_the_bias_is_charged_not_rewarded():
    # a filter of 5 x 5 x 1 and its bias are 26 parameters; the published code counts 24
    layer = decided(L0Conv2d(1, 20, 5), [True] * 7 + [False] * 13)
    assert layer.penalty(0.1).item() == pytest.approx(0.1 * 26 * 7)
    assert layer.expected_l0().item() == pytest.approx(26 * 7)
    layer = decided(L0Conv2d(1, 20, 5, bias=False), [True] * 7 + [False] * 13)
    assert layer.penalty(0.1).item() == pytest.approx(0.1 * 25 * 7)


def test_penalty_filter_by_filter():
    layer = L0Conv2d(3, 4, (2, 3)).double()
    layer.gate.log_alpha.data.normal_()
    p = layer.gate.prob_nonzero()
    expected = sum(
        p[k] * (0.7 * 19 + 0.3 / 2 * (layer.weight[k].square().sum() + layer.bias[k] ** 2))
        for k in range(4)
    )
    torch.testing.assert_close(layer.penalty(0.7, 0.3), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": "valid", "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "bias": False},
    ],
)
def test_expected_flops_equal_the_counter_where_gates_are_decided(options):
    # the published code multiplies the wrong sides of the output, and gets negative counts
    x, kept = torch.zeros(1, 4, 28, 21), torch.tensor([True, False, True, True, False, True])
    layer = decided(L0Conv2d(4, 6, **options), kept)
    options = {**options, "groups": options.get("groups", 1)}
    small = nn.Conv2d(4, 4, **options)  # as many filters as there are open gates
    with FlopCounterMode(display=False) as counter:
        out = small(x)
    assert layer.output_size((28, 21)) == out.shape[-2:]
    assert layer.expected_flops((28, 21)).item() == pytest.approx(counter.get_total_flops())


def test_positions_of_the_first_layer_of_lenet():
    layer = decided(L0Conv2d(1, 20, 5), [True] * 20)
    assert layer.output_size((28, 28)) == (24, 24)
    assert layer.expected_flops((28, 28)).item() == pytest.approx(2 * 20 * 25 * 576)


def test_shared_gates():
    gate = L0Gate(6, dim=-3)
    one, other = L0Conv2d(3, 6, 3, gate=gate), L0Conv2d(6, 6, 3, gate=gate)
    assert one.gate is other.gate
    with pytest.raises(ValueError, match=r"L0Gate\(6, dim=-3\), got L0Gate\(6, dim=-1"):
        L0Conv2d(3, 6, 3, gate=L0Gate(6))
