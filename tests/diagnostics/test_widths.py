"""Numbers of open gates against enumeration and draws."""

import itertools

import pyro
import pytest
import torch
from torch import nn

from pyro_ext.diagnostics import width_posterior
from pyro_ext.distributions import HardConcrete
from pyro_ext.nn import L0Gate, L0Linear


def test_against_enumeration():
    gate = L0Gate(6).double()
    gate.log_alpha.data.normal_()
    p = gate.prob_nonzero().detach()
    expected = torch.zeros(7, dtype=torch.float64)
    for states in itertools.product([0, 1], repeat=6):
        open_ = torch.tensor(states)
        expected[open_.sum()] += torch.where(open_ == 1, p, 1 - p).prod()
    (found,) = width_posterior(gate).values()
    torch.testing.assert_close(found.probs, expected)
    assert found.mean == pytest.approx(p.sum().item())
    assert found.stddev == pytest.approx((p * (1 - p)).sum().sqrt().item())


def test_against_draws():
    gate = L0Gate(50)
    gate.log_alpha.data.normal_(0.0, 3.0)
    (found,) = width_posterior(gate).values()
    widths = (gate.sample((100_000,)) != 0).sum(1)
    for prob in (0.05, 0.5, 0.95):
        quantile = found.quantile(prob)
        # the cdf at a quantile, by draws: 5 standard errors, false alarm 3 * 6e-7
        share, exact = (widths <= quantile).double().mean(), found.probs[: quantile + 1].sum()
        assert exact >= prob
        assert abs(share - exact) < 5 * (exact * (1 - exact) / 100_000) ** 0.5
        assert found.probs[:quantile].sum() < prob


def test_names_of_modules_and_sites():
    network = nn.Sequential(L0Linear(9, 5), nn.ReLU(), L0Linear(5, 2))
    found = width_posterior(network)
    assert {name: len(width.probs) - 1 for name, width in found.items()} == {
        "0.gate": 9,
        "2.gate": 5,
    }

    def guide(num):
        pyro.sample("z", HardConcrete(torch.zeros(num)).to_event(1))
        pyro.sample("w", pyro.distributions.Normal(0.0, 1.0))

    (width,) = width_posterior(guide, 3).values()
    assert width.mean == pytest.approx(3 * 0.8318, abs=1e-3)


def test_decided_gates_and_many():
    gate = L0Gate(2000)
    gate.log_alpha.data = torch.where(torch.arange(2000) < 300, 60.0, -60.0)
    (found,) = width_posterior(gate).values()
    assert (found.quantile(0.0), found.quantile(0.5), found.quantile(1.0)) == (0, 300, 300)
    assert found.stddev == pytest.approx(0.0, abs=1e-5)
    assert repr(found) == "300.0 +- 0.0 of 2000 open, 90 % within 300 to 300"


def test_refusals():
    with pytest.raises(ValueError, match="There is no gate"):
        width_posterior(nn.Linear(2, 2), torch.zeros(1, 2))
    (found,) = width_posterior(L0Gate(2)).values()
    with pytest.raises(ValueError, match=r"prob must lie in \[0, 1\]"):
        found.quantile(5)


def test_modules_that_draw_nothing_and_bayesian_networks_without_arguments():
    from pyro_ext.infer import bayesianize

    for network in (nn.Linear(2, 2), bayesianize(nn.Linear(2, 2))):
        with pytest.raises(ValueError, match="There is no gate"):
            width_posterior(network)
