"""Gradient estimators against their expectation, summed over every outcome of all draws.

The noise of normal draws takes the nodes of a quadrature, Bernoulli draws take both values, and
each joint outcome of all particles is one element of a plate. So means are exact but for the
error of the quadrature. Where draws are random, assertions state their number of standard errors:
6 is a false-alarm probability of 2e-9 for one number, far below 1e-5 for all that a test compares.
"""

import math
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.infer import (
    MultiSampleELBO,
    auto,
    dreg,
    pathwise,
    piwae,
    rws,
    score,
    stl,
    vimco,
    vimco_arithmetic,
)
from pyro_ext.ops import ciwae, cubo, iwae, renyi, tvo

D = torch.float64
ONE = torch.ones((), dtype=D)
X = 0.8 * ONE
OUTCOMES = "outcomes"
BOUNDS = {
    "iwae": iwae,
    "renyi": renyi(0.5),
    "renyi of negative order": renyi(-0.5),
    "ciwae": ciwae(0.4),
    "tvo": tvo(3),
    "tvo from above": tvo(3, upper=True),
    "cubo": cubo(1.5),
    "a user's": lambda log_w: log_w.sin().mean(0) + log_w.square().mean(0) / 10,
}
FAMILIES = {"z": dist.Normal, "d": dist.Bernoulli}


