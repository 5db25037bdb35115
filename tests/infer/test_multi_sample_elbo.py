"""The multi-sample bound on conjugate models whose evidence is known.

Statistical assertions state their number of standard errors: 5 is a false-alarm probability of
6e-7, 4 of 6e-5.
"""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroParam

from pyro_ext.infer import Factors, MultiSampleELBO, auto, pathwise, rws
from pyro_ext.ops import cubo, iwae, renyi

N = 10
X = torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2**0.5
LOG_EVIDENCE = dist.Normal(0.0, 2**0.5).log_prob(X)
ZERO = torch.zeros((), dtype=torch.float64)


class Conjugate:
    """z ~ N(0, 1), x | z ~ N(z, 1); the guide N(x / 2 + bias, scale^2), exact by default."""

    def __init__(self, batch=N, bias=0.0, scale=0.5**0.5):
        self.batch, self.bias, self.scale = batch, bias, scale

    def plate(self):
        return pyro.plate("data", N, subsample_size=self.batch)

    def model(self):
        with self.plate() as index:
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[index])

    def guide(self):
        with self.plate() as index:
            pyro.sample("z", dist.Normal(X[index] / 2 + self.bias, self.scale))


IMPERFECT = {"bias": 0.3, "scale": 1.0}


def reference(num_particles, num_draws=200_000):
    """The imperfect guide's bound, summed over data, by plain Monte Carlo without Pyro."""
    noise = torch.randn(num_draws, num_particles, N, dtype=torch.float64)
    z = X / 2 + 0.3 + noise
    log_normal = torch.distributions.Normal(0, 1).log_prob
    log_w = log_normal(z) + log_normal(X - z) - log_normal(noise)
    bound = (log_w.logsumexp(1) - math.log(num_particles)).sum(-1)
    return bound.mean(), bound.std() / num_draws**0.5


def evaluate(elbo, program, num_draws):
    values = torch.tensor([-elbo.loss(program.model, program.guide) for _ in range(num_draws)])
    return values.mean(), values.std() / num_draws**0.5


# The exact guide: every bound is the evidence, without variance.


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("num_particles", [1, 2, 7])
@pytest.mark.parametrize("batch", [N, 3, 1])
def test_exact_guide_gives_the_evidence_of_its_subsample(batch, num_particles, vectorize):
    program = Conjugate(batch)
    elbo = MultiSampleELBO(num_particles, vectorize_particles=vectorize)
    state = torch.get_rng_state()
    loss = elbo.loss(program.model, program.guide)
    torch.set_rng_state(state)
    log_w = elbo.log_weights(program.model, program.guide)
    assert log_w.shape == (num_particles, batch)
    evidence = log_w.mean(0)  # all equal
    assert all(torch.isclose(LOG_EVIDENCE, value).any() for value in evidence)
    torch.testing.assert_close(log_w, evidence.expand_as(log_w))
    if batch == N:
        assert loss == pytest.approx(-LOG_EVIDENCE.sum().item())


def test_exact_guide_without_any_plate():
    def model():
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

    def guide():
        pyro.sample("z", dist.Normal(X[0] / 2, 0.5**0.5))

    elbo = MultiSampleELBO(4)
    assert elbo.log_weights(model, guide).shape == (4,)
    assert elbo.loss(model, guide) == pytest.approx(-LOG_EVIDENCE[0].item())


@pytest.mark.parametrize("vectorize", [True, False])
def test_exact_guide_in_nested_plates(vectorize):
    x = X.reshape(5, 2)

    def plates():
        return pyro.plate("columns", 2, dim=-1), pyro.plate("rows", 5, dim=-2)

    def model():
        columns, rows = plates()
        with columns, rows:
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        columns, rows = plates()
        with columns, rows:
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    elbo = MultiSampleELBO(3, vectorize_particles=vectorize)
    expected = LOG_EVIDENCE.reshape(5, 2).expand(3, 5, 2)
    torch.testing.assert_close(elbo.log_weights(model, guide), expected)


def test_events_and_inner_plates_are_summed_into_the_weight():
    x = torch.randn(4, 3, dtype=torch.float64)  # three views of each of four data

    def model():
        with pyro.plate("data", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            with pyro.plate("views", 3, dim=-2):
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.T)

    def guide():  # p(z | x) has precision I + 3 * ones
        precision = torch.eye(2, dtype=torch.float64) + 3
        loc = x.sum(-1, keepdim=True).expand(4, 2) @ precision.inverse()
        with pyro.plate("data", 4, dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    marginal = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double() + 2)
    log_w = MultiSampleELBO(5).log_weights(model, guide)
    torch.testing.assert_close(log_w, marginal.log_prob(x).expand(5, 4))


