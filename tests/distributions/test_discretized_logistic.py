"""Rounded logistic laws and their mixtures, against scipy and enumeration."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy.stats import chi2, logistic

from pyro_ext.distributions import DiscretizedLogistic, DiscretizedLogisticMixture
from pyro_ext.ops.discretized_logistic import round_logistic

ALARM = 1e-6


def mixture(channels=3, num=2, levels=4):
    pairs = channels * (channels - 1) // 2
    return DiscretizedLogisticMixture(
        torch.randn(num).double(),
        levels * torch.rand(channels, num).double(),
        0.2 + torch.rand(channels, num).double(),
        0.5 * torch.randn(pairs, num).double(),
        levels,
    )


def images_of(d):
    return torch.cartesian_prod(*[torch.arange(d.levels)] * d.event_shape[0]).reshape(
        -1, *d.event_shape
    )


def misfit(draws, images, probs, levels):
    weights = levels ** torch.arange(draws.shape[-1]).double()
    codes, known = (x.double() @ weights for x in (draws, images))
    counts = torch.bincount(codes.long(), minlength=int(known.max()) + 1)[known.long()]
    expected = len(draws) * probs
    is_large = expected >= 5
    statistic = ((counts - expected).square() / expected)[is_large].sum().item()
    return statistic, int(is_large.sum())


def test_one_channel_is_a_difference_of_distribution_functions():
    d = DiscretizedLogistic(torch.tensor(3.3).double(), 1.7, levels=10)
    edges = [-float("inf"), *(k + 0.5 for k in range(9)), float("inf")]
    expected = torch.tensor(logistic.cdf(edges, 3.3, 1.7)).diff().log()
    assert torch.allclose(d.log_prob(d.enumerate_support()), expected, atol=1e-12)


def test_draws_of_one_channel():
    """Chi-squared; false alarm 1e-6."""
    d = DiscretizedLogistic(torch.tensor(3.3).double(), 1.7, levels=6)
    values = d.enumerate_support()
    draws = d.sample((100_000,))
    statistic, cells = misfit(draws[:, None], values[:, None], d.log_prob(values).exp(), 6)
    assert statistic < chi2.isf(ALARM, cells)


@pytest.mark.parametrize(("loc", "scale"), [(30_000.5, 1e-3), (100.5, 1e-4), (50_000.0, 1000.0)])
def test_halves_are_not_rounded_to_even_levels(loc, scale):
    """Two levels share a half, and wide laws are even half of the time: a z-test of 1e-6 each."""
    draws = DiscretizedLogistic(loc, scale, levels=65_536).sample((1_000_000,))
    assert abs((draws % 2 == 0).double().mean().item() - 0.5) < 4.9 * 0.5 / 1000


def test_a_random_number_of_zero_is_no_impossible_draw():
    zero, loc = torch.zeros(()), torch.tensor(200.0)
    assert round_logistic(zero, loc, torch.tensor(0.5), 256) > 190


def test_integer_parameters_become_real():
    d = DiscretizedLogistic(torch.tensor(100), 3.5)
    assert d.log_prob(torch.tensor(100)) == DiscretizedLogistic(100.0, 3.5).log_prob(
        torch.tensor(100)
    )
    assert d.sample().dtype == torch.float32
    with pytest.raises(ValueError, match="loc is real"):
        DiscretizedLogisticMixture(torch.zeros(2), torch.ones(1, 2).long(), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., C, M\)"):
        DiscretizedLogisticMixture(torch.zeros(2), torch.ones(2), torch.ones(1, 2))


def test_a_latent_level_is_summed_out():
    """Against the sum by hand."""

    @config_enumerate
    def model():
        z = pyro.sample("z", DiscretizedLogistic(1.0, 1.0, levels=4))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(model, lambda: None)
    z = torch.arange(4.0)
    log_joint = DiscretizedLogistic(1.0, 1.0, levels=4).log_prob(z)
    log_joint = log_joint + dist.Normal(z, 1.0).log_prob(torch.tensor(0.3))
    assert loss == pytest.approx(-log_joint.logsumexp(0).item(), rel=1e-5)


def test_shapes_are_inferred_from_all_arguments():
    shapes = {"logits": (5,), "loc": (3, 5), "scale": (3, 5), "coefficients": (7, 3, 5)}
    batch, event = DiscretizedLogisticMixture.infer_shapes(**shapes)
    assert (batch, event) == ((7,), (3,))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_mixtures_sum_to_one_and_draw_what_they_score(channels):
    """Chi-squared; false alarm 1e-6 for each."""
    d = mixture(channels)
    images = images_of(d)
    probs = d.log_prob(images).exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-12)
    statistic, cells = misfit(d.sample((100_000,)), images, probs, d.levels)
    assert statistic < chi2.isf(ALARM, cells)


def test_mixture_by_hand():
    """Components of the pixel, each channel given those before it."""
    d = mixture()
    x = torch.tensor([1.0, 3.0, 0.0]).double()
    centred, total = x - 1.5, 0.0
    for m in range(2):
        a = d.coefficients[:, m]
        loc = d.loc[:, m] + torch.stack(
            [0 * a[0], a[0] * centred[0], a[1] * centred[0] + a[2] * centred[1]]
        )
        channels = DiscretizedLogistic(loc, d.scale[:, m], d.levels).log_prob(x).sum()
        total = total + d.logits.softmax(0)[m] * channels.exp()
    assert torch.allclose(d.log_prob(x), total.log(), atol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="levels"):
        DiscretizedLogistic(0.0, 1.0, levels=1)
    with pytest.raises(ValueError, match="GreaterThan"):
        DiscretizedLogistic(0.0, -1.0)
    with pytest.raises(ValueError, match=r"coefficients \(\.\.\., 3, 2\)"):
        DiscretizedLogisticMixture(
            torch.zeros(2), torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2, 2)
        )
    with pytest.raises(ValueError, match="support"):
        mixture().log_prob(torch.tensor([0.5, 1.0, 1.0]))
