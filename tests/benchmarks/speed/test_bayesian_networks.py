"""Bayesian networks and gates beside other libraries: a training step of 784-300-100-10.

All have standard normal priors, one batch, one draw and one fused Adam over all parameters; the
rows' losses per datum, before training, show how alike they are. What each does differently is in
its name or in the settings of ``run.py``, which also fixes the threads.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, hardtanh, linear

from pyro_ext.infer import AutoAdditiveNormal, MeanFieldELBO, bayesianize
from pyro_ext.nn import L0Linear
from pyro_ext.poutine import flipout, local_reparameterization, weight_sampling

pytestmark = pytest.mark.benchmark
WIDTHS, BATCH, SIZE, INIT_SCALE = (784, 300, 100, 10), 100, 60_000, 0.02
LOG_VAR = 2 * math.log(INIT_SCALE)
RHO = math.log(math.expm1(INIT_SCALE))  # of a softplus
STEP, REFERENCE = "training step of a Bayesian network", "local, by hand"
GATES, GATES_REFERENCE = "forward and backward of an L0 layer", "by hand"
Loss = Callable[[Tensor, Tensor], Tensor]
Built = tuple[list[nn.Parameter], Loss]


@pytest.fixture(autouse=True)
def _without_validation() -> Iterator[None]:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    with pyro.validation_enabled(False), pyro.settings.context(module_local_params=True):
        yield


def dense(layer: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    layers = [part for sizes in pairwise(WIDTHS) for part in (layer(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def fit(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits, y, reduction="sum") * (SIZE / BATCH)


def with_divergence(network: nn.Module, divergence: Callable[[nn.Module], Tensor]) -> Built:
    return list(network.parameters()), lambda x, y: fit(network(x), y) + divergence(network)


def deterministic() -> Built:
    network = dense()
    return list(network.parameters()), lambda x, y: fit(network(x), y)


def by_hand() -> Built:
    """Local reparameterisation as one would write it for these layers."""
    means = [value.detach().clone().requires_grad_() for value in dense().parameters()]
    log_vars = [torch.full_like(mean, LOG_VAR, requires_grad=True) for mean in means]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(())
        for i in range(0, len(means), 2):
            (w, b), (w_var, b_var) = means[i : i + 2], [v.exp() for v in log_vars[i : i + 2]]
            x = x.relu() if i else x
            mean, variance = linear(x, w, b), linear(x * x, w_var, b_var)
            x = mean + variance.sqrt() * torch.randn_like(mean)
            for m, v, log_var in zip((w, b), (w_var, b_var), log_vars[i : i + 2], strict=True):
                total = total + (m * m + v - log_var - 1).sum() / 2
        return fit(x, y) + total

    return [*means, *log_vars], loss  # type: ignore[list-item]


def ours(handler: Callable[[], AbstractContextManager]) -> Built:
    model: Any = bayesianize(
        dense(),
        guide=partial(AutoAdditiveNormal, init_log_var=LOG_VAR),
        likelihood=lambda logits: dist.Categorical(logits=logits),
        size=SIZE,
    )
    elbo: Any = MeanFieldELBO()(model, model.guide)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with handler():
            return elbo(x, y)

    return list(elbo.parameters()), loss


def pyro_ppl() -> Built:
    linear_sites: Any = PyroModule[nn.Linear]
    sequential: Any = PyroModule[nn.Sequential]
    network = sequential(*dense(linear_sites))
    for layer in list(network)[::2]:
        for name, value in list(layer.named_parameters()):
            prior = dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())
            setattr(layer, name, PyroSample(prior))

    def model(x: Tensor, y: Tensor) -> None:
        logits = network(x)
        with pyro.plate("data", SIZE, subsample=x):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide: Any = AutoNormal(pyro.poutine.block(model, hide=["data"]), init_scale=INIT_SCALE)
    guide(torch.rand(BATCH, WIDTHS[0]), torch.zeros(BATCH).long())
    program: Any = model
    elbo = TraceMeanField_ELBO()(program, guide)
    return list(elbo.parameters()), elbo


def bayesian_torch(kind: str) -> Built:
    layers = peer("bayesian_torch.layers")
    make = getattr(layers, kind)
    parts = [make(n, m, posterior_rho_init=RHO) for n, m in pairwise(WIDTHS)]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        divergence = x.new_zeros(())
        for i, part in enumerate(parts):
            x, own = part(x.relu() if i else x)
            divergence = divergence + own * part.in_features * part.out_features  # roughly: a mean
        return fit(x, y) + divergence

    return list(nn.ModuleList(parts).parameters()), loss


def blitz() -> Built:
    make, losses = peer("blitz.modules").BayesianLinear, peer("blitz.losses")
    options = {"prior_sigma_1": 1.0, "prior_pi": 1.0, "posterior_rho_init": RHO}
    return with_divergence(dense(lambda n, m: make(n, m, **options)), losses.kl_divergence_from_nn)


def torchbnn() -> Built:
    bnn = peer("torchbnn")
    network = dense(lambda n, m: bnn.BayesLinear(0.0, 1.0, n, m))
    return with_divergence(network, bnn.BKLLoss(reduction="sum"))


def zuko(local: bool) -> Built:
    network = peer("zuko.bayesian").BayesianModel(dense(), init_logvar=LOG_VAR)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with network.reparameterize(local_trick=local) as base:
            return fit(base(x), y) + network.kl_divergence()

    return list(network.parameters()), loss


def peer(name: str) -> Any:
    """The module, or a skip that says which one is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")


