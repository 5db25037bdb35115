"""HIS against quadrature, linear maps and autograd.

The dynamics is written down once more here, in one dimension and with its derivative by hand, so
that the marginal density is an integral over the last momentum alone. Statistical assertions are
z-tests at 5 standard errors: false-alarm probability 6e-7 each.
"""

import copy
import gc
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.mcmc import MCMC, NUTS
from torch import nn

from pyro_ext.data.simulate import NineGaussians
from pyro_ext.distributions import (
    AuxiliaryLost,
    HamiltonianImportance,
    HamiltonianSampler,
    SelfNormalizedImportance,
    StochasticDensity,
)
from pyro_ext.infer import MultiSampleELBO
from pyro_ext.nn import EnergyNet, MomentumNet

GRID = torch.linspace(-9, 9, 361, dtype=torch.float64)  # of positions
MOMENTA = torch.linspace(-9, 9, 451, dtype=torch.float64)
STEP, MOMENTUM_STEP = GRID[1] - GRID[0], MOMENTA[1] - MOMENTA[0]
BASE = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
DATUM = torch.tensor(1.2, dtype=torch.float64)
POINTS = torch.tensor([-1.0, 0.5, 0.9, 2.0], dtype=torch.float64)
STEP_SIZE, TEMPERING, DEPTH, NUM_STEPS = 0.45, 0.9, 0.8, 3


def potential(x, depth=DEPTH):
    return depth * torch.sin(2 * x) + 0.3 * x**2


def force(x, depth=DEPTH):
    return -(2 * depth * torch.cos(2 * x) + 0.6 * x)


def normal(x):
    return -(x**2) / 2 - math.log(2 * math.pi) / 2


def log_joint(x, momentum, depth=DEPTH, step_size=STEP_SIZE, tempering=TEMPERING, base=normal):
    """log density of a position and the momentum that it arrives with, back along the path."""
    for _ in range(NUM_STEPS):
        momentum = momentum / tempering - step_size / 2 * force(x, depth)
        x = x - step_size * momentum
        momentum = momentum - step_size / 2 * force(x, depth)
    return base(x) + normal(momentum * tempering**NUM_STEPS)


def exact_log_prob(x, **kwargs):
    return log_joint(x[..., None], MOMENTA, **kwargs).logsumexp(-1) + MOMENTUM_STEP.log()


def integrate(values):
    return values.sum() * STEP


def his(step_size=STEP_SIZE, tempering=TEMPERING, depth=DEPTH, base=BASE, net=None, **kwargs):
    return HamiltonianImportance(
        base, lambda x: potential(x, depth), NUM_STEPS, step_size, tempering, net, **kwargs
    )


def narrow(x):
    return -0.3 * x, 0.7 + 0 * x


def assert_mean(samples, expected):
    error = samples.std(0) / samples.shape[0] ** 0.5
    z = (samples.mean(0) - expected).abs() / error
    assert (z < 5).all(), f"mean {samples.mean(0)} +- {error}, expected {expected}"


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# Truth: the density.


def test_quadrature_density_is_normalised_and_is_not_the_base():
    log_prob = exact_log_prob(GRID)
    assert integrate(log_prob.exp()).item() == pytest.approx(1, abs=1e-5)
    assert integrate(log_prob.exp() * (log_prob - BASE.log_prob(GRID))).item() > 0.2


@pytest.mark.parametrize("net", [None, narrow])
def test_density_estimate_is_unbiased(net):
    expected = exact_log_prob(POINTS).exp()
    assert_mean(his(net=net).log_prob(POINTS.expand(40_000, 4)).exp(), expected)


def test_bounds_rise_to_the_quadrature_density():
    x, exact, means = POINTS.expand(2000, 4), exact_log_prob(POINTS), []
    for num in (1, 5, 300):
        bounds = his().tight(num).log_prob(x)
        assert (bounds.mean(0) - 5 * bounds.std(0) / 2000**0.5 < exact).all()
        means.append(bounds.mean())
    assert means[0] + 0.1 < means[1] < means[2] - 0.02  # errors are below 0.01
    torch.testing.assert_close(bounds.mean(0), exact, atol=0.01, rtol=0)


def test_samples_follow_the_quadrature_density():
    num_samples = 20_000
    cdf = torch.cumsum(exact_log_prob(GRID).exp(), 0) * STEP  # up to the cell's right edge
    x = his().sample((num_samples,)).sort().values
    empirical = torch.searchsorted(x, GRID + STEP / 2) / num_samples
    # Dvoretzky-Kiefer-Wolfowitz at a false-alarm probability of 1e-6
    assert (empirical - cdf).abs().max() < (math.log(2e6) / (2 * num_samples)) ** 0.5


