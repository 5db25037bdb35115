"""SNIS against quadrature, enumeration and autograd on a one-dimensional target.

Statistical assertions are z-tests at 5 standard errors: false-alarm probability 6e-7 each.
"""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest

from pyro_ext.data.simulate import TwoRings
from pyro_ext.distributions import SelfNormalizedImportance, StochasticDensity
from pyro_ext.nn import EnergyNet

GRID = torch.linspace(-9, 9, 1501, dtype=torch.float64)
STEP = GRID[1] - GRID[0]
PROPOSAL = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)


def energy(x):
    return -(1.3 * torch.sin(3 * x) - 0.5 * (x - 0.7) ** 2 + 0.2 * x)


def integrate(values, times=1):
    return values.sum(tuple(range(-times, 0))) * STEP**times


def exact_log_prob(x, num_proposals, energy=energy, proposal=PROPOSAL):
    """log density of SNIS with two or three proposals, by quadrature over the others."""
    pi, w = proposal.log_prob(GRID).exp(), (-energy(GRID)).exp()
    others, weight = (w, pi) if num_proposals == 2 else (w[:, None] + w, pi[:, None] * pi)
    others, weight = others.flatten(), weight.flatten() * STEP ** (num_proposals - 1)
    w_x = (-energy(x)).exp()
    inverse = torch.stack([(weight / (w_i + others)).sum() for w_i in w_x.flatten()])
    return proposal.log_prob(x) - energy(x) + (num_proposals * inverse.reshape(x.shape)).log()


def snis(num_proposals, **kwargs):
    return SelfNormalizedImportance(PROPOSAL, energy, num_proposals, **kwargs)


def assert_mean(samples, expected, dim=0):
    """z-test at 5 standard errors."""
    error = samples.std(dim) / samples.shape[dim] ** 0.5
    z = (samples.mean(dim) - expected).abs() / error
    assert (z < 5).all(), f"mean {samples.mean(dim)} +- {error}, expected {expected}"


# Truth: the density.


