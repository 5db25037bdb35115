"""The decomposed objective by hand, and as the ELBO."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from scipy import stats

from pyro_ext.distributions import IdentifiablePrior
from pyro_ext.infer import DecomposedELBO, DecompositionWeights
from pyro_ext.models import IdentifiableVAE

pytestmark = pytest.mark.filterwarnings("ignore:.*labels cannot identify")

X = torch.randn(5, 2, dtype=torch.float64)
LOC = torch.tensor([0.3, -0.2], dtype=torch.float64)
SCALE = torch.tensor([0.4, 1.3], dtype=torch.float64)


def model(x, size=None):
    with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def guide(x, size=None):
    loc = pyro.param("loc", LOC.clone())
    with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))):
        pyro.sample("z", dist.Normal(x / 2 + loc, SCALE).to_event(1))


def objective(*weights, **options):
    """No draw is spent on guessing the nesting."""
    return DecomposedELBO(*weights, max_plate_nesting=1, **options)


def loss(elbo, seed=0, **options):
    pyro.set_rng_seed(seed)
    return elbo.loss(model, guide, X, **options)


def by_hand(weights, z, size):
    """Sums over pairs, one number after the other."""
    q = dist.Normal(X / 2 + LOC, SCALE)
    rows, n = len(X), len(X) if size is None else size
    single = torch.zeros(rows, 2).double()
    joint = torch.zeros(rows).double()
    for m, j in itertools.product(range(rows), range(rows)):
        density = dist.Normal(q.loc[j], SCALE).log_prob(z[m]).exp()
        single[m] += density / (n * rows)
        joint[m] += density.prod() / (n * rows)
    a, b, c, d = weights
    log_q, log_p = q.log_prob(z).sum(-1), dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_single, log_joint = single.log().sum(-1), joint.log()
    terms = a * dist.Normal(z, 0.5).log_prob(X).sum(-1) - b * (log_q - log_joint)
    terms = terms - c * (log_joint - log_single) - d * (log_single - log_p)
    return terms.sum() * n / rows


PUBLISHED = (100.0, 1.0, 0.0, 10.0)
WEIGHTS = [(1.0, 1.0, 1.0, 1.0), PUBLISHED, (2.0, 0.5, 3.0, 3.0), (1.0, 0.0, 0.0, 7.0)]


@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_value_by_hand(weights, size):
    pyro.set_rng_seed(0)
    z = poutine.trace(guide).get_trace(X, size).nodes["z"]["value"].detach()
    found = -loss(objective(*weights), size=size)
    assert found == pytest.approx(by_hand(weights, z, size).item(), rel=1e-10)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_correlated_coordinates_by_hand(weights):
    """The joint law of a pair, and the two marginal ones, by SciPy."""
    root = torch.tensor([[0.4, 0.0], [-0.9, 0.7]], dtype=torch.float64)
    covariance, loc = (root @ root.T).numpy(), (X / 2 + LOC).numpy()

    def correlated(x):
        with pyro.plate("data", 40, subsample=torch.arange(5)):
            pyro.sample("z", dist.MultivariateNormal(x / 2 + LOC, scale_tril=root))

    def forty(x):
        model(x, 40)

    pyro.set_rng_seed(0)
    z = poutine.trace(correlated).get_trace(X).nodes["z"]["value"].numpy()
    joint, single = np.zeros((5, 5)), np.zeros((5, 5, 2))
    for m, j in itertools.product(range(5), range(5)):
        joint[m, j] = stats.multivariate_normal(loc[j], covariance).pdf(z[m])
        single[m, j] = stats.norm(loc[j], np.sqrt(np.diag(covariance))).pdf(z[m])
    log_joint = np.log(joint.sum(1) / 200)
    log_single = np.log(single.sum(1) / 200).sum(-1)
    a, b, c, d = weights
    log_p = stats.norm(0, 1).logpdf(z).sum(-1)
    terms = a * stats.norm(z, 0.5).logpdf(X.numpy()).sum(-1)
    terms = terms - b * (np.log(np.diag(joint)) - log_joint)
    terms = terms - c * (log_joint - log_single) - d * (log_single - log_p)
    pyro.set_rng_seed(0)
    assert -objective(*weights).loss(forty, correlated, X) == pytest.approx(terms.sum() * 8, 1e-9)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize(("rows", "size"), [(1, None), (1, 9), (5, None), (5, 1000)])
def test_weights_of_one_are_the_elbo(rows, size, num_particles, vectorize):
    """The same number for the same draws, and the same gradient; exactly by cancellation too."""
    options = {
        "num_particles": num_particles,
        "vectorize_particles": vectorize,
        "max_plate_nesting": 1,
    }
    losses, gradients = [], []
    for elbo in (Trace_ELBO(**options), DecomposedELBO(**options)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        losses.append(elbo.loss_and_grads(model, guide, X[:rows], size))
        gradients.append(pyro.param("loc").grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    near = DecomposedELBO(1.0, 1.0, 1.0 + 1e-13, 1.0 - 1e-13, **options)  # all terms are computed
    pyro.set_rng_seed(3)
    assert near.loss(model, guide, X[:rows], size) == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.parametrize("vectorize", [True, False])
def test_particles_are_averaged(vectorize):
    """Each with the aggregate posterior of its own draws."""
    elbo = objective(*WEIGHTS[2], num_particles=3, vectorize_particles=vectorize)
    pyro.set_rng_seed(1)
    if vectorize:
        with pyro.plate("num_particles_vectorized", 3, dim=-2):
            z = guide_draw()
    else:
        z = torch.stack([guide_draw() for _ in range(3)])
    expected = torch.stack([by_hand(WEIGHTS[2], one, None) for one in z]).mean()
    assert -loss(elbo, seed=1) == pytest.approx(expected.item(), rel=1e-10)


def guide_draw():
    return poutine.trace(guide).get_trace(X).nodes["z"]["value"].detach()


def test_gradient_by_finite_differences():
    elbo = objective(*PUBLISHED)
    pyro.set_rng_seed(0)
    elbo.loss_and_grads(model, guide, X)
    found = pyro.param("loc").grad.clone()
    step, start = 1e-6, pyro.param("loc").detach().clone()
    expected = []
    for shift in torch.eye(2).double() * step:
        values = []
        for sign in (1, -1):
            pyro.get_param_store()["loc"] = start + sign * shift
            values.append(loss(elbo))
        expected.append((values[0] - values[1]) / (2 * step))
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=1e-5)


def test_parts_of_an_exact_aggregate():
    """One draw for each of many data from a guide whose aggregate is the prior.

    With data of the right law, the divergence of single coordinates and the total correlation are
    zero, so that their weights do not matter but for the constants of the estimate.
    """
    num = 3000
    x = 2**0.5 * torch.randn(num, 2).double()

    def exact(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    def prior(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    values = {}
    for weights in ((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0)):
        pyro.set_rng_seed(0)
        values[weights] = DecomposedELBO(*weights).loss(prior, exact, x) / num
    single, correlation, mutual = values.values()
    constant = math.log(num)  # of log(1 / N M) where a mean would have log(1 / M)
    assert single + 2 * constant == pytest.approx(0.0, abs=0.03)
    assert correlation - constant == pytest.approx(0.0, abs=0.03)
    assert mutual - constant == pytest.approx(math.log(2.0), abs=0.05)


@pytest.mark.parametrize("local", [False, True])
def test_it_trains_a_model(local):
    with pyro.settings.context(module_local_params=local):
        vae = IdentifiableVAE(IdentifiablePrior(2, num_classes=3), 4, (8,))
        x, labels = torch.randn(9, 4), torch.arange(9) % 3
        elbo = DecomposedELBO(100.0, total_correlation=0.0, dimension_kl=10.0)
        if not local:
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
            assert math.isfinite(svi.step(x, labels, size=90))
            return
        loss_fn = elbo(vae.model, vae.guide)
        loss_fn(x, labels).backward()
        assert all(p.grad is not None for p in vae.parameters())


def test_schedule():
    """The published one: from 50 to 100, 15 to 1, 0 to 1 and 25 to 1, then the plain bound."""
    at = DecompositionWeights.annealed
    assert at(0, 1600) == (50.0, 15.0, 0.0, 25.0)
    assert at(500, 1600) == pytest.approx((75.0, 7.5, 0.5, 12.5))
    assert at(999, 1600) == pytest.approx((99.95, 1.0, 0.999, 1.0))
    assert at(1000, 1600) == at(1600, 1600) == (1.0, 1.0, 1.0, 1.0)
    elbo = objective()
    elbo.weights = at(500, 1600)
    expected = loss(objective(75.0, 7.5, 0.5, 12.5))
    assert loss(elbo) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="0 <= step <= num_steps"):
        at(5, 4)


# Bad input.


def test_bad_weights():
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="Weights are finite numbers >= 0, got mutual_inf"):
            DecomposedELBO(mutual_information=bad)
    elbo = objective()
    elbo.weights = DecompositionWeights(reconstruction=-2.0)
    with pytest.raises(ValueError, match="reconstruction=-2"):
        loss(elbo)


def run(guide_, model_=model):
    return DecomposedELBO(2.0, dimension_kl=2.0, max_plate_nesting=2).loss_and_grads(
        model_, guide_, X
    )


def test_guides_that_do_not_factorise():
    def bent(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(x, 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.ExpTransform()]))

    def one_for_all(x):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(2))

    def plates(x):
        with pyro.plate("data", len(x)), pyro.plate("more", 3, dim=-2):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def outside(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.unsqueeze(1), 1.0).to_event(1))

    def masked(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.arange(5) > 2):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def two(x):
        guide(x)
        pyro.sample("w", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    def score_function(x):
        loc = pyro.param("loc", torch.zeros(2).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", NoPath(x + loc, 1.0).to_event(1))

    cases = {
        bent: "vector whose single coordinates have densities",
        one_for_all: "vector whose single coordinates have densities",
        plates: "must be in one plate",
        masked: "is masked",
        two: "needs one latent site",
        score_function: "is not reparameterised",
        outside: "must be of dimension -1",
    }
    for case, message in cases.items():
        pyro.clear_param_store()
        with pytest.raises(ValueError, match=message):
            run(case, model if case is two else relaxed(case))


class NoPath(dist.Normal):
    has_rsample = False


def relaxed(case):
    """A model of the guide's sites."""

    def program(x):
        case(x)

    return lambda x: poutine.block(program, hide_fn=lambda site: site["type"] == "param")(x)
