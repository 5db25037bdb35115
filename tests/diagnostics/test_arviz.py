"""What ArviZ receives, against what the model computes; and that ArviZ can work with it."""

import sys
import types
import warnings

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_ext.diagnostics import to_arviz
from pyro_ext.diagnostics.arviz_groups import convert

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def model(x, batch=6):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.deterministic("twice", 2 * loc)
    pyro.factor("tilt", -0.1 * loc**2)
    with pyro.plate("rows", 6, subsample_size=batch, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x[index])


def guide(x, batch=6):
    shift = pyro.sample("shift", dist.Normal(0.0, 0.1), infer={"is_auxiliary": True})
    pyro.sample("loc", dist.Normal(shift, 0.5))
    with pyro.plate("rows", 6, subsample_size=batch, dim=-1) as index:
        pyro.sample("z", dist.Normal(x[index] / 2, 0.7).to_event(1))


@pytest.fixture(scope="module")
def data():
    pyro.set_rng_seed(0)
    return to_arviz(model, guide, X, num_draws=120)


def log_normal(x, loc, scale=1.0):
    return dist.Normal(torch.as_tensor(loc), scale).log_prob(torch.as_tensor(x)).numpy()


def test_groups_and_variables(data):
    found = {group: sorted(data[group].data_vars) for group in data.groups()}
    assert found == {
        "posterior": ["loc", "twice", "z"],
        "posterior_predictive": ["x"],
        "log_likelihood": ["x"],
        "log_prior": ["loc", "z"],
        "sample_stats": ["log_q", "log_weight", "lp"],
        "observed_data": ["x"],
    }


def test_dimensions_come_from_the_plates(data):
    assert data.posterior["z"].dims == ("chain", "draw", "rows", "z_dim_1")
    assert data.posterior["loc"].dims == ("chain", "draw")
    assert data.log_likelihood["x"].shape == (1, 120, 6)
    assert data.observed_data["x"].shape == (6, 2)
    assert (data.posterior["rows"] == np.arange(6)).all()


def test_values_against_the_formulas(data):
    posterior = data.posterior.isel(chain=0)
    loc, z = posterior["loc"].values[:, None, None], posterior["z"].values
    likelihood = log_normal(X, z + loc).sum(-1)
    np.testing.assert_allclose(data.log_likelihood["x"].values[0], likelihood, rtol=1e-4)
    np.testing.assert_allclose(posterior["twice"], 2 * posterior["loc"])
    prior = log_normal(posterior["loc"].values, 0.0) + log_normal(z, 0.0).sum((1, 2))
    lp = prior + likelihood.sum(1) - 0.1 * posterior["loc"].values ** 2
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], lp, rtol=1e-4)
    stats = data.sample_stats.isel(chain=0)
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"], atol=1e-3)
    np.testing.assert_array_equal(data.observed_data["x"], X)


def local(x, batch=6):
    with pyro.plate("rows", 6, subsample_size=batch) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def exact(x, batch=6):
    with pyro.plate("rows", 6, subsample_size=batch) as index:
        pyro.sample("z", dist.Normal(x[index] / 2, 0.5**0.5))


def test_weights_keep_the_plates_of_all_sites():
    data = to_arviz(local, exact, X[:, 0], num_draws=5)
    log_weight = data.sample_stats["log_weight"]
    assert log_weight.dims == ("chain", "draw", "rows")
    evidence = log_normal(X[:, 0], 0.0, 2**0.5)
    np.testing.assert_allclose(log_weight[0], np.tile(evidence, (5, 1)), rtol=1e-4)


def test_a_subsample_is_shared_and_labelled():
    data = to_arviz(local, exact, X[:, 0], batch=3, num_draws=10)
    rows = data.posterior["rows"].values
    assert len(set(rows)) == 3
    np.testing.assert_array_equal(data.observed_data["x"], X.numpy()[rows, 0])


def test_a_subsample_without_a_weight_of_its_own_is_refused():
    with pytest.raises(ValueError, match="Plate 'rows' is subsampled"):
        to_arviz(model, guide, X, batch=3, num_draws=2)


