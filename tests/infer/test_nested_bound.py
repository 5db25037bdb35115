"""The nested bound of global and local latent variables.

Statistical assertions state their number of standard errors: 6 is a false-alarm probability of
2e-9 for one number (1e-6 from 40 draws), below 1e-5 for all that a test compares.
"""

import math
from itertools import pairwise, product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from pyro_ext.infer import MultiSampleELBO, auto, dreg, pathwise, piwae, rws, score, stl, vimco
from pyro_ext.ops import iwae

D = torch.float64
X = torch.tensor([1.0, 2.0, -0.5, 0.3], dtype=D)
N = len(X)
THETA = torch.tensor([0.3, -0.2, 0.5, -0.4], dtype=D)
ONE = torch.ones((), dtype=D)


class Hierarchy:
    """mu ~ N(0, 1), z_n ~ N(mu, 1), x_n ~ N(z_n, 1); each group of particles has parameters."""

    def __init__(self, num_particles, num_outer, subsample=None):
        self.num_outer, self.subsample = num_outer, subsample
        self.theta = THETA.expand(num_outer, 4).clone().requires_grad_()
        self.num_particles = num_particles

    def plate(self):
        return pyro.plate("data", N, subsample=self.subsample, dim=-1)

    def model(self):
        mu = pyro.sample("mu", dist.Normal(0 * ONE, ONE))
        with self.plate() as index:
            z = pyro.sample("z", dist.Normal(mu, ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=X[index])

    def guide(self):
        theta = self.theta.repeat(self.num_particles, 1)[:, :, None]
        mu = pyro.sample("mu", dist.Normal(theta[:, 0], theta[:, 1].exp()))
        with self.plate() as index:
            z = (mu + X[index]) / 2 + theta[:, 2]
            pyro.sample("z", dist.Normal(z, theta[:, 3].exp()))

    def elbo(self, gradient=auto, vectorize=True):
        return MultiSampleELBO(
            self.num_particles,
            gradient=gradient,
            num_outer=self.num_outer,
            max_plate_nesting=1,
            vectorize_particles=vectorize,
        )

    def gradients(self, gradient):
        """One gradient estimate from each group, ``(num_outer, 4)``."""
        elbo = self.elbo(gradient)
        loss = elbo.differentiable_loss(self.model, self.guide)
        (estimates,) = torch.autograd.grad(-loss * self.num_outer, self.theta)
        return estimates


def exact_value(num_particles, theta=THETA):
    """The nested bound, by quadrature over the noise of mu and of all particles of a datum."""
    loc, log_scale, shift, log_local = theta
    nodes, weights = gauss_hermite(12)
    mu = loc + log_scale.exp() * nodes[:, None]  # (nodes, N)
    locs = (mu + X) / 2 + shift
    noise = product_of(nodes, num_particles).flatten(1)  # (K, joint nodes)
    joint = product_of(weights, num_particles).prod(0).flatten()
    z = locs + log_local.exp() * noise[..., None, None]  # (K, joint nodes, nodes, N)
    log_w = Normal(mu, ONE).log_prob(z) + Normal(z, ONE).log_prob(X)
    log_w = log_w - Normal(locs, log_local.exp()).log_prob(z)
    inner = torch.einsum("i,imn->m", joint, iwae(log_w))
    outer = Normal(0 * ONE, ONE).log_prob(mu) - Normal(loc, log_scale.exp()).log_prob(mu)
    return weights @ (outer[:, 0] + inner)


def exact_gradient(num_particles):
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(exact_value(num_particles, theta), theta)[0]


def product_of(axis, num_particles):
    """All combinations, ``(K, n, n, ...)``."""
    return torch.stack(torch.meshgrid([axis] * num_particles, indexing="ij"))


def gauss_hermite(order):
    """Nodes and weights of expectations under the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def assert_mean(estimates, expected, num_errors=6):
    error = estimates.std(0) / len(estimates) ** 0.5
    difference = estimates.mean(0) - expected
    assert (difference.abs() <= num_errors * error + 1e-9).all(), (difference / error).tolist()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("gradient", [pathwise, dreg, auto, score])
@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_gradients_have_the_exact_mean(num_particles, gradient, halves):
    subsamples = torch.arange(N).split(N // 2) if halves else [None]
    estimates = [
        Hierarchy(num_particles, 10_000, subsample).gradients(gradient) for subsample in subsamples
    ]
    assert_mean(torch.stack(estimates).mean(0), exact_gradient(num_particles))


# Values.

EVIDENCE = MultivariateNormal(
    torch.zeros(N, dtype=D), 2 * torch.eye(N, dtype=D) + torch.ones(N, N, dtype=D)
).log_prob(X)


@pytest.mark.parametrize("num_particles", [1, 2, 3])
@pytest.mark.parametrize("size", [N, 2, 1])
def test_values_have_the_exact_mean(size, num_particles):
    subsamples = torch.arange(N).split(size) if size < N else [None]
    programs = [Hierarchy(num_particles, 50, subsample) for subsample in subsamples]
    losses = [
        sum(-p.elbo().loss(p.model, p.guide) for p in programs) / len(programs) for _ in range(40)
    ]
    assert_mean(torch.tensor(losses, dtype=D), exact_value(num_particles))


def test_more_particles_are_tighter_and_never_above_the_evidence():
    values = [exact_value(k) for k in (1, 2, 3)]
    assert all(low + 0.02 < high for low, high in pairwise([*values, EVIDENCE]))
    program = Hierarchy(64, 2_000)
    (many, error), evidence = estimate(program), EVIDENCE
    assert values[-1] + 0.02 < many - 6 * error
    assert many + 6 * error < evidence  # in mu it is one particle


def estimate(program, num_draws=10):
    losses = [-program.elbo().loss(program.model, program.guide) for _ in range(num_draws)]
    losses = torch.tensor(losses, dtype=D)
    return losses.mean(), losses.std() / num_draws**0.5


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("num_particles", [1, 2, 5])
@pytest.mark.parametrize("num_outer", [1, 3])
def test_the_exact_guide_gives_the_evidence_without_variance(num_outer, num_particles, vectorize):
    def guide():  # of mu there are N observations with variance 2
        precision = 1 + N / 2
        mu = pyro.sample("mu", dist.Normal(X.sum() / 2 / precision, precision**-0.5 * ONE))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal((mu + X) / 2, 0.5**0.5 * ONE))

    program = Hierarchy(num_particles, num_outer)
    elbo = program.elbo(vectorize=vectorize)
    for _ in range(3):
        assert elbo.loss(program.model, guide) == pytest.approx(-EVIDENCE.item())


class Recorded:
    """A hierarchy whose guide remembers its draws: normal mu, then normal z per datum."""

    def __init__(self, subsample=None):
        self.subsample, self.draws = subsample, []

    def model(self):
        mu = pyro.sample("mu", dist.Normal(0 * ONE, ONE))
        with pyro.plate("data", N, subsample=self.subsample) as index:
            z = pyro.sample("z", dist.Normal(mu, ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=X[index])

    def guide(self):
        mu = pyro.sample("mu", dist.Normal(0.2 * ONE, 0.7 * ONE))
        with pyro.plate("data", N, subsample=self.subsample) as index:
            z = pyro.sample("z", dist.Normal(mu / 2 + 0.1, 0.9 * ONE))
        self.draws.append((mu.reshape(-1, 1), z.reshape(-1, len(index))))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("subsample", [None, torch.tensor([2, 0])])
@pytest.mark.parametrize(("num_particles", "num_outer"), [(1, 1), (3, 1), (1, 3), (2, 3)])
def test_value_and_weights_from_the_draws(num_particles, num_outer, subsample, vectorize):
    program = Recorded(subsample)
    options = {"max_plate_nesting": 1, "vectorize_particles": vectorize}
    elbo = MultiSampleELBO(num_particles, num_outer=num_outer, **options)
    elbo.loss(program.model, program.guide)  # finds the structure
    for evaluate in (elbo.loss, elbo.log_weights):
        program.draws.clear()
        actual = evaluate(program.model, program.guide)
        mu, z = (torch.cat(parts) for parts in zip(*program.draws, strict=True))
        mu, z = (part.unflatten(0, (num_particles, num_outer)) for part in (mu, z))
        assert (mu == mu[:1]).all()
        x = X if subsample is None else X[subsample]
        log_w = Normal(mu, ONE).log_prob(z) + Normal(z, ONE).log_prob(x)
        log_w = log_w - Normal(mu / 2 + 0.1, 0.9 * ONE).log_prob(z)
        outer = Normal(0 * ONE, ONE).log_prob(mu) - Normal(0.2 * ONE, 0.7 * ONE).log_prob(mu)
        bound = (outer[0, :, 0] + N / len(x) * iwae(log_w).sum(-1)).mean()
        expected = -bound if evaluate == elbo.loss else log_w.squeeze(1)
        torch.testing.assert_close(torch.as_tensor(actual, dtype=D), expected)


def test_a_joint_weight_of_all_data_is_far_below():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=D) * 2**0.5

    def program(observe):
        scale = ONE if observe else 0.1 * ONE
        mu = pyro.sample("mu", dist.Normal(0 * ONE, scale))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu if observe else (mu + x) / 2 + 0.3, ONE))
            if observe:
                pyro.sample("x", dist.Normal(z, ONE), obs=x)

    def mean(elbo):
        losses = [elbo.loss(lambda: program(True), lambda: program(False)) for _ in range(50)]
        losses = -torch.tensor(losses, dtype=D)
        return losses.mean(), losses.std() / len(losses) ** 0.5

    ours, error = mean(MultiSampleELBO(10, num_outer=40, max_plate_nesting=1))
    theirs = RenyiELBO(0, num_particles=10, max_plate_nesting=1, vectorize_particles=True)
    theirs, their_error = mean(theirs)
    covariance = torch.eye(100, dtype=D) * 2 + 1
    evidence = MultivariateNormal(torch.zeros(100, dtype=D), covariance).log_prob(x)
    assert ours - 6 * error > theirs + 6 * their_error + 5
    assert ours - 6 * error > evidence - 5
    assert ours + 6 * error < evidence


# Discrete globals.

Y_LOGITS, Z_LOGITS, SLOPE = torch.tensor([0.4, -0.3, 0.8], dtype=D)


class Switch:
    """y ~ Bernoulli, z_n ~ Bernoulli(y), x_n ~ N(y + z_n, 1); draws are chosen one by one."""

    def __init__(self, num_data):
        self.x = X[:num_data]
        self.theta = torch.stack([Y_LOGITS, Z_LOGITS, SLOPE]).requires_grad_()

    def densities(self, y, z):
        """Log densities of y in model and guide, of z and x in the model, of z in the guide."""
        a, b, slope = self.theta
        y_terms = Bernoulli(0.3 * ONE).log_prob(y), Bernoulli(logits=a).log_prob(y)
        p_z = Bernoulli(logits=y - 0.5).log_prob(z) + Normal(y + z, ONE).log_prob(self.x)
        return *y_terms, p_z, Bernoulli(logits=b + slope * y).log_prob(z)

    def model(self):
        y = pyro.sample("y", dist.Bernoulli(0.3 * ONE))
        with pyro.plate("data", len(self.x)):
            z = pyro.sample("z", dist.Bernoulli(logits=y - 0.5))
            pyro.sample("x", dist.Normal(y + z, ONE), obs=self.x)

    def guide(self):
        a, b, slope = self.theta
        y = pyro.sample("y", chosen(self.y)(logits=a))
        with pyro.plate("data", len(self.x)):
            pyro.sample("z", chosen(self.z)(logits=b + slope * y))

    def outcomes(self, num_particles, num_outer):
        """Sets y and z to each of their joint values, ``(K M, 1)`` and ``(K M, N)``."""
        shape = num_particles, num_outer, len(self.x)
        for y in product([0.0, 1.0], repeat=num_outer):
            self.y = torch.tensor(y, dtype=D).repeat(num_particles)[:, None]
            for z in product([0.0, 1.0], repeat=math.prod(shape)):
                self.z = torch.tensor(z, dtype=D).reshape(-1, shape[-1])
                yield

    def mean(self, gradient, num_particles, num_outer):
        """Expectation of the gradient estimate."""
        options = {"num_outer": num_outer, "max_plate_nesting": 1}
        elbo = MultiSampleELBO(num_particles, gradient=gradient, **options)
        total = torch.zeros(3, dtype=D)
        for _ in self.outcomes(num_particles, num_outer):
            loss = elbo.differentiable_loss(self.model, self.guide)
            _, q_y, _, q_z = self.densities(self.y, self.z)
            probability = (q_y[:num_outer].sum() + q_z.sum()).exp()
            total -= probability.detach() * torch.autograd.grad(loss, self.theta)[0]
        return total

    def exact_gradient(self, num_particles):
        """Of the nested bound."""
        bound = 0
        for _ in self.outcomes(num_particles, 1):
            p_y, q_y, p_z, q_z = self.densities(self.y, self.z)
            value = (p_y - q_y)[0] + iwae(p_z - q_z).sum()
            bound = bound + (q_y[0] + q_z.sum()).exp() * value
        return torch.autograd.grad(bound, self.theta)[0]


def chosen(values):
    """A Bernoulli distribution whose draws are not random."""
    draw = {"sample": lambda fn, sample_shape=(): values.reshape(fn.batch_shape)}
    return type("Bernoulli", (dist.Bernoulli,), draw)


@pytest.mark.parametrize(
    ("gradient", "num_data", "num_particles", "num_outer"),
    [
        (gradient, *sizes)
        for gradient in (score, auto, vimco)
        for sizes in ((2, 2, 1), (1, 2, 2), (1, 3, 1))
    ]
    + [(gradient, 2, 1, num_outer) for gradient in (score, auto) for num_outer in (1, 2)],
)
def test_discrete_globals_and_locals(gradient, num_data, num_particles, num_outer):
    switch = Switch(num_data)
    actual = switch.mean(gradient, num_particles, num_outer)
    torch.testing.assert_close(actual, switch.exact_gradient(num_particles))


def test_a_global_point_estimate():
    """Locals of a Delta at mu: the bound at mu, with the prior's density of mu."""
    size, theta = 20_000, torch.tensor([0.3, -0.2], dtype=D)
    point = theta.expand(size, 2).clone().requires_grad_()

    def guide():
        mu = pyro.sample("mu", dist.Delta(point[:, 0].repeat(2)[:, None]))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal((mu + X) / 2, point[:, 1].exp().repeat(2)[:, None]))

    elbo = MultiSampleELBO(2, num_outer=size, max_plate_nesting=1)
    loss = elbo.differentiable_loss(Recorded().model, guide)
    (estimates,) = torch.autograd.grad(-loss * size, point)
    nodes, weights = gauss_hermite(20)
    exact = theta.clone().requires_grad_()
    noise, joint = product_of(nodes, 2).flatten(1)[..., None], product_of(weights, 2).prod(0)
    z = (exact[0] + X) / 2 + exact[1].exp() * noise
    log_w = Normal(exact[0], ONE).log_prob(z) + Normal(z, ONE).log_prob(X)
    log_w = log_w - Normal((exact[0] + X) / 2, exact[1].exp()).log_prob(z)
    value = Normal(0 * ONE, ONE).log_prob(exact[0]) + (joint.flatten() @ iwae(log_w)).sum()
    assert_mean(estimates, torch.autograd.grad(value, exact)[0])


