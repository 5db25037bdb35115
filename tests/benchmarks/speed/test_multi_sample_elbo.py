"""One training step of MultiSampleELBO beside Pyro's RenyiELBO and Trace_ELBO and NumPyro's bound.

The same VAE everywhere, with equal weights: loss, gradients, Adam. Through ``SVI`` Pyro makes one
optimiser for each parameter; a row named fused has one fused ``torch.optim.Adam`` for all.
NumPyro's step is jitted, the others are eager. The small model shows what a step costs besides
arithmetic. ``run.py`` fixes the threads. Where there is a GPU, its synchronisations are counted.
"""

import gc
import warnings
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import Tensor

from pyro_ext.infer import MultiSampleELBO, dreg, pathwise
from pyro_ext.models import VariationalAutoencoder


class Size(NamedTuple):
    group: str
    input_dim: int
    latent_dim: int
    hidden_dims: tuple[int, ...]
    batch: int


class Training(NamedTuple):
    vae: VariationalAutoencoder
    step: Callable[[Tensor], float]


DEMO = Size("demo VAE", 784, 50, (300, 300), 128)
SMALL = Size("small VAE", 20, 2, (32,), 16)
LEARNING_RATE, WARMUP, MEMORY_STEPS = 1e-3, 5, 10
ROUNDS = {DEMO: 10, SMALL: 50}
REFERENCE = "Pyro RenyiELBO"
PARTICLES: dict[str, Any] = {
    "num_particles": 10,
    "max_plate_nesting": 1,
    "vectorize_particles": True,
}
ELBOS = {
    "ours, pathwise": lambda: MultiSampleELBO(gradient=pathwise, **PARTICLES),
    "ours, dreg": lambda: MultiSampleELBO(gradient=dreg, **PARTICLES),
    "ours, auto": lambda: MultiSampleELBO(**PARTICLES),
    REFERENCE: lambda: RenyiELBO(alpha=0, **PARTICLES),
    "Pyro Trace_ELBO": lambda: Trace_ELBO(**PARTICLES),
}

pytestmark = pytest.mark.parametrize("size", [DEMO, SMALL], ids=lambda size: size.group)


@pytest.fixture(autouse=True)
def _alone():
    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        yield


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ELBOS)
def test_svi(benchmark, name, size):
    vae = make_vae(size)
    adam = pyro.optim.Adam({"lr": LEARNING_RATE})  # type: ignore[attr-defined]
    svi = SVI(vae.model, vae.guide, adam, ELBOS[name]())
    measure_torch(benchmark, name, size, Training(vae, svi.step))
    if torch.cuda.is_available():
        benchmark.extra_info["GPU synchronisations"] = synchronisations(ELBOS[name](), size)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ELBOS)
def test_fused(benchmark, name, size):
    vae, elbo = make_vae(size), ELBOS[name]()
    train = train_by_hand if name == REFERENCE else train_module
    adam = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    measure_torch(benchmark, f"{name}, fused", size, Training(vae, train(elbo, vae, adam)))


def train_module(elbo, vae, adam) -> Callable[[Tensor], float]:
    loss_of = elbo(vae.model, vae.guide)

    def step(x):
        adam.zero_grad()
        loss = loss_of(x)
        loss.backward()
        adam.step()
        return loss.item()

    return step


def train_by_hand(elbo, vae, adam) -> Callable[[Tensor], float]:
    """For RenyiELBO, which has no differentiable loss and so no module."""

    def step(x):
        adam.zero_grad()
        loss = elbo.loss_and_grads(vae.model, vae.guide, x)
        adam.step()
        return loss

    return step


@pytest.mark.benchmark
def test_bare_torch(benchmark, size):
    """What there is to reach: the same step without Pyro."""
    vae = make_vae(size)
    adam = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)

    def step(x):
        adam.zero_grad()
        loss = bare_loss(vae, x)
        loss.backward()
        adam.step()
        return loss.item()

    measure_torch(benchmark, "torch without Pyro, fused", size, Training(vae, step))


