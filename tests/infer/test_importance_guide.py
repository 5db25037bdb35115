"""The resampled guide on conjugate models, where posterior and evidence are known.

Statistical assertions use 5 standard errors, a false-alarm probability of 6e-7 each.
"""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam
from torch.distributions import Normal

from pyro_ext.infer import ImportanceGuide, MultiSampleELBO, pathwise

N = 10
X = torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2**0.5
ZERO = torch.zeros((), dtype=torch.float64)
LOG_EVIDENCE = Normal(ZERO, 2**0.5).log_prob(X).sum()


class Program:
    """z ~ N(0, 1), x | z ~ N(z, 1), and a guide that is off."""

    def __init__(self, batch=N):
        self.batch = batch

    def model(self):
        with pyro.plate("data", N, subsample_size=self.batch) as index:
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[index])

    def guide(self):
        with pyro.plate("data", N, subsample_size=self.batch) as index:
            pyro.sample("z", dist.Normal(X[index] / 2 + 0.3, 1.0))


class Hierarchy:
    """mu ~ N(0, 1), z_n ~ N(mu, 1), x_n ~ N(z_n, 1)."""

    def model(self):
        mu = pyro.sample("mu", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", N, subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[index])

    def guide(self):
        mu = pyro.sample("mu", dist.Normal(X.sum() / (N + 2), (2 / (N + 2)) ** 0.5))
        with pyro.plate("data", N, subsample_size=5) as index:
            pyro.sample("z", dist.Normal((X[index] + mu) / 2 + 0.2, 0.8))


def evaluate(elbo, model, guide, num_draws=300):
    with torch.no_grad():
        values = torch.tensor([-elbo.loss(model, guide) for _ in range(num_draws)])
    return values.mean().item(), values.std().item() / num_draws**0.5


def assert_equal_in_mean(one, other):
    assert abs(one[0] - other[0]) < 5 * math.hypot(one[1], other[1])


def bound_by_hand(num_particles, num_draws=100_000):
    noise = torch.randn(num_draws, num_particles, N, dtype=torch.float64)
    z = X / 2 + 0.3 + noise
    standard = Normal(ZERO, 1.0)
    log_w = standard.log_prob(z) + standard.log_prob(X - z) - standard.log_prob(noise)
    bound = (log_w.logsumexp(1) - math.log(num_particles)).sum(-1)
    return bound.mean().item(), bound.std().item() / num_draws**0.5


# The value in objectives.


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(max_plate_nesting=1),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceGraph_ELBO(max_plate_nesting=1),
        MultiSampleELBO(1, max_plate_nesting=1),
    ],
    ids=["trace", "vectorized", "graph", "multi_sample"],
)
@pytest.mark.parametrize("batch", [N, 5])
def test_in_an_elbo_it_gives_the_importance_weighted_bound(batch, elbo, vectorize):
    program = Program(batch)
    guide = ImportanceGuide(program.model, program.guide, 4, vectorize_particles=vectorize)
    num_draws = 150 if vectorize else 60
    assert_equal_in_mean(evaluate(elbo, program.model, guide, num_draws), bound_by_hand(4))


def test_exact_base_guide_gives_the_evidence_without_variance():
    program = Program()

    def exact():
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(X / 2, 0.5**0.5))

    guide = ImportanceGuide(program.model, exact, 5)
    for _ in range(3):
        assert -Trace_ELBO().loss(program.model, guide) == pytest.approx(LOG_EVIDENCE.item())


@pytest.mark.parametrize("particles", [1, 2])
def test_nested_with_global_draws(particles):
    program = Hierarchy()
    guide = ImportanceGuide(program.model, program.guide, 5)
    elbo = Trace_ELBO(
        num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
    )
    ours = evaluate(elbo, program.model, guide, 500)
    nested = evaluate(MultiSampleELBO(5, max_plate_nesting=1), program.model, program.guide, 500)
    assert_equal_in_mean(ours, nested)