def test_sandwich_of_the_entropy_at_its_very_values():
    log_prob, joint = exact_log_prob(GRID), log_joint(GRID[:, None], MOMENTA)
    log_w = joint - normal(MOMENTA)
    lower = integrate(log_prob.exp() * (normal(MOMENTA).exp() * log_w).sum(-1)) * MOMENTUM_STEP
    upper = (joint.exp() * log_w).sum() * MOMENTUM_STEP * STEP
    negative_entropy = integrate(log_prob.exp() * log_prob)
    assert lower + 0.02 < negative_entropy < upper - 0.02
    x, above = his().sample_and_log_prob((100_000,))
    assert_mean(above, upper)
    assert_mean(his().log_prob(x), lower)


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("draw", ["sample_and_log_prob", "rsample_and_log_prob"])
def test_reciprocal_of_the_upper_density_is_unbiased(num, draw):
    # E[1 / W | x] = 1 / p(x), hence E_x E[h(x) / W | x] is the integral of h
    d = his(net=narrow).tight(num)
    x, upper = getattr(d, draw)((50_000,))
    assert_mean((x.abs() < 0.6) * (-upper).exp(), 1.2)


# Truth: closed forms.


def gaussian_by_hand(curvature, step_size, tempering):
    """Marginal scale of the position; location and scale of the momentum given it, as a net."""
    path = torch.eye(2, dtype=torch.float64)
    alphas = [1 / math.prod(tempering), *tempering]
    kick = torch.tensor([[1, 0], [-step_size / 2 * curvature, 1]], dtype=torch.float64)
    drift = torch.tensor([[1, step_size], [0, 1]], dtype=torch.float64)
    path = torch.diag(torch.tensor([1, alphas[0]], dtype=torch.float64))
    for alpha in tempering:
        path = (
            torch.diag(torch.tensor([1, alpha], dtype=torch.float64)) @ kick @ drift @ kick @ path
        )
    (xx, xr), (_, rr) = path @ path.T
    return xx.sqrt(), xr / xx, (rr - xr**2 / xx).sqrt()


@pytest.mark.parametrize("curvature", [0.0, 1.0, 7.0])
@pytest.mark.parametrize("num", [1, 3])
def test_a_quadratic_potential_is_a_gaussian_and_the_bounds_are_exact(curvature, num):
    step_sizes, tempering = torch.tensor([0.3, 0.5], dtype=torch.float64), [0.9, 0.7, 1.0, 0.8]
    by_hand = [gaussian_by_hand(curvature, eps.item(), tempering) for eps in step_sizes]
    scale, slope, rest = (torch.stack(parts) for parts in zip(*by_hand, strict=True))
    base = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    d = HamiltonianImportance(
        base,
        lambda x: curvature * x.square().sum(-1) / 2,
        4,
        step_sizes,
        tempering,
        lambda x: (slope * x, rest.expand(x.shape)),
    ).tight(num)
    exact = dist.Normal(0.0, scale).to_event(1)
    x = 2 * torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(d.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-10)
    for draw in (d.sample_and_log_prob, d.rsample_and_log_prob):
        x, upper = draw((50,))
        torch.testing.assert_close(upper, exact.log_prob(x), rtol=0, atol=1e-10)
    x = d.sample((20_000,))
    assert_mean(x.square(), scale.square())
    assert_mean(x, 0.0)


def test_free_motion_widens_the_base():
    spread = 0.3 * sum(0.9 ** (t - 3) for t in range(3))  # momentum is hot at first
    variance = 1 + spread**2
    net = lambda x: (spread / variance * x, variance**-0.5 + 0 * x)  # noqa: E731
    d = HamiltonianImportance(BASE, lambda x: 0 * x, 3, 0.3, 0.9, net)
    torch.testing.assert_close(d.log_prob(GRID), dist.Normal(0.0, variance**0.5).log_prob(GRID))


@pytest.mark.parametrize("tempering", [1, 0.8, (0.5, 0.9, 1.0), torch.tensor(0.8)])
def test_no_step_size_is_the_base(tempering):
    d = his(step_size=0, tempering=tempering)
    torch.testing.assert_close(d.log_prob(GRID), BASE.log_prob(GRID))
    x, upper = d.sample_and_log_prob((100,))
    torch.testing.assert_close(upper, BASE.log_prob(x))


