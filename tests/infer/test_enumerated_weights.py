"""Enumerated sites inside of log-weights, against sums written out by hand.

Statistical assertions state their number of standard errors: 6 is a false-alarm probability of
2e-9 for one number, far below 1e-5 for all that a test compares.
"""

from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch.distributions import Bernoulli, Categorical, Normal

from pyro_ext.infer import (
    MultiSampleELBO,
    auto,
    dreg,
    pathwise,
    rws,
    score,
    vimco,
    vimco_arithmetic,
)
from pyro_ext.ops import iwae

D = torch.float64
ONE = torch.ones((), dtype=D)
PARALLEL = {"enumerate": "parallel"}


def gauss_hermite(order):
    """Nodes and weights of expectations under the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def assert_mean(estimates, expected, num_errors=6):
    error = estimates.std(0) / len(estimates) ** 0.5
    difference = estimates.mean(0) - expected
    assert (difference.abs() <= num_errors * error + 1e-9).all(), (difference / error).tolist()


X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=D)  # (data, words)
RUNS = [(1, 1), (3, 1), (2, 2), (1, 2)]  # (num_particles, num_outer)


class Programs:
    """Programs whose guide remembers its normal draws, one per datum or one for all."""

    def __init__(self, subsample=None, num_data=3):
        self.subsample, self.num_data, self.draws = subsample, num_data, []

    def data(self):
        return pyro.plate("data", self.num_data, subsample=self.subsample, dim=-1)

    @property
    def x(self):
        return X if self.subsample is None else X[self.subsample]

    def guide(self):
        with self.data():
            self.draws.append(pyro.sample("z", dist.Normal(0.2 * ONE, 0.8 * ONE)))

    def weigh(self, num_particles, num_outer=1, vectorize=True, change=lambda program: program):
        """Log-weights of the objective; the draws ``(K, *outer, data)``; log p(z) - log q(z)."""
        elbo = MultiSampleELBO(
            num_particles,
            num_outer=num_outer,
            max_plate_nesting=2,
            vectorize_particles=vectorize,
        )
        log_w = elbo.log_weights(change(self.model), change(self.guide))
        outer = (num_outer,) if num_outer > 1 else ()
        z = torch.stack(self.draws).reshape(num_particles, *outer, -1)
        return log_w, z, Normal(0 * ONE, ONE).log_prob(z) - Normal(0.2 * ONE, 0.8 * ONE).log_prob(z)


# Sums that are written out.

TOPICS = torch.tensor([0.2, 0.3, 0.5], dtype=D)
SWITCH = torch.tensor([0.2, 0.6, 0.7], dtype=D)  # depends on the topic


class Topics(Programs):
    """A topic and a switch for each datum, which all of its words see."""

    def model(self):
        with self.data() as index:
            z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
            topic = pyro.sample("topic", dist.Categorical(TOPICS), infer=PARALLEL)
            switch = pyro.sample("switch", dist.Bernoulli(SWITCH[topic]), infer=PARALLEL)
            with pyro.plate("words", 5, dim=-2):
                pyro.sample("x", dist.Normal(z + topic + switch / 2, ONE), obs=X[index].T)

    def expected(self, z, ratio):
        terms = [
            TOPICS[topic].log()
            + Bernoulli(SWITCH[topic]).log_prob(switch * ONE)
            + Normal(z[..., None] + topic + switch / 2, ONE).log_prob(self.x).sum(-1)
            for topic, switch in product(range(3), range(2))
        ]
        return torch.stack(terms).logsumexp(0) + ratio


class Words(Programs):
    """A topic for each datum, and for each of its words a kind that depends on the topic."""

    def model(self):
        with self.data() as index:
            z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
            topic = pyro.sample("topic", dist.Categorical(TOPICS), infer=PARALLEL)
            with pyro.plate("words", 5, dim=-2):
                kind = pyro.sample("kind", dist.Bernoulli(SWITCH[topic]), infer=PARALLEL)
                pyro.sample("x", dist.Normal(z + topic - kind, ONE), obs=X[index].T)

    def expected(self, z, ratio):
        terms = []
        for topic in range(3):
            kinds = [
                Bernoulli(SWITCH[topic]).log_prob(kind * ONE)
                + Normal(z[..., None] + topic - kind, ONE).log_prob(self.x)
                for kind in (0, 1)
            ]
            terms.append(TOPICS[topic].log() + torch.stack(kinds).logsumexp(0).sum(-1))
        return torch.stack(terms).logsumexp(0) + ratio


TRANSITION = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=D)


class Markov(Programs):
    """A hidden Markov chain for each datum."""

    def model(self):
        with self.data() as index:
            z, state = pyro.sample("z", dist.Normal(0 * ONE, ONE)), 0
            for time in pyro.markov(range(5)):
                fn = dist.Categorical(TRANSITION[state])
                state = pyro.sample(f"state_{time}", fn, infer=PARALLEL)
                pyro.sample(f"x_{time}", dist.Normal(z + state, ONE), obs=X[index, time])

    def expected(self, z, ratio):
        """The forward algorithm."""
        log_alpha = torch.tensor([0.0, -torch.inf], dtype=D)[:, None].expand(2, z.numel())
        log_alpha = log_alpha.reshape(2, *z.shape)
        for time in range(5):
            moves = [
                torch.stack([log_alpha[i] + TRANSITION[i, j].log() for i in (0, 1)]).logsumexp(0)
                + Normal(z + j, ONE).log_prob(self.x[:, time])
                for j in (0, 1)
            ]
            log_alpha = torch.stack(moves)
        return log_alpha.logsumexp(0) + ratio


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("num_particles", "num_outer"), RUNS)
@pytest.mark.parametrize("subsample", [None, torch.tensor([2, 0])])
@pytest.mark.parametrize("family", [Topics, Words, Markov])
def test_weights_against_brute_force(family, subsample, num_particles, num_outer, vectorize):
    programs = family(subsample)
    log_w, z, ratio = programs.weigh(num_particles, num_outer, vectorize)
    torch.testing.assert_close(log_w, programs.expected(z, ratio))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("family", [Topics, Words, Markov])
def test_masked_data_have_weight_one(family, vectorize):
    programs, mask = family(), torch.tensor([True, False, True])
    log_w, z, ratio = programs.weigh(3, vectorize=vectorize, change=poutine.mask(mask=mask))
    torch.testing.assert_close(log_w, programs.expected(z, ratio).where(mask, 0 * ONE))


@pytest.mark.parametrize("subsample", [None, torch.tensor([2, 0])])
@pytest.mark.parametrize("family", [Topics, Words, Markov])
def test_a_scale_of_everything_is_a_factor_of_the_bound(family, subsample):
    programs = family(subsample)
    change = poutine.scale(scale=0.1)
    log_w, z, ratio = programs.weigh(3, change=change)
    expected = programs.expected(z, ratio)
    torch.testing.assert_close(log_w, expected)
    elbo = MultiSampleELBO(3, max_plate_nesting=2)
    programs.draws.clear()
    loss = elbo.loss(change(programs.model), change(programs.guide))
    z = programs.draws[0].reshape(3, -1)
    ratio = Normal(0 * ONE, ONE).log_prob(z) - Normal(0.2 * ONE, 0.8 * ONE).log_prob(z)
    factor = 0.1 * 3 / z.shape[-1]
    assert loss == pytest.approx(-factor * iwae(programs.expected(z, ratio)).sum().item())


def test_another_scale_of_an_enumerated_site_is_refused():
    class Tempered(Topics):
        def model(self):
            with poutine.scale(scale=0.5):
                super().model()

    with pytest.raises(ValueError, match="Enumerated site 'topic' has another scale"):
        Tempered().weigh(2)


@pytest.mark.parametrize("family", [Topics, Words, Markov])
def test_one_particle_is_trace_enum_elbo(family):
    programs = family(torch.tensor([1, 2]))
    losses = []
    for elbo in (MultiSampleELBO, TraceEnum_ELBO):
        pyro.set_rng_seed(0)
        losses.append(elbo(1, max_plate_nesting=2).loss(programs.model, programs.guide))
    assert losses[0] == pytest.approx(losses[1])


# An enumerated site outside of the plates makes one joint weight.


class Global(Programs):
    """A switch of all data, whose draws are local or global."""

    def __init__(self, is_local):
        super().__init__()
        self.is_local = is_local

    def draw(self, *parameters):
        return pyro.sample("z", dist.Normal(*parameters))

    def model(self):
        switch = pyro.sample("switch", dist.Bernoulli(0.3 * ONE), infer=PARALLEL)
        z = 0 if self.is_local else self.draw(0 * ONE, ONE)
        with self.data():
            z = self.draw(0 * ONE, ONE) if self.is_local else z
            pyro.sample("x", dist.Normal(z + switch, ONE), obs=X[:, 0])

    def guide(self):
        if self.is_local:
            super().guide()
        else:
            self.draws.append(self.draw(0.2 * ONE, 0.8 * ONE))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("num_particles", "num_outer"), RUNS)
@pytest.mark.parametrize("is_local", [True, False])
def test_an_enumerated_global_site(is_local, num_particles, num_outer, vectorize):
    log_w, z, ratio = Global(is_local).weigh(num_particles, num_outer, vectorize)
    terms = [
        Bernoulli(0.3 * ONE).log_prob(switch * ONE)
        + Normal(z + switch, ONE).log_prob(X[:, 0]).sum(-1)
        for switch in (0, 1)
    ]
    torch.testing.assert_close(log_w, torch.stack(terms).logsumexp(0) + ratio.sum(-1))


def test_an_enumerated_global_site_and_a_subsample_are_refused():
    programs = Global(is_local=True)
    programs.subsample = torch.tensor([0, 2])
    programs.model = poutine.condition(programs.model, {"x": X[:2, 0]})
    with pytest.raises(ValueError, match="Plate 'data' is subsampled"):
        programs.weigh(2)


def test_gradients_of_the_model_through_the_sum():
    """Of iwae, with the weights of chosen draws: the guide has no parameters."""
    logits = torch.tensor([0.1, -0.4, 0.3], dtype=D, requires_grad=True)
    draws = []

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
            topic = pyro.sample("topic", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("x", dist.Normal(z + logits[topic], ONE), obs=X[:, 0])

    def guide():
        with pyro.plate("data", 3):
            draws.append(pyro.sample("z", dist.Normal(0 * ONE, ONE)))

    for gradient in (pathwise, dreg, auto, score, vimco, vimco_arithmetic, rws):
        elbo = MultiSampleELBO(4, gradient=gradient, max_plate_nesting=1)
        (actual,) = torch.autograd.grad(-elbo.differentiable_loss(model, guide), logits)
        prior = Categorical(logits=logits).logits
        terms = [prior[i] + Normal(draws[-1] + logits[i], ONE).log_prob(X[:, 0]) for i in range(3)]
        bound = iwae(torch.stack(terms).logsumexp(0)).sum()
        torch.testing.assert_close(actual, torch.autograd.grad(bound, logits)[0])


# A site that the guide enumerates, between a normal draw and a Bernoulli draw for each value.


class Between:
    """Every outcome of z_k ~ N, y enumerated, d_k ~ Bernoulli(y, z_k) for both values of y."""

    y = torch.tensor([0.0, 1.0], dtype=D)[:, None, None]
    start = torch.tensor([0.2, -0.1, 0.4, -0.5, 0.3, 0.25], dtype=D)

    def __init__(self, num_particles, order=10):
        nodes, weights = gauss_hermite(order)
        axes, ones = [nodes, *[self.y.flatten()] * 2], torch.ones(2, dtype=D)
        outcomes = torch.cartesian_prod(*axes * num_particles).T
        self.noise, *d = outcomes.reshape(num_particles, 3, -1).unbind(1)  # (K, outcomes)
        self.d = torch.stack(d)  # (y, K, outcomes)
        self.weights = torch.cartesian_prod(*[weights, ones, ones] * num_particles).prod(-1)
        self.num_particles = num_particles

    def model(self):
        with self.plate():
            y = pyro.sample("y", dist.Bernoulli(0.35 * ONE))
            z = pyro.sample("z", dist.Normal(y / 2 + self.theta[..., 5], ONE))
            d = pyro.sample("d", dist.Bernoulli(logits=z / 2 + y))
            pyro.sample("x", dist.Normal(z + d - y / 2, 2 * ONE), obs=0.8 * ONE)

    def guide(self):
        loc, log_scale, shift, by_y, by_z, _ = self.theta.unbind(-1)
        with self.plate():
            fn = given(dist.Normal, lambda fn: fn.loc + fn.scale * self.noise.view(fn.batch_shape))
            z = pyro.sample("z", fn(loc, log_scale.exp()))
            y = pyro.sample("y", dist.Bernoulli(logits=z), infer=PARALLEL)
            fn = given(dist.Bernoulli, lambda fn: self.d.view(fn.batch_shape))
            pyro.sample("d", fn(logits=shift + by_y * y + by_z * z))

    def plate(self):
        return pyro.plate("outcomes", len(self.weights))

    def mean(self, gradient):
        """Expectation of the gradient estimate."""
        self.theta = self.start.expand(len(self.weights), 6).clone().requires_grad_()
        elbo = MultiSampleELBO(self.num_particles, gradient=gradient, max_plate_nesting=1)
        loss = elbo.differentiable_loss(self.model, self.guide)
        probabilities, _ = self.weigh(self.start)
        return probabilities @ torch.autograd.grad(-loss, self.theta)[0]

    def exact_gradient(self):
        theta = self.start.clone().requires_grad_()
        probabilities, log_w = self.weigh(theta)
        return torch.autograd.grad(probabilities @ iwae(log_w), theta)[0]

    def weigh(self, theta):
        loc, log_scale, shift, by_y, by_z, prior = theta
        z = loc + log_scale.exp() * self.noise
        log_q = Bernoulli(logits=shift + by_y * self.y + by_z * z).log_prob(self.d)
        terms = Bernoulli(0.35 * ONE).log_prob(self.y) + Normal(self.y / 2 + prior, ONE).log_prob(z)
        terms = terms + Bernoulli(logits=z / 2 + self.y).log_prob(self.d)
        terms = terms + Normal(z + self.d - self.y / 2, 2 * ONE).log_prob(0.8 * ONE)
        log_w = (terms - log_q).logsumexp(0) - Normal(loc, log_scale.exp()).log_prob(z)
        return self.weights * log_q.sum((0, 1)).exp(), log_w


def given(family, draw):
    """The distribution, but its draws are computed."""
    method = "rsample" if family.has_rsample else "sample"
    return type(family.__name__, (family,), {method: lambda fn, sample_shape=(): draw(fn)})


@pytest.mark.parametrize(
    ("gradient", "num_particles"),
    [(score, 1), (auto, 1), (score, 2), (auto, 2), (vimco, 2), (vimco_arithmetic, 2)],
)
def test_bernoulli_draws_for_each_value_of_an_enumerated_site(gradient, num_particles):
    between = Between(num_particles)
    expected = between.exact_gradient()
    torch.testing.assert_close(between.mean(gradient), expected, rtol=1e-6, atol=1e-6)
    assert expected.abs().min() > 5e-4


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("subsample", [None, torch.tensor([2, 0])])
@pytest.mark.parametrize("dependence", [0.0, 1.0])
def test_weights_with_a_draw_for_each_value(dependence, subsample, num_particles, vectorize):
    draws, x = [], X[:, 0] if subsample is None else X[subsample, 0]

    def model():
        with pyro.plate("data", 3, subsample=subsample):
            y = pyro.sample("y", dist.Bernoulli(0.3 * ONE))
            z = pyro.sample("z", dist.Normal(y, ONE))
            pyro.sample("x", dist.Normal(z - y, ONE), obs=x)

    def guide():
        with pyro.plate("data", 3, subsample=subsample):
            y = pyro.sample("y", dist.Bernoulli(0.6 * ONE), infer=PARALLEL)
            loc = 0.3 + dependence * y if dependence else 0.3 * ONE
            draws.append(pyro.sample("z", dist.Normal(loc, ONE)))

    elbo = MultiSampleELBO(num_particles, max_plate_nesting=1, vectorize_particles=vectorize)
    log_w = elbo.log_weights(model, guide)
    draw = torch.stack(draws, -2) if not vectorize or num_particles == 1 else draws[0]
    z = draw.reshape(-1, num_particles, len(x)).expand(2, -1, -1)  # (y, K, data)
    y = torch.tensor([0.0, 1.0], dtype=D)[:, None, None]
    terms = Bernoulli(0.3 * ONE).log_prob(y) + Normal(y, ONE).log_prob(z)
    terms = terms + Normal(z - y, ONE).log_prob(x)
    terms = terms - Normal(0.3 + dependence * y, ONE).log_prob(z)
    torch.testing.assert_close(log_w, terms.logsumexp(0))


def test_wake_sleep_refuses_draws_for_each_value():
    between = Between(2, order=2)
    with pytest.raises(ValueError, match="rws has no meaning where draws of the guide depend"):
        between.mean(rws)


# A site that the guide enumerates, with normal draws that depend on it.

THETA = torch.tensor([-0.2, 0.9, -0.4], dtype=D)


def log_terms(y, z, theta):
    """log p(y, z, x) / q(z | y) at x = 0.8."""
    log_q = Normal(theta[..., 0] + theta[..., 1] * y, theta[..., 2].exp()).log_prob(z)
    log_p = Bernoulli(0.35 * ONE).log_prob(y * ONE) + Normal(1.5 * y - 0.5, ONE).log_prob(z)
    return log_p + Normal(z * (1 + 0.3 * y), 2.0 * ONE).log_prob(0.8 * ONE) - log_q


def exact_gradient(num_particles):
    """Of iwae, by quadrature over the draws of all particles for both values of y."""
    theta = THETA.clone().requires_grad_()
    nodes, weights = gauss_hermite(12)
    noise = torch.cartesian_prod(*[nodes] * (2 * num_particles)).T.reshape(num_particles, 2, -1)
    joint = torch.cartesian_prod(*[weights] * (2 * num_particles)).prod(-1)
    z = [theta[0] + theta[1] * y + theta[2].exp() * noise[:, y] for y in (0, 1)]
    log_w = torch.stack([log_terms(y, z[y], theta) for y in (0, 1)]).logsumexp(0)
    return torch.autograd.grad(joint @ iwae(log_w), theta)[0]


@pytest.mark.parametrize(
    ("gradient", "num_particles"),
    [(gradient, k) for gradient in (pathwise, dreg, auto, score) for k in (1, 2)] + [(vimco, 2)],
)
def test_draws_that_depend_on_an_enumerated_site_of_the_guide(gradient, num_particles):
    size = 20_000
    theta = THETA.expand(size, 3).clone().requires_grad_()

    def model():
        with pyro.plate("replicates", size):
            y = pyro.sample("y", dist.Bernoulli(0.35 * ONE))
            z = pyro.sample("z", dist.Normal(1.5 * y - 0.5, ONE))
            pyro.sample("x", dist.Normal(z * (1 + 0.3 * y), 2.0 * ONE), obs=0.8 * ONE)

    def guide():
        with pyro.plate("replicates", size):
            y = pyro.sample("y", dist.Bernoulli(0.5 * ONE), infer=PARALLEL)
            loc = theta[:, 0] + theta[:, 1] * y
            pyro.sample("z", dist.Normal(loc, theta[:, 2].exp()))

    elbo = MultiSampleELBO(num_particles, gradient=gradient, max_plate_nesting=1)
    (estimates,) = torch.autograd.grad(-elbo.differentiable_loss(model, guide), theta)
    assert_mean(estimates, exact_gradient(num_particles))
