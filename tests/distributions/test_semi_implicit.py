"""Semi-implicit distributions against marginals in closed form and against quadrature.

Statistical assertions use 5 standard errors, a false-alarm probability of 6e-7 each.
"""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import nn
from torch.distributions import Normal

from pyro_ext.distributions import SelfNormalizedImportance, SemiImplicit
from pyro_ext.infer import MultiSampleELBO

ZERO = torch.zeros((), dtype=torch.float64)
EXACT = Normal(ZERO, 2**0.5)
NEGATIVE_ENTROPY = -EXACT.entropy()  # -1.7655


def conditional(psi):
    return dist.Normal(psi, 1.0)


def near(x):
    return dist.Normal(x / 2, 0.8)


def posterior(x):
    return dist.Normal(x / 2, 0.5**0.5)


def wide(reverse=None):
    """N(0, 2), as a mixture of N(psi, 1) over N(0, 1)."""
    return SemiImplicit(dist.Normal(ZERO, 1.0), conditional, reverse)


def assert_mean(draws, truth):
    error = draws.std(0) / len(draws) ** 0.5
    z = ((draws.mean(0) - truth) / error).abs()
    assert z.max() < 5, (draws.mean(0), truth, z)


# The bounds.


@pytest.mark.parametrize("reverse", [None, near, posterior])
def test_draws_follow_the_marginal(reverse):
    x = wide(reverse).sample((20_000,))
    assert_mean(torch.stack([x, x**2, x**4], -1), torch.tensor([0.0, 2.0, 12.0]))


# Published means of the bounds on E log q(x) = -1.7655, and the order they must have.
@pytest.mark.parametrize(
    ("reverse", "num_fresh", "upper", "lower"),
    [(None, 10, -1.729, -1.817), (None, 100, -1.761, -1.770), (near, 10, -1.7640, -1.7670)],
)
def test_means_of_both_bounds(reverse, num_fresh, upper, lower):
    d = wide(reverse)
    x, seen = d.tight(num_fresh + 1).sample_and_log_prob((4_000,))
    exact = EXACT.log_prob(x)  # a control variate
    gaps = torch.stack([seen - exact, d.tight(num_fresh).log_prob(x) - exact], -1)
    expected = torch.tensor([upper, lower], dtype=torch.float64) - NEGATIVE_ENTROPY
    error = gaps.std(0) / len(gaps) ** 0.5
    assert ((gaps.mean(0) - expected).abs() < 5 * error + 0.003).all()


@pytest.mark.parametrize("reverse", [None, lambda x: dist.Normal(x / 2, 1.2)])
def test_upper_bounds_fall_and_lower_bounds_rise(reverse):
    d = wide(reverse)
    gaps = []
    for num in (1, 4, 16, 64):
        x, upper = d.tight(num).sample_and_log_prob((8_000,))
        exact = EXACT.log_prob(x)
        gaps.append(torch.stack([upper - exact, exact - d.tight(num).log_prob(x)], -1))
    pairs = [(gaps[i], gaps[j], i, j) for i in range(4) for j in range(i)]
    for tight, loose, i, j in pairs:
        error = (loose.var(0) / len(loose) + tight.var(0) / len(tight)).sqrt()
        clearly = 5 if i - j > 1 else -5
        assert ((loose.mean(0) - tight.mean(0)) > clearly * error).all()
        assert (tight.mean(0) > -5 * error).all()


def test_one_weight_is_the_conditional():
    d = wide()
    torch.manual_seed(0)
    x, upper = d.rsample_and_log_prob((5,))
    torch.manual_seed(0)
    psi = dist.Normal(ZERO, 1.0).expand((5,)).rsample()
    assert torch.equal(upper, Normal(psi, 1.0).log_prob(x))


@pytest.mark.parametrize("num_fresh", [0, 3])
@pytest.mark.parametrize("reverse", [None, near])
def test_textbook_bound_of_the_same_draws(num_fresh, reverse):
    d = wide(reverse).tight(num_fresh + 1)
    torch.manual_seed(0)
    x, upper = d.sample_and_log_prob((6,))
    torch.manual_seed(0)
    psi = [torch.randn(6, dtype=torch.float64)]
    assert torch.equal(x, Normal(psi[0], 1.0).sample())
    if num_fresh:
        noise = torch.randn(num_fresh, 6, dtype=torch.float64)
        psi += list(noise if reverse is None else x / 2 + 0.8 * noise)
    psi = torch.stack(psi)
    log_w = Normal(psi, 1.0).log_prob(x)
    if reverse is not None:
        log_w = log_w + Normal(ZERO, 1.0).log_prob(psi) - Normal(x / 2, 0.8).log_prob(psi)
    torch.testing.assert_close(upper, log_w.logsumexp(0) - math.log(num_fresh + 1))


