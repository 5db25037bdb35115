"""One particle among others, against closed forms and against naive loops."""

import pytest
import torch

from pyro_ext.ops import ciwae, cubo, iwae, renyi, tvo
from pyro_ext.ops.single_particle import SingleParticle

K = 4
BOUNDS = {
    "iwae": iwae,
    "renyi": renyi(0.3),
    "cubo": cubo(2),
    "ciwae": ciwae(0.4),
    "tvo": tvo(3),
    "tvo from above": tvo(3, upper=True),
    "maximum": lambda log_w: log_w.max(0).values,
}


@pytest.fixture
def log_w():
    return torch.randn(K, 3, 2, dtype=torch.float64)


def moved(log_w, k, value):
    """The log-weights with another one of particle k."""
    return torch.cat([log_w[:k], value[None], log_w[k + 1 :]])


def test_iwae_in_closed_form(log_w):
    particle, share = SingleParticle(iwae, log_w), log_w.softmax(0)
    torch.testing.assert_close(particle.value, log_w.exp().mean(0).log())
    torch.testing.assert_close(particle.slope, share)
    torch.testing.assert_close(particle.curvature, share - share**2)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.3, 2.0])
def test_renyi_in_closed_form(alpha, log_w):
    particle, share = SingleParticle(renyi(alpha), log_w), ((1 - alpha) * log_w).softmax(0)
    torch.testing.assert_close(particle.slope, share)
    torch.testing.assert_close(particle.curvature, (1 - alpha) * (share - share**2))
    # the factor of the doubly reparameterised gradient
    factor = alpha * share + (1 - alpha) * share**2
    torch.testing.assert_close(particle.slope - particle.curvature, factor)


@pytest.mark.parametrize("bound", BOUNDS)
def test_derivatives_of_one_variable(bound, log_w):
    bound = BOUNDS[bound]
    particle = SingleParticle(bound, log_w)
    hessian = torch.autograd.functional.hessian(lambda w: bound(w).sum(), log_w)
    index = torch.arange(log_w.numel())
    diagonal = hessian.reshape(log_w.numel(), -1)[index, index].reshape(log_w.shape)
    torch.testing.assert_close(particle.curvature, diagonal)
    leaf = log_w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bound(leaf).sum(), leaf)
    torch.testing.assert_close(particle.slope, gradient)


def test_a_linear_bound_has_no_curvature(log_w):
    particle = SingleParticle(lambda log_w: log_w.mean(0), log_w)
    torch.testing.assert_close(particle.slope, torch.full_like(log_w, 1 / K))
    assert torch.equal(particle.curvature, torch.zeros_like(log_w))


@pytest.mark.parametrize("bound", BOUNDS)
def test_values_elsewhere(bound, log_w):
    particle, elsewhere = SingleParticle(BOUNDS[bound], log_w), torch.randn_like(log_w)
    replaced, dropped = particle.replaced(elsewhere), particle.dropped()
    assert replaced.shape == dropped.shape == log_w.shape
    for k in range(K):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        torch.testing.assert_close(particle.others[:, k], others)
        torch.testing.assert_close(dropped[k], BOUNDS[bound](others))
        torch.testing.assert_close(replaced[k], BOUNDS[bound](moved(log_w, k, elsewhere[k])))


def test_replacing_nothing_is_the_value(log_w):
    particle = SingleParticle(iwae, log_w)
    torch.testing.assert_close(particle.replaced(log_w), particle.value.expand_as(log_w))


def test_one_particle_has_no_others():
    particle = SingleParticle(iwae, torch.randn(1, 3))
    assert particle.others.shape == (0, 1, 3)
    assert torch.equal(particle.dropped(), torch.zeros(1, 3))
    assert torch.equal(particle.slope, torch.ones(1, 3))
    assert torch.equal(particle.curvature, torch.zeros(1, 3))


def test_pooled_slope_is_that_of_all_particles(log_w):
    particle = SingleParticle(iwae, log_w, num_groups=3)  # (K, M, data)
    pooled = log_w.flatten(0, 1).softmax(0).reshape(log_w.shape)
    torch.testing.assert_close(particle.pooled_slope / 3, pooled)  # the mean over groups
    alone = SingleParticle(iwae, log_w)
    assert torch.equal(alone.pooled_slope, alone.slope)


@pytest.mark.parametrize("bound", [iwae, renyi(0.3), cubo(2)])
def test_zero_weights(bound):
    log_w = torch.tensor([0.5, -torch.inf, -0.2, -torch.inf])
    particle, possible = SingleParticle(bound, log_w), SingleParticle(bound, log_w[[0, 2]])
    for name in ("slope", "curvature"):
        torch.testing.assert_close(getattr(particle, name)[[0, 2]], getattr(possible, name))
        assert (getattr(particle, name)[[1, 3]] == 0).all()


def test_nothing_has_a_gradient_of_the_weights():
    log_w = torch.randn(K, 3, requires_grad=True)
    particle = SingleParticle(iwae, log_w)
    parts = [particle.value, particle.slope, particle.curvature, particle.dropped()]
    assert not any(part.requires_grad for part in parts)
    with torch.no_grad():
        without = SingleParticle(iwae, log_w)
        torch.testing.assert_close(without.curvature, particle.curvature)
