"""Bits per dimension against entropies."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_ext.diagnostics import bits_per_dim
from pyro_ext.distributions import Dequantized


def test_bits_of_an_exact_density():
    law = dist.Bernoulli(torch.full((1, 4, 4), 0.25)).to_event(3)
    x = torch.zeros(5, 1, 4, 4)
    seen = bits_per_dim(law, x, batch_size=2)
    assert torch.allclose(seen, torch.full((5,), -math.log2(0.75)))


def test_bits_do_not_depend_on_batches():
    law = Dequantized(dist.Uniform(torch.full((1, 4, 4), -0.5), 0.5).to_event(3), 5)
    x = torch.randint(32, (7, 1, 4, 4))
    for batch_size in (1, 3, 100):
        assert torch.allclose(bits_per_dim(law, x, batch_size), torch.full((7,), 5.0))


def test_one_density_for_each_image():
    probs = torch.tensor([0.25, 0.5, 0.75])
    law = dist.Bernoulli(probs.reshape(3, 1, 1, 1).expand(3, 1, 4, 4)).to_event(3)
    seen = bits_per_dim(law, torch.zeros(3, 1, 4, 4), batch_size=2)
    assert torch.allclose(seen, -torch.log2(1 - probs))
    with pytest.raises(ValueError, match=r"batch shape \(3,\)"):
        bits_per_dim(law, torch.zeros(5, 1, 4, 4))


def test_real_numbers_are_refused():
    with pytest.raises(ValueError, match="Dequantized"):
        bits_per_dim(dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3), torch.zeros(1, 1, 4, 4))
