"""Gates of units against the law they are drawn from, and what a penalty makes of them."""

import copy
import itertools
import math

import pytest
import torch

from pyro_ext.nn import L0Gate, L0Linear

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1


def gates_at(log_alpha, **options):
    gate = L0Gate(len(log_alpha), **options).double()
    gate.log_alpha.data = torch.as_tensor(log_alpha, dtype=torch.float64)
    return gate


def quantiles(log_alpha, num=4001):
    """Gates at equal steps of their cdf, ``(num, units)``: their law without noise."""
    u = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    s = torch.sigmoid((u.logit()[:, None] + log_alpha) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def test_draws_against_the_law():
    # three moments of three gates, 5 standard errors: false alarm below 9 * 6e-7
    gate = gates_at([-2.0, 0.0, 1.5])
    z, num = gate.sample((200_000,)).detach(), 200_000
    law = quantiles(gate.log_alpha.detach())
    for statistic in (lambda z: (z != 0).double(), lambda z: z, lambda z: z**2):
        drawn, expected = statistic(z), statistic(law)
        error = expected.std(0) / num**0.5
        # the grid itself is exact to half a step
        assert ((drawn.mean(0) - expected.mean(0)).abs() < 5 * error + 2e-4).all()
    closed = torch.sigmoid(BETA * math.log(-LOW / HIGH) - gate.log_alpha)
    torch.testing.assert_close(gate.prob_nonzero(), 1 - closed)


def test_gradient_of_the_expected_l0_is_the_variance_of_being_open():
    gate = gates_at([-3.0, 0.0, 2.0])
    gate.expected_l0().backward()
    p = gate.prob_nonzero().detach()
    torch.testing.assert_close(gate.log_alpha.grad, p * (1 - p))


def test_test_gates():
    log_alpha = [-2.5, -2.39, -1.7, -1.5, 0.0, 3.0]
    paper, median, mean = (gates_at(log_alpha, test_gate=k) for k in ("paper", "median", "mean"))
    # the paper's is zero up to log(-low / high) = -2.398, the median up to -1.599
    assert (paper.test_gate() > 0).tolist() == [False, True, True, True, True, True]
    assert (median.test_gate() > 0).tolist() == [False, False, False, True, True, True]
    expected = quantiles(mean.log_alpha.detach(), 100_001).mean(0)
    torch.testing.assert_close(mean.test_gate().detach(), expected, atol=1e-6, rtol=0)
    expected = (torch.sigmoid(paper.log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)
    torch.testing.assert_close(paper.test_gate(), expected)


def test_evaluation_multiplies_by_the_test_gate():
    gate, x = gates_at([-5.0, 0.0, 5.0]).eval(), torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(gate(x), x * gate.test_gate())
    assert torch.equal(gate(x), gate(x))


@pytest.mark.parametrize(("dim", "shape"), [(-1, (50, 6)), (-3, (50, 6, 2, 2))])
def test_gates_per_example_or_per_batch(dim, shape):
    x = torch.ones(shape)
    own = L0Gate(6, dim=dim)(x).reshape(50, 6, -1)
    assert (own == own[..., :1]).all()  # one gate for all positions
    assert len(own[..., 0].unique(dim=0)) > 1
    shared = L0Gate(6, dim=dim, per_example=False)(x).reshape(50, 6, -1)
    assert len(shared[..., 0].unique(dim=0)) == 1


def test_particles_and_examples_have_gates_of_their_own():
    z = L0Gate(6)(torch.ones(3, 50, 6))
    assert len(z.reshape(150, 6).unique(dim=0)) > 100


def test_given_gates_replace_draws():
    gate, x = L0Gate(3), torch.randn(5, 3)
    z = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(gate(x, z), x * z)
    z = torch.rand(5, 3)
    torch.testing.assert_close(gate(x, z), x * z)


def test_the_rate_at_the_start():
    gate = L0Gate(2000, droprate=0.2)
    assert gate.log_alpha.mean().item() == pytest.approx(math.log(4), abs=2e-3)
    assert gate.log_alpha.std().item() == pytest.approx(0.01, rel=0.15)
    assert gate.prob_nonzero().mean().item() == pytest.approx(0.952, abs=1e-3)
    assert L0Gate(2000).prob_nonzero().mean().item() == pytest.approx(0.832, abs=1e-3)


def test_copies_and_state(tmp_path):
    gate = L0Gate(4)
    torch.save(gate.state_dict(), tmp_path / "gate.pt")
    other = L0Gate(4)
    other.load_state_dict(torch.load(tmp_path / "gate.pt", weights_only=True))
    assert torch.equal(other.prob_nonzero(), gate.prob_nonzero())
    assert torch.equal(copy.deepcopy(gate).eval().test_gate(), gate.eval().test_gate())
    assert gate.double()(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_units": 0}, "num_units must be an integer >= 1"),
        ({"droprate": 1.0}, "droprate must lie strictly between 0 and 1"),
        ({"temperature": 0.0}, "temperature must lie strictly between 0 and 1"),
        ({"stretch": (0.1, 1.1)}, "low < 0 and high > 1"),
        ({"stretch": (-0.1, 1.0)}, "low < 0 and high > 1"),
        ({"dim": 0}, "dim counts from the right"),
        ({"test_gate": "mode"}, r"one of \['mean', 'median', 'paper'\]"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        L0Gate(**{"num_units": 3, **options})


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"3 gates along dimension -1.*\(5, 4\)"):
        L0Gate(3)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="dim=-3 for the channels"):
        L0Gate(3, dim=-3)(torch.zeros(5, 3))


# Selecting variables in an orthonormal design: X'X = N I, unit noise, z-scores t.

T = torch.tensor([0.5, 0.62, 0.75, 0.95, 1.05, 1.15, 1.32, 1.5], dtype=torch.float64)
NUM_DATA = 64


def design(weight):
    """Data whose z-scores are T times the threshold of a penalty."""
    noise = torch.randn(NUM_DATA, 9, dtype=torch.float64)
    x = torch.linalg.qr(noise).Q * NUM_DATA**0.5
    scores = T * (2 * weight) ** 0.5
    y = x[:, :8] @ (scores / NUM_DATA**0.5) + x[:, 8]  # the ninth column is the residual
    return x[:, :8], y, scores


@pytest.mark.parametrize("weight", [1.0, 0.5 * math.log(NUM_DATA)], ids=["AIC", "BIC"])
def test_the_best_of_all_subsets_is_that_of_the_threshold(weight):
    x, y, scores = design(weight)
    layer = L0Linear(8, 1, bias=False).double().eval()
    layer.weight.data = (scores / NUM_DATA**0.5)[None]  # least squares, of every subset
    losses = {}
    with torch.no_grad():
        for kept in itertools.product([-40.0, 40.0], repeat=8):
            layer.gate.log_alpha.data = torch.tensor(kept, dtype=torch.float64)
            residual = (y - layer(x).squeeze(-1)).square().sum() / 2
            losses[kept] = (residual + layer.penalty(weight)).item()
        best = torch.tensor(min(losses, key=losses.get)) > 0
        assert best.tolist() == (scores > (2 * weight) ** 0.5).tolist()
        for _ in range(20):  # no gate in between is better, whatever the weights
            layer.gate.log_alpha.data = 3 * torch.randn(8, dtype=torch.float64)
            z = quantiles(layer.gate.log_alpha.data)
            unexplained = 1 - z.mean(0) ** 2 / z.square().mean(0)
            noise = x.new_tensor(NUM_DATA / 2)
            loss = noise + (scores**2 / 2 * unexplained).sum() + layer.penalty(weight)
            assert loss > min(losses.values())


@pytest.mark.parametrize(("start", "threshold"), [(1.0, 0.68), (-2.0, 1.23)])
def test_gates_keep_the_side_they_start_on(start, threshold):
    """Descent keeps a coefficient from 0.68 times the threshold on, but opens it from 1.23."""
    weight = 1.0
    _, _, scores = design(weight)
    layer = L0Linear(8, 1, bias=False).double()
    layer.gate.log_alpha.data.fill_(start)
    layer.weight.data = scores[None].clone()
    optimizer = torch.optim.Adam(
        [{"params": [layer.weight], "lr": 0.05}, {"params": [layer.gate.log_alpha], "lr": 0.01}]
    )
    for _ in range(2500):
        optimizer.zero_grad()
        z = quantiles(layer.gate.log_alpha, 301)
        expected = (scores - z * layer.weight).square().mean(0).sum() / 2
        (expected + layer.penalty(weight)).backward()
        optimizer.step()
    assert (layer.gate.log_alpha > 0).tolist() == (threshold < T).tolist()


@pytest.mark.gpu
def test_gates_on_a_gpu():
    gate = L0Gate(5).cuda()
    assert gate(torch.ones(7, 5, device="cuda")).is_cuda
    assert gate.eval()(torch.ones(7, 5, device="cuda")).is_cuda