def test_a_constant_added_to_the_potential_changes_nothing():
    shifted = HamiltonianImportance(
        BASE, lambda x: potential(x) + 1e3, NUM_STEPS, STEP_SIZE, TEMPERING
    )
    torch.testing.assert_close(shifted.frozen(3).log_prob(GRID), his().frozen(3).log_prob(GRID))


def test_a_tempering_per_step_equals_a_scalar_one():
    expected = his(tempering=0.8).frozen(0).log_prob(POINTS)
    for tempering in ([0.8] * 3, torch.tensor(0.8).double(), torch.tensor([0.8] * 3).double()):
        seen = his(tempering=tempering).frozen(0).log_prob(POINTS)
        torch.testing.assert_close(seen, expected)


def test_single_precision_is_as_good_as_the_docstring_says():
    net = EnergyNet(50)
    base = dist.Normal(torch.zeros(50), 1.0).to_event(1)
    single = HamiltonianImportance(base, net, 5, 0.1, 0.9995)
    x = single.sample((1000,))
    auxiliaries = single.draw_auxiliaries(x, 1)
    base = dist.Normal(torch.zeros(50).double(), 1.0).to_event(1)
    double = HamiltonianImportance(base, copy.deepcopy(net).double(), 5, 0.1, 0.9995)
    momentum = auxiliaries.momentum.double()
    expected = double.log_weights(
        x.double(), auxiliaries._replace(momentum=momentum, log_reverse=None)
    )
    error = single.log_weights(x, auxiliaries).double() - expected
    assert error.abs().max() < 1e-4


# Truth: gradients.


def test_frozen_gradients_against_finite_differences():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    energy, momenta = EnergyNet(2, (3,)).double(), MomentumNet(2, (2,)).double()
    nn.init.normal_(momenta.layers[-1].weight)

    def density(weight, reverse_weight, step_size, tempering, scale):
        def potential(y):
            return torch.func.functional_call(energy, {"layers.0.weight": weight}, (y,))

        def net(y):
            return torch.func.functional_call(momenta, {"layers.2.weight": reverse_weight}, (y,))

        base = dist.Normal(torch.zeros(2).double(), scale).to_event(1)
        return HamiltonianImportance(base, potential, 2, step_size, tempering, net)

    def log_prob(x, *values):
        return density(*values).tight(2).frozen(0).log_prob(x)

    def upper(*values):
        torch.manual_seed(0)
        return density(*values).rsample_and_log_prob((3,))

    values = [
        energy.layers[0].weight.detach().clone().requires_grad_(),
        momenta.layers[2].weight.detach().clone().requires_grad_(),
        torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True),
        torch.tensor([0.9, 0.8], dtype=torch.float64, requires_grad=True),
        torch.tensor([0.8, 1.3], dtype=torch.float64, requires_grad=True),
    ]
    assert torch.autograd.gradcheck(log_prob, [x, *values])
    assert torch.autograd.gradcheck(upper, values)


def test_the_upper_bound_is_the_same_along_the_path_and_back():
    # the auxiliaries of rsample know the start of the path, those of sample retrace it
    energy = EnergyNet(2, (3,)).double()
    d = HamiltonianImportance(
        dist.Normal(torch.zeros(2).double(), 1.0).to_event(1), energy, 3, 0.3, 0.9
    )
    torch.manual_seed(0)
    along = d.rsample_and_log_prob((5,))
    torch.manual_seed(0)
    back = d.sample_and_log_prob((5,))
    with torch.no_grad():
        torch.manual_seed(0)
        known = d.sample_and_log_prob((5,))
    for other in (back, known):
        torch.testing.assert_close(other, along, rtol=0, atol=1e-12)
    assert not back[0].requires_grad
    assert back[1].requires_grad


def slopes_of_the_mean(f, **values):
    """Gradient of E[f(x)] by quadrature."""
    mean = integrate(exact_log_prob(GRID, **values).exp() * f(GRID))
    return torch.stack(torch.autograd.grad(mean, list(values.values())))


def cluster_slopes(surrogate, num=400, rows=100):
    """Gradients of a surrogate with respect to depth, step size and tempering, ``num`` times."""
    found = []
    for _ in range(num):
        values = number(DEPTH), number(STEP_SIZE), number(TEMPERING)
        d = his(depth=values[0], step_size=values[1], tempering=values[2])
        found.append(torch.stack(torch.autograd.grad(surrogate(d, (rows,)), values)))
    return torch.stack(found)


def wave(x):
    return torch.sin(x) + torch.cos(2 * x)


