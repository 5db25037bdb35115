"""What energies are told apart from: given contexts, drawn and scored."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform, ExpTransform

from pyro_ext.distributions import GaussianFamily, IdentifiablePrior
from pyro_ext.distributions.noise import draw, noise_given
from pyro_ext.models import IdentifiableFlow


@pytest.mark.parametrize(
    "noise",
    [
        dist.HalfNormal(2.0),
        dist.HalfCauchy(1.0),
        dist.LogNormal(torch.zeros(3), 1.0).to_event(1),
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), 1.0), [AffineTransform(1.0, 2.0), ExpTransform()]
        ).to_event(1),
        dist.Independent(dist.HalfNormal(torch.ones(2)), 1),
        dist.Poisson(3.0),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_drawn_densities_are_those_of_the_distribution(noise):
    x, log_prob = draw(noise, torch.Size([5]))
    assert x.shape == noise.shape((5,))
    torch.testing.assert_close(log_prob, noise.log_prob(x), rtol=1e-4, atol=1e-5)


def test_a_flow_as_noise_leaves_the_parameter_store_alone():
    """Or the next flow of this class would find these parameters, and train nothing."""
    prior = IdentifiablePrior(2, num_classes=3, family=GaussianFamily(("scale",)))
    flow = IdentifiableFlow(prior)
    label = torch.arange(3)
    noise_given(flow, label, torch.zeros(3, 2))
    flow(label)
    assert not list(pyro.get_param_store())
