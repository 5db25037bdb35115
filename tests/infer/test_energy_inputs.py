"""What every objective of energies refuses: one energy for each datum, or an error."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions.flow_density import FlowDensity, FlowTransform
from pyro_ext.infer import (
    DenoisingScoreMatching,
    FlowContrastive,
    NoiseContrastive,
    SlicedScoreMatching,
)
from pyro_ext.nn import ConditionalEnergy, CouplingFlow

B, D = 6, 6


class Flow(torch.nn.Module):
    """Knows no context."""

    def __init__(self):
        super().__init__()
        self.net = CouplingFlow(D, 1, (4,))

    def forward(self, context):
        return FlowDensity(dist.Normal(torch.zeros(D), 1.0).to_event(1), [FlowTransform(self.net)])


WIDE = dist.Normal(torch.zeros(D), 2.0).to_event(1)
OBJECTIVES = {
    "nce": lambda ebm: NoiseContrastive()(ebm, WIDE),
    "nce of as many": lambda ebm: NoiseContrastive(B)(ebm, WIDE),
    "ranking": lambda ebm: NoiseContrastive(3, ranking=True)(ebm, WIDE),
    "shared": lambda ebm: NoiseContrastive(3, share_noise=True)(ebm, WIDE),
    "fce": lambda ebm: FlowContrastive()(ebm, Flow()),
    "denoising": lambda ebm: DenoisingScoreMatching(0.1)(ebm),
    "sliced": lambda ebm: SlicedScoreMatching()(ebm),
}
CASES = pytest.mark.parametrize("name", OBJECTIVES)


@CASES
def test_labels_with_a_dimension_too_many(name):
    """They would broadcast: every datum with every label."""
    loss = OBJECTIVES[name](ConditionalEnergy(D, 3, num_classes=4))
    x, label = torch.randn(B, D), torch.arange(B) % 4
    assert loss(x, label).shape == ()
    with pytest.raises(ValueError, match=r"(?i)give one context for each"):
        loss(x, label.unsqueeze(-1))


@CASES
def test_contexts_that_are_not_finite_and_no_data(name):
    loss = OBJECTIVES[name](ConditionalEnergy(D, 3, context_dim=2))
    context = torch.randn(B, 2)
    assert loss(torch.randn(B, D), context).isfinite()
    context[1, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 12 numbers of the contexts are NaN"):
        loss(torch.randn(B, D), context)
    with pytest.raises(ValueError, match="There are no data"):
        loss(torch.zeros(0, D), context[:0])


def test_another_precision():
    energy = ConditionalEnergy(D, 3, num_classes=4)
    with pytest.raises(ValueError, match=r"Events are of torch\.float64, but .* torch\.float32"):
        energy(torch.randn(B, D).double(), torch.arange(B) % 4)