@pytest.mark.parametrize("vectorize", [True, False])
def test_guide_sites_outside_the_plate_are_charged_once(vectorize):
    program = Conjugate()
    guide = AutoDiagonalNormal(program.model, init_loc_fn=pyro.infer.autoguide.init_to_sample)
    guide()
    guide.loc.data = X / 2
    guide.scale = torch.full((N,), 0.5**0.5, dtype=torch.float64)
    elbo = MultiSampleELBO(4, vectorize_particles=vectorize)
    assert elbo.log_weights(program.model, guide).shape == (4,)
    assert elbo.loss(program.model, guide) == pytest.approx(-LOG_EVIDENCE.sum().item(), abs=1e-5)
    renyi = RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True)
    assert -renyi.loss(program.model, guide) > LOG_EVIDENCE.sum() + 50  # Pyro's own is far above


# The imperfect guide.


def test_subsampled_bound_is_the_full_one_where_renyi_is_above_the_evidence():
    expected, error = reference(10)
    full = evaluate(MultiSampleELBO(10), Conjugate(**IMPERFECT), 2_000)
    subsampled = evaluate(MultiSampleELBO(10), Conjugate(batch=1, **IMPERFECT), 4_000)
    assert abs(full[0] - expected) < 5 * math.hypot(full[1], error)
    assert abs(subsampled[0] - expected) < 4 * math.hypot(subsampled[1], error)
    assert expected < LOG_EVIDENCE.sum()
    renyi = RenyiELBO(alpha=0, num_particles=10, vectorize_particles=True)
    theirs = evaluate(renyi, Conjugate(batch=1, **IMPERFECT), 2_000)
    assert theirs[0] - 5 * theirs[1] > LOG_EVIDENCE.sum() + 1.5


def test_sequential_particles_share_their_subsample():
    # unshared, each weight would mix ten data and the bound would leave its own expectation
    expected, error = reference(10)
    elbo = MultiSampleELBO(10, vectorize_particles=False)
    ours = evaluate(elbo, Conjugate(batch=1, **IMPERFECT), 1_500)
    assert abs(ours[0] - expected) < 5 * math.hypot(ours[1], error)
    exact = MultiSampleELBO(10, vectorize_particles=False)
    log_w = exact.log_weights(Conjugate(batch=1).model, Conjugate(batch=1).guide)
    torch.testing.assert_close(log_w, log_w[:1].expand_as(log_w))


def test_bound_grows_with_the_particles_up_to_the_evidence():
    values = [evaluate(MultiSampleELBO(k), Conjugate(**IMPERFECT), 600) for k in (1, 3, 30)]
    for (low, low_error), (high, high_error) in pairwise(values):
        assert high > low + 5 * math.hypot(low_error, high_error)
    assert values[-1][0] < LOG_EVIDENCE.sum() + 4 * values[-1][1]


def test_one_particle_is_trace_elbo():
    program = Conjugate(batch=3, **IMPERFECT)
    for seed in range(5):
        losses = []
        for elbo in (MultiSampleELBO(1, max_plate_nesting=1), Trace_ELBO(max_plate_nesting=1)):
            pyro.set_rng_seed(seed)
            losses.append(elbo.loss(program.model, program.guide))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_joint_weight_over_a_plate_that_is_not_common():
    # a global latent: one weight for all data
    def model():
        loc = pyro.sample("loc", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=X)

    def guide():
        pyro.sample("loc", dist.Normal(X.sum() / (N + 1), (N + 1) ** -0.5))

    covariance = torch.eye(N) + torch.ones(N, N)
    evidence = dist.MultivariateNormal(torch.zeros(N).double(), covariance.double()).log_prob(X)
    log_w = MultiSampleELBO(5).log_weights(model, guide)
    torch.testing.assert_close(log_w, evidence.expand(5))


# Scale and mask.


@pytest.mark.parametrize("factor", [0.25, torch.tensor(0.25, dtype=torch.float64)])
@pytest.mark.parametrize("batch", [N, 2])
def test_a_scale_of_everything_stays_outside(factor, batch):
    program = Conjugate(batch, **IMPERFECT)
    elbo = MultiSampleELBO(5, max_plate_nesting=1)
    pyro.set_rng_seed(0)
    plain = elbo.loss(program.model, program.guide)
    pyro.set_rng_seed(0)
    scaled = elbo.loss(poutine.scale(program.model, factor), poutine.scale(program.guide, factor))
    assert scaled == pytest.approx(float(factor) * plain)


