"""Simulated mixtures against plain NumPy, quadrature, automatic differentiation and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Laplace, Normal, VonMises

from pyro_ext.data.mixing import ExpandedTanh, LeakyReLU
from pyro_ext.data.random_matrix import correlation, orthogonal, well_conditioned
from pyro_ext.data.simulate import HyperbolicSecant, imca, tcl, xtanh

DOUBLE = torch.double
LAPLACE = Laplace(torch.tensor(0.0, dtype=DOUBLE), torch.tensor(0.5**0.5, dtype=DOUBLE))


def problems(**kwargs):
    return {
        "tcl": tcl(**kwargs),
        "tcl-deep": tcl(**{**kwargs, "num_layers": 4}, loc_bound=3.0),
        "imca": imca(**kwargs),
        "xtanh": xtanh(**kwargs),
        "xtanh-uncentred": xtanh(**kwargs, loc_bound=5.0, repeat_matrix=False),
        "xtanh-laplace": xtanh(**kwargs, base_dist=LAPLACE),
        "xtanh-sech": xtanh(**kwargs, base_dist=HyperbolicSecant()),
    }


PROBLEMS = problems(num_contexts=6)
PLANE = problems(num_contexts=4, latent_dim=2, scale_range=(0.5, 1.5))


# The mixing.


def test_leaky_mixtures_against_plain_numpy():
    for problem in (tcl(num_layers=4), imca(num_layers=4)):
        x, sources, _ = problem.sample(20, dtype=DOUBLE)
        z = sources.numpy()
        first, *others = problem.mixing.matrices.numpy()
        assert np.array_equal(first, np.eye(5))
        assert len(others) == 3
        for a in others:
            np.testing.assert_allclose(a @ a.T, np.eye(5), atol=1e-14)
            z = np.array([[v if v > 0 else 0.2 * v for v in row] for row in z]) @ a
        np.testing.assert_allclose(x.numpy(), z, atol=1e-13)


def test_expanded_tanh_mixtures_against_plain_numpy():
    problem = xtanh()
    x, sources, _ = problem.sample(20, dtype=DOUBLE)
    a, *others = problem.mixing.matrices.numpy()
    assert all(np.array_equal(a, other) for other in others)

    def act(z):
        return np.tanh(z) + 0.1 * z

    np.testing.assert_allclose(x.numpy(), act(act(sources.numpy() @ a) @ a) @ a, atol=1e-13)


def test_one_layer_is_linear():
    problem = tcl(num_layers=1)
    x, sources, _ = problem.sample(3)
    assert torch.equal(x, sources)
    problem = xtanh(num_layers=1)
    x, sources, _ = problem.sample(3, dtype=DOUBLE)
    torch.testing.assert_close(x, sources @ problem.mixing.matrices[0])


@pytest.mark.parametrize("name", PROBLEMS)
def test_mixing_is_undone(name):
    problem = PROBLEMS[name]
    x, sources, _ = problem.sample(50, dtype=DOUBLE)
    torch.testing.assert_close(problem.unmix(x), sources, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(problem.mix(sources), x)
    assert problem.unmix(x[0]).shape == (5,)
    x, sources, _ = problem.sample(50)
    assert x.dtype == sources.dtype == torch.float32
    torch.testing.assert_close(problem.unmix(x), sources, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", [LeakyReLU(0.2), ExpandedTanh(0.1), ExpandedTanh(1e-3)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_activation_inverse_and_slope(activation, dtype):
    value = torch.linspace(-3000, 3000, 60001, dtype=dtype)[1::2].requires_grad_()
    image = activation(value)
    (slope,) = torch.autograd.grad(image.sum(), value)
    torch.testing.assert_close(activation.log_slope(value).exp(), slope, rtol=1e-3, atol=1e-5)
    back = activation.inverse(image.detach())
    # an error of one rounding in the image is divided by the slope
    error = (back - value).abs() * slope / image.abs()
    assert error.max() < 4 * torch.finfo(dtype).eps
    zero = torch.zeros(1, dtype=dtype)
    assert activation.inverse(zero) == 0


# The densities.


def grid(low, high, size):
    step = (high - low) / size
    axis = low + step * (torch.arange(size, dtype=DOUBLE) + 0.5)
    return torch.cartesian_prod(axis, axis), step**2


@pytest.mark.parametrize("name", PLANE)
def test_densities_integrate_to_one(name):
    problem = PLANE[name]
    points, area = grid(-20.0, 20.0, 800)
    context = torch.zeros(points.shape[:1], dtype=torch.long)
    mass = area * problem.source_log_prob(points, context).exp().sum()
    assert mass == pytest.approx(1, abs=1e-3)
    x, _, labels = problem.sample(4000, dtype=DOUBLE)
    edge = 1.0 + 1.5 * x[labels == 0].abs().max().item()
    points, area = grid(-edge, edge, 800)
    mass = area * problem.log_prob(points, context).exp().sum()
    # the density jumps where a ReLU bends, and has narrow ridges where tanh saturates
    assert mass == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("name", PROBLEMS)
def test_density_of_observations_by_autograd(name):
    problem = PROBLEMS[name]
    x, sources, context = problem.sample(3, seed=5, dtype=DOUBLE)
    jacobian = torch.func.vmap(torch.func.jacrev(problem.mixing))(sources)
    expected = problem.source_log_prob(sources, context) - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(problem.log_prob(x, context), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_of_densities(name):
    problem = PROBLEMS[name]
    x, sources, context = problem.sample(2, dtype=DOUBLE)
    for function, value in ((problem.log_prob, x), (problem.source_log_prob, sources)):
        assert torch.autograd.gradcheck(lambda v: function(v, context), value.requires_grad_())


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("tcl-deep", stats.norm()),
        ("xtanh-uncentred", stats.norm()),
        ("xtanh-laplace", stats.laplace(scale=0.5**0.5)),
        ("xtanh-sech", stats.hypsecant()),
    ],
)
def test_density_of_independent_sources_against_scipy(name, law):
    problem = PROBLEMS[name]
    _, sources, context = problem.sample(10, dtype=DOUBLE)
    loc, scale = (t.numpy()[context] for t in (problem.source_law.loc, problem.source_law.scale))
    expected = law.logpdf((sources.numpy() - loc) / scale) - np.log(scale)
    actual = problem.source_log_prob(sources, context)
    np.testing.assert_allclose(actual.numpy(), expected.sum(1), rtol=1e-12)


def test_density_of_dependent_sources_against_scipy():
    problem = PROBLEMS["imca"]
    _, sources, context = problem.sample(4, dtype=DOUBLE)
    for s, u, log_prob in zip(
        sources, context, problem.source_log_prob(sources, context), strict=True
    ):
        covariance = np.linalg.inv(problem.source_law.precision[u].numpy())
        expected = stats.multivariate_normal(np.zeros(5), covariance).logpdf(s.numpy())
        assert log_prob.item() == pytest.approx(expected, rel=1e-9)


def test_imca_precision_is_base_plus_modulation():
    problem = imca(num_contexts=8, latent_dim=4)
    rest = problem.source_law.precision - torch.diag_embed(problem.source_law.scale**-2)
    torch.testing.assert_close(rest, rest[:1].expand_as(rest))
    covariance = torch.linalg.inv(rest[0] * 2 * 4)
    torch.testing.assert_close(covariance.diagonal(), torch.ones(4, dtype=DOUBLE))
    assert (covariance - covariance.diag().diag()).abs().max() > 0.1


@pytest.mark.parametrize("name", PROBLEMS)
def test_draws_follow_their_law(name):
    """Kolmogorov-Smirnov of whitened sources, every context; false alarm 1e-6."""
    problem = PROBLEMS[name]
    _, sources, context = problem.sample(4000, seed=1, dtype=DOUBLE)
    law = {"xtanh-laplace": stats.laplace(scale=0.5**0.5), "xtanh-sech": stats.hypsecant()}
    cdf = law.get(name, stats.norm()).cdf
    for u in range(problem.num_contexts):
        part = sources[context == u]
        if name == "imca":
            white = part @ torch.linalg.cholesky(problem.source_law.precision[u])
        else:
            white = (part - problem.source_law.loc[u]) / problem.source_law.scale[u]
        assert stats.kstest(white.flatten().numpy(), cdf).pvalue > 1e-6 / problem.num_contexts
        corr = np.corrcoef(white.T.numpy()) - np.eye(5)
        assert abs(corr).max() * math.sqrt(4000) < 6.5  # 60 tests of 1e-8 or less


@pytest.mark.parametrize(
    ("name", "variance"), [("xtanh", 1), ("xtanh-laplace", 1), ("xtanh-sech", math.pi**2 / 4)]
)
def test_moments_are_exact(name, variance):
    """z-tests of means and variances, 60 of them; false alarm below 1e-5."""
    problem = PROBLEMS[name]
    _, sources, context = problem.sample(5000, seed=2, dtype=DOUBLE)
    for u in range(6):
        white = (sources[context == u] - problem.source_law.loc[u]) / problem.source_law.scale[u]
        for value, target in ((white, 0), (white.square(), variance)):
            z = (value.mean(0) - target) / (value.std(0) / math.sqrt(5000))
            assert z.abs().max() < 6.5


@pytest.mark.parametrize("bounds", [(0.01, 3.0), (0.5, 3.0)])
def test_modulators_are_uniform(bounds):
    """Kolmogorov-Smirnov; false alarm 1e-6."""
    low, high = bounds
    law = stats.uniform(low, high - low)
    for problem in (
        tcl(num_contexts=400, scale_range=bounds, loc_bound=3.0),
        xtanh(num_contexts=400, scale_range=bounds, loc_bound=3.0),
    ):
        assert stats.kstest(problem.source_law.scale.flatten(), law.cdf).pvalue > 1e-6
        loc = problem.source_law.loc.flatten()
        assert stats.kstest(loc, stats.uniform(-3, 6).cdf).pvalue > 1e-6
        assert abs(np.corrcoef(loc, problem.source_law.scale.flatten())[0, 1]) < 5 / math.sqrt(2000)


# The seeds.


@pytest.mark.parametrize("make", [tcl, imca, xtanh])
def test_seeds_are_separate(make):
    problem = make(num_contexts=3)
    other_mixing = make(num_contexts=3, mixing_seed=1)
    other_modulators = make(num_contexts=3, modulator_seed=1)
    x, sources, context = problem.sample(4)
    again = make(num_contexts=3).sample(4)
    assert all(torch.equal(a, b) for a, b in zip(again, (x, sources, context), strict=True))
    assert torch.equal(other_mixing.sample(4).sources, sources)
    assert not torch.equal(other_mixing.sample(4).x, x)
    assert torch.equal(other_modulators.mixing.matrices, problem.mixing.matrices)
    assert not torch.equal(other_modulators.source_law.scale, problem.source_law.scale)
    assert not torch.equal(problem.sample(4, seed=1).sources, sources)


@pytest.mark.parametrize("make", [tcl, imca, xtanh])
def test_more_data_and_more_contexts_are_the_same_problem(make):
    small, large = make(num_contexts=3), make(num_contexts=7)
    assert torch.equal(small.mixing.matrices, large.mixing.matrices)
    assert torch.equal(small.source_law.scale, large.source_law.scale[:3])
    few, many = small.sample(4), large.sample(9)
    for u in range(3):
        torch.testing.assert_close(few.x[few.context == u], many.x[many.context == u][:4])


@pytest.mark.parametrize("make", [tcl, xtanh])
def test_moving_the_means_changes_nothing_else(make):
    centred, moved = make(num_contexts=3), make(num_contexts=3, loc_bound=5.0)
    assert torch.equal(centred.source_law.scale, moved.source_law.scale)
    shift = moved.source_law.loc.repeat_interleave(4, 0)
    torch.testing.assert_close(
        centred.sample(4, dtype=DOUBLE).sources + shift, moved.sample(4, dtype=DOUBLE).sources
    )


def test_streams_of_one_seed_share_no_numbers():
    """Standard normals behind the mixing and the data of seed 0; false alarm below 1e-5."""
    from pyro_ext.data.random_stream import DATA, MIXING, stream

    streams = [stream(0, "seed", *key) for key in ((DATA, 0), (DATA, 1), (MIXING,))]
    streams += [stream(1, "seed", MIXING)]
    numbers = [rng.standard_normal(10_000) for rng in streams]
    off = np.corrcoef(numbers) - np.eye(4)
    assert abs(off).max() * 100 < 5.5


def test_torch_generator_is_left_alone():
    state = torch.get_rng_state()
    tcl().sample(3)
    xtanh(base_dist=HyperbolicSecant()).sample(3)
    assert torch.equal(state, torch.get_rng_state())


# The matrices.


@pytest.mark.parametrize("dim", [1, 2, 5, 12])
def test_correlation_has_a_unit_diagonal_and_the_eigenvalues(dim):
    for seed in range(20):
        matrix = correlation(np.random.default_rng(seed), dim)
        drawn = np.random.default_rng(seed).random(dim)
        np.testing.assert_allclose(np.diagonal(matrix), 1)
        np.testing.assert_allclose(matrix, matrix.T)
        found = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(found, np.sort(drawn / drawn.mean()), atol=1e-12)


def test_correlation_is_spread_as_scipys():
    """Two samples of off-diagonal entries, Kolmogorov-Smirnov; false alarm 1e-6."""
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(1500):
        ours.append(correlation(rng, 4)[0, 2])
        eigenvalues = rng.random(4)
        law = stats.random_correlation(eigenvalues / eigenvalues.mean(), seed=rng)
        theirs.append(law.rvs()[0, 2])
    assert stats.kstest(ours, theirs).pvalue > 1e-6


def test_orthogonal_is_haar():
    """Its trace against SciPy's; Kolmogorov-Smirnov, false alarm 1e-6."""
    rng = np.random.default_rng(0)
    ours = [np.trace(orthogonal(rng, 3)) for _ in range(3000)]
    theirs = np.trace(stats.ortho_group.rvs(3, 3000, random_state=rng), axis1=1, axis2=2)
    assert stats.kstest(ours, theirs).pvalue > 1e-6