def test_the_posterior_as_reverse_is_exact():
    d = wide(posterior)
    x, upper = d.sample_and_log_prob((10,))
    torch.testing.assert_close(upper, EXACT.log_prob(x))
    torch.testing.assert_close(d.log_prob(x), EXACT.log_prob(x))


def test_weights_average_to_the_density():
    x = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64)
    for reverse in (None, near):
        weights = wide(reverse).log_prob(x.expand(20_000, 3)).exp()
        assert_mean(weights, EXACT.log_prob(x).exp())


# Batches, events.


def net(dim_in, dim_out):
    return nn.Sequential(nn.Linear(dim_in, 8), nn.Tanh(), nn.Linear(8, dim_out)).double()


def vectors(batch=(), reverse=False):
    location, back = net(3, 2), net(2, 3)
    mixing = dist.Normal(torch.zeros(*batch, 3, dtype=torch.float64), 1.0).to_event(1)
    return SemiImplicit(
        mixing,
        lambda psi: dist.Normal(location(psi), 0.5).to_event(1),
        (lambda x: dist.Normal(back(x), 1.0).to_event(1)) if reverse else None,
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [(), (4,), (5, 1)])
def test_shapes(batch, reverse):
    d = vectors(batch, reverse)
    assert (d.batch_shape, d.event_shape) == (batch, (2,))
    x = d.rsample((3,))
    assert x.shape == (3, *batch, 2)
    for num in (1, 4):
        assert d.tight(num).log_prob(x).shape == (3, *batch)
        assert d.tight(num).sample_and_log_prob((3,))[1].shape == (3, *batch)
    large = d.expand((6, *batch))
    assert large.sample_and_log_prob((3,))[1].shape == (3, 6, *batch)
    assert large.to_event(1).log_prob(large.sample()).shape == (6, *batch)[:-1]


def test_batch_of_the_conditional_alone():
    loc = torch.tensor([0.0, 10.0], dtype=torch.float64)
    d = SemiImplicit(dist.Normal(ZERO, 1.0), lambda psi: dist.Normal(psi + loc, 1.0))
    x = d.sample((10_000,))
    assert d.batch_shape == (2,)
    assert abs(torch.corrcoef(x.T)[0, 1]) < 5 / 100  # each has a mixing variable of its own


def test_discrete_mixing_has_a_path_and_a_score():
    logits = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    loc = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)

    def make():
        return SemiImplicit(dist.Categorical(logits=logits), lambda k: dist.Normal(loc[k], 0.5))

    d = make()
    assert d.is_partly_pathwise
    assert not d.has_rsample
    truth = torch.cat(
        torch.autograd.grad((logits.softmax(0) * (loc**2 + 0.25)).sum(), [logits, loc])
    )

    def gradient(draw):
        many = make().expand((500,))
        x = draw(many)
        f = x**2
        surrogate = f + f.detach() * many.score_parts(x).score_function
        return torch.cat(torch.autograd.grad(surrogate.mean(), [logits, loc]))

    for draw in (lambda d: d(), lambda d: d.sample()):
        assert_mean(torch.stack([gradient(draw) for _ in range(100)]), truth)
    with pytest.raises(ValueError, match="gradient of the bound would be biased"):
        d.log_prob(ZERO)
    with torch.no_grad():
        d.log_prob(ZERO)


