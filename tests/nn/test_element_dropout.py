"""Dropout of our own against torch's contract, and binomial laws."""

import math

import pytest
import torch
from scipy.stats import binom
from torch.func import vmap

from pyro_ext.nn.element_dropout import element_dropout

NUM = 400_001


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_rate(rate):
    """A binomial count of zeros, at two sides; four tests of 1e-6 each: false alarms 4e-6."""
    torch.manual_seed(0)
    zeros = int((element_dropout(torch.ones(NUM), rate, True) == 0).sum())
    low, high = binom.interval(1 - 1e-6, NUM, round(rate * 2**16) / 2**16)
    assert low <= zeros <= high


def test_neighbours_are_independent():
    """Elements that share a word agree as coins do; three z-tests of 1e-6: false alarms 3e-6."""
    torch.manual_seed(1)
    kept = element_dropout(torch.ones(4 * NUM), 0.5, True).reshape(-1, 4) > 0
    for other in (1, 2, 3):
        agree = (kept[:, 0] == kept[:, other]).double().mean().item()
        assert abs(agree - 0.5) < 4.9 * 0.5 / math.sqrt(NUM)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 7, 1), (0, 4)])
def test_gradient_is_the_mask(shape):
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    y = element_dropout(x, 0.3, True)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    left = 1 - round(0.3 * 2**16) / 2**16
    assert set(y.detach().flatten().tolist()) <= {0.0, 1 / left}


def test_is_repeated_by_a_seed():
    x = torch.randn(101)
    first, second = (_seeded(x) for _ in range(2))
    assert torch.equal(first, second)


def test_leaves_all_in_evaluation():
    x = torch.randn(9)
    assert torch.equal(element_dropout(x, 0.5, False), x)
    assert torch.equal(element_dropout(x, 0.0, True), x)


def test_differs_in_a_batch_of_vmap():
    """Equal masks of 64 coins: false alarms 2e-19."""
    masks = vmap(lambda x: element_dropout(x, 0.5, True), randomness="different")(torch.ones(2, 64))
    assert not torch.equal(masks[0], masks[1])


def _seeded(x):
    torch.manual_seed(3)
    return element_dropout(x, 0.4, True)