def test_one_proposal_is_the_proposal_exactly():
    d = snis(1)
    assert d.density_kind == "exact"
    assert torch.equal(d.log_prob(GRID), PROPOSAL.log_prob(GRID))
    x, log_prob = d.sample_and_log_prob((20_000,))
    assert torch.equal(log_prob, PROPOSAL.log_prob(x))
    assert kstest(x.numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("num_proposals", [2, 3])
def test_quadrature_density_is_normalised(num_proposals):
    grid = GRID[::10]
    total = exact_log_prob(grid, num_proposals).exp().sum() * STEP * 10
    assert total.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("num_proposals", [2, 3])
def test_density_estimate_is_unbiased(num_proposals):
    x = torch.tensor([-1.0, 0.5, 0.9, 2.0], dtype=torch.float64)
    expected = exact_log_prob(x, num_proposals).exp()
    unshared = snis(num_proposals, share_proposals=False)
    assert_mean(unshared.log_prob(x.expand(40_000, 4)).exp(), expected)
    shared = snis(num_proposals, share_proposals=True)
    assert_mean(torch.stack([shared.log_prob(x).exp() for _ in range(4_000)]), expected)


def test_tight_converges_to_the_quadrature_density():
    x = torch.linspace(-2, 3, 11, dtype=torch.float64)
    log_prob = snis(3).tight(200_000).log_prob(x)
    torch.testing.assert_close(log_prob, exact_log_prob(x, 3), atol=0.02, rtol=0)


def test_many_proposals_approach_the_energy_based_model():
    x = torch.linspace(-2, 3, 11, dtype=torch.float64)
    log_z = integrate((PROPOSAL.log_prob(GRID) - energy(GRID)).exp()).log()
    assert log_z.exp().item() == pytest.approx(1.106880, abs=1e-6)
    target = PROPOSAL.log_prob(x) - energy(x) - log_z
    torch.testing.assert_close(snis(400_000).log_prob(x), target, atol=0.02, rtol=0)


@pytest.mark.parametrize(("num_proposals", "expected"), [(1, 0.610), (2, 0.263), (3, 0.136)])
def test_distance_to_the_energy_based_model_shrinks(num_proposals, expected):
    log_target = PROPOSAL.log_prob(GRID) - energy(GRID)
    log_target = log_target - integrate(log_target.exp()).log()
    grid, log_target = GRID[::10], log_target[::10]
    log_prob = snis(num_proposals).tight(40_000).frozen(1).log_prob(grid)
    divergence = 10 * integrate(log_target.exp() * (log_target - log_prob))
    assert divergence.item() == pytest.approx(expected, abs=0.02)


def test_samples_follow_the_quadrature_density():
    grid, num_samples = GRID[::10], 20_000
    cdf = torch.cumsum(exact_log_prob(grid, 3).exp(), 0) * STEP * 10  # up to the cell's right edge
    x = snis(3).sample((num_samples,)).sort().values
    empirical = torch.searchsorted(x, grid + STEP * 5) / num_samples
    # Dvoretzky-Kiefer-Wolfowitz at a false-alarm probability of 1e-6
    assert (empirical - cdf).abs().max() < (math.log(2e6) / (2 * num_samples)) ** 0.5


def negative_entropy_of_three():
    log_prob = exact_log_prob(GRID[::10], 3)
    return (log_prob.exp() * log_prob).sum() * STEP * 10


def test_sandwich_of_the_entropy():
    negative_entropy = negative_entropy_of_three()
    assert negative_entropy.item() == pytest.approx(-1.0507, abs=1e-3)
    d = snis(3, share_proposals=False)
    x, upper = d.sample_and_log_prob((100_000,))
    lower = d.log_prob(x)
    assert_mean(lower, -1.2075)
    assert_mean(upper, -0.9090)
    margin = 5 / 100_000**0.5
    assert lower.mean() + margin * lower.std() < negative_entropy
    assert upper.mean() - margin * upper.std() > negative_entropy


@pytest.mark.parametrize("num", [1, 4])
def test_reciprocal_of_the_upper_density_is_unbiased(num):
    # E[1 / W | x] = 1 / p(x), hence E_x E[h(x) / W | x] is the integral of h
    d = snis(3, share_proposals=False).tight(num)
    x, upper = d.sample_and_log_prob((100_000,))
    inside = (x > 0.2) & (x < 1.4)
    assert_mean(inside * (-upper).exp(), 1.2)


def test_tight_narrows_the_sandwich():
    negative_entropy = negative_entropy_of_three()
    d = snis(3, share_proposals=False).tight(50)
    x, upper = d.sample_and_log_prob((20_000,))
    assert abs(upper.mean() - negative_entropy) < 0.03
    assert abs(d.log_prob(x).mean() - negative_entropy) < 0.03


@pytest.mark.parametrize("num_proposals", [2, 50])
def test_a_constant_added_to_the_energy_changes_nothing(num_proposals):
    x = torch.linspace(-2, 3, 7, dtype=torch.float64)
    shifted = SelfNormalizedImportance(PROPOSAL, lambda x: energy(x) + 1e3, num_proposals)
    torch.testing.assert_close(
        shifted.frozen(3).log_prob(x), snis(num_proposals).frozen(3).log_prob(x)
    )


@pytest.mark.parametrize("num_proposals", [1, 2, 100])
def test_a_constant_energy_is_the_proposal(num_proposals):
    d = SelfNormalizedImportance(PROPOSAL, lambda x: 7 + 0 * x, num_proposals)
    torch.testing.assert_close(d.log_prob(GRID), PROPOSAL.log_prob(GRID))
    x, upper = d.sample_and_log_prob((20_000,))
    torch.testing.assert_close(upper, PROPOSAL.log_prob(x))
    assert kstest(x.numpy(), "norm").pvalue > 1e-6


def test_discrete_proposal_against_enumeration():
    probs = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    table = torch.tensor([0.3, -1.0, 1.2], dtype=torch.float64)
    d = SelfNormalizedImportance(dist.Categorical(probs), lambda x: table[x], 2)
    w = (-table).exp()
    exact = probs * w * (2 / (w[:, None] + w) * probs).sum(-1)
    assert exact.sum().item() == pytest.approx(1)
    counts = torch.bincount(d.sample((50_000,)), minlength=3)
    error = (exact * (1 - exact) / 50_000).sqrt()
    assert ((counts / 50_000 - exact).abs() < 5 * error).all()
    x = torch.arange(3)
    assert_mean(torch.stack([d.log_prob(x).exp() for _ in range(10_000)]), exact)


# Truth: gradients.


@pytest.mark.parametrize("share", [True, False])
def test_gradients_of_the_lower_bound_against_quadrature(share):
    x = torch.tensor(0.8, dtype=torch.float64)

    def parameters():
        return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, 0.2)]

    a, loc = parameters()
    noise, w_x = dist.Normal(0.0, 1.0).log_prob(GRID).exp(), a * (x - 1) ** 2
    others = a * (loc + GRID - 1) ** 2  # reparameterised
    log_mean = torch.logaddexp(-w_x, -others) - math.log(2)
    bound = integrate(noise * (dist.Normal(loc, 1.0).log_prob(x) - w_x - log_mean))
    expected = torch.stack(torch.autograd.grad(bound, [a, loc]))

    def draw():
        a, loc = parameters()
        d = SelfNormalizedImportance(
            dist.Normal(loc, 1.0), lambda x: a * (x - 1) ** 2, 2, share_proposals=share
        )
        return torch.stack(torch.autograd.grad(d.log_prob(x), [a, loc]))

    assert_mean(torch.stack([draw() for _ in range(4_000)]), expected)