def by_path(d, shape):
    return wave(d.rsample(shape)).mean()


def by_score(d, shape):
    x = d.sample(shape)
    return (wave(x) * d.score_parts(x).score_function).mean()


@pytest.mark.parametrize("surrogate", [by_path, by_score])
def test_gradients_of_means_against_quadrature(surrogate):
    expected = slopes_of_the_mean(
        wave, depth=number(DEPTH), step_size=number(STEP_SIZE), tempering=number(TEMPERING)
    )
    assert expected.abs().min() > 0.01
    assert_mean(cluster_slopes(surrogate), expected)


def test_gradients_of_a_tight_bound_against_quadrature():
    values = number(DEPTH), number(STEP_SIZE), number(TEMPERING)
    expected = torch.autograd.grad(
        exact_log_prob(POINTS, depth=values[0], step_size=values[1], tempering=values[2])[1], values
    )
    d = his(depth=values[0], step_size=values[1], tempering=values[2]).tight(200_000)
    seen = torch.autograd.grad(d.log_prob(POINTS[1]), values)
    torch.testing.assert_close(seen, expected, atol=0.03, rtol=0.02)


def mixture(logit):
    return dist.MixtureSameFamily(
        dist.Categorical(logits=torch.stack([logit, torch.zeros_like(logit)])),
        dist.Normal(torch.tensor([-1.5, 1.0], dtype=torch.float64), 0.6),
    )


@pytest.mark.parametrize("pathwise", [True, False])
def test_a_base_without_path_adds_its_score(pathwise):
    def base(x):
        return mixture(logit).log_prob(x)

    logit, depth = number(0.4), number(DEPTH)
    mean = integrate(exact_log_prob(GRID, depth=depth, base=base).exp() * wave(GRID))
    expected = torch.stack(torch.autograd.grad(mean, [logit, depth]))

    def slope():
        values = number(0.4), number(DEPTH)
        d = his(base=mixture(values[0]), depth=values[1])
        assert not d.has_rsample
        assert d.is_partly_pathwise
        x = d((100,)) if pathwise else d.sample((100,))
        assert x.requires_grad == pathwise
        f = wave(x)
        surrogate = f + f.detach() * d.score_parts(x).score_function
        return torch.stack(torch.autograd.grad(surrogate.mean(), values))

    assert_mean(torch.stack([slope() for _ in range(400)]), expected)
    with pytest.raises(NotImplementedError, match="no pathwise gradient"):
        his(base=mixture(logit)).rsample()


# In Pyro.


def model(plates=1):
    with pyro.plate("data", plates):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATUM.expand(plates))


def bound_by_quadrature(depth=DEPTH, **kwargs):
    """E[log p(x, z) - upper] for the guide ``his``, its momentum scored by a standard normal."""
    z = GRID[:, None]
    joint = log_joint(z, MOMENTA, depth, **kwargs)
    log_p = normal(z) + normal(DATUM - z)
    return (joint.exp() * (log_p + normal(MOMENTA) - joint)).sum() * STEP * MOMENTUM_STEP


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, MultiSampleELBO])
def test_as_a_guide_the_bound_and_its_gradient_are_those_of_quadrature(elbo):
    depth = number(DEPTH)
    expected = bound_by_quadrature(depth)
    (slope,) = torch.autograd.grad(expected, depth)

    def guide(plates=1):
        with pyro.plate("data", plates):
            pyro.sample("z", his(depth=pyro.param("depth", number(DEPTH).detach())))

    bounds, slopes = [], []
    for _ in range(150):
        bounds.append(-elbo(num_particles=1).loss_and_grads(model, guide, 100) / 100)
        parameter = pyro.param("depth").unconstrained()
        slopes.append(-parameter.grad / 100)
        parameter.grad = None
    assert_mean(torch.tensor(bounds, dtype=torch.float64), expected.detach())
    assert_mean(torch.stack(slopes), slope)
    assert expected < normal(DATUM / 2**0.5) - math.log(2) / 2


def test_as_a_guide_without_a_path_of_the_base():
    logit, depth = number(0.4), number(DEPTH)
    expected = bound_by_quadrature(depth, base=lambda x: mixture(logit).log_prob(x))
    slopes = torch.stack(torch.autograd.grad(expected, [logit, depth]))

    def guide(plates=1):
        with pyro.plate("data", plates):
            pyro.sample("z", his(base=mixture(values[0]), depth=values[1]))

    seen = []
    for _ in range(300):
        values = number(0.4), number(DEPTH)
        bound = -Trace_ELBO().differentiable_loss(model, guide, 100) / 100
        seen.append(torch.stack(torch.autograd.grad(bound, values)))
    assert_mean(torch.stack(seen), slopes)


