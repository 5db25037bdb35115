import pytest
import torch
from torch import nn

from pyro_ext.nn import EnergyNet


def test_energy_against_matrix_products():
    energy = EnergyNet((2, 3), (5,), center=torch.full((2, 3), 0.5)).double()
    first, last = energy.layers[0], energy.layers[2]
    x = torch.randn(4, 7, 2, 3, dtype=torch.float64)
    hidden = torch.tanh((x - 0.5).reshape(28, 6) @ first.weight.T + first.bias)
    expected = (hidden @ last.weight.T + last.bias).reshape(4, 7)
    torch.testing.assert_close(energy(x), expected)


def test_weights_start_glorot_uniform_and_biases_at_zero():
    layer = EnergyNet(200, (300,)).layers[0]
    limit = (6 / 500) ** 0.5
    assert layer.weight.abs().max() <= limit
    assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert not layer.bias.any()


def test_no_hidden_layer_is_affine():
    energy = EnergyNet(3, ())
    x, y = torch.randn(2, 3)
    middle = energy((x + y) / 2)
    torch.testing.assert_close(middle, (energy(x) + energy(y)) / 2)


def test_scalar_events():
    assert EnergyNet((), (4,))(torch.zeros(6)).shape == (6,)


def test_state_dict_round_trip_keeps_the_center(tmp_path):
    energy = EnergyNet(2, (4,), nn.SiLU, center=torch.ones(2))
    torch.save(energy.state_dict(), tmp_path / "energy.pt")
    other = EnergyNet(2, (4,), nn.SiLU, center=torch.zeros(2))
    other.load_state_dict(torch.load(tmp_path / "energy.pt", weights_only=True))
    x = torch.randn(5, 2)
    assert torch.equal(energy(x), other(x))


def test_bad_sizes_and_centers_are_refused():
    with pytest.raises(ValueError, match="positive sizes"):
        EnergyNet(2, (0,))
    with pytest.raises(ValueError, match=r"events of shape \(2,\), got values of shape \(5, 3\)"):
        EnergyNet(2, (4,))(torch.zeros(5, 3))
    with pytest.raises(
        ValueError, match=r"center has shape \(3,\), expected a tensor of the event"
    ):
        EnergyNet(2, (4,), center=torch.zeros(3))
    with pytest.raises(ValueError, match="expected a tensor of the event shape"):
        EnergyNet(2, (4,), center=[0.0, 1.0])
