"""Energy-inspired priors beside the Gaussian one: a training step of the MNIST VAE, and sampling.

All train the same VAE on the same batch, with one fused Adam. There is no peer: no other library
has these samplers but for SNIS, whose own benchmark is beside. ``run.py`` fixes the threads.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch

from pyro_ext.distributions import (
    HamiltonianSampler,
    ImportanceSampler,
    LearnedAcceptRejectSampler,
    TruncatedRejectionSampler,
)
from pyro_ext.infer import MultiSampleELBO, pathwise
from pyro_ext.models import VariationalAutoencoder
from pyro_ext.models.priors import EnergyInspiredPrior
from pyro_ext.nn import EnergyNet

pytestmark = pytest.mark.benchmark
LATENT_DIM, CANDIDATES, BATCH, DRAWS = 50, 1024, 128, 1_000
REFERENCE = "Gaussian"
SAMPLERS: dict[str, Callable[[], Any]] = {
    "SNIS": lambda: ImportanceSampler(EnergyNet(LATENT_DIM), CANDIDATES),
    "TRS": lambda: TruncatedRejectionSampler(EnergyNet(LATENT_DIM), CANDIDATES),
    "TRS, the paper's bound": lambda: TruncatedRejectionSampler(
        EnergyNet(LATENT_DIM), CANDIDATES, learn_reverse=True
    ),
    "HIS": lambda: HamiltonianSampler(EnergyNet(LATENT_DIM)),
    "LARS": lambda: LearnedAcceptRejectSampler(
        EnergyNet(LATENT_DIM), CANDIDATES, num_proposals=CANDIDATES
    ),
}


@pytest.fixture(autouse=True)
def _without_validation():
    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        yield


def make_prior(name: str) -> EnergyInspiredPrior | None:
    torch.manual_seed(0)
    make = SAMPLERS.get(name)
    return make and EnergyInspiredPrior(LATENT_DIM, sampler=make())


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("name", [REFERENCE, *SAMPLERS])
def test_training_step(benchmark, name):
    vae = VariationalAutoencoder(784, LATENT_DIM, (300, 300), make_prior(name))
    elbo = MultiSampleELBO(1, gradient=pathwise, max_plate_nesting=1)
    adam = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    x = torch.rand(BATCH, 784, generator=torch.Generator().manual_seed(1)).round()

    def step() -> None:
        adam.zero_grad()
        elbo.loss_and_grads(vae.model, vae.guide, x)
        adam.step()

    benchmark.extra_info.update(implementation=name, reference=REFERENCE)
    benchmark.pedantic(step, rounds=30, warmup_rounds=3)


@pytest.mark.benchmark(group="sampling")
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling(benchmark, name):
    density = make_prior(name)()
    benchmark.extra_info.update(implementation=name, draws=DRAWS)
    with torch.no_grad():
        z = benchmark.pedantic(lambda: density.sample((DRAWS,)), rounds=3, warmup_rounds=1)
    benchmark.extra_info["mean square of the draws"] = z.square().mean().item()
