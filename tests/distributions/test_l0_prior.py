"""The prior that charges for open gates."""

import copy
import math
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_ext.distributions import HardConcrete, L0Prior
from pyro_ext.testing.case import isolated

DOUBLE = torch.float64


def test_charges_for_anything_but_zero():
    prior = L0Prior(torch.tensor([1.0, 2.0]))
    z = torch.tensor([[0.0, 0.0], [1e-12, 0.5], [1.0, 0.0]])
    assert prior.log_prob(z).tolist() == [[0, 0], [-1, -2], [-1, 0]]
    assert prior.log_prob(torch.tensor(0.3)).shape == (2,)
    assert L0Prior(1.0).to_event(0).log_prob(torch.zeros(5)).shape == (5,)


def test_divergence_is_the_expected_number_of_open_gates():
    law = HardConcrete(torch.linspace(-5, 5, 11, dtype=DOUBLE).requires_grad_())
    weight = torch.linspace(0, 3, 11, dtype=DOUBLE)
    charge = kl_divergence(law, L0Prior(weight))
    p = 1 - law.log_prob(torch.zeros((), dtype=DOUBLE)).exp()
    torch.testing.assert_close(charge, weight * p)
    (grad,) = torch.autograd.grad(charge.sum(), law.log_alpha)
    torch.testing.assert_close(grad, weight * p * (1 - p))
    event = kl_divergence(law.to_event(1), L0Prior(2.0).expand([11]).to_event(1))
    torch.testing.assert_close(event, 2 * p.sum())


def test_the_penalty_is_an_information_criterion():
    r"""Of least squares on an orthonormal design, minimised over weights and gates.

    With coefficient b in standard errors the objective is least at
    :math:`-b^2 E[z]^2 / 2 E[z^2] + \lambda P(z \ne 0)`, whose minimum over gates is that of the
    best subset: open iff :math:`|b| > \sqrt{2 \lambda}`, which is Akaike's criterion at 1 and
    Schwarz's at half the logarithm of the number of data.
    """
    law = HardConcrete(torch.linspace(-30, 30, 6001, dtype=DOUBLE))
    explained = law.mean.square() / (law.variance + law.mean.square())
    for weight in (1.0, math.log(1000) / 2):
        charge = kl_divergence(law, L0Prior(torch.tensor(weight, dtype=DOUBLE)))
        for b in torch.linspace(0.1, 5, 50, dtype=DOUBLE).tolist():
            least = float((charge - b * b / 2 * explained).min())
            assert least == pytest.approx(min(0.0, weight - b * b / 2), abs=1e-6)


def fit(elbo, steps=300):
    """Two gates, one of them in use; returns how often they are open."""

    def model(y):
        z = pyro.sample("z", L0Prior(2.0).expand([2]).to_event(1))
        pyro.sample("y", pyro.distributions.Normal(4 * z[0], 1.0), obs=y)

    def guide(y):
        log_alpha = pyro.param("log_alpha", torch.ones(2))
        pyro.sample("z", HardConcrete(log_alpha).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    for _ in range(steps):
        svi.step(torch.tensor(4.0))
    return HardConcrete(pyro.param("log_alpha").detach()).prob_nonzero


def test_closes_the_gates_that_nothing_needs():
    used, unused = fit(TraceMeanField_ELBO()).tolist()
    assert used > 0.95
    assert unused < 0.02


def test_without_an_analytic_divergence_no_gate_closes():
    """The charge is a step: its pathwise gradient is zero, which is why it must be analytic."""
    assert bool((fit(Trace_ELBO()) > 0.5).all())


def test_keeps_the_contract_of_a_distribution():
    prior = L0Prior(torch.tensor([0.5, 2.0], dtype=DOUBLE))
    z = torch.tensor([0.0, 0.7], dtype=DOUBLE)
    wide = prior.expand(torch.Size([3, 2]))
    assert type(wide) is L0Prior
    assert wide.batch_shape == (3, 2)
    assert wide._validate_args
    expected = torch.tensor([0.0, -2.0], dtype=DOUBLE)
    torch.testing.assert_close(wide.log_prob(z), expected.expand(3, 2))
    torch.testing.assert_close(prior.to_event(1).log_prob(z), expected.sum())
    for twin in (pickle.loads(pickle.dumps(prior)), copy.deepcopy(prior)):
        torch.testing.assert_close(twin.log_prob(z), expected)
    rows = torch.func.vmap(prior.log_prob)(z.expand(4, 2))
    torch.testing.assert_close(rows, expected.expand(4, 2))
    assert L0Prior(0.5).log_prob(torch.zeros(())).dtype == torch.float32
    assert L0Prior.infer_shapes(weight=torch.Size([2])) == (torch.Size([2]), torch.Size([]))


def test_compiles():
    def density(weight, z):
        return L0Prior(weight, validate_args=False).log_prob(z)

    arguments = torch.tensor(2.0), torch.tensor([0.0, 1.0])
    with isolated():
        compiled = torch.compile(density, fullgraph=True, backend="eager")
        assert compiled(*arguments).tolist() == [0, -2]


def test_scales_and_masks():
    def model(z):
        mask = poutine.mask(mask=torch.tensor([True, False]))
        with pyro.plate("units", 4, subsample_size=2), mask:
            pyro.sample("z", L0Prior(1.5), obs=z)

    total = poutine.trace(model).get_trace(torch.ones(2)).log_prob_sum()
    assert float(total) == -3.0


def test_refuses_bad_input():
    with pytest.raises(ValueError, match="weight must be >= 0"):
        L0Prior(-1.0)
    with pytest.raises(ValueError, match="weight"):
        L0Prior(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="support"):
        L0Prior(1.0).log_prob(torch.tensor(1.5))
    with pytest.raises(NotImplementedError, match=r"improper[\s\S]*guide"):
        L0Prior(1.0).sample()
    with pytest.raises(NotImplementedError, match="improper"):
        L0Prior(1.0).expand([3]).to_event(1).sample()