def gauss_hermite(order):
    """Nodes and weights of expectations under the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


class Chain:
    """A guide of normal (z) and Bernoulli (d) sites, each of which depends on the one before.

    Args:
        kinds: of the sites, for example "zd".
        num_particles: of all bounds together.
        order: of the quadrature.
        changed: handlers of some latent sites, in model and guide.
        auxiliary: names of sites that the model lacks.
    """

    def __init__(self, kinds, num_particles, order=12, changed=None, auxiliary=()):
        self.names = [f"{kind}{i}" for i, kind in enumerate(kinds)]
        self.num_particles, self.run = num_particles, -1
        self.changed, self.auxiliary = changed or {}, auxiliary
        noise, weights = gauss_hermite(order)
        both, ones = torch.tensor([0.0, 1.0], dtype=D), torch.ones(2, dtype=D)
        self.outcomes = self.product([noise if kind == "z" else both for kind in kinds])
        self.weights = self.product([weights if kind == "z" else ones for kind in kinds])
        self.weights = self.weights.prod(0).prod(0)
        self.start = torch.linspace(-0.5, 0.4, 2 * len(kinds) + 1, dtype=D)
        self.theta = self.start

    def product(self, axes):
        """All combinations, ``(sites, particles, combinations)``."""
        axes = [axis for axis in axes for _ in range(self.num_particles)]
        joint = torch.cartesian_prod(*axes).reshape(-1, len(axes)).T
        return joint.reshape(-1, self.num_particles, joint.shape[-1])

    # The programs.

    def plate(self):
        return pyro.plate(OUTCOMES, len(self.weights), dim=-1)

    def change(self, name):
        return self.changed.get(name, nullcontext)()

    def model(self):
        shift, previous, total = self.theta[..., -1], 0 * ONE, 0
        with self.plate():
            for i, name in enumerate(self.names):
                if name in self.auxiliary:
                    continue
                with self.change(name):
                    loc = 0.5 * previous + shift
                    fn = dist.Normal(loc, ONE) if name[0] == "z" else dist.Bernoulli(logits=loc)
                    previous = pyro.sample(name, fn)
                total = total + (i + 1) / 2 * previous
            pyro.sample("x", dist.Normal(total, 2 * ONE), obs=X)

    def guide(self):
        self.run = (self.run + 1) % self.num_particles
        previous = ONE
        with self.plate():
            for i, name in enumerate(self.names):
                a, b = self.theta[..., 2 * i], self.theta[..., 2 * i + 1]
                family = self.given(FAMILIES[name[0]], i)
                if name[0] == "z":
                    fn = family(a + 0.4 * previous, (b / 3).exp())
                else:
                    fn = family(logits=a + (b + 0.6) * previous)
                infer = {"is_auxiliary": name in self.auxiliary}
                with self.change(name):
                    previous = pyro.sample(name, fn, infer=infer)

    def given(self, family, site):
        """The distribution, but draws have the chosen noise or the chosen value."""

        def draw(fn, sample_shape=()):
            outcomes = self.outcomes[site]
            outcomes = outcomes if len(fn.batch_shape) > 1 else outcomes[self.run]
            return fn.loc + fn.scale * outcomes if fn.has_rsample else outcomes

        method = "rsample" if family.has_rsample else "sample"
        return type(family.__name__, (family,), {method: draw})

    # Both sides of the comparison.

    def weigh(self):
        """Log-weights, and log densities of the draws that are not reparameterised."""
        with pyro.plate("particles", self.num_particles, dim=-2):
            guide = poutine.trace(self.guide).get_trace()
            model = poutine.trace(poutine.replay(self.model, trace=guide)).get_trace()
        for trace in (model, guide):
            trace.compute_log_prob()
        sites = [guide.nodes[name] for name in self.names]
        log_w = sum(site["log_prob"] for site in model.nodes.values() if "log_prob" in site)
        log_w = log_w - sum(site["log_prob"] for site in sites)
        discrete = [site["fn"].log_prob(site["value"]) for site in sites if site["name"][0] == "d"]
        return log_w, sum(discrete, torch.zeros_like(log_w))

    def expectation(self, function):
        """Gradient of the expectation of a function of the log-weights."""
        self.theta = self.start.clone().requires_grad_()
        log_w, discrete = self.weigh()
        mean = (self.weights * discrete.sum(0).exp() * function(log_w)).sum()
        return torch.autograd.grad(mean, self.theta)[0]

    def wake(self, bound):
        """Gradients: for the guide of the weighted log density of draws, for the model as above."""
        model, probabilities = self.expectation(bound), self.probabilities
        self.theta = self.start.clone().requires_grad_()
        log_w = self.weigh()[0].detach().requires_grad_()
        (slope,) = torch.autograd.grad(bound(log_w).sum(), log_w)
        with pyro.plate("particles", self.num_particles, dim=-2):
            trace = poutine.trace(self.guide).get_trace()
            values = {name: trace.nodes[name]["value"].detach() for name in self.names}
            trace = poutine.trace(poutine.condition(self.guide, values)).get_trace()
        trace.compute_log_prob()
        log_q = sum(trace.nodes[name]["log_prob"] for name in self.names)
        mean = (probabilities * (slope * log_q).sum(0)).sum()
        return torch.cat([torch.autograd.grad(mean, self.theta)[0][:-1], model[-1:]])

    def estimates(self, gradient, bound=iwae, num_outer=1, vectorize=True):
        """The gradient estimate in each outcome, ``(outcomes, parameters)``."""
        self.theta = self.start.expand(len(self.weights), -1).clone().requires_grad_()
        self.run = -1
        elbo = MultiSampleELBO(
            self.num_particles // num_outer,
            bound,
            gradient,
            num_outer,
            max_plate_nesting=1,
            vectorize_particles=vectorize,
        )
        value = elbo.differentiable_loss(self.model, self.guide)
        value = value if getattr(bound, "upper", False) else -value
        return torch.autograd.grad(value, self.theta)[0]

    @property
    def probabilities(self):
        """Of the outcomes; they sum to one."""
        self.theta = self.start
        probabilities = self.weights * self.weigh()[1].sum(0).exp()
        assert torch.isclose(probabilities.sum(), ONE)
        return probabilities

    def mean(self, gradient, bound=iwae, num_outer=1, vectorize=True):
        """The expectation of the gradient estimate."""
        estimates = self.estimates(gradient, bound, num_outer, vectorize)
        return self.probabilities @ estimates


def assert_equal(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert expected.abs().max() > 1e-3  # no test of zeros


# Every estimator, every bound.

SCORED = [score, vimco, vimco_arithmetic, auto]
REPARAMETERISED = [pathwise, dreg]
QUADRATURE = 2e-5


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("num_particles", [2, 3])
def test_two_dependent_discrete_sites(num_particles, gradient, bound):
    chain, bound = Chain("dd", num_particles), BOUNDS[bound]
    assert_equal(chain.mean(gradient, bound), chain.expectation(bound))


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("gradient", REPARAMETERISED + SCORED)
def test_two_dependent_reparameterised_sites(gradient, bound):
    chain, bound = Chain("zz", 2, order=10), BOUNDS[bound]
    assert_equal(chain.mean(gradient, bound), chain.expectation(bound), QUADRATURE)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("kinds", ["zd", "dz", "dzd"])
def test_sites_of_both_kinds(kinds, gradient, bound):
    chain, bound = Chain(kinds, 2, order=14), BOUNDS[bound]
    assert_equal(chain.mean(gradient, bound), chain.expectation(bound), QUADRATURE)


@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("kinds", ["zdz", "ddd", "zzd"])
def test_longer_chains(kinds, gradient):
    chain = Chain(kinds, 2, order=8)
    assert_equal(chain.mean(gradient), chain.expectation(iwae), 2e-4)


@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("kinds", ["z", "zd", "dz"])
def test_three_particles(kinds, gradient):
    chain = Chain(kinds, 3, order=10)
    assert_equal(chain.mean(gradient), chain.expectation(iwae), QUADRATURE)


@pytest.mark.parametrize("gradient", [score, auto])
@pytest.mark.parametrize("kinds", ["d", "dd", "zd", "dz", "dzd", "zdz"])
def test_one_particle(kinds, gradient):
    chain = Chain(kinds, 1, order=16)
    assert_equal(chain.mean(gradient), chain.expectation(iwae), QUADRATURE)


@pytest.mark.parametrize("gradient", [*REPARAMETERISED, stl])
@pytest.mark.parametrize("kinds", ["z", "zz", "zzz"])
def test_one_particle_of_reparameterised_sites(kinds, gradient):
    chain = Chain(kinds, 1, order=16)
    assert_equal(chain.mean(gradient), chain.expectation(iwae), QUADRATURE)


@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("kinds", ["dd", "z", "zd", "dz"])
def test_particles_one_after_the_other_have_the_same_estimates(kinds, gradient):
    chain = Chain(kinds, 3, order=3)
    expected = chain.estimates(gradient)
    torch.testing.assert_close(chain.estimates(gradient, vectorize=False), expected)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize(("kinds", "order"), [("d", 2), ("dd", 2), ("z", 8)])
def test_mean_of_two_bounds(kinds, order, gradient, vectorize):
    chain = Chain(kinds, 4, order)
    expected = chain.expectation(lambda log_w: iwae(log_w.unflatten(0, (2, 2))).mean(0))
    actual = chain.mean(gradient, num_outer=2, vectorize=vectorize)
    assert_equal(actual, expected, 1e-9 if "d" in kinds else 1e-4)


# Auxiliary, tempered and masked sites.


@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("name", ["d0", "d1"])
def test_auxiliary_sites_of_the_guide(name, gradient):
    chain = Chain("dd", 2, auxiliary=[name])
    assert_equal(chain.mean(gradient), chain.expectation(iwae))


@pytest.mark.parametrize("gradient", [score, auto])
@pytest.mark.parametrize(
    ("kinds", "name"), [("dd", "d0"), ("zd", "z0"), ("dz", "d0"), ("dz", "z1"), ("zz", "z0")]
)
def test_auxiliary_sites_and_one_particle(kinds, name, gradient):
    # more weights would have no finite mean: the model has no density of a normal auxiliary site
    chain = Chain(kinds, 1, order=16, auxiliary=[name])
    assert_equal(chain.mean(gradient), chain.expectation(iwae), QUADRATURE)


CHANGES = {
    "cooled": lambda: poutine.scale(scale=0.3),
    "heated": lambda: poutine.scale(scale=1.7 * ONE),
    "masked": lambda: poutine.mask(mask=torch.tensor(False)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("gradient", [*REPARAMETERISED, *SCORED])
@pytest.mark.parametrize("changed", [[0], [1], [0, 1]])
def test_changes_of_reparameterised_sites(changed, gradient, change):
    chain = Chain("zz", 2, 10, {f"z{i}": CHANGES[change] for i in changed})
    assert_equal(chain.mean(gradient), chain.expectation(iwae), QUADRATURE)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("changed", [[0], [1], [0, 1]])
@pytest.mark.parametrize("kinds", ["dd", "zd", "dz"])
def test_changes_of_sites_of_both_kinds(kinds, changed, gradient, change):
    chain = Chain(kinds, 2, 14, {f"{kinds[i]}{i}": CHANGES[change] for i in changed})
    assert_equal(chain.mean(gradient), chain.expectation(iwae), QUADRATURE)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("gradient", [score, auto])
@pytest.mark.parametrize("kinds", ["zz", "zd", "dz", "dd"])
def test_changes_with_one_particle(kinds, gradient, change):
    chain = Chain(kinds, 1, 16, {f"{kinds[0]}0": CHANGES[change]})
    assert_equal(chain.mean(gradient), chain.expectation(iwae), QUADRATURE)


class Pairs:
    """Six data with a normal site and a Bernoulli site each, and parameters of their own.

    Args:
        masked: the site whose distribution has a mask.
        mask: puts it there, into the distribution of an event of size one.
    """

    def __init__(self, masked=None, mask=None):
        self.masked, self.mask = masked, mask
        self.theta = torch.linspace(-1, 1, 24, dtype=D).reshape(4, 6).requires_grad_()

    def model(self):
        with pyro.plate("data", 6):
            z = self.draw("z", dist.Normal(self.theta[3, :, None], ONE))
            d = self.draw("d", dist.Bernoulli(logits=z))
            pyro.sample("x", dist.Normal((z + d)[..., 0], ONE), obs=X)

    def guide(self):
        loc, log_scale, logits, _ = self.theta[:, :, None]
        with pyro.plate("data", 6):
            z = self.draw("z", dist.Normal(loc, log_scale.exp()))
            self.draw("d", dist.Bernoulli(logits=logits + z))

    def draw(self, name, fn):
        if name == self.masked and self.mask is None:
            with poutine.mask(mask=torch.tensor(False)):
                return pyro.sample(name, fn.to_event(1))
        return pyro.sample(name, self.mask(fn) if name == self.masked else fn.to_event(1))

    def gradient(self, gradient, bound=iwae, change=lambda program: program, num_particles=2):
        pyro.set_rng_seed(0)
        elbo = MultiSampleELBO(num_particles, bound, gradient, max_plate_nesting=1)
        loss = elbo.differentiable_loss(change(self.model), change(self.guide))
        return torch.autograd.grad(loss, self.theta)[0]


@pytest.mark.parametrize("num_particles", [2, 3])
@pytest.mark.parametrize("bound", ["iwae", "renyi", "cubo", "tvo"])
@pytest.mark.parametrize("gradient", [*SCORED, rws])
def test_masked_data_contribute_exactly_nothing(gradient, bound, num_particles):
    if gradient is rws and hasattr(BOUNDS[bound], "upper"):
        pytest.skip("wake-sleep refuses upper bounds")
    mask = torch.tensor([True, False, True, True, False, False])
    estimates = Pairs().gradient(gradient, BOUNDS[bound], poutine.mask(mask=mask), num_particles)
    assert (estimates[:, ~mask] == 0).all()
    assert (estimates[:, mask] != 0).all()


@pytest.mark.parametrize("gradient", SCORED)
@pytest.mark.parametrize("masked", ["z", "d"])
@pytest.mark.parametrize(
    "mask",
    [lambda fn: fn.to_event(1).mask(False), lambda fn: fn.mask(False).to_event(1)],
    ids=["of an event", "inside of an event"],
)
def test_a_mask_of_the_distribution_is_one_around_its_site(mask, masked, gradient):
    actual, expected = (Pairs(masked, layer).gradient(gradient) for layer in (mask, None))
    torch.testing.assert_close(actual, expected)


# Estimators that are no gradients of one bound.


@pytest.mark.parametrize(("kinds", "order"), [("dd", 2), ("z", 20), ("zd", 14), ("dz", 14)])
@pytest.mark.parametrize("bound", ["iwae", "renyi", "tvo"])
def test_wake_sleep_follows_weighted_draws(bound, kinds, order):
    chain, bound = Chain(kinds, 2, order), BOUNDS[bound]
    assert_equal(chain.mean(rws, bound), chain.wake(bound), QUADRATURE)


def test_wake_sleep_of_two_normal_sites():
    chain = Chain("zz", 2, 10)
    assert_equal(chain.mean(rws), chain.wake(iwae), QUADRATURE)


@pytest.mark.parametrize("vectorize", [True, False])
def test_partially_importance_weighted(vectorize):
    chain = Chain("z", 4, 10)
    groups = chain.expectation(lambda log_w: iwae(log_w.unflatten(0, (2, 2))).mean(0))
    pooled = chain.expectation(iwae)
    expected = torch.cat([groups[:-1], pooled[-1:]])  # of the guide, of the model
    actual = chain.mean(piwae, num_outer=2, vectorize=vectorize)
    assert_equal(actual, expected, QUADRATURE)
    assert (groups - pooled).abs().min() > 1e-4


@pytest.mark.parametrize("num_particles", [1, 2])
def test_partially_importance_weighted_without_groups_is_dreg(num_particles):
    chain = Chain("zz", num_particles, 6)
    torch.testing.assert_close(chain.estimates(piwae), chain.estimates(dreg))


# Variance.


class TwoLayers:
    """z1 ~ N(0, 1), z2 ~ N(z1, 1), x ~ N(z2, 1), with the guide's errors as parameters."""

    exact = torch.tensor([X / 3, 0.5 * math.log(2 / 3), 0.5, X / 2, 0.5 * math.log(0.5)], dtype=D)

    def __init__(self, error, size=20_000):
        self.theta = (self.exact + error).expand(size, -1).clone().requires_grad_()

    def model(self):
        with self.plate():
            z1 = pyro.sample("z1", dist.Normal(0 * ONE, ONE))
            z2 = pyro.sample("z2", dist.Normal(z1, ONE))
            pyro.sample("x", dist.Normal(z2, ONE), obs=X)

    def guide(self):
        loc, log_scale, slope, shift, log_scale_2 = self.theta.T
        with self.plate():
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()))
            pyro.sample("z2", dist.Normal(slope * z1 + shift, log_scale_2.exp()))

    def plate(self):
        return pyro.plate("replicates", len(self.theta))

    def gradient(self, gradient, num_particles):
        elbo = MultiSampleELBO(num_particles, gradient=gradient, max_plate_nesting=1)
        loss = elbo.differentiable_loss(self.model, self.guide)
        return torch.autograd.grad(-loss, self.theta)[0]


