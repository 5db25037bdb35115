"""The conditions of theorems on identifiability, on cases whose answer is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from pyro_ext.diagnostics import check_identifiability
from pyro_ext.diagnostics.identifiability_contexts import thin
from pyro_ext.diagnostics.identifiability_decoder import jacobians
from pyro_ext.distributions import (
    GaussianFamily,
    IdentifiablePrior,
    IMCAPrior,
    LaplaceFamily,
    StatisticsFamily,
)
from pyro_ext.models import IdentifiableVAE
from pyro_ext.nn import ConditionalEnergy, EnergyNet
from pyro_ext.ops.affine_rank import affine_rank

BOTH, SCALE, LOC = (GaussianFamily(names) for names in (("loc", "scale"), ("scale",), ("loc",)))


def prior_of(latent_dim, num_classes, family=SCALE):
    return IdentifiablePrior(latent_dim, num_classes, family=family)


def status(report, name):
    return {one.name: one.status for one in report.conditions}.get(name)


# The table of contexts.


@pytest.mark.parametrize(
    ("family", "latent_dim", "k"),
    [
        (SCALE, 5, 1),
        (LOC, 5, 1),
        (BOTH, 5, 2),
        (LaplaceFamily(), 3, 1),
        (StatisticsFamily([torch.square, torch.sin, torch.cos], -2, 2), 3, 3),
    ],
)
def test_flips_exactly_where_theory_says(family, latent_dim, k):
    for extra in (-1, 0, 1, 5):
        num = latent_dim * k + extra
        prior = prior_of(latent_dim, num, family).double()
        report = check_identifiability(prior, torch.arange(num), tolerance=1e-9)
        assert report.required_contexts == latent_dim * k + 1
        assert report.num_contexts == num
        assert report.rank == min(num - 1, latent_dim * k)
        assert report.is_identifiable is (extra >= 1)
        expected = "met" if extra >= 1 else "violated"
        assert status(report, "contexts") == status(report, "variability") == expected
        assert math.isfinite(report.condition_number) is (extra >= 1)


def test_three_segments_of_two_latents_have_rank_two_of_four():
    report = check_identifiability(prior_of(2, 3, BOTH), torch.arange(3))
    assert (report.rank, report.required_rank) == (2, 4)
    assert (report.num_contexts, report.required_contexts) == (3, 5)
    assert report.promise == "none"


def test_imca_has_the_same_condition():
    for num, enough in ((4, False), (5, True)):
        prior = IMCAPrior(4, num)
        with torch.no_grad():
            prior.below.normal_()
        assert check_identifiability(prior, torch.arange(num)).is_identifiable is enough
    prior = IMCAPrior(2, 5, modulated=("loc", "scale"))
    assert check_identifiability(prior, torch.arange(5)).is_identifiable


class Handmade(nn.Module):
    """Zero-mean normal laws of given natural parameters."""

    latent_dim, num_statistics, is_monotone = 2, 1, False

    def __init__(self, natural):
        super().__init__()
        self.register_buffer("natural", torch.as_tensor(natural).double().unsqueeze(-1))

    def natural_parameters(self, context):
        return self.natural[context]

    def condition(self, context):
        return SCALE.from_natural(self.natural_parameters(context)).to_event(1)

    def statistics(self, z):
        return SCALE.statistics(z)

    def log_normalizer(self, natural):
        return SCALE.log_normalizer(natural).sum(-1)


@pytest.mark.parametrize(
    ("natural", "rank"),
    [
        ([[-1, -1], [-2, -1], [-1, -2]], 2),
        ([[-1, -1], [-2, -2], [-3, -3], [-9, -9]], 1),  # collinear
        ([[-1, -3], [-2, -5], [-3, -7]], 1),  # collinear, scaled and shifted
        ([[-1, -1], [-2, -1], [-4, -1]], 1),  # one coordinate is not modulated
        ([[-1, -1], [-1, -1], [-1, -1]], 0),
        ([[-1, -1], [-2, -1]], 1),
    ],
)
def test_rank_of_parameters_made_by_hand(natural, rank):
    report = check_identifiability(Handmade(natural), torch.arange(len(natural)))
    assert report.rank == rank
    assert report.is_identifiable is (rank == 2)


def test_contexts_that_the_data_lack_do_not_count():
    prior = prior_of(5, 20)
    report = check_identifiability(prior, torch.tensor([0, 1, 1, 7, 7, 7, 3, 2]))
    assert report.num_contexts == 5
    assert not report.is_identifiable
    report = check_identifiability(prior, torch.arange(10).repeat(3))
    assert report.is_identifiable
    assert status(report, "labels") == "weak"
    assert "10 of 20 never occur (10, 11" in str(report)
    assert status(check_identifiability(prior, torch.arange(20)), "labels") is None


def test_vectors_as_context():
    prior = IdentifiablePrior(3, context_dim=2, hidden_dims=(16,), family=BOTH)
    report = check_identifiability(prior, torch.randn(300, 2))
    assert (report.num_contexts, report.rank) == (300, 6)
    assert report.is_identifiable
    line = torch.randn(300, 1).expand(-1, 2)
    flat = IdentifiablePrior(3, context_dim=2, family=LOC)
    assert check_identifiability(flat, line).rank == 1  # locations are affine in the vector
    assert check_identifiability(flat, torch.randn(300, 2)).rank == 2
    assert check_identifiability(flat, torch.randn(9000, 2)).num_contexts == 9000


# Statistics.


def test_a_modulated_location_alone_is_flagged():
    report = check_identifiability(prior_of(3, 10, LOC), torch.arange(10))
    assert status(report, "monotone") == "weak"
    assert report.promise == "linear"
    assert "affine map of all statistics" in str(report)
    report.raise_if_violated()
    with pytest.raises(ValueError, match="modulate the scale"):
        report.raise_if_violated(strict=True)
    for family in (SCALE, BOTH, LaplaceFamily()):
        report = check_identifiability(prior_of(2, 10, family), torch.arange(10))
        assert report.promise == "permutation"


@pytest.mark.parametrize(
    ("functions", "expected", "where"),
    [
        ([torch.sin, torch.cos], "met", ""),
        ([torch.square, lambda z: 3 * z**2 - 1], "violated", "everywhere"),
        ([torch.sin, torch.clone, lambda z: z - 2 * torch.sin(z)], "violated", "everywhere"),
        ([torch.clone, torch.relu], "violated", "on a part"),
        ([torch.relu], "violated", "on a part"),  # constant there
        ([torch.clone, torch.square, lambda z: z**3, lambda z: z**4], "met", ""),
    ],
)
def test_independence_of_statistics(functions, expected, where):
    family = StatisticsFamily(functions, -2.0, 2.0, limits=(-0.5, 0.5))
    report = check_identifiability(prior_of(2, 20, family), torch.arange(20))
    assert status(report, "statistics") == expected
    assert where in str(report)


# Modulation.


@pytest.mark.parametrize("family", [SCALE, BOTH, LaplaceFamily()])
def test_modulation_is_the_mean_divergence_between_contexts(family):
    prior = prior_of(3, 6, family).double()
    with torch.no_grad():
        prior.head.last.normal_(std=0.7)
    labels = torch.arange(6)
    law = prior(labels).base_dist
    pairs = kl_divergence(law.expand((6, 6, 3)), prior(labels[:, None].expand(6, 6)).base_dist)
    seen = check_identifiability(prior, labels).modulation
    torch.testing.assert_close(seen, pairs.mean((0, 1)), rtol=1e-9, atol=1e-12)


def test_collapse_is_flagged():
    prior = prior_of(3, 10)
    with torch.no_grad():
        prior.head.last[:, 1] *= 1e-3
    report = check_identifiability(prior, torch.arange(10))
    assert status(report, "modulation") == "weak"
    assert "collapsed: [1]" in str(report)
    assert report.rank == 3
    with pytest.warns(UserWarning, match="collapsed"):
        report.warn_if_violated()
    with torch.no_grad():
        prior.head.last.copy_(prior.head.last[:1].clone().expand_as(prior.head.last))
    report = check_identifiability(prior, torch.arange(10))
    assert report.rank == 0
    assert "constant over contexts: [0, 1, 2]" in str(report)


# Noise and decoder.


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        (dist.Normal, "met"),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), "met"),
        (dist.Laplace, "met"),
        (dist.Uniform, "met"),
        (dist.Delta, "met"),
        (dist.Bernoulli, "outside"),
        (dist.Bernoulli(torch.full((3,), 0.5)).to_event(1).mask(True), "outside"),
        (dist.Poisson, "outside"),
        (dist.Categorical(torch.ones(4)), "outside"),
        (dist.NegativeBinomial, "outside"),
        (dist.Binomial, "outside"),
        (dist.LogNormal, "unchecked"),
        (dist.Gamma, "unchecked"),
        (None, "unchecked"),
    ],
)
def test_noise(likelihood, expected):
    report = check_identifiability(prior_of(2, 6), torch.arange(6), likelihood)
    assert status(report, "noise") == expected
    assert report.is_identifiable is (expected != "outside")
    report.raise_if_violated()
    if expected == "outside":
        assert report.promise == "none"
        with pytest.warns(UserWarning, match="discrete"):
            report.warn_if_violated()


class Fold(nn.Module):
    def forward(self, z):
        return torch.cat([z[..., :1].square(), z[..., 1:]], -1)


def rotate(z):
    return z @ torch.linalg.qr(torch.arange(9.0).reshape(3, 3).cos())[0]


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (lambda z: z, "met"),
        (rotate, "met"),
        (lambda z: torch.stack([z, z**3], -1), "met"),  # events of two dimensions
        (lambda z: torch.cat([z.tanh(), z], -1), "met"),
        (lambda z: z[..., :2], "violated"),  # narrower than the latent
        (lambda z: torch.cat([z[..., :2], z[..., :2]], -1), "violated"),
        (lambda z: torch.cat([z[..., :2], (z[..., :1] * z[..., 1:2])], -1), "violated"),
        (lambda z: z * 0, "violated"),
    ],
)
def test_injectivity_of_the_decoder(decoder, expected):
    report = check_identifiability(prior_of(3, 6), torch.arange(6), dist.Normal, decoder)
    assert status(report, "injective") == expected
    assert report.is_identifiable is (expected == "met")


def test_fold_of_one_latent_is_seen():
    report = check_identifiability(prior_of(1, 6), torch.arange(6), dist.Normal, Fold())
    assert status(report, "injective") == "violated"


def test_decoder_is_evaluated_and_left_as_it_was():
    decoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
    decoder[3].eval()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    reports = [
        check_identifiability(prior_of(3, 6), torch.arange(6), decoder=decoder) for _ in range(2)
    ]
    assert [module.training for module in decoder] == [True, True, True, False]
    assert all((value == before[name]).all() for name, value in decoder.state_dict().items())
    assert [status(report, "injective") for report in reports] == ["met", "met"]


@pytest.mark.parametrize("data_dim", [2, 10, 128, 129, 300])
def test_jacobian_is_that_of_autograd(data_dim):
    """On both ways to find it."""
    decoder = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, data_dim)).double()
    z = torch.randn(5, 3, dtype=torch.float64)
    exact = [torch.autograd.functional.jacobian(decoder, one) for one in z]
    torch.testing.assert_close(jacobians(decoder, z), torch.stack(exact))


def test_is_the_same_at_each_call_and_moves_no_generator():
    prior, decoder = prior_of(3, 6), nn.Linear(3, 4)
    state = torch.get_rng_state()
    first, again = (
        str(check_identifiability(prior, torch.arange(6), decoder=decoder)) for _ in "ab"
    )
    assert first == again
    assert (torch.get_rng_state() == state).all()
    assert all(parameter.grad is None for parameter in prior.parameters())


# The report.


def test_report_reads_well():
    prior = prior_of(2, 20, BOTH)
    report = check_identifiability(prior, torch.arange(20), dist.Normal, nn.Linear(2, 6))
    lines = str(report).splitlines()
    assert lines[0] == (
        "identifiability: up to permutation, and an affine map of each coordinate's statistics"
    )
    assert "  met       contexts     20 distinct, 5 needed (n k + 1, n = 2, k = 2)" in lines
    assert lines[2].startswith("  met       variability  rank 4 of 4")
    report.raise_if_violated(strict=True)
    report.warn_if_violated()  # which would be an error here
    open_report = check_identifiability(prior, torch.arange(20))
    assert str(open_report).splitlines()[0].endswith("if what is unchecked holds")
    open_report.raise_if_violated(strict=True)


def test_too_few_contexts_warn_with_the_numbers_and_raise_on_request():
    report = check_identifiability(prior_of(5, 10, BOTH), torch.arange(10))
    with pytest.warns(UserWarning, match="10 distinct, 11 needed"):
        report.warn_if_violated()
    with pytest.raises(ValueError, match="rank 9 of 10"):
        report.raise_if_violated()


# Energies.


def energy_of(latent_dim, num_classes, **options):
    return ConditionalEnergy(6, latent_dim, num_classes, hidden_dims=(16,), **options)


@pytest.mark.parametrize(
    ("options", "num_statistics", "promise"),
    [
        ({}, 3, "linear"),
        ({"augment": True}, 6, "permutation"),
        ({"positive": True, "base": EnergyNet(6)}, 3, "permutation"),
    ],
)
def test_energy_needs_one_context_more_than_statistics(options, num_statistics, promise):
    data = torch.randn(200, 6)
    for num in (num_statistics, num_statistics + 1):
        report = check_identifiability(energy_of(3, num, **options), torch.arange(num), data=data)
        assert report.required_contexts == num_statistics + 1
        assert report.rank == num - 1
        assert report.is_identifiable is (num > num_statistics)
        assert report.promise == (promise if num > num_statistics else "none")
        assert status(report, "features") == "met"
        assert 1.5 < report.effective_rank <= 3


class Protocol:
    """An energy of the four names that are asked for."""

    def __init__(self, features, weights, augment=False, positive=False):
        self.features, self.table = features, weights
        self.augment, self.positive = augment, positive

    def weights(self, context):
        return self.table[context]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (lambda x: x[:, :3], "met"),
        (lambda x: x[:, :1] * torch.tensor([1.0, 2.0, -3.0]), "violated"),
        (lambda x: torch.cat([x[:, :2], x[:, :1] - x[:, 1:2]], -1), "violated"),
        (lambda x: x[:, :1] + 0.01 * x[:, :3], "weak"),
        (lambda x: torch.cat([x[:, :2], torch.ones(len(x), 1)], -1), "violated"),
        (lambda x: torch.ones(len(x), 3), "violated"),
    ],
)
def test_collapse_of_features(features, expected):
    energy = Protocol(features, torch.randn(9, 3))
    report = check_identifiability(energy, torch.arange(9), data=torch.randn(500, 6))
    assert status(report, "features") == expected
    assert report.is_identifiable is (expected != "violated")


def test_conditions_on_the_form_of_an_energy():
    weights, x, contexts = torch.randn(9, 3), torch.randn(500, 6), torch.arange(9)
    report = check_identifiability(Protocol(lambda x: x[:, :3], weights, positive=True), contexts)
    assert status(report, "features") == "unchecked"
    assert report.promise == "permutation"
    energy = Protocol(lambda x: x[:, :3], weights, positive=True)
    report = check_identifiability(energy, contexts, data=x)
    assert status(report, "non-negative") == "violated"
    energy = Protocol(lambda x: x[:, :3].square(), weights, positive=True)
    report = check_identifiability(energy, contexts, data=x)
    assert status(report, "non-negative") == "met"
    report = check_identifiability(Protocol(lambda x: x[:, :3], weights), contexts, data=x[:, :2])
    assert status(report, "dimensions") == "met"
    energy = Protocol(lambda x: torch.cat([x, x**2], -1), weights[:, :2].repeat(1, 2))
    report = check_identifiability(energy, contexts, data=x[:, :2])
    assert status(report, "dimensions") == "violated"
    assert report.rank == 2
    x[:, 4] = 1.0
    report = check_identifiability(Protocol(lambda x: x[:, :3], weights), contexts, data=x)
    assert status(report, "data") == "weak"
    assert "1 of 6 columns are constant ([4])" in str(report)


def test_labels_that_an_energy_never_saw_are_named():
    """Their weights and normalisers are as they were drawn, whatever was trained."""
    energy = ConditionalEnergy(6, 2, 20, augment=True, hidden_dims=(8,))
    seen = torch.tensor([0, 1, 2, 3, 4, 5, 7]).repeat(3)
    report = check_identifiability(energy, seen)
    assert status(report, "labels") == "weak"
    assert "13 of 20 never occur (6, 8, 9" in str(report)
    report.raise_if_violated()
    with pytest.raises(ValueError, match="13 of 20 never occur"):
        report.raise_if_violated(strict=True)
    assert status(check_identifiability(energy, torch.arange(20)), "labels") is None


def test_published_sizes_break_their_own_condition():
    """Ninety features of ten labels."""
    energy = ConditionalEnergy(100, 90, 10, hidden_dims=(8,))
    report = check_identifiability(energy, torch.arange(10))
    assert (report.rank, report.required_rank, report.required_contexts) == (9, 90, 91)


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((nn.Linear(2, 2), torch.arange(3)), {}, "IdentifiablePrior or ConditionalEnergy"),
        ((prior_of(2, 3), torch.arange(0)), {}, "contexts"),
        ((prior_of(2, 3), [0, 1, 2]), {}, "contexts"),
        ((prior_of(2, 3), torch.arange(4)), {}, "from 0 to 2"),
        ((IdentifiablePrior(2, context_dim=1), torch.tensor([[0.1], [math.nan]])), {}, "NaN"),
        ((prior_of(2, 3), torch.arange(3)), {"num_draws": 8}, "num_draws"),
        ((prior_of(2, 3), torch.arange(3), "normal"), {}, "Normal"),
        ((prior_of(2, 3), torch.arange(3), None, lambda z: z.sum()), {}, "decoder must map"),
        ((prior_of(2, 3), torch.arange(3), None, lambda z: (z, z)), {}, "tuple"),
        ((prior_of(2, 3), torch.arange(3), None, lambda z: z / 0), {}, "not finite"),
        ((prior_of(2, 3), torch.arange(3), None, lambda z: z.detach()), {}, "differentiable"),
        ((energy_of(2, 4), torch.arange(4)), {"data": torch.full((9, 6), math.nan)}, "NaN"),
        ((energy_of(2, 4), torch.arange(4)), {"data": torch.zeros(1, 6)}, "two events"),
    ],
)
def test_bad_input_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        check_identifiability(*arguments, **options)


def test_checks_a_trained_program_too():
    """Parameters are those of now."""
    prior = prior_of(2, 6)
    pyro.module("prior", prior)
    before = check_identifiability(prior, torch.arange(6)).modulation
    with torch.no_grad():
        prior.head.last.mul_(3)
    assert (check_identifiability(prior, torch.arange(6)).modulation > before).all()


@pytest.mark.parametrize(
    ("decoder", "status"),
    [
        (lambda z: (3 * z).exp(), "met"),
        (lambda z: z + z**3, "met"),
        (lambda z: torch.cat([z.square(), z.pow(4)], -1), "violated"),
    ],
)
def test_a_wide_range_of_slopes_is_no_fold(decoder, status):
    prior = IdentifiablePrior(1, num_classes=5)
    report = check_identifiability(prior, torch.arange(5), decoder=decoder)
    found = {one.name: one.status for one in report.conditions}
    assert found["injective"] == status


def test_thinned_contexts_reach_to_the_last():
    vectors = torch.linspace(0, 1, 10_000).unsqueeze(-1)
    thinned = thin(vectors)
    assert len(thinned) == 4096
    assert thinned[-1] == 1
    assert (thinned.diff(dim=0) > 0).all()


def test_two_folds_in_two_dimensions_are_found():
    prior = IdentifiablePrior(2, num_classes=7)
    for decoder in (
        lambda z: torch.stack([z[:, 0].square(), z[:, 1]], -1),
        lambda z: torch.stack([(3 * z[:, 0]).sin(), z[:, 1], z[:, 1].exp()], -1),
    ):
        report = check_identifiability(prior, torch.arange(7), decoder=decoder)
        found = {one.name: one for one in report.conditions}["injective"]
        assert found.status == "violated"
        assert "share their image" in found.detail


def test_the_decoder_of_a_model_and_laws_of_torch():
    vae = IdentifiableVAE(IdentifiablePrior(2, num_classes=7), 4)
    law = torch.distributions.Normal(0.0, 1.0)
    report = check_identifiability(vae.prior, torch.arange(7), law, vae.decode)
    found = {one.name: one.status for one in report.conditions}
    assert (found["noise"], found["injective"]) == ("met", "met")


def test_rounding_is_no_rank():
    """Two collinear columns whose spread is a thousandth of their size, in single precision."""
    t = torch.linspace(0, 1, 50)
    points = torch.stack([300 + 0.3 * t, 300 - 0.3 * t], -1)
    assert affine_rank(points).rank == 1
    assert affine_rank(points.double()).rank == 1
    with pytest.raises(ValueError, match="tolerance must be"):
        affine_rank(points, float("nan"))
