import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from pyro_ext.nn import MomentumNet


@pytest.mark.parametrize("event_shape", [(), 3, (2, 3)])
def test_starts_as_a_standard_normal(event_shape):
    net = MomentumNet(event_shape, (7,))
    x = torch.randn(4, 5, *net.event_shape)
    loc, scale = net(x)
    assert torch.equal(loc, torch.zeros_like(x))
    torch.testing.assert_close(scale, torch.ones_like(x))


def test_against_matrix_products():
    net = MomentumNet((2, 3), (5,)).double()
    first, last = net.layers[0], net.layers[2]
    nn.init.normal_(last.weight)
    nn.init.normal_(last.bias)
    x = torch.randn(4, 7, 2, 3, dtype=torch.float64)
    hidden = torch.tanh(x.reshape(28, 6) @ first.weight.T + first.bias)
    out = hidden @ last.weight.T + last.bias
    loc, scale = net(x)
    torch.testing.assert_close(loc.reshape(28, 6), out[:, :6])
    raw = torch.log(torch.expm1(torch.tensor(1 - 1e-5, dtype=torch.float64)))
    torch.testing.assert_close(scale.reshape(28, 6), 1e-5 + softplus(out[:, 6:] + raw))


def test_scale_stays_positive():
    net = MomentumNet(2, ())
    nn.init.constant_(net.layers[0].bias, -1e4)
    assert (net(torch.zeros(2))[1] > 0).all()


def test_hidden_layers_start_glorot_uniform_and_are_trained_from_the_second_step_on():
    net = MomentumNet(200, (300,))
    limit = (6 / 500) ** 0.5
    assert net.layers[0].weight.abs().max() <= limit
    assert net.layers[0].weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    before = net.layers[0].weight.clone()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        loc, scale = net(torch.ones(200))
        optimizer.zero_grad()
        ((loc - 1).square() + scale).sum().backward()
        optimizer.step()
    assert not torch.equal(net.layers[0].weight, before)


def test_state_dict_round_trip(tmp_path):
    net, other = MomentumNet(2, (4,), nn.SiLU), MomentumNet(2, (4,), nn.SiLU)
    nn.init.normal_(net.layers[-1].weight)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    x = torch.randn(5, 2)
    torch.testing.assert_close(net(x), other(x), rtol=0, atol=0)


def test_bad_sizes_and_values_are_refused():
    with pytest.raises(ValueError, match=r"hidden_dims=\[0\]"):
        MomentumNet(2, (0,))
    with pytest.raises(ValueError, match=r"events of shape \(2,\), got values of shape \(5, 3\)"):
        MomentumNet(2, (4,))(torch.zeros(5, 3))
