"""Chains, predictions, priors and resampled draws, against conjugate answers; ArviZ's functions."""

import warnings

import arviz
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

from pyro_ext.diagnostics import to_arviz

NUM = 12
X = 1.5 + torch.randn(NUM, generator=torch.Generator().manual_seed(1))
VARIANCE = 1 / (NUM + 1)  # of the posterior of a standard normal location, unit noise
MEAN = X.sum().item() * VARIANCE


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def exact(x):
    pyro.sample("loc", dist.Normal(MEAN, VARIANCE**0.5))


def shifted(x):
    """Wrong in location and too broad."""
    pyro.sample("loc", dist.Normal(MEAN + 0.3, 2 * VARIANCE**0.5))


@pytest.fixture(scope="module")
def data():
    pyro.set_rng_seed(0)
    extra = {"constant_data": {"u": np.arange(NUM)}, "dims": {"u": ["rows"]}}
    return to_arviz(model, [exact, exact], X, num_draws=500, num_prior_draws=400, **extra)


def test_predictions_are_draws_given_the_posterior_draw(data):
    """z-scores of 12,000 draws: P(false alarm) < 1e-6 each."""
    drawn = data.posterior_predictive["x"]
    assert drawn.dims == ("chain", "draw", "rows")
    z = (drawn - data.posterior["loc"]).values
    assert abs(z.mean()) < 5 / z.size**0.5
    assert abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5


def test_the_prior_knows_no_data(data):
    """400 draws of N(0, 1): P(false alarm) < 1e-6."""
    loc = data.prior["loc"].values
    assert loc.shape == (1, 400)
    assert abs(loc.mean()) < 5 / 20
    assert data.prior_predictive["x"].shape == (1, 400, NUM)
    z = (data.prior_predictive["x"] - data.prior["loc"]).values
    assert abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5


def test_log_prior_and_constants(data):
    loc = torch.as_tensor(data.posterior["loc"].values)
    np.testing.assert_allclose(
        data.log_prior["loc"], dist.Normal(0.0, 1.0).log_prob(loc), rtol=1e-4
    )
    np.testing.assert_array_equal(data.constant_data["u"], np.arange(NUM))
    assert data.constant_data["u"].dims == ("rows",)


def test_attributes(data):
    found = data.posterior.attrs
    evidence = dist.MultivariateNormal(torch.zeros(NUM), torch.eye(NUM) + 1).log_prob(X)
    assert found["elbo"] == pytest.approx(evidence.item(), abs=1e-3)
    assert found["method"], found["resample"] == ("variational", "none")
    assert found["pareto_k"] < 0.2
    assert found["torch_version"] == torch.__version__


def test_chains_agree_or_not(data):
    assert arviz.rhat(data)["loc"].item() < 1.02
    apart = to_arviz(
        model, [exact, lambda x: pyro.sample("loc", dist.Normal(9.0, 0.1))], X, num_draws=100
    )
    assert arviz.rhat(apart)["loc"].item() > 1.5


def test_restarts_of_svi_are_chains():
    models = [model, model]
    guides = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            guide = AutoNormal(model)
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=8))
            for _ in range(300):
                svi.step(X)
            guides.append(guide)
    data = to_arviz(models, guides, X, num_draws=400)
    assert arviz.rhat(data)["loc"].item() < 1.2
    assert data.posterior["loc"].mean().item() == pytest.approx(MEAN, abs=0.1)


def test_guides_of_one_class_are_kept_apart():
    guides = []
    for loc in (-3.0, 5.0):
        with pyro.get_param_store().scope():
            guides.append(AutoNormal(model, init_scale=1e-3))
            guides[-1](X)
            guides[-1].locs.loc.data.fill_(loc)
    pyro.param("other", torch.ones(()))
    data = to_arviz(model, guides, X, num_draws=5)
    np.testing.assert_allclose(data.posterior["loc"].mean("draw"), [-3.0, 5.0], atol=0.1)
    assert [guide.locs.loc.item() for guide in guides] == [-3.0, 5.0]
    assert list(pyro.get_param_store()) == ["other"]


def test_draws_of_the_prior_leave_the_store_alone():
    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

        def forward(self, x):
            loc = pyro.sample("loc", dist.Normal(0.0, self.scale))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    to_arviz([Program(), Program()], [exact, exact], X, num_draws=2, num_prior_draws=2)
    assert not list(pyro.get_param_store())


