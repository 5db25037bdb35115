import copy
import pickle

import pytest
import torch

from pyro_ext.distributions import ImportanceSampler, SelfNormalizedImportance
from pyro_ext.models import EnergyInspiredPrior
from pyro_ext.models.priors import StandardNormalPrior
from pyro_ext.nn import EnergyNet


def test_standard_normal_prior_against_the_formula():
    prior = StandardNormalPrior(3).double()
    z = torch.randn(5, 3, dtype=torch.float64)
    expected = -(z**2).sum(-1) / 2 - 1.5 * torch.log(torch.tensor(2 * torch.pi)).double()
    torch.testing.assert_close(prior().log_prob(z), expected)


def test_energy_inspired_prior_is_snis_of_its_energy():
    prior = EnergyInspiredPrior(3, (7,), num_proposals=11)
    d = prior()
    assert isinstance(d, SelfNormalizedImportance)
    assert (d.event_shape, d.num_proposals) == ((3,), 11)
    z = torch.randn(4, 3)
    built = SelfNormalizedImportance(StandardNormalPrior(3)(), prior.sampler.energy, 11)
    assert torch.equal(d.frozen(0).log_prob(z), built.frozen(0).log_prob(z))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_dtypes(copier):
    prior = EnergyInspiredPrior(2, num_proposals=5)
    z = torch.randn(4, 2)
    expected = prior().frozen(0).log_prob(z)
    assert torch.equal(copier(prior)().frozen(0).log_prob(z), expected)
    assert copier(prior).double()().sample().dtype == torch.float64


def test_bad_sizes():
    with pytest.raises(ValueError, match="num_proposals=0"):
        EnergyInspiredPrior(2, num_proposals=0)
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        EnergyInspiredPrior(0)


@pytest.mark.parametrize(
    "sampler",
    [ImportanceSampler, EnergyNet(2), 5, ImportanceSampler(EnergyNet(3)), lambda proposal: None],
)
def test_bad_samplers(sampler):
    with pytest.raises(
        ValueError, match=r"sampler must|ImportanceSampler\(energy\)|events of shape"
    ):
        EnergyInspiredPrior(2, sampler=sampler)


def test_tight_priors_share_parameters():
    prior = EnergyInspiredPrior(2, (7,), num_proposals=5)
    tight = prior.tight(2_000)
    assert tight.sampler is prior.sampler
    z = torch.zeros(2)
    loose = torch.stack([prior().log_prob(z) for _ in range(200)]).mean()
    assert loose < tight().log_prob(z)  # by far more than the noise, Jensen's gap
    assert prior().log_prob(z) != prior.tight(1)().log_prob(z)
    with pytest.raises(ValueError, match="num must be an integer >= 1"):
        prior.tight(0)