def test_dreg_has_a_fifth_of_the_deviation_of_pathwise():
    # at 20,000 draws the error of a deviation's estimate is below 5 %
    layers = TwoLayers(torch.tensor([0.1, 0.1, 0.05, -0.1, 0.1], dtype=D))
    theirs, ours = layers.gradient(pathwise, 4), layers.gradient(dreg, 4)
    assert (theirs.std(0) > 5 * ours.std(0)).all()
    error = (theirs.var(0) + ours.var(0)).sqrt() / len(ours) ** 0.5
    assert ((theirs.mean(0) - ours.mean(0)).abs() < 6 * error).all()


@pytest.mark.parametrize(
    ("gradient", "num_particles"),
    [(stl, 1), (dreg, 1), (dreg, 2), (dreg, 5), (piwae, 5), (auto, 1), (auto, 5)],
)
def test_no_variance_at_the_posterior(gradient, num_particles):
    layers = TwoLayers(torch.zeros(5, dtype=D), size=100)
    assert layers.gradient(gradient, num_particles).abs().max() < 1e-12
    assert layers.gradient(pathwise, num_particles).std(0).min() > 0.1


def test_leave_one_out_baselines_reduce_the_variance():
    def without(particle):
        return score(particle)._replace(score=particle.value - particle.slope)

    chain = Chain("dd", 3)
    mean = chain.expectation(iwae)
    assert_equal(chain.mean(without), mean)  # unbiased too
    spread = {
        gradient: (chain.probabilities @ (chain.estimates(gradient) - mean) ** 2)[:4].sum()
        for gradient in (without, score, vimco, vimco_arithmetic)
    }
    plain = spread.pop(without)
    assert all(other < plain / 2 for other in spread.values())


