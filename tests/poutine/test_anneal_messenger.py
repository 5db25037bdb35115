"""Warm-up against the two ends that are known: the plain objective, and reconstruction alone."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_ext.infer import MultiSampleELBO
from pyro_ext.poutine import AnnealMessenger, anneal

X = torch.tensor([0.3, -1.0, 2.0])


def model(x):
    with pyro.plate("data", 30, subsample=torch.arange(3)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", 30, subsample=torch.arange(3)):
        pyro.sample("z", dist.Normal(x / 2, 0.5))


def loss(elbo, factor):
    pyro.set_rng_seed(0)
    return elbo.loss(anneal(model, factor), anneal(guide, factor), X)


def terms():
    """Reconstruction and divergence of the same draws."""
    pyro.set_rng_seed(0)
    theirs = poutine.trace(guide).get_trace(X)
    ours = poutine.trace(poutine.replay(model, theirs)).get_trace(X)
    for trace in (ours, theirs):
        trace.compute_log_prob()
    z = theirs.nodes["z"]["log_prob"].sum() - ours.nodes["z"]["log_prob"].sum()
    return ours.nodes["x"]["log_prob"].sum().item(), z.item()


@pytest.mark.parametrize("elbo", [Trace_ELBO(), MultiSampleELBO(1, max_plate_nesting=1)])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_elbo_against_its_terms(elbo, factor):
    reconstruction, divergence = terms()
    assert math.isclose(-loss(elbo, factor), reconstruction - factor * divergence, rel_tol=1e-5)


def test_factor_one_is_the_plain_objective():
    elbo = MultiSampleELBO(5, max_plate_nesting=1)
    pyro.set_rng_seed(0)
    assert elbo.loss(model, guide, X) == loss(elbo, 1.0)


def test_factor_zero_is_reconstruction_under_particles():
    log_w = MultiSampleELBO(5, max_plate_nesting=1).log_weights
    pyro.set_rng_seed(0)
    annealed = log_w(anneal(model, 0.0), anneal(guide, 0.0), X)
    pyro.set_rng_seed(0)
    z = dist.Normal(X / 2, 0.5).expand((5, 3)).sample()
    torch.testing.assert_close(annealed, dist.Normal(z, 1.0).log_prob(X))


def test_the_factor_changes_between_steps():
    warm_up = anneal(factor=0.0)
    svi = SVI(warm_up(model), warm_up(guide), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = []
    for factor in (0.0, 1.0):
        warm_up.factor = factor
        pyro.set_rng_seed(0)
        losses.append(svi.step(X))
    assert math.isclose(losses[1] - losses[0], terms()[1], rel_tol=1e-4)


def test_named_sites_only():
    def two():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    nodes = poutine.trace(anneal(two, 0.5, sites=["a"])).get_trace().nodes
    assert (nodes["a"]["scale"], nodes["b"]["scale"]) == (0.5, 1.0)


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf])
def test_bad_factor(factor):
    with pytest.raises(ValueError, match="factor must be a finite number >= 0"):
        AnnealMessenger(factor)
    warm_up = AnnealMessenger()
    with pytest.raises(ValueError, match="factor must be a finite number >= 0"):
        warm_up.factor = factor


def test_a_factor_in_the_place_of_the_program():
    with pytest.raises(ValueError, match=r"got 0.5. Write anneal\(model, 0.5\)"):
        anneal(0.5)


def test_a_misspelt_site_is_noticed():
    def program():
        return pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"None of the sites \['zz'\] to anneal"):
        anneal(program, 0.5, sites=["zz"])()
    anneal(program, 0.5, sites=["z", "elsewhere"])()