def test_frozen_gradient_against_finite_differences():
    x = torch.randn(5, 2, dtype=torch.float64)
    net = EnergyNet(2, (3,)).double()

    def log_prob(weight, scale):
        def energy(y):
            return torch.func.functional_call(net, {"layers.0.weight": weight}, (y,))

        proposal = dist.Normal(torch.zeros(2).double(), scale).to_event(1)
        return SelfNormalizedImportance(proposal, energy, 4).tight(2).frozen(0).log_prob(x)

    weight = net.layers[0].weight.detach().clone().requires_grad_()
    scale = torch.tensor([0.8, 1.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_prob, (weight, scale))


# Truth: expectations.


def expectation_by_quadrature(a, loc, f):
    """E[f(x)], x one of two candidates, by quadrature over their noise."""
    noise = dist.Normal(0.0, 1.0).log_prob(GRID).exp()
    x = loc + GRID
    log_w = -a * (x - 1) ** 2
    chosen = (log_w[:, None] - torch.logaddexp(log_w[:, None], log_w)).exp()
    return integrate(2 * chosen * f(x)[:, None] * noise[:, None] * noise, 2)


def moments(x):
    return torch.stack([x, (2 * x).cos()], -1)


def parameters(num=None):
    values = [torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.2)]
    return [(v if num is None else v.repeat(num)).requires_grad_() for v in values]


def snis_of(a, loc, num_proposals=2, **kwargs):
    proposal = dist.Normal(loc, 1.0)
    return SelfNormalizedImportance(proposal, lambda x: a * (x - 1) ** 2, num_proposals, **kwargs)


def test_expectation_and_its_gradient_against_quadrature():
    a, loc = parameters(40_000)
    d = snis_of(a, loc)
    seen = d.expectation(moments)
    assert seen.shape == (40_000, 2)
    truth = parameters()
    for i, f in enumerate([lambda x: x, lambda x: (2 * x).cos()]):
        expected = expectation_by_quadrature(*truth, f)
        assert_mean(seen[:, i].detach(), expected)
        gradient = torch.autograd.grad(seen[:, i].sum(), [a, loc], retain_graph=True)
        expected = torch.autograd.grad(expected, truth)
        assert_mean(torch.stack(gradient, -1), torch.stack(expected))