@pytest.mark.parametrize("auto", [AutoNormal, AutoDiagonalNormal, AutoNormalMessenger])
def test_auto_guides_as_base(auto):
    model = Program().model
    base = auto(model)
    base()
    ours = evaluate(Trace_ELBO(), model, ImportanceGuide(model, base, 20), 200)
    assert_equal_in_mean(ours, evaluate(MultiSampleELBO(20), model, base, 200))


def test_inner_plates_and_deterministic_parts_of_the_base_guide():
    def model():
        with pyro.plate("data", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0).expand([2]).to_event(1))
            with pyro.plate("views", 3, dim=-2):
                y = pyro.sample("y", dist.Normal(z.sum(-1), 1.0))
                pyro.sample("x", dist.Normal(y, 1.0), obs=X[0].expand(3, 4))

    def guide():
        with pyro.plate("data", 4, dim=-1):
            pyro.sample("z", dist.Normal(ZERO, 1.0).expand([2]).to_event(1))
            with pyro.plate("views", 3, dim=-2):
                pyro.sample("y", dist.Normal(ZERO, 1.5))

    values = ImportanceGuide(model, guide, 6)()
    assert values["z"].shape == (4, 2)
    assert values["y"].shape == (3, 4)
    ours = evaluate(Trace_ELBO(), model, ImportanceGuide(model, guide, 6), 300)
    assert_equal_in_mean(ours, evaluate(MultiSampleELBO(6), model, guide, 300))


def test_a_scale_of_everything_scales_the_bound():
    program = Program()
    guide = ImportanceGuide(program.model, program.guide, 4)
    elbo = Trace_ELBO(max_plate_nesting=1)
    scaled = evaluate(
        elbo, pyro.poutine.scale(program.model, 0.1), pyro.poutine.scale(guide, 0.1), 150
    )
    by_hand = bound_by_hand(4)
    assert_equal_in_mean(scaled, (0.1 * by_hand[0], 0.1 * by_hand[1]))


# Draws.


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("psis", [True, False])
def test_draws_are_of_the_posterior(psis, parallel):
    program, num_draws = Program(), 400
    guide = ImportanceGuide(program.model, program.guide, 200, psis=psis)
    with torch.no_grad():
        z = Predictive(guide, num_samples=num_draws, parallel=parallel)()["z"]
    assert z.shape == (num_draws, N)
    # 5 standard errors, and 0.01 for the bias of 200 particles, which is below 1 / 200 of a scale
    assert ((z.mean(0) - X / 2).abs() < 5 * (0.5 / num_draws) ** 0.5 + 0.01).all()
    error = 0.5 * (2 / (num_draws * N)) ** 0.5
    assert abs((z - X / 2).square().mean() - 0.5) < 5 * error + 0.01


def test_predictive_of_the_model_sees_the_draws():
    program = Program()
    guide = ImportanceGuide(program.model, program.guide, 50)

    def predict():
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0))

    draws = Predictive(predict, guide=guide, num_samples=20, parallel=True)()
    assert draws["x"].shape == (20, N)


def test_psis_is_still_a_bound_and_no_better_than_the_evidence():
    program = Program()
    guide = ImportanceGuide(program.model, program.guide, 50, psis=True)
    value, error = evaluate(Trace_ELBO(), program.model, guide, 300)
    assert value < LOG_EVIDENCE + 5 * error
    assert value > LOG_EVIDENCE - 1


# Gradients.


def test_gradient_is_that_of_the_bound():
    locs = PyroModule[torch.nn.Module]()
    locs.bias = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def guide():
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(X / 2 + locs.bias, 1.0))

    model = Program().model
    ours = ImportanceGuide(model, guide, 4)
    gradients = []
    for elbo, program in ((Trace_ELBO(), ours), (MultiSampleELBO(4, gradient=pathwise), guide)):
        draws = [
            torch.autograd.grad(elbo.differentiable_loss(model, program), locs.bias)[0]
            for _ in range(400)
        ]
        draws = torch.stack(draws)
        gradients.append((draws.mean().item(), draws.std().item() / 20))
    assert_equal_in_mean(*gradients)
    assert abs(gradients[0][0]) > 5 * gradients[0][1]