# Zero weights.


def impossible_below_zero():
    z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
    pyro.factor("positive", torch.where(z > 0, 0 * ONE, -math.inf * ONE))


@pytest.mark.parametrize("gradient", [pathwise, dreg, auto, score, vimco, vimco_arithmetic, rws])
@pytest.mark.parametrize("num_particles", [2, 3, 6])
@pytest.mark.parametrize("bound", [iwae, renyi(0.5), cubo(2), tvo(2, upper=True)])
def test_a_few_zero_weights_leave_value_and_gradient_finite(bound, num_particles, gradient):
    if gradient is rws and hasattr(bound, "upper"):
        pytest.skip("wake-sleep refuses upper bounds")
    loc = torch.zeros(6, dtype=D, requires_grad=True)

    def guide():  # the first datum's draws are possible for one particle only
        offset = -10 * torch.ones(num_particles, dtype=D)
        offset[-1] = 10
        pyro.sample("z", dist.Normal(loc[0] + offset, ONE))

    elbo = MultiSampleELBO(num_particles, bound, gradient, max_plate_nesting=0)
    loss = elbo.differentiable_loss(impossible_below_zero, guide)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, loc)[0].isfinite().all()


@pytest.mark.parametrize("bound", [iwae, renyi(2), cubo(2), ciwae(0.5), tvo(3), tvo(3, upper=True)])
def test_no_possible_particle_names_the_site(bound):
    def guide():
        pyro.sample("z", dist.Normal(-10 * ONE, ONE))

    with pytest.raises(ValueError, match=r"All 4 weights .* sites \['positive'\]"):
        MultiSampleELBO(4, bound, max_plate_nesting=0).loss(impossible_below_zero, guide)
    with pytest.raises(ValueError, match=r"All 4 weights .* sites \['positive'\]"):
        MultiSampleELBO(4, bound, max_plate_nesting=0).differentiable_loss(
            impossible_below_zero, guide
        )