def test_expectation_has_less_variance_than_a_draw():
    """So has its gradient: than the score function's, and than path and score of the index."""
    a, loc = parameters(20_000)
    d = snis_of(a, loc, 16)
    x, z = d.sample(), d()
    mean = d.expectation(torch.sin)
    assert x.sin().var() > 4 * mean.var()
    surrogates = [
        mean,
        z.sin() + z.sin().detach() * d.score_parts(z).score_function,
        x.sin() * d.score_parts(x).score_function,
    ]
    found = [torch.stack(torch.autograd.grad(s.sum(), [a, loc]), -1) for s in surrogates]
    for gradient in found[1:]:
        error = ((gradient.var(0) + found[0].var(0)) / 20_000).sqrt()
        assert ((gradient.mean(0) - found[0].mean(0)).abs() < 5 * error).all()
    ratios = torch.stack([gradient.var(0) / found[0].var(0) for gradient in found[1:]])
    assert (ratios > 2).all(), ratios
    assert ratios[1, 1] > 50, ratios  # of the location, by scores of all candidates


def test_expectation_of_bits_is_enumerated():
    """Over all three bits that a draw can choose from, with the leave-one-out gradient."""
    table = torch.tensor([0.4, -1.1], dtype=torch.float64)

    def f(x):
        return 1.7 * x + 0.3

    def parts(logit, a, bits):
        log_w = a * table[bits.long()]
        return dist.Bernoulli(logits=logit).log_prob(bits).sum(), log_w.softmax(0) @ f(bits)

    configurations = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    logit, a = parameters()
    terms = [parts(logit, a, bits) for bits in configurations]
    truth = sum(log_p.exp() * mean for log_p, mean in terms)
    expected = torch.stack(torch.autograd.grad(truth, [logit, a]))
    total = torch.zeros(2, dtype=torch.float64)
    for bits in configurations:
        logit, a = parameters()
        proposal = dist.Bernoulli(logits=logit)
        d = SelfNormalizedImportance(
            proposal,
            lambda x, a=a: -a * table[x.long()],
            3,
            proposal_gradient=lambda pi, shape, bits=bits: (bits, pi.log_prob(bits)),
        )
        mean = d.expectation(f)
        gradient = torch.stack(torch.autograd.grad(mean, [logit, a]))
        total = total + proposal.log_prob(bits).sum().exp().detach() * gradient
    torch.testing.assert_close(total, expected, atol=1e-9, rtol=0)


def test_expectation_shapes():
    d = snis_of(*parameters(), 4).expand((3,))
    assert d.expectation(torch.sin, (5, 2)).shape == (5, 2, 3)
    assert d.expectation(moments, (5,)).shape == (5, 3, 2)
    with pytest.raises(ValueError, match="The function returned shape"):
        d.expectation(torch.sum)