def test_well_conditioned_takes_the_lowest_quarter():
    rng = np.random.default_rng(1)
    entries = rng.uniform(-1, 1, (20_000, 5, 5))
    quartile = np.percentile(
        np.linalg.cond(entries / np.sqrt((entries**2).sum(1, keepdims=True))), 25
    )
    for seed in range(5):
        matrix = well_conditioned(np.random.default_rng(seed), 5)
        np.testing.assert_allclose((matrix**2).sum(0), 1)
        assert np.linalg.cond(matrix) < 1.05 * quartile


# Bad input.


def test_imca_refuses_a_singular_base():
    with pytest.raises(ValueError, match=r"condition number .* above max_condition=3: .* another"):
        imca(max_condition=3.0)
    refused = 0
    for seed in range(100):
        try:
            imca(modulator_seed=seed)
        except ValueError:
            refused += 1
            rest = imca(modulator_seed=seed, max_condition=math.inf).source_law
            base = rest.precision[0] - torch.diag(rest.scale[0] ** -2)
            assert np.linalg.cond(base.numpy()) > 100
    assert 0 < refused < 20


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (tcl, {"latent_dim": 0}, "latent_dim must be an integer >= 1"),
        (imca, {"num_contexts": 2.5}, "num_contexts must be an integer >= 1"),
        (xtanh, {"num_layers": 0}, "num_layers must be an integer >= 1"),
        (tcl, {"mixing_seed": -1}, "mixing_seed must be an integer >= 0"),
        (tcl, {"modulator_seed": None}, "modulator_seed must be an integer >= 0"),
        (tcl, {"scale_range": (0.0, 1.0)}, "scale_range must be two numbers 0 < low < high"),
        (xtanh, {"loc_bound": -1.0}, "loc_bound must be a finite number >= 0"),
        (imca, {"negative_slope": 0.0}, "negative_slope must be positive"),
        (xtanh, {"slope": -0.1}, "slope must be positive"),
        (xtanh, {"base_dist": Normal(torch.zeros(2), 1.0)}, "base_dist must be a law of one"),
        (xtanh, {"base_dist": VonMises(0.0, 1.0)}, "base_dist must have icdf, VonMises has none"),
    ],
)
def test_bad_problems_are_refused(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_bad_values_are_refused():
    problem = tcl(num_contexts=3)
    x, _, context = problem.sample(2)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 5\), got \(6, 4\)"):
        problem.unmix(x[:, :4])
    with pytest.raises(ValueError, match="floating-point"):
        problem.mix(x.long())
    with pytest.raises(ValueError, match=r"context must be integers of shape \(6,\)"):
        problem.log_prob(x, context[:5])
    with pytest.raises(ValueError, match="context must be integers"):
        problem.source_log_prob(x, context.float())
    with pytest.raises(ValueError, match="context must lie in 0 to 2"):
        problem.log_prob(x, context + 1)
    with pytest.raises(ValueError, match="num_per_context must be an integer >= 1"):
        problem.sample(0)
    with pytest.raises(ValueError, match="seed must be an integer >= 0"):
        problem.sample(1, seed=-3)