def test_many_particles_approach_the_evidence_from_below():
    def guide(plates=1):
        with pyro.plate("data", plates):
            pyro.sample("z", his())

    evidence = (normal(DATUM / 2**0.5) - math.log(2) / 2).item()
    losses = [MultiSampleELBO(num_particles=500).loss(model, guide, 50) / 50 for _ in range(20)]
    assert -torch.tensor(losses).mean().item() == pytest.approx(evidence, abs=0.02)


def test_as_a_prior_under_plates():
    energy, momenta = EnergyNet(2, (5,)).double(), MomentumNet(2, (5,)).double()
    data = torch.randn(12, 2, dtype=torch.float64)
    base = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)

    def prior_model(data):
        pyro.module("energy", energy)
        prior = HamiltonianImportance(base, energy, 2, 0.3, 0.9, momenta)
        with pyro.plate("data", len(data), subsample_size=6) as index:
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data[index])

    def guide(data):
        with pyro.plate("data", len(data), subsample_size=6) as index:
            pyro.sample("z", dist.Normal(data[index] / 2, 0.7).to_event(1))

    optimizer = pyro.optim.Adam({"lr": 1e-2})
    for elbo in (Trace_ELBO(3, vectorize_particles=True), TraceGraph_ELBO(), MultiSampleELBO(3)):
        before = energy.layers[0].weight.clone()
        assert math.isfinite(SVI(prior_model, guide, optimizer, elbo).step(data))
        assert not torch.equal(energy.layers[0].weight, before)
    draws = Predictive(prior_model, num_samples=7, parallel=True)(data)
    assert draws["z"].shape == (7, 6, 2)


def test_a_prior_s_bound_is_that_of_quadrature():
    def prior_model(plates):
        with pyro.plate("data", plates):
            z = pyro.sample("z", his())
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATUM.expand(plates))

    def guide(plates):
        with pyro.plate("data", plates):
            pyro.sample("z", dist.Normal(DATUM / 2, 0.7))

    guide_density = dist.Normal(DATUM / 2, 0.7).log_prob(GRID)
    lower = log_joint(GRID[:, None], MOMENTA) - normal(MOMENTA)
    lower = (normal(MOMENTA).exp() * lower).sum(-1) * MOMENTUM_STEP
    expected = integrate(guide_density.exp() * (lower + normal(DATUM - GRID) - guide_density))
    losses = [-Trace_ELBO().loss(prior_model, guide, 100) / 100 for _ in range(200)]
    assert_mean(torch.tensor(losses, dtype=torch.float64), expected)


def test_mcmc_needs_it_frozen():
    def prior_model(frozen):
        pyro.sample("z", his().tight(20).frozen(0) if frozen else his())

    with pytest.raises(ValueError, match="frozen"):
        MCMC(NUTS(prior_model), 5, 2, disable_progbar=True).run(False)
    mcmc = MCMC(NUTS(prior_model, step_size=0.3), 5, 2, disable_progbar=True)
    mcmc.run(True)
    assert mcmc.get_samples()["z"].isfinite().all()


# Behaviour: memory, shapes, dtypes.


@pytest.mark.parametrize("draw", ["__call__", "rsample", "sample"])
@pytest.mark.parametrize("step_size", [0.3, torch.tensor(0.3, requires_grad=True)])
def test_draws_are_forgotten_with_their_tensors(draw, step_size):
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    d = HamiltonianImportance(base, EnergyNet(2, (4,)), 2, step_size, 0.9, MomentumNet(2, (4,)))
    gc.disable()  # reference counts alone must do
    try:
        for _ in range(3):
            x = getattr(d, draw)((4,))
            d.score_parts(x).log_prob.sum().backward()
            assert len(d._draws) == 1
            del x
        assert len(d._draws) == 0
    finally:
        gc.enable()


def test_a_copy_is_no_draw_and_pickles_start_empty():
    d = HamiltonianImportance(BASE, torch.square, 2, 0.3, 0.9)
    x = d.rsample()
    assert d.score_parts(x).log_prob.isfinite()
    with pytest.raises(AuxiliaryLost):
        d.score_parts(x.clone())
    for other in (copy.deepcopy(d), pickle.loads(pickle.dumps(d)), d.expand((2,))):
        with pytest.raises(AuxiliaryLost):
            other.score_parts(x)