@pytest.mark.slow
def test_maximum_likelihood_learns_two_rings():
    target, net = TwoRings(), EnergyNet(2, (20, 20))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    d = SelfNormalizedImportance(proposal, net, 1024)
    for _ in range(4_000):
        optimizer.zero_grad()
        (-d.log_prob(target.sample((128,))).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        score = d.tight(20).log_prob(target.sample((5_000,))).mean().item()
    # the proposal alone scores -2.36, the target itself -1.514; the score's error is 0.012
    assert -2.0 < score < -1.45


# Behaviour: sharing, shapes, dtypes.


class Counting:
    def __init__(self):
        self.evaluations = 0

    def __call__(self, x):
        self.evaluations += x.numel()
        return x**2


@pytest.mark.parametrize(("share", "expected"), [(True, 99 + 20), (False, 99 * 20 + 20)])
def test_cost_with_and_without_sharing(share, expected):
    energy = Counting()
    d = SelfNormalizedImportance(dist.Normal(0.0, 1.0), energy, 100, share_proposals=share)
    d.expand((20,)).log_prob(torch.randn(20))
    assert energy.evaluations == expected


def test_tight_averages_as_many_weights_on_both_sides():
    energy = Counting()
    d = SelfNormalizedImportance(dist.Normal(0.0, 1.0), energy, 10).tight(3)
    x = d.sample()
    energy.evaluations = 0
    d.log_prob(x)
    lower = energy.evaluations
    d.score_parts(x)
    upper = energy.evaluations - lower
    assert lower == 3 * 9 + 1  # three sets of others, the value itself
    assert upper == 2 * 9 + 2  # its own others were scored by sample()


def test_shared_bounds_of_equal_values_are_equal():
    x = torch.zeros(4, dtype=torch.float64)
    assert snis(5).log_prob(x).unique().numel() == 1
    assert snis(5, share_proposals=False).log_prob(x).unique().numel() == 4


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("batch", "value", "expected"),
    [((), (7, 3), (7, 3)), ((3,), (3,), (3,)), ((3,), (7, 1), (7, 3)), ((2, 3), (3,), (2, 3))],
)
def test_shapes(share, batch, value, expected):
    proposal = dist.Normal(torch.zeros(*batch, 2), 1.0).to_event(1)
    d = SelfNormalizedImportance(proposal, lambda x: x.sum(-1), 6, share_proposals=share)
    assert (d.batch_shape, d.event_shape) == (batch, (2,))
    for density in (d, d.tight(3), d.frozen(0), d.tight(3).frozen(0)):
        assert density.log_prob(torch.zeros(*value, 2)).shape == expected
    x, upper = d.sample_and_log_prob((4, 5))
    assert x.shape == (4, 5, *batch, 2)
    assert upper.shape == (4, 5, *batch)


def test_energy_may_depend_on_the_batch():
    context = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    proposal = PROPOSAL.expand((3,))
    d = SelfNormalizedImportance(proposal, lambda x: energy(x - context), 2).tight(50_000)
    x = torch.tensor(0.4, dtype=torch.float64)
    for log_prob, shift in zip(d.log_prob(x), context, strict=True):
        expected = exact_log_prob(x, 2, lambda x, shift=shift: energy(x - shift))
        assert log_prob.item() == pytest.approx(expected.item(), abs=0.03)