# Refusals.


@pytest.mark.parametrize("gradient", [vimco, vimco_arithmetic, rws])
def test_estimators_that_compare_particles(gradient):
    with pytest.raises(ValueError, match=rf"{gradient.__name__} compares particles .* got 1"):
        MultiSampleELBO(1, gradient=gradient)


def test_stl_takes_one_particle():
    with pytest.raises(ValueError, match="stl is biased with more than one particle"):
        MultiSampleELBO(2, gradient=stl)


@pytest.mark.parametrize("gradient", [pathwise, dreg, piwae])
def test_discrete_sites_have_no_path(gradient):
    with pytest.raises(ValueError, match=r"Guide site 'd1' \(Bernoulli\) has trainable"):
        Chain("zd", 2, 2).estimates(gradient)


def test_stl_needs_paths_too():
    with pytest.raises(ValueError, match=r"Guide site 'd0' \(Bernoulli\) has trainable"):
        Chain("d", 1).estimates(stl)


def test_wake_sleep_refuses_different_scales():
    chain = Chain("zz", 2, 2, {"z0": CHANGES["cooled"]})
    with pytest.raises(ValueError, match="rws has no meaning where sites have different scales"):
        chain.estimates(rws)


def sites(**observed):
    """A program that draws some sites and observes others."""

    def program():
        for name, value in observed.items():
            pyro.sample(name, dist.Normal(0 * ONE, ONE), obs=value)

    return program


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("method", ["loss", "differentiable_loss", "loss_and_grads", "log_weights"])
def test_sites_of_one_program_only(method, vectorize):
    method = getattr(MultiSampleELBO(3, vectorize_particles=vectorize), method)
    with pytest.raises(ValueError, match=r"Model sites \['a', 'c'\] are neither observed nor"):
        method(sites(c=None, b=None, a=None, x=X), sites(b=None))
    with pytest.raises(ValueError, match=r"Guide sites \['a', 'c'\] are not in the model"):
        method(sites(b=None, x=X), sites(a=None, b=None, c=None))