# Other plates.

Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=D)  # (data, groups)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("is_local", [False, True])
def test_groups_of_data_are_the_units(is_local, vectorize):
    """Group effects, in groups data with a draw of their own or without: kept are the groups."""
    draws = []

    def program(observe):
        mu = pyro.sample("mu", dist.Normal(0 * ONE, ONE))
        with pyro.plate("groups", 4, dim=-1):
            effect = pyro.sample("effect", dist.Normal(mu, ONE))
            with pyro.plate("data", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(effect, ONE)) if is_local else effect
                if observe:
                    pyro.sample("y", dist.Normal(z, ONE), obs=Y)
                else:
                    draws.append((mu, effect, z))

    elbo = MultiSampleELBO(2, vectorize_particles=vectorize, max_plate_nesting=2)
    elbo.loss(lambda: program(True), lambda: program(False))
    draws.clear()
    log_w = elbo.log_weights(lambda: program(True), lambda: program(False))
    z = torch.stack([draw[2].expand(3, 4) for draw in draws]) if not vectorize else draws[0][2]
    expected = Normal(z, ONE).log_prob(Y).sum(-2)  # all else cancels
    assert log_w.shape == (2, 4)
    torch.testing.assert_close(log_w, expected)


def test_components_of_globals_are_charged_once():
    draws = []

    def program(observe):
        scale = ONE if observe else 0.5 * ONE
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0 * ONE, scale))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(locs.sum(-1, keepdim=True), scale))
            if observe:
                pyro.sample("x", dist.Normal(z, ONE), obs=X)
            else:
                draws.append((locs, z))

    elbo = MultiSampleELBO(5, num_outer=2, max_plate_nesting=1)
    elbo.loss(lambda: program(True), lambda: program(False))
    loss = elbo.loss(lambda: program(True), lambda: program(False))
    locs, z = (draw.unflatten(0, (5, 2)) for draw in draws[-1])
    ratio = Normal(0 * ONE, ONE).log_prob(locs) - Normal(0 * ONE, 0.5 * ONE).log_prob(locs)
    total = locs.sum(-1, keepdim=True)
    log_w = Normal(total, ONE).log_prob(z) + Normal(z, ONE).log_prob(X)
    log_w = log_w - Normal(total, 0.5 * ONE).log_prob(z)
    bound = (ratio[0].sum(-1) + iwae(log_w).sum(-1)).mean()
    assert loss == pytest.approx(-bound.item())