# In a guide.


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceGraph_ELBO(), MultiSampleELBO(1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_in_a_guide(elbo, reverse):
    a = pyro.param("a", torch.tensor(0.7, dtype=torch.float64))

    def guide():
        pyro.param("a")
        mixing = dist.Normal(ZERO, 1.0)
        back = (lambda x: dist.Normal(a.detach() * x, 0.9)) if reverse else None
        density = SemiImplicit(mixing, lambda psi: dist.Normal(a * psi, 0.6), back)
        with pyro.plate("many", 4_000):
            pyro.sample("z", density.tight(2))

    def model():
        with pyro.plate("many", 4_000):
            pyro.sample("z", dist.Normal(0.3 + ZERO, 1.0))

    # psi_0, the noise of x, and the noise of psi_1
    nodes, weights = (torch.from_numpy(x) for x in hermegauss(24))
    noise = torch.cartesian_prod(nodes, nodes, nodes)
    mass = torch.cartesian_prod(*[weights / weights.sum()] * 3).prod(-1)
    x = a * noise[:, 0] + 0.6 * noise[:, 1]
    psi = torch.stack([noise[:, 0], a.detach() * x + 0.9 * noise[:, 2] if reverse else noise[:, 2]])
    log_w = Normal(a * psi, 0.6).log_prob(x)
    if reverse:
        log_w = log_w + Normal(ZERO, 1.0).log_prob(psi) - Normal(a.detach() * x, 0.9).log_prob(psi)
    value = (mass * (Normal(0.3, 1.0).log_prob(x) - log_w.logsumexp(0) + math.log(2))).sum()
    truth = torch.stack([value, *torch.autograd.grad(value, a)]).detach()
    draws = []
    for _ in range(20):
        a.grad = None
        loss = elbo.loss_and_grads(model, guide)
        draws.append(torch.tensor([-loss, -a.grad]) / 4_000)
    assert_mean(torch.stack(draws).double(), truth)


def test_learned_reverse_tightens():
    class Reverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x):
            return dist.Normal(self.weights[0] * x, self.weights[1].exp())

    reverse = Reverse()
    d = wide(reverse)
    optimizer = torch.optim.Adam(reverse.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        d.rsample_and_log_prob((200,))[1].mean().backward()
        optimizer.step()
    x, upper = d.sample_and_log_prob((2_000,))
    assert (upper - EXACT.log_prob(x)).mean() < 0.02  # 0.35 at first
    assert reverse.weights[0].item() == pytest.approx(0.5, abs=0.05)


# Variants, copies.


@pytest.mark.parametrize("reverse", [False, True])
def test_frozen_is_deterministic(reverse):
    d = vectors((3,), reverse).tight(4).frozen(1)
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    assert torch.equal(d.log_prob(x), d.log_prob(x))
    assert torch.equal(torch.get_rng_state(), state)
    if not reverse:  # the same mixing variables for all values
        assert torch.equal(d.log_prob(x[2]), d.log_prob(x)[2])
        assert torch.equal(d.expand((5, 3)).log_prob(x), d.log_prob(x))


def test_copies():
    d = SemiImplicit(dist.Normal(ZERO, 1.0), conditional, near).tight(3).frozen(0)
    for twin in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        assert torch.equal(twin.log_prob(ZERO), d.log_prob(ZERO))
    assert repr(d).endswith(".tight(3).frozen(0)")


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, conditional), "mixing must be a distribution"),
        ((dist.Normal(0.0, 1.0), 3), "takes callables"),
        ((dist.Normal(0.0, 1.0), conditional, 3), "takes callables"),
        ((dist.Normal(0.0, 1.0), lambda psi: psi), "conditional must return a distribution"),
        (
            (SelfNormalizedImportance(dist.Normal(0.0, 1.0), torch.square, 2), conditional),
            "mixing must be a distribution with an exact density",
        ),
        (
            (dist.Normal(torch.zeros(3), 1.0).to_event(1), conditional),
            r"batch shape \(3, 3\) and event shape \(\)",
        ),
        (
            (dist.Normal(torch.zeros(3), 1.0), lambda psi: dist.Normal(psi, 1.0).to_event(1)),
            r"expected batch shape \(3,\)",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SemiImplicit(*arguments)


def test_bad_reverse():
    d = SemiImplicit(dist.Normal(0.0, 1.0), conditional, lambda x: dist.Normal(x, 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"reverse made a distribution of batch shape \(\)"):
        d.log_prob(torch.zeros(2))
    with pytest.raises(NotImplementedError, match="from its parts"):
        SemiImplicit.infer_shapes()


@pytest.mark.gpu
def test_on_a_gpu():
    loc = torch.zeros(3, device="cuda")
    d = SemiImplicit(dist.Normal(loc, 1.0), conditional, near).tight(5)
    x, upper = d.rsample_and_log_prob((2,))
    assert upper.is_cuda
    assert torch.equal(d.frozen(0).log_prob(x), d.frozen(0).log_prob(x))
