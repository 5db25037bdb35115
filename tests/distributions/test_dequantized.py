"""Dequantisation against the probabilities of cells."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from pyro_ext.distributions import Dequantized, HardConcrete
from pyro_ext.distributions.stochastic_density import AuxiliaryLost

LOC, SCALE = torch.tensor([0.1, -0.2]).double(), 0.15


def base():
    return dist.Normal(LOC, SCALE).to_event(1)


def cells(bits):
    """Log probability of each pair of integers, by the Normal cdf."""
    edges = torch.arange(2**bits + 1).double() / 2**bits - 0.5
    cdf = Normal(LOC.unsqueeze(-1), SCALE).cdf(edges)
    log_p = (cdf[:, 1:] - cdf[:, :-1]).log()
    return log_p[0].unsqueeze(1) + log_p[1]


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_uniform_density_has_as_many_bits(bits):
    uniform = dist.Uniform(torch.full((3,), -0.5), 0.5).to_event(1)
    x = torch.randint(2**bits, (10, 3))
    seen = Dequantized(uniform, bits).log_prob(x)
    assert torch.allclose(seen, torch.full((10,), -3 * bits * math.log(2)), atol=1e-4)


def test_weights_are_unbiased_for_the_probability_of_a_cell():
    """Means of 20,000 weights; five standard errors fail 6e-7 of the time."""
    bits = 2
    x = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    d = Dequantized(base(), bits)
    weights = d.log_prob(x.expand(20_000, 16, 2)).exp()
    error = weights.std(0) / math.sqrt(len(weights))
    assert bool(((weights.mean(0) - cells(bits).flatten().exp()).abs() < 5 * error).all())
    assert bool((d.log_prob(x.expand(1000, 16, 2)).mean(0) < cells(bits).flatten()).all())
    assert torch.allclose(d.tight(20_000).log_prob(x).exp(), cells(bits).flatten().exp(), rtol=0.1)


def test_draws_have_the_probability_of_their_cell():
    """Frequencies of 100,000 draws in cells off the rim; five standard errors."""
    num, inner = 100_000, slice(1, -1)
    x = Dequantized(base(), 2).sample((num,)).long()
    seen = torch.zeros(4, 4).double().index_put_((x[:, 0], x[:, 1]), torch.ones(num).double(), True)
    expected = cells(2).exp()
    error = (expected * (1 - expected) / num).sqrt()
    off = (seen / num - expected).abs() / error
    assert bool((off[inner, inner] < 5).all())
    assert bool((seen.sum(1) / num >= expected.sum(1) - 5 * error.sum(1)).all())


def test_better_noise_tightens_the_bound():
    """The density of the cell itself as noise makes every weight exact."""

    def within(x):
        low = (x / 2 - 0.5 - LOC) / SCALE
        high = ((x + 1) / 2 - 0.5 - LOC) / SCALE
        a, b = Normal(0, 1).cdf(low), Normal(0, 1).cdf(high)
        uniform = dist.Uniform(a, b, validate_args=False)
        back = [
            dist.transforms.CumulativeDistributionTransform(Normal(0.0, 1.0)).inv,
            dist.transforms.AffineTransform((LOC + 0.5) * 2 - x, 2 * SCALE),
        ]
        return dist.TransformedDistribution(uniform, back, validate_args=False).to_event(1)

    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]).double()
    seen = Dequantized(base(), 1, within).log_prob(x)
    expected = cells(1)[x[:, 0].long(), x[:, 1].long()]
    assert torch.allclose(seen, expected, atol=1e-6)


def test_noise_can_be_trained():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2).double())

        def forward(self, x):
            law = dist.Normal(self.loc.expand(x.shape), 1.0)
            return dist.TransformedDistribution(law, dist.transforms.SigmoidTransform()).to_event(1)

    noise = Noise()
    d = Dequantized(base(), 1, noise)
    x = torch.tensor([1.0, 0.0]).double().expand(2000, 2)
    optimizer = torch.optim.Adam(noise.parameters(), lr=0.05)
    first = d.log_prob(x).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        (-d.log_prob(x).mean()).backward()
        optimizer.step()
    assert first + 0.1 < d.log_prob(x).mean().item() < cells(1)[1, 0]
    assert bool((noise.loc.sign() == torch.tensor([-1.0, 1.0])).all())


def test_clipped_draws_have_no_finite_upper_bound():
    d = Dequantized(dist.Normal(torch.tensor([3.0]), 0.1).to_event(1), 2)
    x = d.sample()
    assert x.item() == 3
    assert d.score_parts(x).log_prob.item() == math.inf
    with pytest.raises(AuxiliaryLost):
        d.score_parts(x.clone())


def test_images_may_be_bytes():
    d = Dequantized(dist.Normal(torch.zeros(3, 4, 4), 0.3).to_event(3))
    x = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8)
    frozen = d.frozen(0)
    assert torch.equal(frozen.log_prob(x), frozen.log_prob(x.float()))


def test_bad_input():
    with pytest.raises(ValueError, match="real numbers"):
        Dequantized(dist.Poisson(torch.ones(3)).to_event(1))
    with pytest.raises(ValueError, match="exact density"):
        Dequantized(Dequantized(base()))
    with pytest.raises(ValueError, match="bits"):
        Dequantized(base(), 0)
    with pytest.raises(ValueError, match="callable"):
        Dequantized(base(), noise=0.5)
    d = Dequantized(base(), 3)
    for bad in ([0.5, 1.0], [8.0, 0.0], [-1.0, 0.0]):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(torch.tensor(bad).double())
    assert not HardConcrete(0.0).support.is_discrete


def test_points_stay_in_their_cell():
    """A float32 sum of 255 and a number near one is rounded up, once in 2^17."""
    base = dist.Uniform(torch.full((3, 64, 64), -0.5), 0.5, validate_args=False).to_event(3)
    d = Dequantized(base)
    x = torch.full((3, 64, 64), 255)
    seen = torch.stack([d.log_prob(x) for _ in range(100)])
    assert torch.allclose(seen, torch.tensor(-math.log(256) * x.numel()))