def test_arviz_summarises_and_compares(data):
    summary = arviz.summary(data, kind="stats")
    assert summary.loc["loc", "mean"] == pytest.approx(
        data.posterior["loc"].mean().item(), abs=1e-3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # k-hat of a latent per datum is high
        assert np.isfinite(arviz.loo(data).elpd_loo)
        assert np.isfinite(arviz.waic(data).elpd_waic)
    assert np.isfinite(arviz.ess(data)["loc"].item())


def test_netcdf_round_trip(data, tmp_path):
    path = str(tmp_path / "posterior.nc")
    data.to_netcdf(path)
    again = arviz.from_netcdf(path)
    np.testing.assert_array_equal(again.posterior["z"], data.posterior["z"])
    assert again.posterior.attrs["inference_library"] == "pyro"
    assert again.posterior.attrs["num_draws"] == 120


def test_coords_and_dims_of_the_user():
    data = to_arviz(
        model, guide, X, num_draws=3, coords={"axis": ["a", "b"]}, dims={"z": ["rows", "axis"]}
    )
    assert list(data.posterior["z"].coords["axis"].values) == ["a", "b"]


def test_autoguides_and_their_auxiliaries():
    def simple():
        loc = pyro.sample("loc", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", 6):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=X[:, 0])

    auto = AutoDiagonalNormal(simple)
    auto()
    data = to_arviz(simple, auto, num_draws=4)
    assert list(data.posterior.data_vars) == ["loc"]
    assert (data.posterior["loc"] > 0).all()


def test_user_names_stand_after_the_plates():
    named = to_arviz(model, guide, X, num_draws=3, dims={"z": ["axis"], "x": ["axis"]})
    assert named.posterior["z"].dims == ("chain", "draw", "rows", "axis")
    assert named.observed_data["x"].dims == ("rows", "axis")
    assert named.log_likelihood["x"].dims == ("chain", "draw", "rows")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": {"zz": ["q"]}}, r"dims names \['zz'\], expected some of"),
        ({"coords": {"nope": [1]}}, r"coords names \['nope'\], expected some of"),
        ({"dims": {"z": ["a", "b", "c"]}}, "'z' has 2 dimensions beside chain and draw, but 4"),
    ],
)
def test_names_that_fit_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(model, guide, X, num_draws=2, **arguments)


def test_a_site_that_is_not_always_drawn_is_refused():
    count = iter(range(100))

    def sometimes():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        if next(count) % 3 == 0:
            pyro.deterministic("late", torch.ones(()))

    with pytest.raises(ValueError, match="'late' occurs in 2 of 6 draws"):
        to_arviz(sometimes, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), num_draws=6)


@pytest.mark.parametrize("handler", [True, False])
def test_masked_data_are_no_observations(handler):
    mask = torch.tensor([True, False, True, True, True, True])

    def masked(x):
        with pyro.plate("rows", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if handler:
                with pyro.poutine.mask(mask=mask):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            else:
                pyro.sample("x", dist.Normal(z, 1.0).mask(mask), obs=x)

    data = to_arviz(masked, exact, X[:, 0], num_draws=4)
    missing = np.isnan(data.log_likelihood["x"].values)
    assert (missing == ~mask.numpy()).all()


def test_values_are_broadcast_over_their_plates():
    def constant():
        with pyro.plate("rows", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))
            pyro.deterministic("total", z.sum())
            pyro.deterministic("each", 2 * z)
            pyro.deterministic("pair", torch.stack([z, -z], -1), event_dim=1)

    def guess():
        with pyro.plate("rows", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    data = to_arviz(constant, guess, num_draws=3)
    assert data.observed_data["x"].dims == ("rows",)
    assert data.posterior["total"].dims == ("chain", "draw")
    assert data.posterior["each"].dims == ("chain", "draw", "rows")
    assert data.posterior["pair"].dims == ("chain", "draw", "rows", "pair_dim_1")
    np.testing.assert_allclose(data.posterior["total"], data.posterior["z"].sum("rows"), rtol=1e-5)


def test_a_model_without_latents():
    def known(x):
        with pyro.plate("rows", 6):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    data = to_arviz(known, lambda x: None, X[:, 0], num_draws=2)
    assert data.sample_stats["log_weight"].dims == ("chain", "draw", "rows")


def test_names_that_arviz_needs_are_refused():
    def program():
        with pyro.plate("draw", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"\['draw'\]"):
        to_arviz(program, program, num_draws=2)


def test_batch_dimensions_without_a_plate_are_refused():
    def program():
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="Declare the other"):
        to_arviz(program, program, num_draws=2)


def test_arviz_1_takes_a_tree():
    groups = {"posterior": {"z": np.zeros((1, 2, 3))}, "observed_data": {"x": np.ones(3)}}
    data = convert(types.SimpleNamespace(), groups, {"p": [4, 5, 6]}, {"z": ["p"]}, {"a": 1})
    assert data["posterior"]["z"].dims == ("chain", "draw", "p")
    assert list(data["posterior"]["p"].values) == [4, 5, 6]
    assert data["observed_data"]["x"].dims == ("x_dim_0",)
    assert data["posterior"].attrs == {"a": 1}


def test_without_arviz_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-ext\[arviz\]'"):
        to_arviz(model, guide, X)


def test_no_draw_is_refused():
    with pytest.raises(ValueError, match="num_draws must be an integer >= 1"):
        to_arviz(model, guide, X, num_draws=0)