def bare_loss(vae: VariationalAutoencoder, x: Tensor) -> Tensor:
    functional = torch.nn.functional
    loc, raw_scale = vae.encoder(x).chunk(2, -1)
    scale, noise = functional.softplus(raw_scale) + 1e-5, torch.randn(10, *loc.shape)
    z = loc + scale * noise
    logits = vae.decoder(z)
    error = functional.binary_cross_entropy_with_logits(
        logits, x.expand_as(logits), reduction="none"
    )
    log_w = (scale.log() + (noise**2 - z**2) / 2).sum(-1) - error.sum(-1)
    return -(log_w.logsumexp(0) - torch.tensor(10.0).log()).sum()


def make_vae(size: Size) -> VariationalAutoencoder:
    torch.manual_seed(0)
    return VariationalAutoencoder(size.input_dim, size.latent_dim, size.hidden_dims)


def make_batch(size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(size.batch, size.input_dim, generator=generator) < 0.2).float()


def measure_torch(benchmark, name: str, size: Size, training: Training) -> None:
    x = make_batch(size)
    label(benchmark, name, size)
    benchmark.extra_info["mean value"] = -training.step(x) / size.batch
    benchmark.pedantic(training.step, (x,), rounds=ROUNDS[size], warmup_rounds=WARMUP)
    benchmark.extra_info["peak memory (MiB)"] = round(peak_memory(training, x) / 2**20, 2)


def label(benchmark, name: str, size: Size) -> None:
    benchmark.group = f"step of the {size.group}"
    benchmark.extra_info["implementation"] = name
    benchmark.extra_info["reference"] = REFERENCE


def peak_memory(training: Training, x: Tensor) -> int:
    """Bytes of tensors at the peak of a few steps, besides parameters and Adam's moments.

    Those that wait in reference cycles for Python's collector count, torch's workspaces do not.
    """
    training.vae.zero_grad()  # so that the profiler sees all that is freed
    gc.collect()
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        for _ in range(MEMORY_STEPS):
            training.step(x)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def synchronisations(elbo, size: Size) -> int:
    """How often the host waits for the GPU in ``loss_and_grads``; once is for the returned loss."""
    vae, x = make_vae(size).cuda(), make_batch(size).cuda()
    elbo.loss_and_grads(vae.model, vae.guide, x)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            elbo.loss_and_grads(vae.model, vae.guide, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


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

    latent_dim = len(params["decoder"][0][0])
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal().expand([latent_dim]).to_event(1))
        logits = apply(params["decoder"], z)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def numpyro_guide(params, x):
    import jax
    import numpyro
    from numpyro import distributions as dist

    loc, raw_scale = jax.numpy.split(apply(params["encoder"], x), 2, axis=-1)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw_scale) + 1e-5).to_event(1))


@pytest.mark.benchmark
def test_numpyro(benchmark, size):
    jax = pytest.importorskip("jax")
    numpyro = pytest.importorskip("numpyro")
    vae, x = make_vae(size), jax.numpy.asarray(make_batch(size).numpy())
    adam = numpyro.optim.Adam(LEARNING_RATE)
    elbo = numpyro.infer.RenyiELBO(alpha=0, num_particles=PARTICLES["num_particles"])

    @jax.jit
    def update(state, key):
        key, used = jax.random.split(key)

        def loss(params):
            return elbo.loss(used, {}, numpyro_model, numpyro_guide, params, x)

        value, gradients = jax.value_and_grad(loss)(adam.get_params(state))
        return adam.update(gradients, state), key, value

    weights = {"encoder": layers_of(vae.encoder), "decoder": layers_of(vae.decoder)}
    carried = [*update(adam.init(weights), jax.random.PRNGKey(0))]

    def step():
        carried[:] = jax.block_until_ready(update(*carried[:2]))

    label(benchmark, "NumPyro RenyiELBO, jitted", size)
    benchmark.extra_info["mean value"] = -float(carried[2]) / size.batch
    benchmark.pedantic(step, rounds=ROUNDS[size], warmup_rounds=WARMUP)
