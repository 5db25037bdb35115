"""Annealed importance sampling against normalisers in closed form and by quadrature."""

import math

import pytest
import torch

from pyro_ext.ops import annealed_importance, effective_sample_size

Z_SCORE = 5  # false-alarm probability 6e-7


def start(x):
    return (-x.square() / 2 - math.log(2 * math.pi) / 2).sum(-1)


def target(x):
    return -((x - 2) / 0.5).square().sum(-1) / 2


def draw(num, dim=2):
    return torch.randn(num, dim, dtype=torch.float64)


def within(log_w, log_z):
    """Whether the mean weight, which is unbiased, is the normaliser."""
    ratio = (log_w - log_z).exp()
    return abs(ratio.mean() - 1) < Z_SCORE * ratio.std() / len(ratio) ** 0.5


@pytest.mark.parametrize("step_size", [0.1, 0.4])
@pytest.mark.parametrize("num_temperatures", [5, 30])
def test_normaliser_of_a_far_gaussian(num_temperatures, step_size):
    """Unbiased at any step size and number of temperatures; 10^4.4 is the largest weight."""
    log_w, x, rate = annealed_importance(start, target, draw(20_000), num_temperatures, step_size)
    log_z = math.log(2 * math.pi * 0.25)
    assert (log_w.shape, x.shape, rate.shape) == ((20_000,), (20_000, 2), ())
    assert 0.5 < rate <= 1
    assert within(log_w, log_z)


def test_annealing_makes_the_weights_more_even():
    x = draw(5_000, 5)
    sizes = [
        effective_sample_size(annealed_importance(start, target, x, steps, 0.3)[0])
        for steps in (1, 10, 100)
    ]
    assert sizes[0] * 5 < sizes[1] < sizes[2]


def test_one_temperature_is_importance_sampling():
    x = draw(7)
    log_w, same, rate = annealed_importance(start, target, x, 1, 0.3)
    torch.testing.assert_close(log_w, target(x) - start(x))
    assert torch.equal(same, x)
    assert rate == 1


def test_rejections_keep_the_density():
    """Steps far too large are rejected, and the estimate stays unbiased."""
    near = lambda x: -((x - 0.5) / 0.8).square().sum(-1) / 2  # noqa: E731
    log_w, _, rate = annealed_importance(start, near, draw(50_000), 20, 1.9)
    assert rate < 0.9
    assert within(log_w, math.log(2 * math.pi * 0.64))


def test_moves_keep_the_density_between():
    """With equal densities nothing but moves happens: the draws stay standard Normal."""
    log_w, x, rate = annealed_importance(start, start, draw(50_000), 10, 1.5, num_leapfrog=2)
    assert not log_w.any()
    assert rate < 0.95
    num = x.numel()
    assert abs(x.mean()) < Z_SCORE / num**0.5
    assert abs(x.square().mean() - 1) < Z_SCORE * (2 / num) ** 0.5
    assert abs((x**4).mean() - 3) < Z_SCORE * (96 / num) ** 0.5


def test_batches_of_scalars_against_quadrature():
    shift = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    bumpy = lambda x: -x.square() / 4 + torch.sin(3 * x + shift)  # noqa: E731
    one = lambda x: -x.square() / 2 - math.log(2 * math.pi) / 2  # noqa: E731
    x = torch.randn(20_000, 3, dtype=torch.float64)
    log_w, _, _ = annealed_importance(one, bumpy, x, 10, 0.3, event_dim=0)
    grid = torch.linspace(-15, 15, 3001, dtype=torch.float64)
    log_z = torch.trapezoid(bumpy(grid.unsqueeze(-1)).exp(), grid, dim=0).log()
    for column, value in zip(log_w.T, log_z, strict=True):
        assert within(column, value)


def test_no_gradient():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    log_w, x, _ = annealed_importance(start, lambda x: scale * target(x), draw(5), 3, 0.1)
    assert not log_w.requires_grad
    assert not x.requires_grad


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_temperatures must be an integer >= 1"):
        annealed_importance(start, target, draw(3), 0, 0.1)
    with pytest.raises(ValueError, match="num_leapfrog must be an integer >= 1"):
        annealed_importance(start, target, draw(3), 2, 0.1, 0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        annealed_importance(start, target, draw(3), 2, 0.0)