def test_what_the_store_holds_is_not_taken_for_a_chain():
    """The first guide lives in the store, where the second would find its parameters."""
    guides = [AutoNormal(model, init_scale=1e-3) for _ in range(2)]
    with pyro.get_param_store().scope():
        guides[1](X)
    guides[0](X)
    for guide, loc in zip(guides, (-3.0, 5.0), strict=True):
        guide.locs.loc.data.fill_(loc)
    data = to_arviz(model, guides, X, num_draws=5)
    np.testing.assert_allclose(data.posterior["loc"].mean("draw"), [-3.0, 5.0], atol=0.1)


def test_markov_chains():
    """Posterior mean of 600 autocorrelated draws: 0.1 is above 5 standard errors."""
    mcmc = MCMC(NUTS(model), num_samples=300, warmup_steps=100, num_chains=1, disable_progbar=True)
    mcmc.run(X)
    data = to_arviz(model, mcmc, X)
    assert data.posterior["loc"].shape == (1, 300)
    assert data.posterior["loc"].mean().item() == pytest.approx(MEAN, abs=0.1)
    assert not data.sample_stats["diverging"].any()
    assert data.posterior.attrs["method"] == "mcmc"
    loc = torch.as_tensor(data.posterior["loc"].values[0])
    joint = dist.Normal(0.0, 1.0).log_prob(loc)
    joint = joint + dist.Normal(loc[:, None], 1.0).log_prob(X).sum(1)
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], joint, rtol=1e-4)
    assert to_arviz(model, mcmc, X, num_draws=10).posterior["loc"].shape == (1, 10)


def test_divergences_of_each_chain():
    class Run:
        def get_samples(self, group_by_chain):
            return {"loc": torch.zeros(2, 5)}

        def diagnostics(self):
            return {"divergences": {"chain 0": [], "chain 1": [3]}}

    found = to_arviz(model, Run(), X).sample_stats["diverging"].values
    assert found.tolist() == [[False] * 5, [False, False, False, True, False]]


def test_draws_at_hand_with_the_padding_of_predictive():
    def local(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    drawn = Predictive(local, num_samples=30, parallel=True)(X)
    assert drawn["loc"].shape == (30, 1)
    data = to_arviz(local, {name: drawn[name] for name in ("loc", "z")}, X)
    np.testing.assert_array_equal(data.posterior["loc"][0], drawn["loc"][:, 0])
    np.testing.assert_array_equal(data.posterior["z"][0], drawn["z"])


def test_loo_and_compare_against_exact_predictive_densities():
    """Two conjugate models: the elpd of each is known, PSIS errs by hundredths."""

    def vague(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 3.0), obs=x)

    def exact_of(scale):
        precision = 1 + NUM / scale**2
        loc = X.sum() / scale**2 / precision
        return lambda x: pyro.sample("loc", dist.Normal(loc, precision**-0.5))

    def elpd(scale):
        total = 0.0
        for n in range(NUM):
            rest = torch.cat([X[:n], X[n + 1 :]])
            precision = 1 + len(rest) / scale**2
            loc = rest.sum() / scale**2 / precision
            law = dist.Normal(loc, (scale**2 + 1 / precision) ** 0.5)
            total += law.log_prob(X[n]).item()
        return total

    pyro.set_rng_seed(2)
    data = {
        "good": to_arviz(model, exact_of(1.0), X, num_draws=1500, predictive=False),
        "vague": to_arviz(vague, exact_of(3.0), X, num_draws=1500, predictive=False),
    }
    assert arviz.loo(data["good"]).elpd_loo == pytest.approx(elpd(1.0), abs=0.1)
    assert arviz.loo(data["vague"]).elpd_loo == pytest.approx(elpd(3.0), abs=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pandas to ArviZ
        table = arviz.compare(data)
    assert list(table.index) == ["good", "vague"]
    assert table.loc["vague", "elpd_diff"] == pytest.approx(elpd(1.0) - elpd(3.0), abs=0.1)


def test_resampled_moments_are_closer_to_the_posterior():
    """The guide is off by a standard deviation; resampling leaves a fraction of that.

    The mean of 3,000 draws with ESS above 1,000, drawn again, errs by 0.012; six times: 0.07.
    """
    pyro.set_rng_seed(3)
    kinds = {
        kind: to_arviz(model, shifted, X, num_draws=3000, resample=kind, predictive=False)
        for kind in (None, "psis")
    }
    mean = {kind: data.posterior["loc"].mean().item() for kind, data in kinds.items()}
    scale = {kind: data.posterior["loc"].std().item() for kind, data in kinds.items()}
    assert abs(mean[None] - MEAN) > 0.2
    assert mean["psis"] == pytest.approx(MEAN, abs=0.07)
    assert scale[None] > 1.8 * VARIANCE**0.5
    assert scale["psis"] == pytest.approx(VARIANCE**0.5, rel=0.2)
    assert kinds["psis"].posterior.attrs["resample"] == "psis"


def local_model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 0.3, 1.0))


