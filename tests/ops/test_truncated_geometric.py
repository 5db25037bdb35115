"""Sums over rejections against loops in double precision."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from pyro_ext.ops.truncated_geometric import (
    geometric_index,
    log_geometric_sum,
    log_truncated_ratio,
    mean_rejection_sum,
)

PROBS = torch.tensor([0.0, 1e-300, 1e-30, 1e-9, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0])


def brute_rejection_sum(rejects):
    sums = []
    for shift in range(len(rejects)):
        products = torch.cumprod(rejects.roll(-shift, 0), 0)
        sums.append(1 + products[:-1].sum(0))
    return torch.stack(sums).mean(0)


@pytest.mark.parametrize("num_terms", [1, 2, 3, 200, 1023])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_geometric_sum(num_terms, dtype, rtol):
    probs = PROBS.to(dtype)
    loop = sum((1 - probs.double()) ** i for i in range(num_terms))
    seen = log_geometric_sum(probs, num_terms)
    torch.testing.assert_close(seen.double().exp(), loop, rtol=num_terms * rtol, atol=0)


@pytest.mark.parametrize("num_tries", [1, 2, 3, 200])
def test_ratio(num_tries):
    probs, accept = PROBS.double(), torch.tensor([1e-12, 0.3, 1.0], dtype=torch.float64)
    early = sum(((1 - probs) ** i for i in range(num_tries - 1)), torch.zeros(1))
    expected = accept[:, None] * early + (1 - probs) ** (num_tries - 1)
    seen = log_truncated_ratio(accept.log()[:, None], probs, num_tries).exp()
    torch.testing.assert_close(seen, expected.double(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_tries", [2, 3, 1024])
def test_gradients_are_finite_at_both_ends(num_tries, dtype):
    probs = torch.cat([PROBS.to(dtype), PROBS.new_tensor([1e-38]).to(dtype)]).requires_grad_()
    log_accept = torch.full_like(probs, -3.0).requires_grad_()
    log_truncated_ratio(log_accept, probs, num_tries).sum().backward()
    assert probs.grad.isfinite().all()
    assert log_accept.grad.isfinite().all()


def test_gradient_of_the_ratio():
    probs = torch.tensor([1e-3, 0.2, 0.7], dtype=torch.float64, requires_grad=True)
    log_accept = torch.tensor([-5.0, -1.0, -0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, z: log_truncated_ratio(a, z, 7), (log_accept, probs))


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 6, 7, 8, 31, 199, 1023])
@pytest.mark.parametrize("center", [-25.0, -5.0, 0.0, 5.0, 40.0])
def test_rejection_sum(num, center):
    logit = center + 3 * torch.randn(num, 2, 3, dtype=torch.float64)
    expected = brute_rejection_sum(logsigmoid(-logit).exp())
    double = mean_rejection_sum(logsigmoid(-logit).exp())
    torch.testing.assert_close(double, expected, rtol=1e-13, atol=0)
    single = mean_rejection_sum(logsigmoid(-logit.float()).exp())
    torch.testing.assert_close(single.double(), expected, rtol=1e-6, atol=0)


def test_rejection_sum_where_certainty_meets_doubt():
    # in logarithms, small steps would be lost beside the large ones before them
    logit = torch.cat([torch.full((500,), 50.0), torch.full((523,), -10.0)])
    expected = brute_rejection_sum(logsigmoid(-logit.double()).exp())
    seen = mean_rejection_sum(logsigmoid(-logit).exp())
    torch.testing.assert_close(seen.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num", [1, 2, 3, 6, 11])
def test_rejection_sum_is_cyclic_and_differentiable(num):
    rejects = torch.rand(num, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mean_rejection_sum(rejects), mean_rejection_sum(rejects.roll(3, 0)))
    assert torch.autograd.gradcheck(mean_rejection_sum, rejects)


def test_equal_rejections_make_a_geometric_sum():
    for num in (1, 5, 100):
        seen = mean_rejection_sum(torch.full((num,), 0.7, dtype=torch.float64))
        expected = log_geometric_sum(torch.tensor(0.3, dtype=torch.float64), num).exp()
        torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize("num_tries", [2, 3, 50])
def test_geometric_index(num_tries):
    log_accept = torch.tensor([-4.0, -0.2, -1e-9], dtype=torch.float64)
    log_reject = torch.tensor(-0.3, dtype=torch.float64)
    index = torch.arange(num_tries)
    terms = index * log_reject + log_accept[:, None] * (index < num_tries - 1)
    log_total, mean = geometric_index(log_accept, log_reject, num_tries)
    torch.testing.assert_close(log_total, terms.logsumexp(-1))
    torch.testing.assert_close(mean, (terms.softmax(-1) * index).sum(-1))


@pytest.mark.parametrize("num_tries", [2, 3, 50])
def test_gradient_of_the_geometric_index(num_tries):
    log_accept = torch.tensor([-4.0, -0.2], dtype=torch.float64, requires_grad=True)
    log_reject = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, r: geometric_index(a, r, num_tries), (log_accept, log_reject)
    )


def test_one_try_is_the_proposal():
    ratio = log_truncated_ratio(torch.tensor(-math.inf), torch.tensor(0.3), 1)
    assert ratio.item() == 0.0