# The hyperbolic secant.


def test_hyperbolic_secant_against_scipy():
    law, value = HyperbolicSecant(), torch.linspace(-30, 30, 101, dtype=DOUBLE)
    np.testing.assert_allclose(law.log_prob(value), stats.hypsecant.logpdf(value), rtol=1e-12)
    np.testing.assert_allclose(law.cdf(value), stats.hypsecant.cdf(value), rtol=1e-10)
    probs = torch.linspace(0.001, 0.999, 101, dtype=DOUBLE)
    np.testing.assert_allclose(law.icdf(probs), stats.hypsecant.ppf(probs), atol=1e-10)
    assert law.log_prob(torch.tensor([-1e4, 1e4])).isfinite().all()
    assert law.mean == 0
    assert law.variance.item() == pytest.approx(stats.hypsecant.var())
    with pytest.raises(ValueError, match="support"):
        HyperbolicSecant(validate_args=True).log_prob(torch.tensor(math.nan))


def test_hyperbolic_secant_draws():
    """Kolmogorov-Smirnov; false alarm 1e-6."""
    draws = HyperbolicSecant().sample((4, 5000))
    assert draws.shape == (4, 5000)
    assert stats.kstest(draws.flatten().numpy(), stats.hypsecant.cdf).pvalue > 1e-6


def test_each_context_has_noise_of_its_own():
    """Standardised sources of two contexts do not correlate: 5 errors of 400 pairs."""
    problem = tcl(num_contexts=2)
    _, sources, context = problem.sample(400, dtype=DOUBLE)
    first, second = ((sources[context == u]) / problem.source_law.scale[u] for u in (0, 1))
    assert np.corrcoef(first[:, 0], second[:, 0])[0, 1] ** 2 < 25 / 400
    assert not torch.equal(first, second)


def test_matrices_of_layers_are_distinct_on_request():
    first, *others = xtanh(repeat_matrix=False).mixing.matrices
    assert len(others) == 2
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (tcl, {"scale_range": 3.0}, "scale_range must be two numbers"),
        (tcl, {"scale_range": (1.0, math.inf)}, "scale_range must be two numbers"),
        (xtanh, {"base_dist": "normal"}, "base_dist must be a torch law"),
        (imca, {"max_condition": math.nan}, "max_condition"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
