"""Pointwise log-likelihoods: against formulas, against exact leave-one-out, between networks."""

from functools import partial

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_ext.diagnostics import pointwise_log_likelihood, to_arviz
from pyro_ext.infer import AutoAdditiveNormal
from pyro_ext.infer.bayesianize import bayesianize
from pyro_ext.poutine import flipout, local_reparameterization

NUM, DIM = 60, 3
X = torch.randn(NUM, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = torch.randn(NUM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64) + NOISE


def model(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def posterior(x, y):
    """Of the weights of a linear regression, exact."""
    precision = torch.eye(x.shape[1], dtype=x.dtype) + x.T @ x
    return dist.MultivariateNormal(
        torch.linalg.solve(precision, x.T @ y), precision_matrix=precision
    )


def guide_of(columns):
    law = posterior(X[:, columns], Y)
    return lambda x, y: pyro.sample("w", law)


def batches(columns, size=25):
    return list(zip(X[:, columns].split(size), Y.split(size), strict=True))


def exact_loo(x, y):
    """Log predictive density of each datum given all others."""
    total = 0.0
    for n in range(len(x)):
        rest = torch.arange(len(x)) != n
        law = posterior(x[rest], y[rest])
        variance = 1 + x[n] @ law.covariance_matrix @ x[n]
        total += dist.Normal(x[n] @ law.mean, variance.sqrt()).log_prob(y[n]).item()
    return total


def test_values_and_dimensions():
    draws = []

    def guide(x, y):
        draws.append(pyro.sample("w", dist.Normal(torch.zeros(DIM).double(), 1.0).to_event(1)))

    data = pointwise_log_likelihood(model, guide, batches([0, 1, 2]), num_draws=5)
    assert len(draws) == 5  # one draw for all batches
    expected = dist.Normal(torch.stack(draws) @ X.T, 1.0).log_prob(Y)
    np.testing.assert_allclose(data.log_likelihood["y"].values[0], expected)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "rows")
    np.testing.assert_array_equal(data.observed_data["y"], Y)
    assert sorted(data.groups()) == ["log_likelihood", "observed_data", "posterior"]
    total = data.posterior["total_log_likelihood"].values[0]
    np.testing.assert_allclose(total, expected.sum(1))
    assert data.log_likelihood.attrs["num_draws"] == 5


def test_the_batches_do_not_matter():
    found = []
    for size in (60, 7):
        pyro.set_rng_seed(0)
        data = pointwise_log_likelihood(model, guide_of([0, 1]), batches([0, 1], size), num_draws=4)
        found.append(data.log_likelihood["y"].values)
    np.testing.assert_allclose(*found)
    pyro.set_rng_seed(0)
    whole = to_arviz(model, guide_of([0, 1]), X[:, :2], Y, num_draws=4)
    np.testing.assert_allclose(found[0], whole.log_likelihood["y"].values)


def test_leave_one_out_is_exact_for_a_linear_regression():
    columns = [0, 1, 2]
    pyro.set_rng_seed(3)
    data = pointwise_log_likelihood(model, guide_of(columns), batches(columns), num_draws=1000)
    loo = arviz.loo(data, pointwise=True)
    # 1000 draws have an error of 0.056: 6 of them, false alarm 2e-9
    assert loo.elpd_loo == pytest.approx(exact_loo(X[:, columns], Y), abs=0.34)
    assert (loo.pareto_k < 0.7).all()


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, to arviz
def test_networks_are_compared():
    names = {"all": [0, 1, 2], "first": [0], "wrong": [2]}
    found = {
        name: pointwise_log_likelihood(model, guide_of(columns), batches(columns), num_draws=300)
        for name, columns in names.items()
    }
    table = arviz.compare(found, ic="loo")
    exact = {name: exact_loo(X[:, columns], Y) for name, columns in names.items()}
    assert list(table.index) == sorted(names, key=exact.get, reverse=True)
    for name in names:
        assert table.loc[name, "elpd_loo"] == pytest.approx(exact[name], abs=0.5)


def test_bayesian_networks():
    network = nn.Sequential(nn.Linear(DIM, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    bayesian = bayesianize(network, likelihood=gaussian)
    data = pointwise_log_likelihood(bayesian, bayesian.guide, batches([0, 1, 2]), num_draws=3)
    expected = dist.Normal(network(X).squeeze(-1), 1.0).log_prob(Y)  # noise starts tiny
    np.testing.assert_allclose(
        data.log_likelihood["y"].values[0], expected.detach()[None].expand(3, -1), atol=0.2
    )


def test_a_network_without_latent_variables():
    def plain(x, y):
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(x.sum(1), 1.0), obs=y)

    data = pointwise_log_likelihood(plain, lambda x, y: None, batches([0]), num_draws=2)
    assert (data.log_likelihood["y"][0, 0] == data.log_likelihood["y"][0, 1]).all()


def test_automatic_guides():
    guide = AutoNormal(model)
    guide(X, Y)
    data = pointwise_log_likelihood(model, guide, batches([0, 1, 2]), num_draws=3)
    assert data.log_likelihood["y"].shape == (1, 3, NUM)


@pytest.mark.parametrize("handler", [local_reparameterization, flipout])
def test_handlers_of_training_are_overruled(handler):
    network = nn.Linear(DIM, 1).double()
    wide = partial(AutoAdditiveNormal, init_log_var=2.0)
    bayesian = bayesianize(network, None, wide, likelihood=gaussian)
    same = [(X[:1].expand(3, -1), Y[:1].expand(3))] * 2
    with handler():
        data = pointwise_log_likelihood(bayesian, bayesian.guide, same, num_draws=4)
    values = data.log_likelihood["y"].values[0]
    np.testing.assert_allclose(values, values[:, :1].repeat(6, 1))
    assert np.ptp(values[:, 0]) > 0


def test_test_data_of_another_number():
    bayesian = bayesianize(nn.Linear(DIM, 1).double(), likelihood=gaussian, size=40)
    data = pointwise_log_likelihood(bayesian, bayesian.guide, batches([0, 1, 2]), num_draws=2)
    assert data.log_likelihood["y"].shape == (1, 2, NUM)


def gaussian(mean):
    return dist.Normal(mean.squeeze(-1), 1.0)


def unguided(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def subsampled(x, y):
    with pyro.plate("rows", len(x), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(x[index].sum(1), 1.0), obs=y[index])


def test_subsamples_of_the_guide_are_refused():
    with pytest.raises(ValueError, match="random subsample"):
        pointwise_log_likelihood(
            subsampled, lambda x, y: pyro.plate("rows", len(x), 2), batches([0]), num_draws=2
        )


def local_model(x, y):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def local_guide(x, y):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(y / 2, 0.7))


def unplated(x, y):
    pyro.sample("y", dist.Normal(x.sum(1), 1.0).to_event(1), obs=y)


def unobserved(x, y):
    pyro.sample("w", dist.Normal(0.0, 1.0))


def empty(x, y):
    pass


@pytest.mark.parametrize(
    ("model", "guide", "given", "message"),
    [
        (local_model, local_guide, batches([0]), r"draws \['z'\] within plates"),
        (unplated, empty, batches([0]), "'y' lies in plates .*expected one"),
        (local_model, empty, batches([0]), r"sites \['z'\] are neither observed nor in the guide"),
        (unguided, empty, batches([0]), r"sites \['b'\] are neither observed nor in the guide"),
        (subsampled, empty, batches([0]), r"Plates \['rows'\] .* random subsample"),
        (unobserved, unobserved, batches([0]), "observes nothing"),
        (unobserved, unobserved, [], "batches must be a list of tuples"),
        (unobserved, unobserved, X, "batches must be a list of tuples"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, guide, given, message):
    with pytest.raises(ValueError, match=message):
        pointwise_log_likelihood(model, guide, given, num_draws=2)
    with pytest.raises(ValueError, match="num_draws must be an integer >= 1"):
        pointwise_log_likelihood(model, guide, given, num_draws=0)