@pytest.mark.parametrize("net", [None, MomentumNet(2, (3,))])
@pytest.mark.parametrize(
    ("batch", "value", "expected"),
    [((), (7, 3), (7, 3)), ((3,), (3,), (3,)), ((3,), (7, 1), (7, 3)), ((2, 3), (3,), (2, 3))],
)
def test_shapes(net, batch, value, expected):
    base = dist.Normal(torch.zeros(*batch, 2), 1.0).to_event(1)
    d = HamiltonianImportance(base, EnergyNet(2, (4,)), 2, 0.2, 0.9, net)
    assert (d.batch_shape, d.event_shape) == (batch, (2,))
    for density in (d, d.tight(3), d.frozen(0), d.tight(3).frozen(0)):
        assert density.log_prob(torch.zeros(*value, 2)).shape == expected
    for draw in (d.sample_and_log_prob, d.rsample_and_log_prob, d.tight(3).sample_and_log_prob):
        x, upper = draw((4, 5))
        assert x.shape == (4, 5, *batch, 2)
        assert upper.shape == (4, 5, *batch)


@pytest.mark.parametrize("event_shape", [(), (4,), (2, 3)])
def test_events_of_any_shape(event_shape):
    base = dist.Normal(torch.zeros(event_shape), 1.0).to_event(len(event_shape))
    d = HamiltonianSampler(EnergyNet(event_shape, (5,)))(base)
    x, upper = d.rsample_and_log_prob((3,))
    assert (x.shape, upper.shape) == ((3, *event_shape), (3,))
    assert d.log_prob(x).shape == (3,)