def test_a_scale_of_some_sites_tempers_inside():
    def model():
        with pyro.plate("data", N):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    program = Conjugate()
    trace = poutine.trace(program.guide).get_trace()
    z = trace.nodes["z"]["value"]
    expected = 0.5 * dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X)
    expected = expected - dist.Normal(X / 2, 0.5**0.5).log_prob(z)
    replayed = poutine.replay(program.guide, trace=trace)
    log_w = MultiSampleELBO(1).log_weights(model, replayed)
    torch.testing.assert_close(log_w, expected[None])


def test_a_tensor_of_scales_is_refused():
    program = Conjugate()
    weights = torch.linspace(1, 2, N)
    with pytest.raises(ValueError, match=r"Site 'z' has a scale of shape \(10,\)"):
        MultiSampleELBO(2).loss(
            poutine.scale(program.model, weights), poutine.scale(program.guide, weights)
        )


def test_masked_data_are_not_charged():
    mask = torch.arange(N) < 6
    program = Conjugate()
    elbo = MultiSampleELBO(3)
    loss = elbo.loss(poutine.mask(program.model, mask), poutine.mask(program.guide, mask))
    assert loss == pytest.approx(-LOG_EVIDENCE[:6].sum().item())


def test_deterministics_do_not_count_as_sites_and_factors_do():
    program = Conjugate()

    def model():
        pyro.deterministic("outside", ZERO)
        with program.plate():
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)
            pyro.factor("bonus", torch.full((N,), 0.5, dtype=torch.float64))

    log_w = MultiSampleELBO(3).log_weights(model, program.guide)
    torch.testing.assert_close(log_w, (LOG_EVIDENCE + 0.5).expand(3, N))


# Gradients and the ways to use them.


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.bias = PyroParam(torch.tensor(0.3, dtype=torch.float64))
        self.scale = PyroParam(
            torch.tensor(1.0, dtype=torch.float64), constraint=dist.constraints.positive
        )

    def forward(self):
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(X / 2 + self.bias, self.scale))


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.2, dtype=torch.float64))

    def forward(self):
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def test_pathwise_gradient_against_autograd_without_pyro():
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.2, 0.3, 0.0)]
    loc, bias, log_scale = parameters
    pyro.set_rng_seed(4)
    noise = torch.normal(torch.zeros(6, N).double(), torch.ones(6, N).double())
    z = X / 2 + bias + log_scale.exp() * noise
    log_normal = torch.distributions.Normal(ZERO, 1).log_prob
    log_w = log_normal(z - loc) + log_normal(X - z) - log_normal(noise) + log_scale
    expected = -(log_w.logsumexp(0) - math.log(6)).sum()

    pyro.set_rng_seed(4)  # Pyro's normal draws the same noise
    loss = MultiSampleELBO(6, gradient=pathwise, max_plate_nesting=1).differentiable_loss(
        Model(), Guide()
    )
    torch.testing.assert_close(loss, expected)
    leaves = [pyro.param(name).unconstrained() for name in ("loc", "bias", "scale")]
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, parameters)
    )


def train_svi(model, guide):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), MultiSampleELBO(5))
    return [svi.step() for _ in range(300)]


def train_module(model, guide):
    objective = MultiSampleELBO(5)(model, guide)
    objective()
    optimizer, losses = torch.optim.Adam(objective.parameters(), lr=0.03), []
    for _ in range(300):
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("fit", [train_svi, train_module])
def test_training_reaches_the_best_model(fit, local):
    with pyro.settings.context(module_local_params=local):
        model, guide = Model(), Guide()
        losses = fit(model, guide)
        best = dist.Normal(X.mean(), 2**0.5).log_prob(X).sum().item()
        assert sum(losses[-50:]) / 50 == pytest.approx(-best, abs=0.2)
        assert model.loc.item() == pytest.approx(X.mean().item(), abs=0.25)
        # the exact posterior is N((x + loc) / 2, 1/2)
        assert guide.bias.item() == pytest.approx(model.loc.item() / 2, abs=0.2)


def test_losses_agree():
    model, guide, elbo = Model(), Guide(), MultiSampleELBO(4, max_plate_nesting=1)
    values = []
    for loss in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        pyro.set_rng_seed(3)
        values.append(torch.as_tensor(loss(model, guide)).item())
    assert values[0] == pytest.approx(values[1]) == pytest.approx(values[2])


