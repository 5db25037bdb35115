"""Any module as a model: same sites, same function, and its weights from outside."""

import copy
import math
import pickle
import time
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_ext.distributions import LogUniform
from pyro_ext.infer import AutoAdditiveNormal, MeanFieldELBO, bayesianize
from pyro_ext.models import prune
from pyro_ext.nn import L0Linear
from pyro_ext.poutine import flipout, local_reparameterization, weight_sampling


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.out = nn.Linear(8, 3)

    def forward(self, x, scale=1.0):
        h = F.max_pool2d(self.norm(self.conv(x)).relu() + x, 2)
        return self.out(h.flatten(1)) * scale


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.encode(x).tanh())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Recurrent(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (6, 4)),
    "conv": (lambda: Residual().eval(), (6, 1, 4, 4)),
    "tied": (Tied, (6, 4)),
    "attention": (Attention, (6, 3, 4)),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), (6, 3, 4)),
    "recurrent": (lambda: Recurrent(4, 3), (6, 3, 4)),
    "bilinear-free": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2, bias=False)), (6, 4)),
}
NORMAL = dist.Normal(0.0, 1.0)
QUIET = {"conv": "weights", "tokens": "weights"}


@pytest.mark.parametrize("name", NETS)
def test_is_the_module_at_its_own_parameters(name):
    make, shape = NETS[name]
    net, x = make(), torch.randn(shape)
    model = bayesianize(net)
    values = {key: p.detach() for key, p in net.named_parameters()}
    torch.testing.assert_close(poutine.condition(model, values)(x), net(x))
    assert set(model.priors) == set(values)
    medians = model.guide.median()
    for key, value in values.items():
        torch.testing.assert_close(medians[key], value)
    assert [n for n, _ in model.module.named_parameters()] == []


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "handler", [weight_sampling, flipout, partial(local_reparameterization, **QUIET)]
)
def test_trains_with_every_handler(name, handler):
    make, shape = NETS[name]
    x, model = torch.randn(shape), bayesianize(make())

    def program(x):
        mean = model(x).flatten(1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones_like(mean))

    svi = SVI(program, model.guide, pyro.optim.Adam({"lr": 0.05}), MeanFieldELBO())
    with handler(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(second linear map|of a sequence)")
        losses = [svi.step(x) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("handler", [weight_sampling, partial(local_reparameterization, **QUIET)])
def test_vectorised_particles_are_mapped_over(name, handler):
    make, shape = NETS[name]
    x, model = torch.randn(shape), bayesianize(make())
    plate = pyro.plate("num_particles_vectorized", 3, dim=-2)
    with handler(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*second linear map")
        warnings.filterwarnings("ignore", message=".*performance drop")  # torch's own
        with poutine.trace() as tracer, plate:
            y = model(x)
    assert y.shape == (3, *make()(x).shape)
    if handler is weight_sampling:
        for k in range(3):
            values = {n: tracer.trace.nodes[n]["value"][k, 0] for n in model.priors}
            torch.testing.assert_close(
                y[k], poutine.condition(model, values)(x), rtol=1e-4, atol=1e-4
            )


def mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def gaussian(mean):
    return dist.Normal(mean[..., 0], 0.5)


def test_particles_leave_the_bound_as_it_is():
    # z-test with false alarm 6e-7.
    x, y = torch.randn(6, 3), torch.randn(6)
    model = bayesianize(
        mlp(), guide=partial(AutoAdditiveNormal, init_log_var=-2.0), likelihood=gaussian, size=60
    )
    vectorised = MeanFieldELBO(50, vectorize_particles=True, max_plate_nesting=1)
    single = MeanFieldELBO()
    with local_reparameterization():
        ours = torch.tensor([vectorised.loss(model, model.guide, x, y) for _ in range(10)])
        theirs = torch.tensor([single.loss(model, model.guide, x, y) for _ in range(500)])
    with flipout():
        flipped = torch.tensor([single.loss(model, model.guide, x, y) for _ in range(500)])
    drawn = torch.tensor([single.loss(model, model.guide, x, y) for _ in range(500)])
    error = (theirs.var() / 250).sqrt()
    for losses in (ours, flipped, drawn):
        assert abs(losses.mean() - theirs.mean()) < 5 * max(error, (drawn.var() / 250).sqrt())


def test_size_scales_the_data_alone():
    x, y = torch.randn(6, 3), torch.randn(6)
    model = bayesianize(mlp(), likelihood=gaussian, size=60)
    trace = poutine.trace(model).get_trace(x, y)
    assert trace.nodes["y"]["scale"] == 10.0
    assert trace.nodes["0.weight"]["scale"] == 1.0
    assert trace.nodes["y"]["is_observed"]


def test_predictive_in_parallel():
    x = torch.randn(6, 3)
    model = bayesianize(mlp(), likelihood=gaussian)
    for parallel in (True, False):
        draws = Predictive(model, guide=model.guide, num_samples=7, parallel=parallel)(x)
        assert draws["y"].shape == (7, 6)


def test_other_guides_and_mcmc():
    x, y = torch.randn(6, 3), torch.randn(6)
    model = bayesianize(nn.Linear(3, 1), guide=AutoNormal, likelihood=gaussian)
    with local_reparameterization():
        assert math.isfinite(MeanFieldELBO().loss(model, model.guide, x, y))
    assert math.isfinite(Trace_ELBO().loss(model, model.guide, x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mcmc = MCMC(NUTS(model), num_samples=100, warmup_steps=50, disable_progbar=True)
        mcmc.run(x, y)
    precision = torch.cat([x, torch.ones(6, 1)], -1)
    posterior = torch.linalg.solve(
        precision.T @ precision / 0.25 + torch.eye(4), precision.T @ y / 0.25
    )
    found = mcmc.get_samples()["weight"].mean((0, 1))
    torch.testing.assert_close(found, posterior[:3], atol=0.25, rtol=0.0)


def test_priors_by_name():
    net = NETS["conv"][0]()
    model = bayesianize(
        net,
        prior=lambda name, p: (
            None if "norm" in name else dist.Normal(0.0, 1 / math.sqrt(p[0].numel()))
        ),
    )
    assert set(model.priors) == {"conv.weight", "conv.bias", "out.weight", "out.bias"}
    assert model.priors["conv.weight"].base_dist.scale.flatten()[0] == pytest.approx(1 / 3)
    assert {n for n, _ in model.module.named_parameters()} == {"norm.weight", "norm.bias"}
    x = torch.randn(6, 1, 4, 4)
    svi = SVI(
        lambda: pyro.sample("y", dist.Normal(model(x), 1.0).to_event(2), obs=torch.zeros(6, 3)),
        model.guide,
        pyro.optim.Adam({"lr": 0.1}),
        MeanFieldELBO(),
    )
    svi.step()
    assert not torch.equal(model.module.norm.weight, net.norm.weight)  # trained, and not shared


@pytest.mark.parametrize("is_local", [True, False])
def test_copies_and_conversions(is_local):
    x = torch.randn(6, 3)
    with pyro.settings.context(module_local_params=is_local):
        model = bayesianize(mlp(), likelihood=gaussian)
        copies = [copy.deepcopy(model)]
        if is_local:
            copies.append(bayesianize(mlp(), likelihood=gaussian))
            copies.append(pickle.loads(pickle.dumps(model)))
        for other in copies:
            other.load_state_dict(model.state_dict())
            draws = []
            for each in (model, other):
                pyro.set_rng_seed(0)
                draws.append(Predictive(each, guide=each.guide, num_samples=2)(x)["y"])
            torch.testing.assert_close(*draws)
        model = bayesianize(mlp(), likelihood=gaussian).double()
        if is_local:
            with local_reparameterization():
                loss = MeanFieldELBO()(model, model.guide)
                assert loss(x.double(), x[:, 0].double()).dtype is torch.float64


def test_refusals():
    with pytest.raises(ValueError, match="prior must be a distribution or a function"):
        bayesianize(mlp(), prior=1.0)
    with pytest.raises(ValueError, match=r"'0[.]weight' must be a distribution or None"):
        bayesianize(mlp(), prior=lambda name, p: 1.0)
    with pytest.raises(ValueError, match="No parameter of the module has a prior"):
        bayesianize(mlp(), prior=lambda name, p: None)
    with pytest.raises(ValueError, match=r"'0.weight' has shape.*does not broadcast"):
        bayesianize(mlp(), prior=dist.Normal(torch.zeros(5), 1.0))
    with pytest.raises(ValueError, match="size must be an integer >= 1"):
        bayesianize(mlp(), size=0)


def test_module_is_left_as_it_was():
    net = mlp()
    before = dict(net.named_parameters())
    model = bayesianize(net)
    with local_reparameterization():
        model(torch.randn(6, 3))
    assert all(before[name] is p for name, p in net.named_parameters())
    assert not any(name.startswith("module") for name, _ in model.named_parameters())
    places = [part._buffers[key] for part, key, _ in model._places]
    assert all(place.untyped_storage().nbytes() == 4 for place in places)  # empty again


def regress(slope, **options):
    """A network trained to have this slope."""
    x = torch.randn(30, 2)
    model = bayesianize(nn.Linear(2, 1), likelihood=gaussian, **options)
    return train(model, x, slope * x[:, 0])


def train(model, x, y):
    svi = SVI(model, model.guide, pyro.optim.Adam({"lr": 0.1}), MeanFieldELBO())
    for _ in range(100):
        svi.step(x, y)
    return model


def slope(model):
    return model.guide()["weight"][0, 0].item()


def test_networks_side_by_side_have_names():
    first, second = regress(3.0, name="first"), regress(-3.0, name="second")
    assert slope(first) == pytest.approx(3.0, abs=0.5)
    assert slope(second) == pytest.approx(-3.0, abs=0.5)
    assert "first.guide.locs.weight" in pyro.get_param_store()
    with pytest.raises(ValueError, match="name must be a string"):
        bayesianize(nn.Linear(2, 1), name=1)


def test_the_parameters_of_another_network_are_refused():
    first = regress(3.0)
    net = nn.Linear(2, 1)
    second = bayesianize(net, likelihood=gaussian)
    with pytest.raises(ValueError, match=r"holds 'guide.locs.weight' of another network"):
        second.guide()
    assert torch.equal(second.guide.median()["weight"], net.weight)
    with pytest.raises(ValueError, match=r"of shape \(1, 2\); that of this one .* \(1, 5\)"):
        bayesianize(nn.Linear(5, 1)).guide()
    pyro.clear_param_store()
    x = torch.randn(30, 2)
    train(second, x, -3 * x[:, 0])
    with pytest.raises(ValueError, match="of another network"):
        slope(first)
    pyro.clear_param_store()
    assert slope(first) == pytest.approx(3.0, abs=0.5)


def test_networks_that_ran_without_training_are_told_apart():
    first, second = bayesianize(nn.Linear(2, 1)), bayesianize(nn.Linear(2, 1))
    first.guide()
    with pytest.raises(ValueError, match="of another network"):
        second.guide()


def test_parameters_that_stay_are_told_apart():
    def build():
        return bayesianize(nn.Linear(2, 1), lambda n, p: None if n == "bias" else NORMAL)

    build()(torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"'module\$\$\$bias' of another network"):
        build()(torch.randn(3, 2))


def test_without_the_store_networks_need_no_names():
    x = torch.randn(30, 2)
    with pyro.settings.context(module_local_params=True):
        models = [bayesianize(nn.Linear(2, 1), likelihood=gaussian) for _ in range(2)]
        for model, sign in zip(models, (3.0, -3.0), strict=True):
            train(model, x, sign * x[:, 0])
        assert slope(models[0]) == pytest.approx(3.0, abs=0.5)
        assert slope(models[1]) == pytest.approx(-3.0, abs=0.5)


@pytest.mark.parametrize("is_loaded_first", [True, False])
def test_a_checkpoint_of_the_store_comes_back(tmp_path, is_loaded_first):
    def build():
        prior = {"prior": lambda n, p: None if n == "bias" else NORMAL}
        return bayesianize(nn.Linear(2, 1), **prior, likelihood=gaussian)

    x = torch.randn(30, 2)
    old, store = train(build(), x, 3 * x[:, 0] + 2), pyro.get_param_store()
    store.save(tmp_path / "store")
    pyro.clear_param_store()
    if is_loaded_first:
        store.load(tmp_path / "store")
    new = build()
    optimizer = torch.optim.SGD(new.parameters(), lr=1e-3)  # of the parameters that new starts with
    if not is_loaded_first:
        store.load(tmp_path / "store")
    loss = MeanFieldELBO()(new, new.guide)(x, x[:, 0])
    for name, value in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], value)
    loss.backward()
    optimizer.step()
    assert not torch.equal(new.guide.median()["weight"], old.guide.median()["weight"])
    assert new.module.bias.item() != old.module.bias.item()
    assert store["guide.locs.weight"][0, 0] == new.guide.median()["weight"][0, 0]


@pytest.mark.parametrize("reads_first", [True, False])
def test_what_was_loaded_is_read_and_pruned(tmp_path, reads_first):
    old, store = regress(3.0), pyro.get_param_store()
    medians, alpha = old.guide.median(), old.guide.log_alpha()
    store.save(tmp_path / "store")
    pyro.clear_param_store()
    new = bayesianize(nn.Linear(2, 1), likelihood=gaussian)
    store.load(tmp_path / "store")
    if reads_first:
        assert torch.equal(new.guide.median()["weight"], medians["weight"])
        assert torch.equal(new.guide.log_alpha()["bias"], alpha["bias"])
    small, _ = prune(new, torch.randn(3, 2), threshold=math.inf, timed=False)
    assert next(small.parameters())[0, 0].item() == pytest.approx(medians["weight"][0, 0].item())
    assert slope(new) == pytest.approx(3.0, abs=0.5)


def test_a_copy_has_the_parameters_of_its_own():
    model = regress(3.0)
    other = copy.deepcopy(model)
    assert slope(other) == pytest.approx(slope(model), abs=0.5)  # equal, and so no conflict
    x = torch.randn(30, 2)
    train(other, x, -3 * x[:, 0])
    with pytest.raises(ValueError, match="of another network"):
        slope(model)
    pyro.clear_param_store()
    assert slope(model) == pytest.approx(3.0, abs=0.5)


class AsksForParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        total = sum(p.sum() for p in self.parameters())
        return self.layer(x.to(next(self.parameters()).dtype)) + 0 * total


@pytest.mark.parametrize("handler", [weight_sampling, local_reparameterization])
def test_modules_meet_their_parameters(handler):
    net = AsksForParameters().double()
    model, x = bayesianize(net), torch.randn(6, 3)
    values = {key: p.detach() for key, p in net.named_parameters()}
    torch.testing.assert_close(poutine.condition(model, values)(x), net(x))
    with handler(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert poutine.replay(model, trace=poutine.trace(model.guide).get_trace())(x).shape == (
            6,
            2,
        )
    assert not list(model.module.parameters())
    with pyro.plate("num_particles_vectorized", 4, dim=-2):
        assert model(x).shape == (4, 6, 2)


def test_predictions_for_more_data_than_in_training():
    model = bayesianize(mlp(), likelihood=gaussian, size=4)
    x = torch.randn(10, 3)
    for parallel in (True, False):
        draws = Predictive(model, guide=model.guide, num_samples=7, parallel=parallel)(x)
        assert draws["y"].shape == (7, 10)
    with pytest.raises(ValueError, match="10 data are observed, but size=4"):
        model(x, x[:, 0])


@pytest.mark.parametrize("num", [1, 4])
def test_outputs_that_are_not_one_for_each_datum_are_refused(num):
    x = torch.randn(num, 2)
    wrong = bayesianize(nn.Linear(2, 1), likelihood=lambda y: dist.Normal(y, 0.1))
    for run in (wrong, lambda x: Predictive(wrong, guide=wrong.guide, num_samples=7)(x)):
        with pytest.raises(ValueError, match=rf"batch shape \({num}, 1\), expected \({num},\)"):
            run(x)
    right = bayesianize(nn.Linear(2, 1), likelihood=gaussian, name="right")
    with pytest.raises(ValueError, match=rf"y has shape \({num}, 1\), expected \({num},\)"):
        right(x, x[:, :1])
    events = bayesianize(nn.Linear(2, 2), likelihood=lambda y: dist.Normal(y, 0.1).to_event(1))
    assert events(x, x).shape == (num, 2)
    with pytest.raises(ValueError, match=rf"y has shape \({num},\), expected \({num}, 2\)"):
        events(x, x[:, 0])


def test_frozen_parameters_stay_as_they_are():
    net = mlp()
    net[0].weight.requires_grad_(False)
    model, x = bayesianize(net, likelihood=gaussian), torch.randn(6, 3)
    assert set(model.priors) == {"0.bias", "2.weight", "2.bias"}
    train(model, x, x[:, 0])
    assert torch.equal(model.module[0].weight, net[0].weight)
    assert not model.module[0].weight.requires_grad
    net.requires_grad_(False)
    with pytest.raises(ValueError, match=r"No parameter of the module has a prior.*frozen"):
        bayesianize(net)


def test_gates_stay_parameters_and_are_charged_for():
    net = nn.Sequential(L0Linear(3, 4), nn.Tanh(), L0Linear(4, 1))
    asked = []
    model = bayesianize(net, lambda n, p: asked.append(n) or NORMAL, likelihood=gaussian)
    assert set(asked) == set(model.priors) == {"0.weight", "0.bias", "2.weight", "2.bias"}

    def program(x, y):
        model(x, y)
        pyro.factor("gates", -100 * sum(layer.gate.expected_l0() for layer in model.module[::2]))

    before = model.module[0].gate.prob_nonzero().detach()
    x = torch.randn(6, 3)
    svi = SVI(program, model.guide, pyro.optim.Adam({"lr": 0.1}), MeanFieldELBO())
    for _ in range(30):
        svi.step(x, x[:, 0])
    assert (model.module[0].gate.prob_nonzero() < before).all()
    assert torch.equal(net[0].gate.prob_nonzero(), before)
    assert model.module[0].penalty(weight_decay=1.0).isnan()  # its weights are elsewhere


def log_uniform():
    guide = partial(AutoAdditiveNormal, init_log_var=-4.0)
    return bayesianize(nn.Linear(3, 1), LogUniform(), guide, likelihood=gaussian)


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_under_an_improper_prior(parallel):
    # mean of 2000 draws against the slope they have, at 5 standard errors
    model, x = log_uniform(), torch.randn(6, 3)
    model.guide()
    predict = Predictive(model, guide=model.guide, num_samples=2000, parallel=parallel)
    y = predict(x)["y"]
    expected = F.linear(x, *model.guide.median().values())[:, 0]
    assert ((y.mean(0) - expected).abs() < 5 * y.std(0) / 2000**0.5).all()
    weights = Predictive(model.guide, num_samples=5)()
    assert Predictive(model, weights, parallel=parallel)(x)["y"].shape == (5, 6)


@pytest.mark.parametrize("parallel", [True, False])
def test_draws_from_an_improper_prior_are_refused(parallel):
    model, x = log_uniform(), torch.randn(6, 3)
    refused = pytest.raises(NotImplementedError, match=r"Predictive\(model, guide=guide")
    with refused:
        Predictive(model, num_samples=5, parallel=parallel)(x)
    bias = {"bias": torch.zeros(5, 1)}
    with refused:  # and so are those of a guide that leaves some out
        Predictive(model, bias, parallel=parallel)(x)
    with refused:
        model(x)
    with refused:
        NUTS(model).setup(0, x, x[:, 0])


def decoder(draws_apart):
    decode = bayesianize(nn.Linear(2, 5))

    def model(x):
        with pyro.plate("codes", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = decode(z) if not draws_apart else None
        mean = decode(z) if draws_apart else mean
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("codes", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))
        decode.guide()

    return model, guide, decode


def test_a_decoder_in_a_plate_of_data_is_refused():
    model, guide, decode = decoder(draws_apart=False)
    x = torch.randn(20, 5)
    with pytest.raises(ValueError, match=r"Plate 'codes' is open.* outside of plates"):
        MeanFieldELBO().loss(model, guide, x)
    with pyro.plate("data", 20), pytest.raises(ValueError, match="outside of plates"):
        decode.guide()
    pyro.clear_param_store()
    model, guide, _ = decoder(draws_apart=True)
    assert math.isfinite(MeanFieldELBO().loss(model, guide, x))


@pytest.mark.parametrize("is_validated", [True, False])
def test_inputs_with_particles_are_refused(is_validated):
    model, guide, decode = decoder(draws_apart=True)
    x = torch.randn(20, 5)
    elbo = MeanFieldELBO(7, vectorize_particles=True, max_plate_nesting=1)
    refused = pytest.raises(ValueError, match=r"draws of \['z'\].*one particle after the other")
    with pyro.validation_enabled(is_validated), refused:
        elbo.loss(model, guide, x)
    with refused:
        Predictive(model, guide=guide, num_samples=7, parallel=True)(x)
    draws = Predictive(model, guide=guide, num_samples=7)(x)
    assert draws["x"].shape == (7, 20, 5)
    other = bayesianize(nn.Sequential(nn.Linear(5, 2)), name="other")

    again = pytest.raises(ValueError, match="one particle after the other")
    with poutine.trace(), pyro.plate("num_particles_vectorized", 7, dim=-2), again:
        decode(other(x))
    data = torch.randn(7, 2)  # as many as particles, but nothing else is drawn
    with poutine.trace(), pyro.plate("num_particles_vectorized", 7, dim=-2):
        assert decode(data).shape == (7, 7, 5)


def by_hand(net, size):
    """Local reparameterisation without Pyro: parameters, and the loss of a batch."""
    locs = [p.detach().clone().requires_grad_() for p in net.parameters()]
    log_vars = [torch.full_like(p, -8.0).requires_grad_() for p in locs]

    def loss(x, y):
        divergence = 0.0
        pairs = list(zip(locs, log_vars, strict=True))
        for i in range(0, len(pairs), 2):
            (w, w_log_var), (b, b_log_var) = pairs[i : i + 2]
            w_var, b_var = w_log_var.exp(), b_log_var.exp()
            x = x.relu() if i else x
            mean, variance = F.linear(x, w, b), F.linear(x * x, w_var, b_var)
            x = mean + (variance + 1e-16).sqrt() * torch.randn_like(mean)
            for m, v, log_var in ((w, w_var, w_log_var), (b, b_var, b_log_var)):
                divergence = divergence + (m * m + v - log_var - 1).sum() / 2
        return F.cross_entropy(x, y, reduction="sum") * (size / len(y)) + divergence

    return [*locs, *log_vars], loss


def lenet():
    return nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def categorical(logits):
    return dist.Categorical(logits=logits)


def test_loss_equals_that_by_hand():
    # Same noise in the same order.
    net, x, y = lenet(), torch.rand(20, 784), torch.randint(0, 10, (20,))
    guide = partial(AutoAdditiveNormal, init_log_var=-8.0)
    model = bayesianize(net, guide=guide, likelihood=categorical, size=60)
    parameters, loss = by_hand(net, 60)
    with local_reparameterization():
        pyro.set_rng_seed(0)
        ours = MeanFieldELBO().differentiable_loss(model, model.guide, x, y)
    pyro.set_rng_seed(0)
    theirs = loss(x, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0.0)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(
        getattr(model.guide.locs, "0").weight_unconstrained.grad,
        parameters[0].grad,
        rtol=1e-3,
        atol=1e-3,
    )
    torch.testing.assert_close(
        getattr(model.guide.log_vars, "4").bias_unconstrained.grad,
        parameters[-1].grad,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.benchmark
def test_speed_of_a_step():
    net, x, y = lenet(), torch.rand(100, 784), torch.randint(0, 10, (100,))
    parameters, loss = by_hand(net, 60_000)
    theirs = torch.optim.Adam(parameters, lr=1e-4)
    guide = partial(AutoAdditiveNormal, init_log_var=-8.0)
    with pyro.settings.context(module_local_params=True):
        model = bayesianize(net, guide=guide, likelihood=categorical, size=60_000)
        elbo = MeanFieldELBO()(model, model.guide)
        ours = torch.optim.Adam(elbo.parameters(), lr=1e-4)

        def step(loss, optimizer):
            start = time.process_time()
            optimizer.zero_grad()
            loss(x, y).backward()
            optimizer.step()
            return time.process_time() - start

        with local_reparameterization():
            times = [(step(loss, theirs), step(elbo, ours)) for _ in range(100)]
    hand, pyro_ext = (1e3 * min(column) for column in zip(*times, strict=True))
    print(f"by hand {hand:.2f} ms, pyro_ext {pyro_ext:.2f} ms, ratio {pyro_ext / hand:.2f}")


@pytest.mark.gpu
def test_on_gpu():
    x = torch.randn(6, 3, device="cuda")
    model = bayesianize(mlp().cuda(), likelihood=gaussian)
    elbo = MeanFieldELBO(5, vectorize_particles=True, max_plate_nesting=1)
    with local_reparameterization():
        assert math.isfinite(elbo.loss_and_grads(model, model.guide, x, x[:, 0]))
    draws = Predictive(model, guide=model.guide, num_samples=7, parallel=True)(x)
    assert draws["y"].is_cuda
    assert model(x, x[:, 0]).is_cuda  # a draw from the prior
