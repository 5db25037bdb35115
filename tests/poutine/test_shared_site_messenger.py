"""Groups of particles that share values. Normal draws are equal by chance with probability 0."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.poutine.shared_site_messenger import SharedSiteMessenger

K, M = 3, 2


def program(shape=()):
    shared = pyro.sample("shared", dist.Normal(torch.zeros(shape), 1.0))
    return shared, pyro.sample("own", dist.Normal(torch.zeros(shape), 1.0))


def num_values(tensor):
    return len(tensor.flatten().unique())


@pytest.mark.parametrize("event_dim", [0, 1])
@pytest.mark.parametrize("dim", [-1, -2])
def test_vectorised_particles(dim, event_dim):
    batch, event = (K * M, *[1] * (-1 - dim)), (5,) * event_dim
    fn = dist.Normal(torch.zeros(batch + event), 1.0).to_event(event_dim)
    with SharedSiteMessenger({"shared"}, M, dim):
        shared, own = pyro.sample("shared", fn), pyro.sample("own", fn)
    groups = shared.reshape(K, M, *event)  # particle k * M + m
    assert shared.shape == own.shape == batch + event
    assert torch.equal(groups, groups[:1].expand_as(groups))
    assert num_values(shared) == M * 5**event_dim
    assert num_values(own) == K * M * 5**event_dim


def test_a_batch_beside_the_particles():
    with SharedSiteMessenger({"shared"}, M, -2):
        shared, _ = program((K * M, 4))
    assert torch.equal(shared, shared[:M].repeat(K, 1))
    assert num_values(shared) == M * 4


def test_runs():
    messenger = SharedSiteMessenger({"shared"}, M)
    shared, own = [], []
    for _ in range(K * M):
        with messenger:
            draws = program()
        shared.append(draws[0])
        own.append(draws[1])
    assert torch.equal(torch.stack(shared), torch.stack(shared[:M]).repeat(K))
    assert num_values(torch.stack(shared)) == M
    assert num_values(torch.stack(own)) == K * M


def test_gradients_reach_the_parameters():
    loc = torch.zeros(K * M, requires_grad=True)
    with SharedSiteMessenger({"z"}, M, -1):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
    (gradient,) = torch.autograd.grad(z.sum(), loc)
    assert torch.equal(gradient, torch.tensor([K, K, 0, 0, 0, 0]).float())  # the first of each


def test_given_values_are_left_alone():
    value = torch.arange(6.0)
    site = poutine.condition(program, {"shared": value})
    with SharedSiteMessenger({"shared"}, M, -1):
        assert torch.equal(site((6,))[0], value)
        assert torch.equal(pyro.sample("shared", dist.Normal(0.0, 1.0), obs=value), value)
