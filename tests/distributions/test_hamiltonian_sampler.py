"""A module that reshapes distributions: the same density as the one built by hand."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_ext.distributions import HamiltonianImportance, HamiltonianSampler
from pyro_ext.nn import EnergyNet, MomentumNet


def normal(*batch):
    return dist.Normal(torch.zeros(*batch, 2), 1.5).to_event(1)


def standard_normal(x):
    return torch.zeros_like(x), torch.ones_like(x)


def test_equals_the_distribution_built_by_hand():
    energy, momenta = EnergyNet(2, (8,)), MomentumNet(2, (8,))
    nn.init.normal_(momenta.layers[-1].weight)
    built = HamiltonianSampler(energy, 3, 0.2, 0.9, momenta)(normal(3))
    by_hand = HamiltonianImportance(normal(3), energy, 3, 0.2, 0.9, momenta)
    x = torch.randn(4, 3, 2)
    torch.testing.assert_close(built.frozen(0).log_prob(x), by_hand.frozen(0).log_prob(x))
    assert (built.batch_shape, built.event_shape, built.num_steps) == ((3,), (2,), 3)


@pytest.mark.parametrize("step_size", [1e-3, 0.1, 3.0, 40.0, torch.tensor([0.1, 2.0])])
@pytest.mark.parametrize("tempering", [0.1, 0.5, 0.9995, (0.9, 0.99, 0.999)])
def test_starts_where_it_is_told(step_size, tempering):
    sampler = HamiltonianSampler(EnergyNet(2, (4,)), 3, step_size, tempering)
    expected = torch.as_tensor(step_size, dtype=torch.float32).expand(2)
    torch.testing.assert_close(sampler.step_size, expected, rtol=2e-6, atol=0)
    expected = torch.as_tensor(tempering, dtype=torch.float32).expand(3)
    torch.testing.assert_close(sampler.tempering, expected, rtol=2e-7, atol=0)


def test_defaults():
    sampler = HamiltonianSampler(EnergyNet((2, 3), (4,)))
    assert sampler.num_steps == 5
    assert isinstance(sampler.momentum_net, MomentumNet)
    torch.testing.assert_close(sampler.step_size, torch.full((2, 3), 0.1))
    torch.testing.assert_close(sampler.tempering, torch.full((5,), 0.9995))
    scalar = HamiltonianSampler(EnergyNet((), (4,)))
    assert scalar(dist.Normal(0.0, 1.0)).rsample((3,)).shape == (3,)


def test_every_parameter_is_trained():
    sampler = HamiltonianSampler(EnergyNet(2, (4,)))
    optimizer = torch.optim.Adam(sampler.parameters(), 1e-2)
    before = copy.deepcopy(sampler.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        (-sampler(normal()).log_prob(torch.randn(5, 2)).sum()).backward()
        optimizer.step()
    unmoved = {
        key for key, value in sampler.state_dict().items() if torch.equal(value, before[key])
    }
    assert unmoved == {"potential.layers.2.bias"}  # a constant has no force
    assert (sampler.step_size > 0).all()
    assert (sampler.tempering < 1).all()


def test_what_is_not_learned_stays():
    sampler = HamiltonianSampler(
        EnergyNet(2, (4,)), 3, 0.0, 1.0, learn_step_size=False, learn_tempering=False
    )
    assert {"raw_step_size", "raw_tempering"} <= dict(sampler.named_buffers()).keys()
    assert torch.equal(sampler.step_size, torch.zeros(2))
    assert torch.equal(sampler.tempering, torch.ones(3))
    x = torch.randn(4, 2)
    torch.testing.assert_close(sampler(normal()).log_prob(x), normal().log_prob(x))
    (-sampler(normal()).log_prob(x).sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in sampler.parameters())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_state_and_dtype(copier):
    sampler, x = HamiltonianSampler(EnergyNet(2, (8,)), 3, 0.3, 0.8), torch.randn(4, 2)
    expected = sampler(normal()).frozen(0).log_prob(x)
    assert torch.equal(copier(sampler)(normal()).frozen(0).log_prob(x), expected)
    other = HamiltonianSampler(EnergyNet(2, (8,)), 3)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other(normal()).frozen(0).log_prob(x), expected)
    double = copier(sampler).double()
    assert double.step_size.dtype == torch.float64


def test_a_callable_of_events_whose_shape_the_step_size_tells():
    sampler = HamiltonianSampler(lambda x: x.cos().sum(-1), 2, torch.tensor([0.1, 0.2]))
    assert sampler.event_shape == (2,)
    fixed = HamiltonianSampler(torch.cos, 2, torch.tensor([0.1]), momentum_net=standard_normal)
    assert list(dict(fixed.named_parameters())) == ["raw_step_size", "raw_tempering"]


def test_a_likelihood_whose_base_is_the_decoder_s():
    sampler = HamiltonianSampler(EnergyNet(2, (8,)), 2)

    def model(x):
        pyro.module("sampler", sampler)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            decoded = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1)
            pyro.sample("x", sampler(decoded), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    elbo = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True)
    elbo.loss_and_grads(model, guide, torch.randn(6, 2))
    assert sampler.potential.layers[0].weight.grad.abs().sum() > 0
    assert sampler.raw_step_size.grad.abs().sum() > 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_steps=0"):
        HamiltonianSampler(EnergyNet(2), 0)
    with pytest.raises(ValueError, match="must be callable"):
        HamiltonianSampler(None)
    with pytest.raises(ValueError, match="cannot tell the event shape"):
        HamiltonianSampler(torch.cos)
    with pytest.raises(ValueError, match="step_size must lie"):
        HamiltonianSampler(EnergyNet(2), 2, -0.1)
    with pytest.raises(ValueError, match=r"step_size has shape \(3,\)"):
        HamiltonianSampler(EnergyNet(2), 2, torch.ones(3))
    with pytest.raises(ValueError, match="tempering must lie"):
        HamiltonianSampler(EnergyNet(2), 2, 0.1, 1.1)
    with pytest.raises(ValueError, match=r"edge of its range.*learn_tempering=False"):
        HamiltonianSampler(EnergyNet(2), 2, 0.1, 1.0)
    with pytest.raises(ValueError, match=r"edge of its range.*learn_step_size=False"):
        HamiltonianSampler(EnergyNet(2), 2, 0.0)
    with pytest.raises(ValueError, match="events of shape"):
        HamiltonianSampler(EnergyNet(3))(normal())