RIVALS: dict[str, Callable[[], Built]] = {
    "deterministic": deterministic,
    REFERENCE: by_hand,
    "ours, local": partial(ours, local_reparameterization),
    "ours, flipout": partial(ours, flipout),
    "ours, weight sampling": partial(ours, weight_sampling),
    "Pyro, AutoNormal and TraceMeanField_ELBO": pyro_ppl,
    "bayesian-torch, weight sampling": partial(bayesian_torch, "LinearReparameterization"),
    "bayesian-torch, flipout": partial(bayesian_torch, "LinearFlipout"),
    "blitz": blitz,
    "torchbnn": torchbnn,
    "zuko, weight sampling": partial(zuko, False),
    "zuko, local": partial(zuko, True),
}


@pytest.mark.benchmark(group=STEP)
@pytest.mark.parametrize("name", RIVALS)
def test_training_step(benchmark, name):
    parameters, loss = RIVALS[name]()
    adam = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    x = torch.rand(BATCH, WIDTHS[0], generator=torch.Generator().manual_seed(1))
    y = torch.arange(BATCH) % WIDTHS[-1]

    def step() -> None:
        adam.zero_grad()
        loss(x, y).backward()
        adam.step()

    facts = {"implementation": name, "reference": REFERENCE}
    with torch.no_grad():
        facts["loss per datum (nats)"] = loss(x, y).item() / SIZE
    benchmark.extra_info.update(facts)
    benchmark.pedantic(step, rounds=50, warmup_rounds=5)


def gates_by_hand() -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """The published formulas, with the published clamps."""
    base, log_alpha = nn.Linear(*WIDTHS[:2]), torch.zeros(WIDTHS[0], requires_grad=True)
    shift = math.log(0.1 / 1.1) * (2 / 3)

    def loss(x: Tensor) -> Tensor:
        noise = torch.rand(x.shape) * (1 - 2e-6) + 1e-6
        soft = torch.sigmoid((noise.log() - (1 - noise).log() + log_alpha) / (2 / 3))
        y = linear(x * hardtanh(soft * 1.2 - 0.1, 0.0, 1.0), base.weight, base.bias)
        open_ = (1 - torch.sigmoid(shift - log_alpha)).clamp(1e-6, 1 - 1e-6)
        return y.square().sum() + (open_ * base.out_features).sum()

    return [*base.parameters(), log_alpha], loss


def our_gates() -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    layer = L0Linear(*WIDTHS[:2])
    return list(layer.parameters()), lambda x: layer(x).square().sum() + layer.penalty()


L0_RIVALS = {GATES_REFERENCE: gates_by_hand, "ours": our_gates}


@pytest.mark.benchmark(group=GATES)
@pytest.mark.parametrize("name", L0_RIVALS)
def test_l0_layer(benchmark, name):
    parameters, loss = L0_RIVALS[name]()
    x = torch.rand(BATCH, WIDTHS[0], generator=torch.Generator().manual_seed(1))

    def step() -> None:
        for value in parameters:
            value.grad = None
        loss(x).backward()

    benchmark.extra_info.update(implementation=name, reference=GATES_REFERENCE)
    benchmark.pedantic(step, rounds=200, warmup_rounds=10)