def test_loss_leaves_no_gradient():
    model, guide = Model(), Guide()
    MultiSampleELBO(4).loss(model, guide)
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])


def test_a_users_bound_is_as_good_as_ours():
    def elbo_of_each(log_w):
        return log_w.mean(0)

    program = Conjugate(**IMPERFECT)
    pyro.set_rng_seed(0)
    ours = MultiSampleELBO(5, elbo_of_each, max_plate_nesting=1).loss(program.model, program.guide)
    pyro.set_rng_seed(0)
    pyros = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert ours == pytest.approx(pyros.loss(program.model, program.guide), rel=1e-6)


def test_no_float_is_read_while_the_loss_is_built():
    # on a GPU each .item() waits for the device
    program = Conjugate(batch=3)
    elbo = MultiSampleELBO(4, max_plate_nesting=1)
    read = torch.Tensor.item
    calls = []

    def spy(tensor):
        calls.append(tensor)
        return read(tensor)

    with pytest.MonkeyPatch.context() as patch, pyro.validation_enabled(False):
        patch.setattr(torch.Tensor, "item", spy)
        elbo.differentiable_loss(program.model, program.guide)
    assert not calls


# Bad input.


@pytest.mark.parametrize("num_particles", [0, -1, 2.0, True])
def test_too_few_particles(num_particles):
    with pytest.raises(ValueError, match="num_particles must be an integer >= 1"):
        MultiSampleELBO(num_particles)


def test_bound_that_is_no_function():
    with pytest.raises(ValueError, match="bound must be a function"):
        MultiSampleELBO(2, "iwae")


def test_bound_of_the_wrong_shape():
    program = Conjugate()
    with pytest.raises(ValueError, match=r"returned shape \(\) for log-weights of shape \(2, 10\)"):
        MultiSampleELBO(2, lambda log_w: iwae(log_w).sum()).loss(program.model, program.guide)


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_subsampled_plate_that_is_not_common_is_refused(vectorize):
    def model():
        loc = pyro.sample("loc", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", N, subsample_size=2) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=X[index])

    def guide():
        pyro.sample("loc", dist.Normal(ZERO, 1.0))

    with pytest.raises(ValueError, match=r"Plate 'data' is subsampled \(2 of 10\)"):
        MultiSampleELBO(3, vectorize_particles=vectorize).loss(model, guide)


def test_a_sequential_subsampled_plate_is_refused():
    def program(observe):
        for i in pyro.plate("data", N, subsample_size=2):
            z = pyro.sample(f"z_{i}", dist.Normal(ZERO, 1.0))
            if observe:
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=X[i])

    with pytest.raises(ValueError, match="Plate 'data' is subsampled"):
        MultiSampleELBO(2).loss(lambda: program(True), lambda: program(False))


def test_a_sequential_plate_of_all_data_is_one_joint_weight():
    def model():
        for i in pyro.plate("data", N):
            z = pyro.sample(f"z_{i}", dist.Normal(ZERO, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=X[i])

    def guide():
        for i in pyro.plate("data", N):
            pyro.sample(f"z_{i}", dist.Normal(X[i] / 2, 0.5**0.5))

    log_w = MultiSampleELBO(3).log_weights(model, guide)
    torch.testing.assert_close(log_w, LOG_EVIDENCE.sum().expand(3))


def discrete_guide():
    logits = pyro.param("logits", torch.zeros(()))
    pyro.sample("b", dist.Bernoulli(logits=logits))


def discrete_model():
    b = pyro.sample("b", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(0.5))


def test_gradient_of_a_discrete_guide_is_refused_where_renyi_is_silently_zero():
    with pytest.raises(ValueError, match=r"Guide site 'b' \(Bernoulli\) has trainable"):
        MultiSampleELBO(3, gradient=pathwise).loss_and_grads(discrete_model, discrete_guide)
    assert math.isfinite(MultiSampleELBO(3).loss(discrete_model, discrete_guide))
    MultiSampleELBO(3).loss_and_grads(discrete_model, discrete_guide)
    assert pyro.param("logits").grad != 0
    pyro.param("logits").grad = None
    renyi = RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True)
    renyi.loss_and_grads(discrete_model, discrete_guide)
    assert pyro.param("logits").grad in (None, 0)


