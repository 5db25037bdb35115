import copy
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from pyro_ext.distributions import SelfNormalizedImportance
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


def test_the_center_is_a_copy_of_the_networks_dtype_without_gradient():
    mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    energy = EnergyNet(2, (4,), center=mean)
    assert energy.center.dtype == torch.float32
    assert not energy.center.requires_grad
    energy.load_state_dict(EnergyNet(2, (4,), center=torch.ones(2)).state_dict())
    assert not mean.any()


def test_no_events_have_no_energies():
    assert EnergyNet((2, 3), (4,))(torch.zeros(0, 2, 3)).shape == (0,)
    assert EnergyNet(2, (4,))(torch.zeros(5, 0, 2)).shape == (5, 0)


def test_vmap_and_numpy_sizes():
    energy, x = EnergyNet(np.int64(2), np.array([4])), torch.randn(5, 3, 2)
    torch.testing.assert_close(torch.func.vmap(energy)(x), energy(x))


# Norms.


def steepness(energy, x):
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    return gradient.flatten(1).norm(dim=1)


def inflated(norm):
    """A network whose hidden weights are ten times too large, before the norm."""

    def inflate(layer):
        with torch.no_grad():
            layer.weight.mul_(10)
        return layer if norm is None else norm(layer)

    return EnergyNet(3, (30, 30), norm=inflate).double()


def test_spectral_norm_bounds_the_slope_by_the_output_layer():
    energy, x = inflated(spectral_norm), torch.randn(2000, 3, dtype=torch.float64) / 10
    for _ in range(300):  # the power iteration converges
        energy(x[:1])
    energy.eval()
    hidden = [torch.linalg.matrix_norm(energy.layers[i].weight, 2) for i in (0, 2)]
    torch.testing.assert_close(torch.stack(hidden), torch.ones(2, dtype=torch.float64))
    bound = energy.layers[4].weight.detach().norm()
    assert steepness(energy, x).max() <= bound * (1 + 1e-6)
    assert steepness(inflated(None), x).max() > 5 * bound
    with torch.no_grad():
        energy.layers[4].weight.mul_(7)  # stays free
    torch.testing.assert_close(energy.layers[4].weight.detach().norm(), 7 * bound)


def test_weight_norm_changes_nothing_at_the_start():
    torch.manual_seed(3)
    plain = EnergyNet(3, (8,))
    torch.manual_seed(3)
    normed = EnergyNet(3, (8,), norm=weight_norm)
    x = torch.randn(4, 3)
    torch.testing.assert_close(normed(x), plain(x))
    assert "layers.0.parametrizations.weight.original0" in normed.state_dict()


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_normed_networks_are_copied_stored_mapped_and_cast(norm, tmp_path):
    energy = EnergyNet(2, (8,), norm=norm).eval()
    x = torch.randn(5, 3, 2)
    expected = energy(x)
    torch.testing.assert_close(copy.deepcopy(energy)(x), expected)
    torch.testing.assert_close(torch.func.vmap(energy)(x), expected)
    double = copy.deepcopy(energy).double()(x.double())
    torch.testing.assert_close(double, expected.double(), rtol=1e-4, atol=1e-5)
    torch.save(energy.state_dict(), tmp_path / "energy.pt")
    other = EnergyNet(2, (8,), norm=norm).eval()
    other.load_state_dict(torch.load(tmp_path / "energy.pt", weights_only=True))
    torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_torch_pickles_no_normed_network(norm):
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(EnergyNet(2, (8,), norm=norm))


def test_spectral_norm_changes_the_energy_in_training_only():
    # so a frozen density needs .eval()
    proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    energy, x = EnergyNet(2, (60, 60), norm=spectral_norm), torch.randn(5, 2)
    d = SelfNormalizedImportance(proposal, energy, 4).frozen(0)
    assert not torch.equal(d.log_prob(x), d.log_prob(x))
    energy.eval()
    assert torch.equal(d.log_prob(x), d.log_prob(x))


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_normed_energies_train_their_hidden_layers(norm):
    energy = EnergyNet(2, (8,), norm=norm)
    energy(torch.randn(6, 2)).square().sum().backward()
    hidden = [p for name, p in energy.named_parameters() if "parametrizations" in name]
    assert hidden
    assert all(p.grad.abs().sum() > 0 for p in hidden)


def test_bad_norms_are_refused():
    with pytest.raises(ValueError, match="hidden_dims is empty"):
        EnergyNet(2, (), norm=spectral_norm)
    with pytest.raises(ValueError, match="norm maps a layer to a module"):
        EnergyNet(2, (4,), norm=lambda layer: layer.weight)


def test_bad_sizes_and_centers_are_refused():
    with pytest.raises(ValueError, match=r"hidden_dims=\[0\] must be an integer >= 1"):
        EnergyNet(2, (0,))
    with pytest.raises(ValueError, match=r"event_shape=\[2, -1\] must be an integer >= 1"):
        EnergyNet((2, -1))
    with pytest.raises(ValueError, match="not finite"):
        EnergyNet(1, center=torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match=r"events of shape \(2,\), got values of shape \(5, 3\)"):
        EnergyNet(2, (4,))(torch.zeros(5, 3))
    with pytest.raises(
        ValueError, match=r"center has shape \(3,\), expected a tensor of the event"
    ):
        EnergyNet(2, (4,), center=torch.zeros(3))
    with pytest.raises(ValueError, match="expected a tensor of the event shape"):
        EnergyNet(2, (4,), center=[0.0, 1.0])