@pytest.mark.parametrize("batch", [2, 5])  # five is the number of other candidates, too
@pytest.mark.parametrize("share", [True, False])
def test_energy_may_depend_on_the_batch_of_an_expanded_proposal(share, batch):
    context = torch.linspace(-1, 1, batch, dtype=torch.float64)
    d = SelfNormalizedImportance(
        PROPOSAL, lambda x: energy(x - context), 6, share_proposals=share
    ).expand((batch,))
    alone = [SelfNormalizedImportance(PROPOSAL, lambda x, c=c: energy(x - c), 6) for c in context]
    x = torch.tensor(0.4, dtype=torch.float64)
    exact = torch.stack([density.tight(20_000).log_prob(x) for density in alone])
    for value in (x, x.expand(batch), x.expand(3, batch), x.expand(3, 1)):
        assert d.log_prob(value).shape == torch.broadcast_shapes(value.shape, (batch,))
    assert_mean(torch.stack([d.log_prob(x).exp() for _ in range(3_000)]), exact.exp())
    torch.testing.assert_close(d.tight(20_000).frozen(0).log_prob(x), exact, atol=0.05, rtol=0)
    assert d.sample_and_log_prob((7,))[1].shape == (7, batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_proposal(dtype):
    d = SelfNormalizedImportance(dist.Normal(torch.zeros((), dtype=dtype), 1.0), torch.square, 3)
    x, upper = d.sample_and_log_prob((2,))
    assert x.dtype == upper.dtype == d.log_prob(x).dtype == dtype


def test_a_stochastic_proposal_gives_a_lower_bound_and_no_upper_one():
    d = SelfNormalizedImportance(snis(3), torch.square, 2)
    x = torch.zeros(5, dtype=torch.float64)
    assert d.log_prob(x).shape == (5,)
    assert SelfNormalizedImportance(snis(3), torch.square, 1).density_kind == "lower"
    with pytest.raises(NotImplementedError, match="only has a lower bound"):
        d.sample_and_log_prob()


def test_it_is_a_stochastic_density_and_says_so():
    assert issubclass(SelfNormalizedImportance, StochasticDensity)
    assert SelfNormalizedImportance.__doc__.startswith("Stochastic:")
    assert "num_proposals=3" in repr(snis(3))
    assert repr(snis(3).tight(5).frozen(2)).endswith(".tight(5).frozen(2)")


@pytest.mark.gpu
def test_on_a_gpu_no_step_synchronises():
    proposal = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    net = EnergyNet(2).cuda()
    d = SelfNormalizedImportance(proposal, net, 64, validate_args=False)
    x = torch.randn(8, 2, device="cuda")
    d.log_prob(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        d.log_prob(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    value, upper = d.sample_and_log_prob((3,))
    assert value.device == upper.device == x.device
    assert torch.equal(d.frozen(0).log_prob(x), d.frozen(0).log_prob(x))


# Bad input.


@pytest.mark.parametrize("num_proposals", [0, -3, 2.5, True])
def test_too_few_proposals(num_proposals):
    with pytest.raises(ValueError, match=f"got num_proposals={num_proposals}"):
        snis(num_proposals)


def test_numpy_integers_are_integers():
    assert snis(np.int64(3)).num_proposals == 3


def test_arguments_of_the_wrong_kind():
    with pytest.raises(ValueError, match="takes a distribution as proposal"):
        SelfNormalizedImportance(3, torch.square, 4)
    with pytest.raises(ValueError, match="takes a distribution as proposal"):
        SelfNormalizedImportance(PROPOSAL, 3, 4)
    for bad in (lambda x: 0.5, lambda x: x.long()):
        with pytest.raises(ValueError, match="floating-point numbers"):
            SelfNormalizedImportance(PROPOSAL, bad, 4).sample()


def test_a_stochastic_proposal_is_recognised_in_any_wrapper():
    wrapped = dist.Independent(snis(3).expand((2,)), 1)
    d = SelfNormalizedImportance(wrapped, lambda x: x.sum(-1), 1)
    assert d.density_kind == "lower"
    with pytest.raises(NotImplementedError, match="only has a lower bound"):
        d.sample_and_log_prob()


def test_event_shapes_that_disagree():
    proposal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"events of shape \(3,\), but the proposal"):
        SelfNormalizedImportance(proposal, EnergyNet(3), 4)
    untold = SelfNormalizedImportance(proposal, EnergyNet(3).layers, 4)
    with pytest.raises(ValueError, match=r"cannot score values of shape \(4, 2\)"):
        untold.sample()


@pytest.mark.parametrize("bad", [lambda x: x, lambda x: x.sum(), lambda x: x.sum(-1, keepdim=True)])
def test_wrong_energy_shape(bad):
    d = SelfNormalizedImportance(dist.Normal(torch.zeros(2), 1.0).to_event(1), bad, 4)
    with pytest.raises(ValueError, match="The energy returned shape"):
        d.log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_energy_that_is_not_finite(value):
    d = SelfNormalizedImportance(PROPOSAL, lambda x: x + value, 4)
    with pytest.raises(ValueError, match="not finite at 4 of 4 values"):
        d.sample()


def test_other_errors_of_the_energy_pass_through():
    def broken(x):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        SelfNormalizedImportance(PROPOSAL, broken, 2).sample()


def test_biased_gradient_of_a_discrete_proposal_is_refused():
    logits = torch.zeros(3, requires_grad=True)
    d = SelfNormalizedImportance(dist.Categorical(logits=logits), lambda x: x.float(), 4)
    with pytest.raises(ValueError, match="would be biased"):
        d.log_prob(torch.tensor(1))
    with torch.no_grad():
        assert d.log_prob(torch.tensor(1)).isfinite()


def test_value_outside_the_support():
    d = SelfNormalizedImportance(dist.Exponential(torch.tensor(1.0)), torch.square, 4)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor(-1.0))
