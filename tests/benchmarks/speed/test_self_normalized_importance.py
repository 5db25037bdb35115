"""SNIS beside TFP's ImportanceResample: a density with its gradient, and sampling.

Both have the same energy (equal weights), the same proposal and as many candidates. TFP draws
candidates for each value; ours does so too, or shares one set over the batch. The rows' mean
density and mean square of the draws show that the same thing was computed. ``run.py`` fixes the
threads.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.distributions import SelfNormalizedImportance
from pyro_ext.nn import EnergyNet

pytestmark = pytest.mark.benchmark
LATENT_DIM, HIDDEN_DIMS, NUM_PROPOSALS, BATCH = 50, (100, 100), 1024, 128
OURS = {"ours, shared proposals": True, "ours, own proposals": False}
DENSITY, SAMPLING = "log_prob and its gradient", "sample"


@pytest.fixture(autouse=True)
def _without_validation():
    with pyro.validation_enabled(False):  # the peers do not validate either
        yield


def make_energy() -> EnergyNet:
    torch.manual_seed(0)
    energy = EnergyNet(LATENT_DIM, HIDDEN_DIMS)
    with torch.no_grad():
        energy.layers[-1].weight.mul_(3)  # so that candidates do differ
    return energy


def make_values() -> Tensor:
    return torch.randn(BATCH, LATENT_DIM, generator=torch.Generator().manual_seed(1))


def ours(energy: EnergyNet, share_proposals: bool) -> SelfNormalizedImportance:
    proposal = dist.Normal(torch.zeros(LATENT_DIM), 1.0).to_event(1)
    return SelfNormalizedImportance(
        proposal, energy, NUM_PROPOSALS, share_proposals, validate_args=False
    )


def tfp_peer(energy: EnergyNet):
    """TFP's distribution as a function of the energy's parameters, and these parameters."""
    import jax.numpy as jnp

    tfp = pytest.importorskip("tensorflow_probability.substrates.jax")
    params = [jnp.asarray(p.detach().numpy()) for p in energy.parameters()]
    proposal = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), LATENT_DIM)

    def build(params):
        def target(x):  # TFP wants the unnormalised density, proposal and all
            hidden = x
            for weight, bias in zip(params[0:-2:2], params[1:-2:2], strict=True):
                hidden = jnp.tanh(hidden @ weight.T + bias)
            return proposal.log_prob(x) - (hidden @ params[-2].T + params[-1])[..., 0]

        return tfp.experimental.distributions.ImportanceResample(proposal, target, NUM_PROPOSALS)

    return build, params


@pytest.mark.benchmark(group=DENSITY)
@pytest.mark.parametrize("name", OURS)
def test_density(benchmark, name):
    energy, x = make_energy(), make_values().requires_grad_()
    density = ours(energy, OURS[name])

    def step():
        energy.zero_grad()
        x.grad = None
        log_prob = density.log_prob(x).mean()
        log_prob.backward()
        return log_prob

    benchmark.extra_info["implementation"] = name
    log_prob = benchmark.pedantic(step, rounds=15, warmup_rounds=2)
    benchmark.extra_info["mean value"] = log_prob.item()


@pytest.mark.benchmark(group=DENSITY)
def test_density_of_tfp(benchmark):
    jax = pytest.importorskip("jax")
    build, params = tfp_peer(make_energy())

    def log_prob(params, x, key):
        return build(params).log_prob(x, seed=key).mean()

    compiled = jax.jit(jax.value_and_grad(log_prob, argnums=(0, 1)))
    arguments = params, jax.numpy.asarray(make_values().numpy()), jax.random.PRNGKey(0)
    benchmark.extra_info["implementation"] = "TFP (JAX, jitted)"
    value, _ = benchmark.pedantic(
        lambda: jax.block_until_ready(compiled(*arguments)), rounds=15, warmup_rounds=2
    )
    benchmark.extra_info["mean value"] = float(value)


@pytest.mark.benchmark(group=SAMPLING)
def test_sampling(benchmark):
    density = ours(make_energy(), share_proposals=False)
    benchmark.extra_info["implementation"] = "ours"
    with torch.no_grad():
        x = benchmark.pedantic(lambda: density.sample((BATCH,)), rounds=15, warmup_rounds=2)
    benchmark.extra_info["mean value"] = x.square().mean().item()


@pytest.mark.benchmark(group=SAMPLING)
def test_sampling_of_tfp(benchmark):
    jax = pytest.importorskip("jax")
    build, params = tfp_peer(make_energy())
    compiled = jax.jit(lambda params, key: build(params).sample(BATCH, seed=key))
    arguments = params, jax.random.PRNGKey(0)
    benchmark.extra_info["implementation"] = "TFP (JAX, jitted)"
    x = benchmark.pedantic(
        lambda: jax.block_until_ready(compiled(*arguments)), rounds=15, warmup_rounds=2
    )
    benchmark.extra_info["mean value"] = float((x**2).mean())