@pytest.mark.parametrize("elbo", [Trace_ELBO(max_plate_nesting=1), TraceGraph_ELBO()])
def test_gradient_of_a_discrete_base_guide_is_the_exact_one(elbo):
    repeats, num_particles = 20_000, 2
    x = torch.full((repeats,), 0.5, dtype=torch.float64)

    def model():
        with pyro.plate("data", repeats):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
            pyro.sample("x", dist.Normal(2 * b, 1.0), obs=x)

    def guide():
        logit = pyro.param("logit", torch.tensor(0.3, dtype=torch.float64))
        with pyro.plate("data", repeats):
            pyro.sample("b", dist.Bernoulli(logits=logit))

    guide()
    logit = pyro.param("logit")
    b = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_q = dist.Bernoulli(logits=logit).log_prob(b)
    log_p = dist.Bernoulli(0.3).log_prob(b) + Normal(2 * b, 1.0).log_prob(x[0])
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    bounds = (log_p - log_q)[pairs].logsumexp(-1) - math.log(2)
    exact = -torch.autograd.grad((log_q[pairs].sum(-1).exp() * bounds).sum(), logit)[0]
    ours, draws = ImportanceGuide(model, guide, num_particles), []
    for _ in range(20):
        logit.grad = None
        elbo.loss_and_grads(model, ours)
        draws.append(logit.grad / repeats)
    draws = torch.stack(draws)
    # the standard error from 20 draws is itself uncertain: 8 of it, t with 19 degrees, is 2e-7
    assert abs(draws.mean() - exact) < 8 * draws.std() / 20**0.5
    assert abs(exact) > 8 * draws.std() / 20**0.5


class Base(PyroModule):
    def __init__(self):
        super().__init__()
        self.bias = PyroParam(torch.tensor(1.0, dtype=torch.float64))

    def forward(self):
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(X / 2 + self.bias, 0.8))


@pytest.mark.parametrize("local", [True, False])
def test_training_with_svi(local):
    with pyro.settings.context(module_local_params=local):
        model, base = Program().model, Base()
        svi = SVI(
            model, ImportanceGuide(model, base, 5), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO()
        )
        for _ in range(150):
            svi.step()
        assert abs(base.bias.item()) < 0.35


def test_pickle_deepcopy_and_parameters():
    guide = ImportanceGuide(pyro.poutine.block, Base(), 3)
    assert [name for name, _ in guide.named_parameters()] == ["guide.bias_unconstrained"] or list(
        guide.parameters()
    )
    for copied in (pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)):
        assert copied.num_particles == 3
        assert next(copied.parameters()) == next(guide.parameters())


# Bad input.


@pytest.mark.parametrize(("num_particles", "psis"), [(0, False), (24, True), (2.5, False)])
def test_too_few_particles(num_particles, psis):
    with pytest.raises(ValueError, match="num_particles must be an integer >="):
        ImportanceGuide(Program().model, Program().guide, num_particles, psis=psis)


def test_training_by_smoothed_weights_is_refused():
    model = Program().model
    guide = ImportanceGuide(model, Base(), 50, psis=True)
    with pytest.raises(ValueError, match="psis=True has no pathwise gradient"):
        Trace_ELBO().loss_and_grads(model, guide)


def test_enumeration_is_refused():
    def model():
        with pyro.plate("data", N):
            b = pyro.sample("b", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(b, 1.0), obs=X)

    with pytest.raises(ValueError, match="cannot weigh draws of a model that enumerates"):
        ImportanceGuide(model, lambda: None, 3)()


def test_global_discrete_draws_are_refused_for_training():
    def model():
        b = pyro.sample("b", dist.Bernoulli(0.5))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def guide():
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.zeros(()))))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(X / 2, 1.0))

    with pytest.raises(ValueError, match="trainable draw outside of the plates"):
        Trace_ELBO().loss_and_grads(model, ImportanceGuide(model, guide, 3))
    with torch.no_grad():
        assert math.isfinite(Trace_ELBO().loss(model, ImportanceGuide(model, guide, 3)))
