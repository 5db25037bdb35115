import copy
import itertools

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from pyro_ext.distributions import SelfNormalizedImportance
from pyro_ext.nn import ConvEnergyNet


def same_convolution(x, conv):
    """TensorFlow's rule for SAME: pad so that the output is ceil(size / 2), the rest at the end."""
    padding = []
    for size in reversed(x.shape[-2:]):
        total = max((-(-size // 2) - 1) * 2 + 4 - size, 0)
        padding += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, padding), conv.weight, conv.bias, stride=2)


@pytest.mark.parametrize("event_shape", [(1, 28, 28), (3, 8, 5), (2, 1, 3), (1, 7, 7)])
def test_energy_against_the_padding_rule(event_shape):
    center = torch.rand(event_shape)
    energy = ConvEnergyNet(event_shape, (6, 5, 4), center=center).double()
    x = torch.randn(4, 3, *event_shape, dtype=torch.float64)
    convolutions = [layer for layer in energy.layers if isinstance(layer, nn.Conv2d)]
    hidden = (x - center).flatten(0, 1)
    for conv in convolutions:
        hidden = F.silu(same_convolution(hidden, conv))
    output = energy.layers[-1]
    expected = (hidden.flatten(1) @ output.weight.T + output.bias).reshape(4, 3)
    assert [conv.out_channels for conv in convolutions] == [6, 5, 4]
    torch.testing.assert_close(energy(x), expected)


def test_one_output_by_a_loop_over_the_window():
    # the second of a row of outputs sees pixels 1 to 4, counted from zero
    energy = ConvEnergyNet((1, 6, 6), (1,), nn.Identity).double()
    conv, output = energy.layers[0], energy.layers[-1]
    with torch.no_grad():
        output.weight.zero_()[0, 4] = 1.0  # of 3 by 3
    x = torch.randn(1, 6, 6, dtype=torch.float64)
    total = sum(
        conv.weight[0, 0, i, j] * x[0, 1 + i, 1 + j]
        for i, j in itertools.product(range(4), [*range(4)])
    )
    torch.testing.assert_close(energy(x), total)


def test_the_published_sizes():
    energy = ConvEnergyNet((1, 28, 28))
    shapes = [tuple(p.shape) for p in energy.parameters()]
    convolutions = [(32, 1, 4, 4), (32,), (32, 32, 4, 4), (32,), (32, 32, 4, 4), (32,)]
    assert shapes == [*convolutions, (1, 32 * 4 * 4), (1,)]


def test_weights_start_glorot_uniform_and_biases_at_zero():
    conv = ConvEnergyNet((32, 8, 8), (64,)).layers[0]
    limit = (6 / (16 * (32 + 64))) ** 0.5
    assert conv.weight.abs().max() <= limit
    assert conv.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert not conv.bias.any()


def curvature(activation):
    """The largest second derivative of the energy along a line."""
    energy = ConvEnergyNet((1, 8, 8), activation=activation).double()
    line = torch.randn(1, 8, 8, dtype=torch.float64)

    def slope(t):
        return torch.func.grad(lambda t: energy(t * line))(t)

    t = torch.linspace(-2, 2, 50, dtype=torch.float64)
    return torch.func.vmap(torch.func.grad(slope))(t).abs().max()


def test_the_default_has_the_curvature_that_relu_lacks():
    assert curvature(nn.SiLU) > 1e-3
    assert curvature(nn.ReLU) == 0


@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (2, 3)])
def test_any_dimensions_to_the_left(batch):
    assert ConvEnergyNet((1, 5, 4), (3,))(torch.zeros(*batch, 1, 5, 4)).shape == batch


def test_vmap_deepcopy_and_state_dict(tmp_path):
    energy, x = (
        ConvEnergyNet((1, 6, 5), (3, 2), center=torch.ones(1, 6, 5)),
        torch.randn(4, 1, 6, 5),
    )
    expected = energy(x)
    torch.testing.assert_close(torch.func.vmap(energy)(x), expected)
    assert torch.equal(copy.deepcopy(energy)(x), expected)
    torch.save(energy.state_dict(), tmp_path / "energy.pt")
    other = ConvEnergyNet((1, 6, 5), (3, 2), center=torch.zeros(1, 6, 5))
    other.load_state_dict(torch.load(tmp_path / "energy.pt", weights_only=True))
    assert torch.equal(other(x), expected)