def test_each_datum_is_resampled_by_its_own_weight():
    """Posterior N(x / 2, 1 / 2) of each datum; ESS above 500, drawn again: 6 errors."""
    pyro.set_rng_seed(4)
    data = to_arviz(local_model, local_guide, X, num_draws=1000, resample="psis")
    z = data.posterior["z"].values[0]
    np.testing.assert_allclose(z.mean(0), X / 2, atol=6 * (0.5 / 350) ** 0.5)
    np.testing.assert_array_equal(data.posterior["twice"], 2 * data.posterior["z"])
    log_lik = dist.Normal(torch.as_tensor(z), 1.0).log_prob(X)
    np.testing.assert_allclose(data.log_likelihood["x"][0], log_lik, rtol=1e-4, atol=1e-5)
    assert sorted(data.sample_stats.data_vars) == ["log_weight"]


def test_plates_of_weights_need_not_be_the_first():
    """Columns are the outer dimension of what is observed, rows that of the weights."""

    def wide(x):
        rows = pyro.plate("rows", x.shape[1], dim=-1)
        with rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with rows, pyro.plate("columns", len(x), dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(x.sum(0) / 3 + 0.2, 0.7))

    x = torch.stack([X[:3], X[3:6]])
    data = to_arviz(wide, guide, x, num_draws=60, resample="psis")
    assert data.log_likelihood["x"].dims == ("chain", "draw", "columns", "rows")
    z = torch.as_tensor(data.posterior["z"].values[0]).unsqueeze(1)
    expected = dist.Normal(z, 1.0).log_prob(x)
    np.testing.assert_allclose(data.log_likelihood["x"][0], expected, rtol=1e-4, atol=1e-5)


def test_what_is_one_of_all_data_cannot_be_resampled():
    def summed(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("total", z.sum())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="'total' is one variable of all data"):
        to_arviz(summed, local_guide, X, num_draws=30, resample="psis")


@pytest.mark.parametrize(
    ("posterior", "arguments", "message"),
    [
        (exact, {"resample": "sir"}, 'resample is None or "psis"'),
        ({"loc": torch.zeros(5)}, {"resample": "psis"}, "Only draws of a guide"),
        ({"lok": torch.zeros(5)}, {}, r"lack the sites \['loc'\] of the model, and have \['lok'\]"),
        ({"loc": torch.zeros(5, 3)}, {}, r"have shape \(3,\), but the model's \(\)"),
        ({"loc": torch.zeros(5)}, {"num_draws": 6}, "There are 5 draws in a chain"),
        ({"loc": [1.0]}, {}, "Draws are a tensor"),
        ({}, {}, "Draws are a tensor"),
        (3, {}, "The posterior is a guide"),
        ([], {}, "1 models for 0|0 posteriors|There are"),
        (exact, {"num_prior_draws": -1}, "num_prior_draws must be an integer >= 0"),
    ],
)
def test_bad_input(posterior, arguments, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(model, posterior, X, **{"num_draws": 5, **arguments})


def test_chains_of_different_models_are_refused():
    def other(x):
        pyro.deterministic("more", torch.ones(()))
        model(x)

    with pytest.raises(ValueError, match="Chains differ in their variables"):
        to_arviz([model, other], [exact, exact], X, num_draws=2)
    with pytest.raises(ValueError, match="There are 2 models for 3"):
        to_arviz([model, model], [exact] * 3, X, num_draws=2)


def test_arviz_plots(data, monkeypatch):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of plotting libraries among themselves
        arviz.plot_trace(data)
        arviz.plot_ppc(data, num_pp_samples=20)
        arviz.plot_forest(data)
        arviz.plot_posterior(data)
        arviz.plot_khat(arviz.loo(data, pointwise=True))
        arviz.plot_loo_pit(data, y="x")
        arviz.plot_bpv(data)
        plt.close("all")
    summary = arviz.summary(data)
    assert summary.loc["loc", "r_hat"] < 1.02
    assert summary.loc["loc", "ess_bulk"] > 500


def test_numpy_alone_reads_the_file(data, tmp_path):
    """netCDF 4 is HDF5, which h5py reads without ArviZ."""
    h5py = pytest.importorskip("h5py")
    path = str(tmp_path / "posterior.nc")
    data.to_netcdf(path)
    with h5py.File(path) as file:
        loc = np.asarray(file["posterior"]["loc"])
        assert set(file) >= {"posterior", "log_likelihood", "observed_data", "prior"}
    np.testing.assert_array_equal(loc, data.posterior["loc"])
