"""Conditional energies against matrix products, quadrature and Bayes' rule."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from pyro_ext.nn import ConditionalEnergy, ConvEnergyNet, EnergyNet
from pyro_ext.nn.context_head import ContextHead

X = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(-1)  # a grid of vectors


class Shifted(nn.Module):
    """A feature net plus a constant."""

    def __init__(self, net, shift):
        super().__init__()
        self.net, self.shift = net, shift

    def forward(self, x):
        return self.net(x) + self.shift


def randomized(energy):
    """In double precision, with parameters that are nowhere zero."""
    for parameter in energy.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return energy


def log_z(energy, label):
    """By the trapezoidal rule, of energies that confine."""
    log_density = -energy(X, torch.full((len(X),), label)) - X.squeeze(-1) ** 2 / 2
    return torch.trapezoid(log_density.exp(), X.squeeze(-1)).log()


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("augment", [False, True])
def test_energy_against_matrix_products(augment, positive):
    base = EnergyNet((2, 3), (7,))
    energy = randomized(
        ConditionalEnergy(
            (2, 3), 4, 5, hidden_dims=(8,), base=base, augment=augment, positive=positive
        )
    )
    x, label = torch.randn(6, 2, 3, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
    first, last = energy.feature_net[1][0], energy.feature_net[1][2]
    hidden = x.reshape(6, 6) @ first.weight.T + first.bias
    f = (hidden * hidden.sigmoid()) @ last.weight.T + last.bias
    g = torch.stack([energy.weight_head.table[int(k)] for k in label])
    if positive:
        f, g = softplus(f), softplus(g)
    score = (f * g[:, :4]).sum(-1)
    if augment:
        score = score + (f**2 * g[:, 4:]).sum(-1)
    torch.testing.assert_close(energy.features(x), f)
    torch.testing.assert_close(energy.weights(label), g)
    torch.testing.assert_close(energy(x, label), -(score + base(x)))
    log_normalizer = torch.stack([energy.normalizer_head.table[int(k), 0] for k in label])
    torch.testing.assert_close(energy.log_normalizer(label), log_normalizer)
    torch.testing.assert_close(energy.log_density(x, label), score + base(x) - log_normalizer)


def test_vectors_as_context():
    energy = randomized(ConditionalEnergy(2, 3, context_dim=4, hidden_dims=(5, 6)))
    x, u = torch.randn(7, 2, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    assert energy.weights(u).shape == (7, 3)
    torch.testing.assert_close(energy(x, u), -(energy.features(x) * energy.weights(u)).sum(-1))
    assert energy.log_normalizer(u).unique().numel() == 7
    assert [m.out_features for m in energy.weight_head.layers if isinstance(m, nn.Linear)] == [
        5,
        6,
        3,
    ]


def test_no_context():
    energy = randomized(ConditionalEnergy(2, 3))
    x = torch.randn(7, 2, dtype=torch.float64)
    torch.testing.assert_close(energy(x), -energy.features(x) @ energy.weights())
    assert energy.log_normalizer().shape == ()
    assert energy.log_density(x).shape == (7,)


@pytest.mark.parametrize("sizes", [{"num_classes": 3}, {"context_dim": 2}, {}])
@pytest.mark.parametrize("shared", [False, True])
def test_the_normaliser_starts_at_zero_and_may_be_one_number(sizes, shared):
    energy = ConditionalEnergy(2, 3, **sizes, shared_normalizer=shared)
    context = {"num_classes": torch.arange(3), "context_dim": torch.randn(3, 2)}
    context = next((context[name] for name in sizes), None)
    found = energy.log_normalizer(context)
    assert found.shape == (() if context is None else (3,))
    assert not found.any()
    for parameter in energy.normalizer_head.parameters():
        nn.init.normal_(parameter)
    one = shared or context is None
    assert energy.log_normalizer(context).unique().numel() == (1 if one else 3)


# Truth.


def test_adding_to_features_shifts_the_normaliser_by_weights_only():
    energy = randomized(ConditionalEnergy(1, 3, 4))
    shift = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    moved = copy.deepcopy(energy)
    moved.feature_net = Shifted(moved.feature_net, shift)
    for label in range(4):
        change = log_z(moved, label) - log_z(energy, label)
        torch.testing.assert_close(change, energy.weights(torch.tensor(label)) @ shift)
        labels = torch.full((len(X),), label)
        kept = energy(X, labels) + log_z(energy, label)
        torch.testing.assert_close(moved(X, labels) + log_z(moved, label), kept)


def test_any_base_term_leaves_the_posterior_of_the_context():
    energy = randomized(ConditionalEnergy(3, 2, 5, augment=True))
    based = copy.deepcopy(energy)
    based.base = randomized(EnergyNet(3, (9,)))
    x = torch.randn(11, 3, dtype=torch.float64)
    assert (energy.base_term(x) == 0).all()
    assert (based.base_term(x) - based.base_term(x)[0]).abs().max() > 0.1
    expected = energy.class_logits(x).softmax(-1)
    torch.testing.assert_close(based.class_logits(x).softmax(-1), expected)


def test_class_logits_are_log_densities_of_all_labels():
    energy = randomized(ConditionalEnergy(3, 2, 5, augment=True, base=EnergyNet(3, (9,))))
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    columns = [energy.log_density(x, torch.full((4, 2), label)) for label in range(5)]
    torch.testing.assert_close(energy.class_logits(x), torch.stack(columns, -1))


def test_gaussian_family_in_closed_form():
    """Weights of (x, x^2) are the natural parameters of a Normal; the normaliser is known."""
    loc, scale = torch.tensor([0.7, -1.5]).double(), torch.tensor([0.5, 2.0]).double()
    energy = ConditionalEnergy(1, 1, 2, feature_net=nn.Identity(), augment=True).double()
    with torch.no_grad():
        energy.weight_head.table.copy_(torch.stack([loc / scale**2, -0.5 / scale**2], -1))
        log_z = loc**2 / (2 * scale**2) + (scale * (2 * torch.pi) ** 0.5).log()
        energy.normalizer_head.table.copy_(log_z.unsqueeze(-1))
    x, label = torch.randn(9, 1, dtype=torch.float64), torch.arange(9) % 2
    expected = torch.distributions.Normal(loc[label], scale[label]).log_prob(x.squeeze(-1))
    torch.testing.assert_close(energy.log_density(x, label), expected)


# Shapes and carriage.


def test_events_and_contexts_broadcast():
    energy = randomized(ConditionalEnergy(3, 2, 5, base=EnergyNet(3)))
    x, label = torch.randn(6, 1, 3, dtype=torch.float64), torch.tensor([0, 3, 3, 1])
    found = energy.log_density(x, label)
    assert found.shape == (6, 4)
    rows = [energy.log_density(x[:, 0], torch.full((6,), int(k))) for k in label]
    torch.testing.assert_close(found, torch.stack(rows, -1))


def test_images():
    base, shape = ConvEnergyNet((1, 8, 8), (4,)), (1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(108, 2))
    energy = ConditionalEnergy(shape, 2, 4, feature_net=net, base=base)
    assert energy(torch.randn(3, 5, *shape), torch.zeros(3, 5, dtype=torch.long)).shape == (3, 5)
    assert ConditionalEnergy(shape, 2, 4)(torch.randn(5, *shape), torch.zeros(5).long()).shape == (
        5,
    )


def test_scalar_events_and_no_events():
    energy = ConditionalEnergy((), 2, 4)
    assert energy(torch.zeros(6), torch.zeros(6).long()).shape == (6,)
    assert energy(torch.zeros(0), torch.zeros(0).long()).shape == (0,)


@pytest.mark.parametrize("sizes", [{"num_classes": 3}, {"context_dim": 2}])
def test_copied_stored_mapped_and_cast(sizes, tmp_path):
    energy = ConditionalEnergy(2, 3, **sizes, base=EnergyNet(2), positive=True)
    x = torch.randn(6, 2)
    context = torch.arange(6) % 3 if "num_classes" in sizes else torch.randn(6, 2)
    expected = energy.log_density(x, context)
    torch.testing.assert_close(torch.func.vmap(energy.log_density)(x, context), expected)
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert torch.equal(other.log_density(x, context), expected)
    torch.save(energy.state_dict(), tmp_path / "energy.pt")
    other = ConditionalEnergy(2, 3, **sizes, base=EnergyNet(2), positive=True)
    other.load_state_dict(torch.load(tmp_path / "energy.pt", weights_only=True))
    assert torch.equal(other.log_density(x, context), expected)
    if "context_dim" in sizes:
        context = context.double()
    found = energy.double().log_density(x.double(), context)
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-5)


def test_every_parameter_is_trained():
    energy = ConditionalEnergy(2, 3, 4, base=EnergyNet(2), augment=True)
    energy.log_density(torch.randn(8, 2), torch.arange(8) % 4).square().sum().backward()
    unmoved = [n for n, p in energy.named_parameters() if p.grad is None or not p.grad.any()]
    assert unmoved == []


# Bad input.


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="label or a vector, got num_classes=3 and context_dim=2"):
        ConditionalEnergy(2, 3, num_classes=3, context_dim=2)
    with pytest.raises(ValueError, match="latent_dim must be an integer >= 1"):
        ConditionalEnergy(2, 0, 3)
    with pytest.raises(ValueError, match="num_classes must be an integer >= 0"):
        ConditionalEnergy(2, 3, -1)
    with pytest.raises(ValueError, match="each size in event_shape"):
        ConditionalEnergy((2, 0), 3)
    with pytest.raises(ValueError, match="positive needs a base term"):
        ConditionalEnergy(2, 3, 4, positive=True)
    with pytest.raises(ValueError, match="base must be a torch module or None"):
        ConditionalEnergy(2, 3, 4, base=lambda x: x.sum(-1))
    with pytest.raises(ValueError, match="feature_net must be a torch module or None"):
        ConditionalEnergy(2, 3, 4, feature_net=lambda x: x)
    with pytest.raises(ValueError, match="output_dim must be an integer >= 1"):
        ContextHead(0)


def test_nets_of_a_wrong_output_are_refused():
    x, label = torch.randn(5, 2), torch.zeros(5).long()
    with pytest.raises(ValueError, match=r"feature_net returned shape \(5, 2\) for 5 events"):
        ConditionalEnergy(2, 3, 4, feature_net=nn.Identity())(x, label)
    with pytest.raises(ValueError, match=r"base returned shape \(5, 1\) for 5 events"):
        ConditionalEnergy(2, 3, 4, base=nn.Linear(2, 1))(x, label)


def test_bad_events_and_contexts_are_refused():
    energy = ConditionalEnergy(2, 3, 4)
    with pytest.raises(ValueError, match=r"events of shape \(2,\), got values of shape \(5, 3\)"):
        energy(torch.zeros(5, 3), torch.zeros(5).long())
    with pytest.raises(ValueError, match="Labels are integers from 0 to 3"):
        energy(torch.zeros(5, 2), torch.full((5,), 4))
    with pytest.raises(ValueError, match="needs a context: labels below 4"):
        energy(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"batch \(5,\) but contexts \(4,\)"):
        energy(torch.zeros(5, 2), torch.zeros(4).long())
    with pytest.raises(ValueError, match="takes no context"):
        ConditionalEnergy(2, 3)(torch.zeros(5, 2), torch.zeros(5).long())
    with pytest.raises(ValueError, match="has no labels"):
        ConditionalEnergy(2, 3, context_dim=2).class_logits(torch.zeros(5, 2))


def test_the_activation_is_that_of_all_nets():
    energy = ConditionalEnergy(2, 3, context_dim=2, activation=nn.Tanh)
    kinds = {type(module) for module in energy.modules()}
    assert nn.Tanh in kinds
    assert nn.SiLU not in kinds
    assert any(isinstance(module, nn.Tanh) for module in energy.weight_head.modules())
