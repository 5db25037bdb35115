"""One training step of MultiSampleELBO beside the RenyiELBO (alpha=0) of Pyro and of NumPyro.

The same VAE everywhere, with equal weights: loss and gradients, no optimiser. NumPyro's step is
jitted, the others are eager. ``run.py`` fixes the threads.
"""

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO
from torch import Tensor

from pyro_ext.infer import MultiSampleELBO
from pyro_ext.models import VariationalAutoencoder

pytestmark = pytest.mark.benchmark(group="loss_and_grads")
INPUT_DIM, LATENT_DIM, HIDDEN_DIMS, BATCH, NUM_PARTICLES = 784, 50, (300, 300), 128, 5


@pytest.fixture(autouse=True)
def _without_validation():
    with pyro.validation_enabled(False):  # the peers do not validate either
        yield


def make_vae() -> VariationalAutoencoder:
    torch.manual_seed(0)
    return VariationalAutoencoder(INPUT_DIM, LATENT_DIM, HIDDEN_DIMS)


def make_batch() -> Tensor:
    uniform = torch.rand(BATCH, INPUT_DIM, generator=torch.Generator().manual_seed(1))
    return (uniform < 0.2).float()


def measure_torch(benchmark, name, elbo):
    vae, x = make_vae(), make_batch()

    def step():
        vae.zero_grad()
        return elbo.loss_and_grads(vae.model, vae.guide, x)

    benchmark.extra_info["implementation"] = name
    loss = benchmark.pedantic(step, rounds=60, warmup_rounds=5)
    benchmark.extra_info["mean value"] = -loss / BATCH


def test_ours(benchmark):
    measure_torch(benchmark, "ours", MultiSampleELBO(NUM_PARTICLES, max_plate_nesting=1))


def test_pyro(benchmark):
    elbo = RenyiELBO(
        alpha=0, num_particles=NUM_PARTICLES, max_plate_nesting=1, vectorize_particles=True
    )
    measure_torch(benchmark, "Pyro RenyiELBO", elbo)


def layers_of(net) -> list[tuple]:
    import jax.numpy as jnp

    def array(parameter):
        return jnp.asarray(parameter.detach().numpy())

    return [(array(layer.weight.T), array(layer.bias)) for layer in net.layers]


def apply(layers, x):
    import jax.numpy as jnp

    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def numpyro_model(params, x):
    import numpyro
    from numpyro import distributions as dist

    decoder = numpyro.param("decoder", params["decoder"])
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal().expand([LATENT_DIM]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=apply(decoder, z)).to_event(1), obs=x)


def numpyro_guide(params, x):
    import jax
    import numpyro
    from numpyro import distributions as dist

    encoder = numpyro.param("encoder", params["encoder"])
    loc, raw_scale = jax.numpy.split(apply(encoder, x), 2, axis=-1)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw_scale) + 1e-5).to_event(1))


def test_numpyro(benchmark):
    jax = pytest.importorskip("jax")
    infer = pytest.importorskip("numpyro.infer")
    vae, x = make_vae(), jax.numpy.asarray(make_batch().numpy())
    params = {"encoder": layers_of(vae.encoder), "decoder": layers_of(vae.decoder)}
    elbo = infer.RenyiELBO(alpha=0, num_particles=NUM_PARTICLES)

    def loss(params, key):
        return elbo.loss(key, params, numpyro_model, numpyro_guide, params, x)

    compiled, key = jax.jit(jax.value_and_grad(loss)), jax.random.PRNGKey(0)
    benchmark.extra_info["implementation"] = "NumPyro RenyiELBO (jitted)"
    value, _ = benchmark.pedantic(
        lambda: jax.block_until_ready(compiled(params, key)), rounds=60, warmup_rounds=5
    )
    benchmark.extra_info["mean value"] = -float(value) / BATCH