def test_potential_may_depend_on_the_batch():
    context = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    x = torch.tensor(0.4, dtype=torch.float64)
    for base in (BASE, BASE.expand((3,))):
        d = HamiltonianImportance(
            base, lambda y: potential(y, context) + 0 * y, NUM_STEPS, STEP_SIZE, TEMPERING
        ).expand((3,))
        exact = torch.stack([exact_log_prob(x, depth=depth) for depth in context])
        torch.testing.assert_close(d.tight(100_000).log_prob(x), exact, atol=0.04, rtol=0)
        assert d.sample_and_log_prob((7,))[1].shape == (7, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_base(dtype):
    d = HamiltonianImportance(
        dist.Normal(torch.zeros((), dtype=dtype), 1.0), torch.cos, 3, 0.1, 0.9
    )
    x, upper = d.sample_and_log_prob((2,))
    assert x.dtype == upper.dtype == d.log_prob(x).dtype == dtype


def test_many_draws_are_made_in_chunks():
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    net, sizes = EnergyNet(2, (20, 20)), []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    d = HamiltonianImportance(base, net, 1, 0.1, 0.9)
    assert d.sample((400_000,)).shape == (400_000, 2)
    assert max(sizes) < 200_000


def test_gradients_are_evaluated_once_per_position():
    calls = []

    def counting(x):
        calls.append(x)
        return x.square()

    d = HamiltonianImportance(BASE, counting, 4, 0.1, 0.9, validate_args=False)
    x = d.rsample()
    assert len(calls) == 5
    d.score_parts(x)
    assert len(calls) == 5  # the path is known
    d.log_prob(x)
    assert len(calls) == 10


def test_a_stochastic_base_gives_a_lower_bound_and_no_upper_one():
    base = SelfNormalizedImportance(BASE, torch.square, 3)
    d = HamiltonianImportance(base, torch.cos, 2, 0.1, 0.9)
    assert not d.has_rsample
    assert torch.equal(d.frozen(0).log_prob(POINTS), d.frozen(0).log_prob(POINTS))
    with pytest.raises(NotImplementedError, match="only has a lower bound"):
        d.sample_and_log_prob()


def test_inference_mode_draws_and_scores():
    d = HamiltonianImportance(BASE, EnergyNet((), (4,)).double(), 2, 0.1, 0.9)
    with torch.inference_mode():
        x, upper = d.sample_and_log_prob((3,))
        assert d.log_prob(x).isfinite().all()
    assert upper.isfinite().all()


def test_it_is_a_stochastic_density_and_says_so():
    assert issubclass(HamiltonianImportance, StochasticDensity)
    assert HamiltonianImportance.__doc__.startswith("Stochastic:")
    assert his().density_kind == "lower"
    assert "num_steps=3" in repr(his())
    assert repr(his().tight(5).frozen(2)).endswith(".tight(5).frozen(2)")


@pytest.mark.slow
def test_a_narrow_base_learns_distant_modes():
    target, sampler = NineGaussians(), HamiltonianSampler(EnergyNet(2, (20, 20)), 5, 0.1, 0.995)
    optimizer = torch.optim.Adam(sampler.parameters(), lr=5e-3)
    base = dist.Normal(torch.zeros(2), 0.1).to_event(1)
    assert base.log_prob(target.sample((1000,))).mean() < -50
    for _ in range(2_000):
        optimizer.zero_grad()
        (-sampler(base).log_prob(target.sample((128,))).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        score = sampler(base).tight(200).log_prob(target.sample((1_000,))).mean().item()
    assert score > -6


@pytest.mark.gpu
def test_on_a_gpu_no_step_synchronises():
    base = dist.Normal(torch.zeros(2, device="cuda"), 1.0, validate_args=False).to_event(1)
    sampler = HamiltonianSampler(EnergyNet(2)).cuda()
    x = torch.randn(8, 2, device="cuda")

    def step():
        with pyro.validation_enabled(False):
            sampler(base).log_prob(x).sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    value, upper = sampler(base).sample_and_log_prob((3,))
    assert value.device == upper.device == x.device


# Bad input.


@pytest.mark.parametrize("num_steps", [0, -3, 2.5, True])
def test_too_few_steps(num_steps):
    with pytest.raises(ValueError, match=f"got num_steps={num_steps}"):
        HamiltonianImportance(BASE, torch.square, num_steps, 0.1, 0.9)


@pytest.mark.parametrize(
    "tempering",
    [0.0, 1.1, -0.5, math.nan, (0.9, 0.0), torch.tensor(1.5), torch.tensor([0.9, 0.0])],
)
def test_tempering_out_of_range(tempering):
    with pytest.raises(ValueError, match=r"tempering must lie in \(0, 1\], got"):
        HamiltonianImportance(BASE, torch.square, 2, 0.1, tempering)


@pytest.mark.parametrize("step_size", [-0.1, math.inf, math.nan, torch.tensor(-0.1)])
def test_step_size_out_of_range(step_size):
    with pytest.raises(ValueError, match=r"step_size must lie in \[0, inf\), got"):
        HamiltonianImportance(BASE, torch.square, 2, step_size, 0.9)


def test_wrong_shapes_of_numbers():
    with pytest.raises(ValueError, match=r"tempering has shape \(2,\), expected a scalar or .*3"):
        HamiltonianImportance(BASE, torch.square, 3, 0.1, (0.9, 0.9))
    with pytest.raises(ValueError, match=r"step_size has shape \(2,\), expected a scalar"):
        HamiltonianImportance(BASE, torch.square, 3, torch.tensor([0.1, 0.2]), 0.9)
    for bad in ([0.1], "0.1", None):
        with pytest.raises(ValueError, match="step_size must be a number or a tensor"):
            HamiltonianImportance(BASE, torch.square, 3, bad, 0.9)
        with pytest.raises(ValueError, match="step_size must be a number or a tensor"):
            HamiltonianSampler(EnergyNet(2, (3,)), step_size=bad)


@pytest.mark.parametrize(
    "base",
    [
        dist.Exponential(1.0),
        dist.Beta(torch.ones(2), 1.0).to_event(1),
        dist.Dirichlet(torch.ones(3)),
        dist.Bernoulli(0.5),
        dist.LogNormal(0.0, 1.0),
    ],
)
def test_a_base_that_is_not_over_real_numbers(base):
    with pytest.raises(ValueError, match="TransformReparam"):
        HamiltonianImportance(base, torch.square, 2, 0.1, 0.9)


@pytest.mark.parametrize(
    "base",
    [
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), 1.0), dist.transforms.AffineTransform(1.0, 2.0)
        ).to_event(1),
    ],
)
def test_bases_over_real_vectors(base):
    d = HamiltonianImportance(base, EnergyNet(2, (3,)), 2, 0.1, 0.9)
    assert d.log_prob(d.rsample((3,))).shape == (3,)


def test_arguments_of_the_wrong_kind():
    with pytest.raises(ValueError, match="takes a distribution as base_dist"):
        HamiltonianImportance(3, torch.square, 2, 0.1, 0.9)
    with pytest.raises(ValueError, match="must be callable"):
        HamiltonianImportance(BASE, 3, 2, 0.1, 0.9)


def test_events_that_disagree():
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"potential is defined on events of shape \(3,\)"):
        HamiltonianImportance(base, EnergyNet(3), 2, 0.1, 0.9)
    with pytest.raises(ValueError, match=r"momentum net is defined on events of shape \(3,\)"):
        HamiltonianImportance(base, EnergyNet(2), 2, 0.1, 0.9, MomentumNet(3))


