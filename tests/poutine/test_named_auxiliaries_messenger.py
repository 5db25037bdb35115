"""Named auxiliaries against sums over all outcomes, and against the single site.

Statistical tests compare a mean of 16 runs with the truth, or with another such mean, at ten
standard errors: a false alarm has a probability below 1e-6 each.
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    config_enumerate,
)

from pyro_ext.distributions import (
    HamiltonianImportance,
    LearnedAcceptReject,
    SelfNormalizedImportance,
    SemiImplicit,
    TruncatedRejection,
)
from pyro_ext.infer import MultiSampleELBO
from pyro_ext.nn import MovingNormalizer
from pyro_ext.poutine import NamedAuxiliariesMessenger, named_auxiliaries

RUNS, ERRORS = 16, 10.0
X = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
BATCH = torch.tensor([0, 2])  # of the data, each of which counts for one and a half
SIDES = ["model", "guide"]


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def programs(side, density, other):
    """A latent z in a subsampled plate, with a stochastic density on one side."""
    prior, posterior = (density, other) if side == "model" else (other, density)

    def model(x):
        with pyro.plate("data", len(x), subsample=BATCH):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z.to(x), 1.0), obs=x[BATCH])

    def guide(x):
        with pyro.plate("data", len(x), subsample=BATCH):
            pyro.sample("z", posterior())

    return model, guide


def run(elbo, pair, parameters):
    """Loss and gradients of one step."""
    for parameter in parameters:
        parameter.grad = None
    if isinstance(elbo, TraceGraph_ELBO):
        loss = torch.tensor(elbo.loss_and_grads(*pair, X), dtype=torch.float64)
    else:
        loss = elbo.differentiable_loss(*pair, X)
        loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([loss.detach().reshape(1), *(grad.flatten() for grad in grads)])


def moments(elbo, pair, parameters):
    """Means of loss and gradients, and their standard errors."""
    draws = torch.stack([run(elbo, pair, parameters) for _ in range(RUNS)])
    return draws.mean(0), draws.std(0) / math.sqrt(RUNS)


def assert_equal(mean, error, truth):
    assert ((mean - truth).abs() <= ERRORS * error + 1e-9).all(), ((mean - truth) / error, truth)


def trace(num_particles=500):
    return Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=1)


# Finite samplers, against the sum over all outcomes: none of their choices has a path.


class Importance:
    """Two candidates of three values."""

    def __init__(self):
        self.logits, self.energy = tensor(0.1, -0.3, 0.5), tensor(0.7, -0.8, 0.1)
        self.parameters = [self.logits, self.energy]

    def density(self):
        proposal = dist.Categorical(logits=self.logits)
        return SelfNormalizedImportance(proposal, self.energy.__getitem__, 2)

    def outcomes(self):
        """Values, log p(value, auxiliaries), log r(auxiliaries | value)."""
        log_pi = self.logits.log_softmax(0)
        for candidates in itertools.product(range(3), repeat=2):
            chosen = torch.log_softmax(-self.energy[list(candidates)], 0)
            for i in range(2):
                z, other = candidates[i], candidates[1 - i]
                log_p = log_pi[z] + log_pi[other] + chosen[i]
                yield z, log_p, log_pi[other] - math.log(2)


class Rejection:
    """Three tries of three values."""

    def __init__(self):
        self.logits, self.logit = tensor(0.1, -0.3, 0.5), tensor(0.7, -0.8, 0.1)
        self.reverse = tensor(0.4)
        self.parameters = [self.logits, self.logit, self.reverse]

    def density(self):
        proposal = dist.Categorical(logits=self.logits)
        logit, reverse = self.logit.__getitem__, self.reverse[0]
        return TruncatedRejection(proposal, logit, 3, reverse_logit=reverse)

    def outcomes(self):
        log_pi, a, guess = self.logits.log_softmax(0), self.logit.sigmoid(), self.reverse.sigmoid()
        for tries in itertools.product(range(3), repeat=3):
            x, y, _ = tries
            first = [a[x], (1 - a[x]) * a[y], (1 - a[x]) * (1 - a[y])]
            for i in range(3):
                value = tries[i]
                guesses = [a[value], (1 - guess[0]) * a[value], (1 - guess[0]) ** 2]
                log_all = log_pi[list(tries)].sum()
                log_r = (guesses[i] / sum(guesses)).log() + log_all - log_pi[value]
                yield value, log_all + first[i].log(), log_r


class Mixture:
    """A coin that chooses among two dice."""

    def __init__(self):
        self.coin, self.reverse = tensor(0.4), tensor(0.3, -0.2, 1.0)
        self.dice = tensor([0.1, -0.3, 0.5], [0.6, 0.2, -1.0])
        self.parameters = [self.coin, self.dice, self.reverse]

    def density(self):
        return SemiImplicit(
            dist.Bernoulli(logits=self.coin[0]),
            lambda psi: dist.Categorical(logits=self.dice[psi.long()]),
            lambda z: dist.Bernoulli(logits=self.reverse[z]),
        )

    def outcomes(self):
        for z, psi in itertools.product(range(3), (0, 1)):
            side = 2 * psi - 1
            log_psi = torch.nn.functional.logsigmoid(side * self.coin[0])
            log_r = torch.nn.functional.logsigmoid(side * self.reverse[z])
            yield z, log_psi + self.dice[psi].log_softmax(0)[z], log_r


class Other:
    """The ordinary distribution on the other side."""

    def __init__(self):
        self.logits = tensor(0.3, 0.2, -0.6)

    def density(self):
        return dist.Categorical(logits=self.logits)


FINITE = [Importance, Rejection, Mixture]


def exact(side, sampler, other):
    """Minus the evidence lower bound and its gradients, by the sum over all outcomes."""
    loss = 0.0
    for z, log_p, log_r in sampler.outcomes():
        log_other = other.logits.log_softmax(0)[z]
        log_x = dist.Normal(float(z), 1.0).log_prob(X[BATCH])
        log_w = log_p - log_r - log_other if side == "model" else log_other + log_r - log_p
        log_q = log_other + log_r if side == "model" else log_p
        loss = loss - 1.5 * (log_q.exp() * (log_x + log_w)).sum()
    grads = torch.autograd.grad(loss, [*sampler.parameters, other.logits])
    return torch.cat([loss.detach().reshape(1), *(grad.flatten() for grad in grads)])


@pytest.mark.parametrize("sampler", FINITE)
def test_the_outcomes_are_all(sampler):
    outcomes = list(sampler().outcomes())
    assert sum(log_p.exp() for _, log_p, _ in outcomes).item() == pytest.approx(1)
    for value in range(3):
        log_r = [log_r for z, _, log_r in outcomes if z == value]
        assert sum(r.exp() for r in log_r).item() == pytest.approx(1)


OBJECTIVES = {
    "Trace": (trace, lambda guide: guide),
    "TraceGraph": (
        lambda: TraceGraph_ELBO(500, vectorize_particles=True, max_plate_nesting=1),
        lambda guide: guide,
    ),
    "enumerated": (
        lambda: TraceEnum_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1),
        lambda guide: poutine.infer_config(guide, enumerate_auxiliaries),
    ),
    "MultiSample": (
        lambda: MultiSampleELBO(1, num_outer=500, max_plate_nesting=1),
        lambda guide: guide,
    ),
}


def enumerate_auxiliaries(site):
    is_auxiliary = site["name"] in ("z_index", "z_mixing")
    return {"enumerate": "parallel"} if is_auxiliary else {}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", FINITE)
def test_bound_and_gradient_by_enumeration(kind, side, objective):
    sampler, other = kind(), Other()
    elbo, configure = OBJECTIVES[objective]
    model, guide = named_auxiliaries(*programs(side, sampler.density, other.density))
    parameters = [*sampler.parameters, other.logits]
    pair = model, configure(guide)
    if (kind, side, objective) == (Mixture, "guide", "enumerated"):  # depends on what it made
        with pytest.raises(ValueError, match='Enumeration dim conflict at site "z_mixing"'):
            run(elbo(), pair, parameters)
        return
    assert_equal(*moments(elbo(), pair, parameters), exact(side, sampler, other))


# Continuous samplers, against the single site.


class Importances:
    """Reparameterised candidates."""

    def __init__(self):
        self.loc, self.slope = tensor(0.3), tensor(0.7)
        self.parameters = [self.loc, self.slope]

    def density(self):
        proposal = dist.Normal(self.loc[0], 1.2)
        energy = lambda z: self.slope[0] * (z - 1) ** 2  # noqa: E731
        return SelfNormalizedImportance(proposal, energy, 4, share_proposals=False)


class Rejections(Importances):
    """The same, tried in turn."""

    def __init__(self):
        super().__init__()
        self.guess = tensor(0.2)
        self.parameters = [*self.parameters, self.guess]

    def density(self):
        proposal, guess = dist.Normal(self.loc[0], 1.2), self.guess[0]
        logit = lambda z: 1 - self.slope[0] * (z - 1) ** 2  # noqa: E731
        return TruncatedRejection(proposal, logit, 4, False, reverse_logit=guess)


class Paths(Importances):
    """Hamiltonian paths with a linear momentum net."""

    def __init__(self):
        super().__init__()
        self.step, self.net = tensor(0.3), tensor(0.4, -0.1)
        self.parameters = [*self.parameters, self.step, self.net]

    def density(self):
        start = dist.Normal(self.loc[0], 1.2)
        potential = lambda z: self.slope[0] * (z - 1) ** 2 + z.sin()  # noqa: E731
        net = lambda z: (self.net[0] * z, self.net[1].exp().expand_as(z))  # noqa: E731
        return HamiltonianImportance(start, potential, 3, self.step[0], 0.9, net)


class Mixtures(Importances):
    """A normal with a normal location."""

    def density(self):
        mixing, slope = dist.Normal(self.loc[0], 0.5), self.slope[0]
        reverse = lambda z: dist.Normal(slope * z, 0.6)  # noqa: E731
        return SemiImplicit(mixing, lambda psi: dist.Normal(psi.sin(), 0.8), reverse)


class Normal:
    def __init__(self):
        self.loc = tensor(0.4)

    def density(self):
        return dist.Normal(self.loc[0], 0.8)


CONTINUOUS = [Importances, Rejections, Paths, Mixtures]


def assert_same(first, second):
    assert_equal(first[0], (first[1] ** 2 + second[1] ** 2).sqrt(), second[0])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_both_renderings_agree(kind, side):
    sampler, other = kind(), Normal()
    parameters = [*sampler.parameters, other.loc]
    pair = programs(side, sampler.density, other.density)
    named = moments(trace(2000), named_auxiliaries(*pair), parameters)
    assert_same(named, moments(trace(2000), pair, parameters))


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_doubly_reparameterised_gradients_agree(kind):
    sampler, other = kind(), Normal()
    pair = named_auxiliaries(*programs("model", sampler.density, other.density))
    parameters = [*sampler.parameters, other.loc]
    elbo = MultiSampleELBO(1, num_outer=2000, max_plate_nesting=1)
    assert_same(moments(elbo, pair, parameters), moments(trace(2000), pair, parameters))


def test_the_sum_over_an_index_has_less_variance_than_its_score():
    sampler, other = Importances(), Normal()
    model, guide = named_auxiliaries(*programs("guide", sampler.density, other.density))
    enum = TraceEnum_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    pairs = [(trace(100), guide), (enum, config_enumerate(guide))]
    scored, summed = (
        torch.stack([run(elbo, (model, guide), sampler.parameters) for _ in range(100)])
        for elbo, guide in pairs
    )
    assert_same(*((draws.mean(0), draws.std(0) / 10) for draws in (scored, summed)))
    ratio = scored.var(0) / summed.var(0)
    assert ratio[2] > 4  # of the energy's slope; 2.6 were chance once in a million


def test_enumerated_in_a_multi_sample_bound_it_is_that_of_the_proposal():
    seen = []

    def energy(z):
        seen.append(z)
        return z**2

    def density():
        return SelfNormalizedImportance(dist.Normal(X[BATCH] / 2, 1.0), energy, 4)

    model, guide = named_auxiliaries(
        *programs("guide", density, lambda: dist.Normal(0.0 * X[0], 1.0))
    )
    elbo = MultiSampleELBO(3, max_plate_nesting=1)
    log_w = elbo.log_weights(model, config_enumerate(guide), X)
    z = seen[-1]  # (4, 3, 2)
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X[BATCH])
    log_q = dist.Normal(X[BATCH] / 2, 1.0).log_prob(z)
    torch.testing.assert_close(log_w, (log_p - log_q).logsumexp(0) - math.log(4))


# Programs with more structure.


def losses(elbo, pair):
    """Mean and standard error of the loss."""
    draws = torch.tensor([elbo.loss(*pair, X) for _ in range(100)], dtype=torch.float64)
    return draws.mean(), draws.std() / 10


def likelihood_model(x):
    a = pyro.sample("a", dist.Normal(X[0], 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        proposal = dist.Normal(a, 1.0)
        density = SelfNormalizedImportance(proposal, lambda z: (z - a) ** 2, 3, False)
        pyro.sample("x", density, obs=x[index])


def likelihood_guide(x):
    pyro.sample("a", dist.Normal(0.3 * X[1], 0.5))


def test_an_observed_site_in_a_plate_that_the_guide_has_not():
    pair = likelihood_model, likelihood_guide
    named = named_auxiliaries(*pair)
    assert_same(losses(trace(100), named), losses(trace(100), pair))
    nodes = poutine.trace(named[1]).get_trace(X).nodes
    chosen = nodes["x_candidates"]["value"].gather(-1, nodes["x_index"]["value"][:, None])
    assert (chosen[:, 0] == X[nodes["data"]["value"]]).all()


def hierarchical_model(x):
    a = pyro.sample("a", SelfNormalizedImportance(dist.Normal(X[0], 1.0), torch.square, 3))
    with pyro.plate("data", len(x)):
        start = dist.Normal(a[..., None].expand(*a.shape, 4), 1.0).to_event(1)
        density = HamiltonianImportance(start, lambda z: z.cos().sum(-1), 2, 0.2, 0.9)
        z = pyro.sample("z", density)
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def hierarchical_guide(x):
    pyro.sample("a", dist.Normal(X[0], 0.8))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(X[1], 0.8).expand([4]).to_event(1))


@pytest.mark.parametrize("vectorize", [True, False])
def test_densities_on_densities(vectorize):
    pair = hierarchical_model, hierarchical_guide
    elbo = Trace_ELBO(3, vectorize_particles=vectorize, max_plate_nesting=1)
    assert_same(losses(elbo, named_auxiliaries(*pair)), losses(trace(100), pair))


def test_events_and_masks_reach_the_auxiliaries():
    mask = torch.tensor([True, False, True])
    proposal = dist.Normal(X, 1.0).expand([2, 3])

    def model():
        density = SelfNormalizedImportance(proposal, torch.square, 4)
        with pyro.plate("rows", 2):
            pyro.sample("z", density.mask(mask).to_event(1))

    def guide():
        with pyro.plate("rows", 2):
            pyro.sample("z", dist.Normal(X, 1.0).mask(mask).to_event(1))

    model, guide = named_auxiliaries(model, guide)
    drawn = poutine.trace(guide).get_trace()
    replayed = poutine.trace(poutine.replay(model, drawn)).get_trace()
    for tracer in (drawn, replayed):
        tracer.compute_log_prob()
    z, candidates = drawn.nodes["z"]["value"], drawn.nodes["z_candidates"]["value"]
    assert candidates.shape == (2, 3, 4)
    log_w = -(z**2) - (-(candidates**2)).logsumexp(-1) + math.log(4)
    log_ratio = replayed.log_prob_sum() - drawn.log_prob_sum()
    torch.testing.assert_close(log_ratio, log_w[:, mask].sum())


# Draws.


@pytest.mark.parametrize("kind", FINITE)
def test_values_are_distributed_as_before(kind):
    sampler = kind()

    @NamedAuxiliariesMessenger()
    def program():
        with pyro.plate("draws", 20_000):
            return pyro.sample("z", sampler.density())

    frequency = torch.bincount(program(), minlength=3) / 20_000
    for value in range(3):
        probability = sum(p.exp().item() for z, p, _ in sampler.outcomes() if z == value)
        error = math.sqrt(probability * (1 - probability) / 20_000)
        assert abs(frequency[value] - probability) < 5 * error  # false alarm: 6e-7


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("side", SIDES)
def test_predictive(side, parallel):
    pair = programs(side, Importances().density, Normal().density)
    model, guide = named_auxiliaries(*pair)
    prior = Predictive(model, num_samples=7, parallel=parallel)(X)
    assert prior["x"].shape[0] == prior["z"].shape[0] == 7
    predictive = Predictive(model, guide=guide, num_samples=7, parallel=parallel)
    draws = {name: value.squeeze() for name, value in predictive(X).items()}
    assert draws["x"].shape == (7, 2)
    samples = Predictive(guide, num_samples=7, parallel=parallel)(X)
    candidates, index = samples["z_candidates"], samples["z_index"]
    chosen = candidates.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    assert (chosen == samples["z"]).all()
    assert chosen.shape == (7, 2)


def test_the_phase_holds_the_position():
    program = NamedAuxiliariesMessenger()(lambda: pyro.sample("z", Paths().density().expand([5])))
    nodes = poutine.trace(program).get_trace().nodes
    assert nodes["z_phase"]["value"].shape == (5, 2)
    assert (nodes["z_phase"]["value"][:, 0] == nodes["z"]["value"]).all()


def test_only_the_named_sites():
    def program():
        pyro.sample("y", Importances().density())
        pyro.sample("z", Importances().density())

    with NamedAuxiliariesMessenger(["z"]):
        nodes = poutine.trace(program).get_trace().nodes
    assert [name for name in nodes if name[0] != "_"] == ["y", "z_candidates", "z_index", "z"]


@pytest.mark.gpu
def test_on_a_gpu():
    with torch.device("cuda"):
        for side, kind in itertools.product(SIDES, CONTINUOUS):
            pair = named_auxiliaries(*programs(side, kind().density, Normal().density))
            loss = trace().differentiable_loss(*pair, X.cuda())
            assert loss.is_cuda
            assert loss.isfinite()


# Bad input.


def only(density):
    return NamedAuxiliariesMessenger()(lambda: pyro.sample("z", density))


def test_one_name_instead_of_several():
    with pytest.raises(ValueError, match=r"collection of names, got 'z'. Give \['z'\]"):
        NamedAuxiliariesMessenger("z")


def test_a_site_without_auxiliaries():
    model, guide = programs("guide", Importances().density, Normal().density)
    message = r"sites \['x'\] have no auxiliaries.*Those with auxiliaries are \['z'\]"
    for program in (
        named_auxiliaries(model, guide, sites=["z", "x"])[1],
        NamedAuxiliariesMessenger(["z", "x"])(guide),
    ):
        with pytest.raises(ValueError, match=message):
            program(X)


def test_both_sides():
    _, guide = named_auxiliaries(*programs("guide", *[Importances().density] * 2))
    with pytest.raises(ValueError, match="Site 'z' is a stochastic density in the model and in"):
        guide(X)


def test_a_site_of_the_guide_alone():
    def guide(x):
        pyro.sample("more", Importances().density(), infer={"is_auxiliary": True})

    model, _ = programs("guide", Importances().density, Normal().density)
    with pytest.raises(ValueError, match=r"Guide sites \['more'\].*model has no site"):
        named_auxiliaries(model, guide)[1](X)


def test_nothing_to_name():
    _, guide = named_auxiliaries(*programs("guide", *[Normal().density] * 2))
    with pytest.raises(ValueError, match="Neither model nor guide has a site with a stochastic"):
        guide(X)


@pytest.mark.parametrize("change", [lambda d: d.tight(2), lambda d: d.frozen(0)])
def test_several_weights_or_a_seed(change):
    with pytest.raises(ValueError, match=r"'z' has a density that was made tight\(\) or frozen"):
        only(change(Importances().density()))()


def test_a_sampler_without_auxiliaries():
    normal = dist.Normal(torch.zeros(()), 1.0)
    density = LearnedAcceptReject(normal, torch.neg, 5, MovingNormalizer())
    _, guide = named_auxiliaries(*programs("model", lambda: density, Normal().density))
    for program in (only(density), lambda: guide(X)):
        with pytest.raises(ValueError, match="LearnedAcceptReject has no auxiliaries that could"):
            program()


def test_candidates_without_a_density():
    density = SelfNormalizedImportance(Importances().density(), torch.square, 3)
    with pytest.raises(ValueError, match="from the proposal SelfNormalizedImportance cannot be"):
        only(density)()


def test_an_index_that_nobody_guesses():
    density = TruncatedRejection(dist.Normal(torch.zeros(()), 1.0), torch.neg, 5)
    _, guide = named_auxiliaries(*programs("model", lambda: density, Normal().density))
    with pytest.raises(ValueError, match="Give it a reverse_logit"):
        guide(X)
