"""The dense layer with gates: output, penalty, counts, and its terms in Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext.distributions import HardConcrete, L0Prior
from pyro_ext.infer.mean_field_elbo import MeanFieldELBO
from pyro_ext.nn import L0Conv2d, L0Gate, L0Linear


def test_output_against_matrix_products():
    layer = L0Linear(4, 3).double().eval()
    layer.gate.log_alpha.data = torch.tensor([-5.0, 0.0, 1.0, 5.0], dtype=torch.float64)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = (x * layer.gate.test_gate()) @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    z = torch.rand(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x, z), (x * z) @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_penalty_term_by_term(bias):
    layer = L0Linear(4, 3, bias).double()
    layer.gate.log_alpha.data.normal_()
    p = layer.gate.prob_nonzero()
    expected = sum(
        p[i] * (0.7 * 3 + 0.3 / 2 * sum(layer.weight[j, i] ** 2 for j in range(3)))
        for i in range(4)
    )
    if bias:
        expected = expected + 0.3 / 2 * (layer.bias**2).sum()
    torch.testing.assert_close(layer.penalty(0.7, 0.3), expected)


def test_the_penalty_of_closed_inputs_leaves_their_weights_alone():
    layer = L0Linear(4, 3).double()
    layer.gate.log_alpha.data = torch.tensor([-60.0, -60, 60, 60], dtype=torch.float64)
    layer.penalty(1.0, 1.0).backward()
    torch.testing.assert_close(layer.weight.grad[:, 2:], layer.weight.detach()[:, 2:])
    assert layer.weight.grad[:, :2].abs().max() < 1e-20


def test_expected_counts_where_gates_are_decided():
    layer = L0Linear(10, 3)
    layer.gate.log_alpha.data = torch.tensor([40.0] * 4 + [-40.0] * 6)
    assert layer.expected_l0().item() == pytest.approx(4 * 3 + 3)
    with FlopCounterMode(display=False) as counter:
        nn.Linear(4, 3)(torch.zeros(1, 4))
    assert layer.expected_flops().item() == pytest.approx(counter.get_total_flops())
    assert layer.expected_flops(7).item() == pytest.approx(7 * counter.get_total_flops())


def regression(layer, sign_in_guide):
    x, y = torch.randn(20, 4), torch.randn(20)

    def model(weight):
        pyro.module("layer", layer)
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Normal(layer(x).squeeze(-1), 1.0), obs=y)
        if not sign_in_guide and weight:
            pyro.factor("l0", -layer.penalty(weight))

    def guide(weight):
        if sign_in_guide and weight:
            pyro.factor("l0", layer.penalty(weight), has_rsample=True)

    return model, guide


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, MeanFieldELBO])
@pytest.mark.parametrize("sign_in_guide", [True, False], ids=["guide", "model"])
def test_the_penalty_as_a_factor_is_added_to_the_loss(objective, sign_in_guide):
    layer = L0Linear(4, 1).eval()
    model, guide = regression(layer, sign_in_guide)
    elbo = objective()
    added = elbo.loss(model, guide, 3.0) - elbo.loss(model, guide, 0.0)
    assert added == pytest.approx(layer.penalty(3.0).item(), rel=1e-5)
    layer.zero_grad()
    elbo.loss_and_grads(model, guide, 3.0)
    p = layer.gate.prob_nonzero().detach()
    with_penalty = layer.gate.log_alpha.grad.clone()
    layer.zero_grad()
    elbo.loss_and_grads(model, guide, 0.0)
    torch.testing.assert_close(with_penalty - layer.gate.log_alpha.grad, 3 * p * (1 - p))


def test_gates_as_a_site_with_an_l0_prior_have_the_same_penalty():
    layer = L0Linear(4, 3).double()
    x, weight = torch.randn(20, 4, dtype=torch.float64), 0.4

    def model():
        z = pyro.sample("z", L0Prior(weight * 3).expand([4]).to_event(1))
        assert layer(x, z).shape == (20, 3)

    def guide():
        pyro.sample("z", HardConcrete(layer.gate.log_alpha).to_event(1))

    loss = MeanFieldELBO().differentiable_loss(model, guide)
    torch.testing.assert_close(loss, layer.penalty(weight), check_dtype=False)
    (gradient,) = torch.autograd.grad(loss, layer.gate.log_alpha)
    (expected,) = torch.autograd.grad(layer.penalty(weight), layer.gate.log_alpha)
    torch.testing.assert_close(gradient, expected)


def test_irrelevant_inputs_close_and_relevant_ones_stay():
    x = torch.randn(400, 8)
    y = x[:, :3] @ torch.tensor([1.0, -1.0, 2.0])
    layer = L0Linear(8, 1)

    def model(x, y):
        pyro.module("layer", layer)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(layer(x).squeeze(-1), 1.0), obs=y)
        pyro.factor("l0", -layer.penalty(5.0))

    svi = SVI(model, lambda x, y: None, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(600):
        svi.step(x, y)
    # z-scores of 20 and more against a threshold of sqrt(10): no chance of either error
    assert (layer.gate.test_gate() > 0).tolist() == [True] * 3 + [False] * 5


def test_shared_gates_are_one_parameter():
    gate = L0Gate(4)
    layers = nn.ModuleList([L0Linear(4, 2, gate=gate), L0Linear(4, 3, gate=gate)])
    assert sum("log_alpha" in name for name, _ in layers.named_parameters()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L0Linear(4, 2, gate=L0Gate(3)), r"L0Gate\(4, dim=-1\), got L0Gate\(3"),
        (lambda: L0Linear(4, 2, gate=L0Gate(4), droprate=0.1), r"\['droprate'\] cannot be"),
        (lambda: L0Linear(4, 2).penalty(-1.0), "weight must be a finite number >= 0"),
        (lambda: L0Linear(4, 2).penalty(1.0, float("nan")), "weight_decay must be a finite"),
        (lambda: L0Linear(0, 2), "num_units must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [L0Linear, lambda *args, **k: L0Conv2d(*args, 3, **k)])
def test_device_dtype_and_a_new_start(make):
    layer = make(3, 4, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    layer = make(3, 4, droprate=0.1)
    layer.gate.log_alpha.data.fill_(-50.0)
    layer.weight.data.fill_(7.0)
    layer.reset_parameters()
    assert (layer.gate.log_alpha > 1.0).all()
    assert not (layer.weight == 7.0).any()


@pytest.mark.parametrize("make", [L0Linear, lambda *args, **k: L0Conv2d(*args, 3, **k)])
def test_options_of_another_name_are_refused_by_the_layer(make):
    with pytest.raises(TypeError, match=r"L0\w+ takes no \['drop_rate'\]; .*'droprate'"):
        make(3, 4, drop_rate=0.1)