def branches(z):
    return dist.Normal(ONE if z > 0 else -ONE, ONE)


def indexes_from_the_left(z):
    return dist.Normal([-ONE, ONE][int(z > 0)], ONE)


def unpacks(z):
    (loc,) = z.reshape(1)
    return dist.Normal(loc, ONE)


def floats(z):
    return dist.Normal(float(z), 1.0)


@pytest.mark.parametrize("likelihood", [branches, indexes_from_the_left, unpacks, floats])
def test_programs_that_run_with_one_particle_only(likelihood):
    def model():
        z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
        pyro.sample("x", likelihood(z), obs=X)

    guide = sites(z=None)
    message = r"(?s)run with one particle, but not with 4 .* pass vectorize_particles=False"
    with pytest.raises(ValueError, match=message):
        MultiSampleELBO(4, max_plate_nesting=0).loss(model, guide)
    assert math.isfinite(MultiSampleELBO(4, vectorize_particles=False).loss(model, guide))
    assert math.isfinite(MultiSampleELBO(1).loss(model, guide))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("error", [ValueError, RuntimeError, IndexError, TypeError, KeyError])
@pytest.mark.parametrize("faulty", ["model", "guide"])
def test_errors_of_the_programs_pass_through(faulty, error, vectorize):
    def fail():
        pyro.sample("z", dist.Normal(0 * ONE, ONE))
        raise error("the user's own")

    programs = {"model": sites(z=None, x=X), "guide": sites(z=None), faulty: fail}
    elbo = MultiSampleELBO(4, max_plate_nesting=0, vectorize_particles=vectorize)
    with pytest.raises(error, match=r"^.?the user's own"):
        elbo.loss(**programs)
