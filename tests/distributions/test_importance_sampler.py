"""A module that reshapes proposals: the same density as the distribution built by hand."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import ImportanceSampler, SelfNormalizedImportance
from pyro_ext.nn import EnergyNet


def normal(*batch):
    return dist.Normal(torch.zeros(*batch, 2), 1.5).to_event(1)


@pytest.mark.parametrize("share_proposals", [True, False])
def test_equals_the_distribution_built_by_hand(share_proposals):
    energy = EnergyNet(2, (8,))
    built = ImportanceSampler(energy, 7, share_proposals)(normal(3))
    by_hand = SelfNormalizedImportance(normal(3), energy, 7, share_proposals)
    x = torch.randn(4, 3, 2)
    assert torch.equal(built.frozen(0).log_prob(x), by_hand.frozen(0).log_prob(x))
    assert (built.batch_shape, built.event_shape, built.num_proposals) == ((3,), (2,), 7)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_state_and_dtype(copier):
    sampler, x = ImportanceSampler(EnergyNet(2, (8,)), 7), torch.randn(4, 2)
    expected = sampler(normal()).frozen(0).log_prob(x)
    assert torch.equal(copier(sampler)(normal()).frozen(0).log_prob(x), expected)
    other = ImportanceSampler(EnergyNet(2, (8,)), 7)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other(normal()).frozen(0).log_prob(x), expected)
    assert next(iter(sampler.state_dict())).startswith("energy.")


def test_a_likelihood_whose_proposal_is_the_decoder_s():
    sampler = ImportanceSampler(EnergyNet(2, (8,)), 5)

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
    assert all(p.grad.isfinite().all() for p in sampler.parameters())
    assert sampler.energy.layers[0].weight.grad.abs().sum() > 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_proposals=0"):
        ImportanceSampler(EnergyNet(2), 0)
    with pytest.raises(ValueError, match="callable"):
        ImportanceSampler(None)
    with pytest.raises(ValueError, match="event"):
        ImportanceSampler(EnergyNet(3))(normal())
