"""Guides of independent normals, additive and multiplicative."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from pyro_ext.distributions import LogUniform
from pyro_ext.infer import AutoAdditiveNormal, AutoMultiplicativeNormal, MeanFieldELBO

GUIDES = [AutoAdditiveNormal, AutoMultiplicativeNormal]


def model(y=None):
    w = pyro.sample("net.0.w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    b = pyro.sample("b", dist.Normal(1.0, 2.0))
    return w.sum() + b


def initial(site):
    return torch.full(site["fn"].shape(), 0.5)


def test_additive_law():
    guide = AutoAdditiveNormal(model, init_loc_fn=initial, init_log_var=-2.0)
    trace = pyro.poutine.trace(guide).get_trace()
    law = trace.nodes["net.0.w"]["fn"]
    assert (law.batch_shape, law.event_shape) == ((), (2, 3))
    torch.testing.assert_close(law.mean, torch.full((2, 3), 0.5))
    torch.testing.assert_close(law.variance, torch.full((2, 3), math.exp(-2.0)))
    alpha = guide.log_alpha()
    torch.testing.assert_close(alpha["net.0.w"], torch.full((2, 3), -2.0 - 2 * math.log(0.5)))
    assert guide.median()["b"] == 0.5
    assert {name for name, _ in guide.named_parameters()} == {
        f"{kind}.{name}_unconstrained" for kind in ("locs", "log_vars") for name in ("net.0.w", "b")
    }


@pytest.mark.parametrize(
    ("per", "shape"), [("weight", (2, 3)), ("input", (1, 3)), ("site", (1, 1))]
)
@pytest.mark.parametrize("trainable", [True, False])
def test_multiplicative_law(per, shape, trainable):
    guide = AutoMultiplicativeNormal(
        model, rate=0.2, per=per, trainable=trainable, init_loc_fn=initial
    )
    law = pyro.poutine.trace(guide).get_trace().nodes["net.0.w"]["fn"]
    torch.testing.assert_close(law.variance, 0.25 * law.mean**2)  # p / (1 - p) = 1/4
    assert guide.log_alpha()["net.0.w"].shape == shape
    parameters = {name for name, _ in guide.named_parameters()}
    assert any("log_alphas" in name for name in parameters) is trainable
    assert any("log_alphas" in name for name in guide.state_dict())


def test_training_towards_the_prior_reaches_it():
    guide = AutoAdditiveNormal(model, init_log_var=-3.0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), MeanFieldELBO())
    for _ in range(300):
        loss = svi.step()
    assert loss < 1e-4
    torch.testing.assert_close(guide.median()["b"], torch.tensor(1.0), atol=1e-2, rtol=0.0)


def test_subsampled_plates():
    def model():
        with pyro.plate("data", 10, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            assert z.shape == (4, 2)
        return index

    guide = AutoAdditiveNormal(model, init_log_var=0.0)
    assert guide()["z"].shape == (4, 2)
    assert guide.locs.z.shape == (10, 2)
    assert abs(MeanFieldELBO().loss(model, guide)) < 1e-5


@pytest.mark.parametrize("cls", GUIDES)
@pytest.mark.parametrize("is_local", [True, False])
def test_copies_draw_alike(cls, is_local):
    with pyro.settings.context(module_local_params=is_local):
        guide = cls(model, init_loc_fn=initial)
        guide()
        copies = [copy.deepcopy(guide)]
        if is_local:
            copies.append(pickle.loads(pickle.dumps(guide)))
        for other in copies:
            other.load_state_dict(guide.state_dict())
            draws = []
            for each in (guide, other):
                pyro.set_rng_seed(0)
                draws.append(each()["net.0.w"])
            torch.testing.assert_close(*draws)


@pytest.mark.parametrize("cls", GUIDES)
def test_dtype_follows_a_conversion(cls):
    with pyro.settings.context(module_local_params=True):
        guide = cls(model, init_loc_fn=initial)
        guide()
        assert guide.double()()["net.0.w"].dtype is torch.float64


def test_refusals():
    with pytest.raises(ValueError, match="init_log_var must be a finite"):
        AutoAdditiveNormal(model, init_log_var=-math.inf)
    for rate in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match="rate must be in"):
            AutoMultiplicativeNormal(model, rate=rate)
    with pytest.raises(ValueError, match="per must be one of"):
        AutoMultiplicativeNormal(model, per="unit")
    for cls in GUIDES:
        with pytest.raises(ValueError, match="'s' has support"):
            cls(lambda: pyro.sample("s", dist.Gamma(1.0, 1.0)))()

    def in_plate():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"'z' is in plates \['data'\]"):
        AutoMultiplicativeNormal(in_plate)()


def sparse_regression(y):
    w = pyro.sample("w", LogUniform().expand((3,)).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.arange(3.0).repeat(len(y), 1) @ w, 1.0), obs=y)


@pytest.mark.parametrize("cls", GUIDES)
def test_starts_on_a_log_uniform_prior(cls):
    # small, and not zero: alpha is finite
    guide = cls(sparse_regression)
    y = torch.full((20,), 4.0)
    svi = SVI(sparse_regression, guide, pyro.optim.Adam({"lr": 0.05}), MeanFieldELBO())
    losses = [svi.step(y) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert bool(guide.log_alpha()["w"].isfinite().all())
    pyro.clear_param_store()
    start = cls(sparse_regression)
    start(y)
    assert bool((start.median()["w"].abs() > 1e-6).all())
    assert bool((start.median()["w"].abs() < 1.0).all())
    assert cls(model)().keys() == {"net.0.w", "b"}