@pytest.mark.parametrize("bad", [lambda x: x, lambda x: x.sum(), lambda x: x.sum(-1, keepdim=True)])
def test_wrong_shape_of_the_potential(bad):
    d = HamiltonianImportance(dist.Normal(torch.zeros(2), 1.0).to_event(1), bad, 2, 0.1, 0.9)
    for evaluate in (lambda: d.log_prob(torch.zeros(3, 2)), lambda: d.sample((3,))):
        with pytest.raises(ValueError, match="The potential returned shape"):
            evaluate()


@pytest.mark.parametrize(
    "bad", [lambda x: x.detach(), lambda x: x.long(), torch.no_grad()(lambda x: x * 1), lambda x: 3]
)
def test_potentials_that_are_not_differentiable(bad):
    d = HamiltonianImportance(BASE, bad, 2, 0.1, 0.9)
    for evaluate in (lambda: d.log_prob(POINTS), d.sample, d.rsample):
        with pytest.raises(ValueError, match="potential is not differentiable"):
            evaluate()


@pytest.mark.parametrize(
    "bad", [lambda x: (x - x.mean(0)) ** 2, lambda x: x**2 + torch.randn_like(x)]
)
def test_potentials_that_mix_events_or_are_random(bad):
    d = HamiltonianImportance(BASE, bad, 2, 0.1, 0.9)
    for evaluate in (lambda: d.log_prob(POINTS), lambda: d.rsample((5,))):
        with pytest.raises(ValueError, match="mixes the events of a batch, or draws random"):
            evaluate()


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.BatchNorm1d(3), r"layer 1 \(BatchNorm1d\) in training mode, which lets the events"),
        (nn.Dropout(0.1), r"layer 1 \(Dropout\) in training mode, which draws random numbers"),
    ],
)
def test_layers_that_mix_events_or_are_random(layer, match):
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    net = nn.Sequential(nn.Linear(2, 3), layer, nn.Tanh(), nn.Linear(3, 1), nn.Flatten(-2))
    for build in (
        lambda: HamiltonianImportance(base, net, 2, 0.1, 0.9),
        lambda: HamiltonianSampler(net, step_size=torch.ones(2)),
    ):
        with pytest.raises(ValueError, match=match):
            build()
    net.eval()
    assert HamiltonianImportance(base, net, 2, 0.1, 0.9).sample((4,)).shape == (4, 2)
    net[1] = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match=r"BatchNorm1d.*lets the events"):
        HamiltonianImportance(base, net.eval(), 2, 0.1, 0.9)


@pytest.mark.parametrize("layer", [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh])
def test_rough_layers_warn_by_name_and_once(layer, recwarn):
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    net = EnergyNet(2, (3,), layer)
    with pytest.warns(UserWarning, match=rf"layers: layers.1 \({layer.__name__}\)") as caught:
        HamiltonianImportance(base, net, 2, 0.1, 0.9)
    assert caught[0].filename == __file__
    HamiltonianImportance(base, net, 2, 0.1, 0.9)
    with pytest.warns(UserWarning, match=layer.__name__) as caught:
        HamiltonianSampler(EnergyNet(2, (3,), layer))
    assert caught[0].filename == __file__
    assert not recwarn.list


def test_paths_that_blow_up():
    steep = lambda x: 1e3 * x**4  # noqa: E731
    d = HamiltonianImportance(BASE, steep, 10, 1.0, 0.9)
    for evaluate in (lambda: d.log_prob(POINTS), lambda: d.sample((5,))):
        with pytest.raises(ValueError, match="Lower the step size"):
            evaluate()
    base = dist.Normal(0.0, 1.0, validate_args=False)
    free = HamiltonianImportance(base, steep, 10, 1.0, 0.9, validate_args=False)
    assert not free.log_prob(POINTS).isfinite().any()


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (lambda x: x, "pair of location and scale"),
        (lambda x: (x[..., :1], x), "shape"),
        (lambda x: (x, -1 - x.abs()), "not positive"),
        (lambda x: (x, math.nan * x), "not positive"),
    ],
)
def test_bad_momentum_nets(net, match):
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    d = HamiltonianImportance(base, EnergyNet(2), 2, 0.1, 0.9, net)
    with pytest.raises(ValueError, match=match):
        d.log_prob(torch.zeros(3, 2))


def test_value_outside_the_support():
    with pytest.raises(ValueError, match="support"):
        his().log_prob(torch.tensor(math.nan))