def test_sequential_enumeration_is_refused():
    guide = pyro.infer.config_enumerate(discrete_guide, default="sequential")
    with pytest.raises(ValueError, match="Site 'b' asks for enumeration by 'sequential'"):
        MultiSampleELBO(1, max_plate_nesting=0).loss(discrete_model, guide)


def test_nothing_to_weigh():
    with pytest.raises(ValueError, match="no sample site"):
        MultiSampleELBO(2).loss(lambda: None, lambda: None)


@pytest.mark.gpu
def test_on_a_gpu_a_step_does_not_synchronise():
    x = X.cuda()

    def model():
        with pyro.plate("data", N, device="cuda"):
            z = pyro.sample("z", dist.Normal(ZERO.cuda(), 1.0, validate_args=False))
            pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)

    def guide():
        loc = pyro.param("loc", ZERO.cuda)
        with pyro.plate("data", N, device="cuda"):
            pyro.sample("z", dist.Normal(x / 2 + loc, 0.7, validate_args=False))

    elbo = MultiSampleELBO(4, max_plate_nesting=1)
    with pyro.validation_enabled(False):
        elbo.loss_and_grads(model, guide)
        torch.cuda.set_sync_debug_mode("error")
        try:
            elbo.differentiable_loss(model, guide).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("gradient", [pathwise, auto])
def test_bound_of_the_wrong_shape_in_training(gradient):
    with pytest.raises(ValueError, match=r"returned shape \(\) for log-weights"):
        MultiSampleELBO(2, lambda w: w.mean(), gradient).loss_and_grads(Conjugate().model, Guide())


def test_a_flow_without_inverse_is_refused_by_name():
    flow = dist.transforms.Planar(2)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    with pytest.raises(ValueError, match=r"no inverse.*gradient=pathwise"):
        MultiSampleELBO(3).loss_and_grads(model, guide)
    MultiSampleELBO(3, gradient=pathwise).loss_and_grads(model, guide)
    assert flow.u.grad is not None


def test_second_derivatives_are_refused_but_of_the_pathwise_gradient():
    model, guide = Conjugate().model, Guide()
    guide()
    parameters = list(guide.parameters())
    loss = MultiSampleELBO(3, gradient=pathwise).differentiable_loss(model, guide)
    (gradient,) = torch.autograd.grad(loss, parameters[:1], create_graph=True)
    assert torch.autograd.grad(gradient, parameters[0])[0].isfinite()
    loss = MultiSampleELBO(3).differentiable_loss(model, guide)
    with pytest.raises(RuntimeError, match="second derivatives use gradient=pathwise"):
        torch.autograd.grad(loss, parameters[:1], create_graph=True)


def test_an_observed_site_in_the_guide_is_refused():
    program = Conjugate()
    with pytest.raises(ValueError, match="Guide site 'x' is observed, but a guide only draws"):
        MultiSampleELBO(3).loss(program.guide, program.model)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (iwae, "is no estimator"),
        (lambda particle: particle.slope, "expected Factors"),
        (lambda particle: Factors(particle.slope.sum(0)), "expected Factors"),
        ("dreg", "gradient must be a function"),
    ],
)
def test_what_is_no_estimator(gradient, message):
    with pytest.raises(ValueError, match=message):
        MultiSampleELBO(3, gradient=gradient)


def test_a_bound_that_returns_no_tensor_or_was_never_made():
    program = Conjugate()
    with pytest.raises(ValueError, match="expected a tensor"):
        MultiSampleELBO(3, lambda log_w: 0.0).loss(program.model, program.guide)
    with pytest.raises(ValueError, match="make the bound first"):
        MultiSampleELBO(3, renyi).loss(program.model, program.guide)


@pytest.mark.parametrize("nesting", [-1, 0.5, "1"])
def test_bad_max_plate_nesting(nesting):
    with pytest.raises(ValueError, match="max_plate_nesting must be an integer >= 0"):
        MultiSampleELBO(3, max_plate_nesting=nesting)


def test_an_upper_bound_is_not_for_wake_sleep_nor_nested():
    program = Conjugate()
    with pytest.raises(ValueError, match="gradient=rws has no meaning where the bound"):
        MultiSampleELBO(3, cubo(2), rws).loss_and_grads(program.model, Guide())

    def model():
        loc = pyro.sample("loc", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def guide():
        pyro.sample("loc", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(X / 2, 1.0))

    with pytest.raises(ValueError, match=r"the bound is nested: from below"):
        MultiSampleELBO(3, cubo(2)).loss(model, guide)
