"""Autoregressive shifts against Jacobians, and as prior and posterior of one bound."""

import pyro.distributions as dist
import pytest
import torch
from torch.func import jacrev

from pyro_ext.distributions import AutoregressiveShift
from pyro_ext.models import AutoregressiveFlowPrior


def flow(reverse=False):
    transform = AutoregressiveShift(5, (16, 16), reverse=reverse).double()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return transform


@pytest.mark.parametrize("reverse", [False, True])
def test_each_coordinate_sees_those_before_it(reverse):
    transform, x = flow(reverse), torch.randn(5).double()
    for way in (transform, transform.inv):
        jacobian = jacrev(way)(x)
        jacobian = jacobian.flip(0, 1) if reverse else jacobian
        assert torch.allclose(jacobian.triu(), torch.eye(5).double(), atol=1e-12)
        assert (jacobian.tril(-1).abs().sum(1)[1:] > 0).all()
    assert torch.allclose(transform.inv(transform(x)), x, atol=1e-12)
    assert transform.log_abs_det_jacobian(x, x) == 0


def test_gradients_are_those_of_the_network():
    """Where clipped log scales keep a gradient, there is nothing to clip here."""
    transform, x = flow(), torch.randn(7, 5).double()
    base = dist.Normal(torch.zeros(5).double(), 1.0).to_event(1)
    log_prob = dist.TransformedDistribution(base, [transform]).log_prob(x).sum()
    seen = torch.autograd.grad(log_prob, list(transform.parameters()))
    expected = torch.autograd.grad(
        base.log_prob(x - transform.network(x)).sum(), list(transform.parameters())
    )
    for one, other in zip(seen, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_a_flow_as_prior_is_its_inverse_as_posterior():
    """Equal bounds: log p(z) - log q(z | x), and of eps = f^-1(z) under the plain prior."""
    prior = AutoregressiveFlowPrior(5, 3, (16,)).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    q = dist.Normal(torch.randn(20, 5).double(), 0.4).to_event(1)
    z = q.sample()
    inverse = [transform.inv for transform in reversed(list(prior.transforms))]
    posterior = dist.TransformedDistribution(q, inverse)
    eps = z
    for transform in inverse:
        eps = transform(eps)
    plain = dist.Normal(torch.zeros(5).double(), 1.0).to_event(1)
    first = prior().log_prob(z) - q.log_prob(z)
    second = plain.log_prob(eps) - posterior.log_prob(eps)
    assert torch.allclose(first, second, atol=1e-10)


def test_a_prior_moves_each_coordinate_by_all_others():
    """Orders alternate, so that the Jacobian has no zeros."""
    prior = AutoregressiveFlowPrior(4, 2, (16,)).double()
    jacobian = torch.func.jacrev(lambda z: prior.transforms[0](prior.transforms[1](z)))
    assert (jacobian(torch.randn(4).double()).abs() > 0).all()


def test_new_parameters_are_seen_at_once():
    prior, z = AutoregressiveFlowPrior(4, 2), torch.randn(6, 4)
    with torch.no_grad():
        d = prior()
        before = d.log_prob(z)
        for parameter in prior.parameters():
            parameter.add_(0.2)
        assert not torch.allclose(d.log_prob(z), before)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least input_dim=5"):
        AutoregressiveShift(5, (4,))
    with pytest.raises(ValueError, match="input_dim"):
        AutoregressiveShift(1)
    with pytest.raises(ValueError, match="num_transforms"):
        AutoregressiveFlowPrior(3, 0)