def matrix_of(layer, event_shape):
    """The linear part of a layer as a matrix."""
    zero = torch.zeros(1, *event_shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer, zero)
    return jacobian.reshape(-1, zero.numel())


def test_spectral_norm_makes_convolutions_2_lipschitz():
    energy = ConvEnergyNet((2, 6, 6), (4, 3), norm=spectral_norm).double()
    for _ in range(300):  # the power iteration converges
        energy(torch.zeros(2, 6, 6, dtype=torch.float64))
    energy.eval()
    for index, shape in ((0, (2, 6, 6)), (3, (4, 3, 3))):
        layer = energy.layers[index]
        layer = layer if isinstance(layer, nn.Conv2d) else energy.layers[index - 1]
        kernel = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert kernel.item() == pytest.approx(1)
        operator = torch.linalg.matrix_norm(matrix_of(layer, shape), 2)
        assert 0.5 < operator <= 2 + 1e-9
    assert "parametrizations.weight" not in "".join(dict(energy.layers[-1].named_parameters()))


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_norms_store_and_copy(norm):
    energy, x = ConvEnergyNet((1, 6, 6), (3,), norm=norm).eval(), torch.randn(4, 1, 6, 6)
    other = ConvEnergyNet((1, 6, 6), (3,), norm=norm).eval()
    other.load_state_dict(energy.state_dict())
    torch.testing.assert_close(other(x), energy(x))
    torch.testing.assert_close(torch.func.vmap(copy.deepcopy(energy))(x), energy(x))


def test_reshapes_a_proposal_of_images():
    proposal = dist.Bernoulli(torch.full((2, 1, 6, 6), 0.3)).to_event(3)
    d = SelfNormalizedImportance(proposal, ConvEnergyNet((1, 6, 6), (4,)), 8)
    x = d.sample((5,))
    assert x.shape == (5, 2, 1, 6, 6)
    assert d.log_prob(x).shape == (5, 2)


@pytest.mark.parametrize(
    ("event_shape", "message"),
    [
        ((28, 28), r"takes images of shape \(C, H, W\), got event_shape=\(28, 28\)"),
        (784, r"takes images of shape \(C, H, W\), got event_shape=784"),
        ((1, 0, 28), r"event_shape=\[1, 0, 28\] must be an integer >= 1, got .*=0"),
        ((1, 2.5, 28), r"must be an integer >= 1, got .*=2.5"),
    ],
)
def test_bad_event_shapes_are_refused(event_shape, message):
    with pytest.raises(ValueError, match=message):
        ConvEnergyNet(event_shape)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="hidden_channels is empty"):
        ConvEnergyNet((1, 8, 8), ())
    with pytest.raises(ValueError, match=r"hidden_channels=\[4, 0\] must be an integer >= 1"):
        ConvEnergyNet((1, 8, 8), (4, 0))
    with pytest.raises(ValueError, match=r"center has shape \(8, 8\)"):
        ConvEnergyNet((1, 8, 8), center=torch.zeros(8, 8))
    with pytest.raises(ValueError, match=r"events of shape \(1, 8, 8\), got values of shape"):
        ConvEnergyNet((1, 8, 8))(torch.zeros(5, 8, 8))
    with pytest.raises(ValueError, match="norm maps a layer to a module"):
        ConvEnergyNet((1, 8, 8), norm=lambda layer: None)


@pytest.mark.gpu
def test_on_the_gpu():
    energy = ConvEnergyNet((1, 7, 7), center=torch.ones(1, 7, 7), norm=spectral_norm)
    x = torch.randn(3, 2, 1, 7, 7)
    expected = energy.eval()(x)
    torch.testing.assert_close(energy.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
