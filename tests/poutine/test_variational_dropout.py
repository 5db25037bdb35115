"""Noise of weights and of inputs; dropout as the fixed case."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI

from pyro_ext.distributions import LogUniform
from pyro_ext.infer import (
    AutoAdditiveNormal,
    AutoMultiplicativeNormal,
    MeanFieldELBO,
    bayesianize,
)
from pyro_ext.infer.divergence import analytic_divergence
from pyro_ext.poutine import local_reparameterization, variational_dropout

THETA = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]])
ALPHA = torch.tensor([0.25, 1.0, 0.5])
X = torch.tensor([1.0, -1.0, 2.0])
N = 40_000


SPELLS = {"linear": F.linear, "matmul": lambda x, w: x @ w.T}


def outputs(noise, function=F.linear, theta=THETA, alpha=ALPHA):
    law = dist.Normal(theta, alpha.sqrt() * theta.abs(), validate_args=False).to_event(2)
    with variational_dropout(noise=noise):
        return function(X.expand(N, 3), pyro.sample("w", law))


@pytest.mark.parametrize("noise", ["weights", "inputs", "bernoulli"])
@pytest.mark.parametrize("spell", ["linear", "matmul"])
def test_moments(noise, spell):
    # Each of five z-tests has a false alarm with probability 6e-7.
    y = outputs(noise, SPELLS[spell])
    terms = X * THETA
    covariance = terms * ALPHA @ terms.T
    if noise == "weights":
        covariance = torch.diag(covariance.diagonal())
    deviation = covariance.diagonal().sqrt()
    assert ((y.mean(0) - terms.sum(-1)).abs() <= 5 * deviation / math.sqrt(N)).all()
    found = torch.cov(y.T)
    errors = ((y - y.mean(0))[:, :, None] * (y - y.mean(0))[:, None]).std(0) / math.sqrt(N)
    assert ((found - covariance).abs() <= 5 * errors).all()


@pytest.mark.parametrize("noise", ["inputs", "bernoulli"])
def test_noise_at_inputs_beside_particles(noise):
    # Each of two z-tests of 4 x 2 numbers has a false alarm with probability 6e-7 for each.
    theta = THETA.T.expand(4, 1, 3, 2)
    law = dist.Normal(theta, ALPHA.sqrt()[:, None] * theta.abs(), validate_args=False).to_event(2)
    with variational_dropout(noise=noise, sites=["w"]):
        y = X.expand(N, 3) @ pyro.sample("w", law)
    assert y.shape == (4, 1, N, 2)
    terms = X * THETA
    deviation = (terms**2 @ ALPHA).sqrt()
    assert ((y.mean(-2) - terms.sum(-1)).abs() <= 5 * deviation / math.sqrt(N)).all()
    between = (y[0] - y[0].mean(-2)) * (y[1] - y[1].mean(-2))
    assert (between.mean(-2).abs() <= 5 * deviation**2 / math.sqrt(N)).all()


def test_bernoulli_noise_is_dropout():
    # Rate 1/2 of each input: the eight patterns are equally likely; chi-square with 7 degrees
    # of freedom exceeds 43 with probability 3e-7.
    y = outputs("bernoulli", theta=THETA, alpha=torch.ones(3))
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0])] * 3)
    patterns = (masks * X) @ THETA.T
    counts = (torch.cdist(y, patterns) < 1e-4).float().sum(0)
    assert counts.sum() == N
    assert ((counts - N / 8) ** 2 / (N / 8)).sum() < 43


def test_noise_at_inputs_needs_one_alpha_per_input():
    alpha = torch.tensor([[0.25, 1.0, 0.5], [0.3, 1.0, 0.5]])
    theta = THETA + 0.1
    with pytest.raises(ValueError, match=r"'w' of one input differ in alpha"):
        outputs("inputs", theta=theta, alpha=alpha)
    with pytest.raises(ValueError, match=r"'w' of one input differ in alpha"):
        outputs("inputs", theta=theta * 1e-6, alpha=alpha)
    with pytest.raises(ValueError, match="conv must be one of"):
        variational_dropout(conv="inputs")
    with pytest.raises(ValueError, match="noise must be one of"):
        variational_dropout(noise="A")
    with (
        variational_dropout(noise="bernoulli"),
        pytest.raises(ValueError, match=r"'k' meets a function"),
    ):
        F.conv1d(X[None, None], pyro.sample("k", dist.Normal(torch.ones(1, 1, 2), 1.0)))
    with pytest.raises(ValueError, match=r"'w' meets a function"):
        outputs("inputs", lambda x, w: w @ x.T)


def test_type_b_is_local_reparameterisation():
    pyro.set_rng_seed(0)
    ours = outputs("weights")
    pyro.set_rng_seed(0)
    law = dist.Normal(THETA, ALPHA.sqrt() * THETA.abs(), validate_args=False).to_event(2)
    with local_reparameterization():
        torch.testing.assert_close(F.linear(X.expand(N, 3), pyro.sample("w", law)), ours)


@pytest.mark.parametrize("guide", [AutoAdditiveNormal, AutoMultiplicativeNormal])
def test_divergence_from_the_log_uniform_prior_depends_on_alpha_alone(guide):
    def model():
        pyro.sample("w", LogUniform().expand((2, 3)).to_event(2))

    start = torch.full((2, 3), -0.7)
    guide = guide(model, init_loc_fn=lambda site: start)
    guide()
    divergences = []
    for factor in (1.0, 10.0):
        law = pyro.poutine.trace(guide).get_trace().nodes["w"]["fn"]
        scaled = dist.Normal(law.mean * factor, law.variance.sqrt() * factor).to_event(2)
        divergences.append(analytic_divergence(scaled, LogUniform().expand((2, 3)).to_event(2)))
    torch.testing.assert_close(*divergences)
    assert math.isfinite(MeanFieldELBO().loss_and_grads(model, guide))


def test_sparse_variational_dropout_finds_the_irrelevant_inputs():
    torch.manual_seed(0)
    x = torch.randn(200, 10)
    y = 2 * x[:, 0] - 3 * x[:, 1] + 0.5 * torch.randn(200)
    model = bayesianize(
        torch.nn.Linear(10, 1, bias=False),
        prior=LogUniform(),
        guide=lambda program: AutoAdditiveNormal(program, init_log_var=-6.0),
        likelihood=lambda mean: dist.Normal(mean[..., 0], 0.5),
    )
    svi = SVI(model, model.guide, pyro.optim.Adam({"lr": 0.03}), MeanFieldELBO())
    with variational_dropout():
        for _ in range(700):
            svi.step(x, y)
    log_alpha = model.guide.log_alpha()["weight"][0]
    assert (log_alpha[:2] < -6).all()
    assert (log_alpha[2:] > -2).all()
    weights = model.guide.median()["weight"][0]
    torch.testing.assert_close(weights[:2], torch.tensor([2.0, -3.0]), atol=0.15, rtol=0.0)


def test_fixed_rate_trains_as_dropout_does():
    # Its expected loss for a linear net is that of ridge regression with penalty alpha x^2 w^2.
    torch.manual_seed(0)
    x, y = torch.randn(50, 3), torch.randn(50)
    model = bayesianize(
        torch.nn.Linear(3, 1, bias=False),
        prior=LogUniform(),
        guide=lambda program: AutoMultiplicativeNormal(
            program, rate=0.5, per="site", trainable=False
        ),
        likelihood=lambda mean: dist.Normal(mean[..., 0], 1.0),
    )
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99})
    svi = SVI(model, model.guide, optimizer, MeanFieldELBO())
    with variational_dropout(noise="bernoulli"):
        for _ in range(600):
            svi.step(x, y)
    second = x.T @ x
    ridge = torch.linalg.solve(second + torch.diag(second.diagonal()), x.T @ y)
    torch.testing.assert_close(model.guide.median()["weight"][0], ridge, atol=0.03, rtol=0.0)