@pytest.mark.parametrize("gradient", [pathwise, dreg, auto, score, vimco])
def test_masked_data_contribute_exactly_nothing(gradient):
    shift = torch.zeros(N, dtype=D, requires_grad=True)
    mask = torch.tensor([True, False, True, False])

    def guide():
        mu = pyro.sample("mu", dist.Normal(0 * ONE, ONE))
        with pyro.plate("data", N), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(mu + shift, ONE))

    def model():
        mu = pyro.sample("mu", dist.Normal(0 * ONE, ONE))
        with pyro.plate("data", N), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(mu, ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=X)

    elbo = MultiSampleELBO(3, gradient=gradient, num_outer=2, max_plate_nesting=1)
    loss = elbo.differentiable_loss(model, guide)
    (estimate,) = torch.autograd.grad(loss, shift)
    assert ((estimate != 0) == mask).all()


# Refusals.


@pytest.mark.parametrize("gradient", [rws, piwae])
def test_estimators_without_meaning(gradient):
    program = Hierarchy(2, 2)
    with pytest.raises(ValueError, match=rf"{gradient.__name__} has no meaning where"):
        program.elbo(gradient).differentiable_loss(program.model, program.guide)


def test_one_particle_sticks_the_landing():
    assert_mean(Hierarchy(1, 10_000).gradients(stl), exact_gradient(1))


@pytest.mark.parametrize("vectorize", [True, False])
def test_globals_that_depend_on_locals(vectorize):
    def model():
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=X)
        pyro.sample("mean", dist.Normal(z.mean(-1, keepdim=vectorize), ONE))

    def guide():
        pyro.sample("mean", dist.Normal(0 * ONE, ONE))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(0 * ONE, ONE))

    elbo = MultiSampleELBO(3, max_plate_nesting=1, vectorize_particles=vectorize)
    with pytest.raises(ValueError, match=r"sites \['mean'\] lies outside of the plates \['data'\]"):
        elbo.loss(model, guide)


def test_globals_that_come_and_go():
    calls = []

    def program(observe):
        calls.append(observe)
        name = f"mu_{len(calls) // 2 if observe else (len(calls) + 1) // 2}"
        mu = pyro.sample(name, dist.Normal(0 * ONE, ONE))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(mu, ONE))
            if observe:
                pyro.sample("x", dist.Normal(z, ONE), obs=X)

    elbo = MultiSampleELBO(2, max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"were \['mu_1'\], then \['mu_2'\] in a second run"):
        elbo.loss(lambda: program(True), lambda: program(False))
