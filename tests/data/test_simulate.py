import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_ext.data.simulate import Checkerboard, NineGaussians, TwoRings

TOYS = [NineGaussians, TwoRings, Checkerboard]
CEILINGS = {NineGaussians: -0.4299, TwoRings: -1.5137, Checkerboard: -2.0794}
SECOND_MOMENTS = {
    NineGaussians: 2 * (2 / 3 + 0.01),
    TwoRings: (0.6**2 + 1.3**2) / 2 + 0.01,
    Checkerboard: 2 * 4**2 / 12,
}


def nine_gaussians(x):
    centres = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return np.mean([stats.multivariate_normal(c, 0.01 * np.eye(2)).pdf(x) for c in centres], 0)


def two_rings(x):
    # The law of the radius by brute force: the mixture of half-lines through x, both ways.
    r = np.hypot(x[..., 0], x[..., 1])
    mixture = [stats.norm(c, 0.1).pdf(s * r) / 2 for c in (0.6, 1.3) for s in (1, -1)]
    return np.sum(mixture, 0) / (2 * np.pi * r)


def checkerboard(x):
    return sum(
        np.all((x >= (a, b)) & (x < (a + 1, b + 1)), -1) / 8
        for a in range(-2, 2)
        for b in range(-2, 2)
        if (a - b) % 2 == 0
    )


ORACLES = {NineGaussians: nine_gaussians, TwoRings: two_rings, Checkerboard: checkerboard}


def grid(size, low=-2.0, high=2.0):
    """Midpoints of the cells of a square grid, and the area of one."""
    step = (high - low) / size
    axis = low + step * (torch.arange(size, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis), step**2


@pytest.mark.parametrize("toy", TOYS)
def test_log_prob_agrees_with_scipy(toy):
    points = grid(100, -2.3, 2.3)[0]
    actual = toy().log_prob(points).exp().numpy()
    np.testing.assert_allclose(actual, ORACLES[toy](points.numpy()), rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("toy", TOYS)
def test_density_integrates_to_one_and_reaches_its_ceiling(toy):
    points, area = grid(2000, -2.5, 2.5)
    log_prob = toy().log_prob(points)
    # 1e-4: the midpoint rule crosses the 1/r pole of the rings, whose density there is 1e-7.
    assert area * log_prob.exp().sum() == pytest.approx(1, abs=1e-4)
    assert area * torch.special.entr(log_prob.exp()).sum() == pytest.approx(
        -CEILINGS[toy], abs=1e-4
    )


def test_two_rings_account_for_negative_radii(monkeypatch):
    # With rings 0.6 / 0.5 deviations from the origin, folding matters: mass would be lost without.
    monkeypatch.setattr(TwoRings, "_SCALE", 0.5)

    def shell(r):
        at = torch.tensor([r * math.cos(1), r * math.sin(1)], dtype=torch.float64)
        return 2 * math.pi * r * TwoRings().log_prob(at).exp().item()

    assert integrate.quad(shell, 0, 8)[0] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("toy", TOYS)
def test_samples_follow_the_density(toy):
    """Chi-square over 16 x 16 cells; false alarm 1e-6."""
    torch.manual_seed(0)
    num_samples, fine = 200_000, 25
    points, area = grid(16 * fine)
    cells = toy().log_prob(points).exp().reshape(16, fine, 16, fine).sum((1, 3)) * area
    expected = num_samples * cells.flatten()
    x = toy(dtype=torch.float64).sample((num_samples,))
    counts = torch.histogramdd(x, bins=[16, 16], range=[-2.0, 2.0] * 2).hist.flatten()
    rare = expected < 10  # one cell together, with what lies outside the grid
    observed = torch.cat([counts[~rare], (num_samples - counts[~rare].sum()).view(1)])
    expected = torch.cat([expected[~rare], (num_samples - expected[~rare].sum()).view(1)])
    keep = expected > 1
    assert observed[~keep].sum() <= 12  # Poisson with mean <= 1: probability 7e-11
    statistic = ((observed - expected).square() / expected)[keep].sum()
    assert stats.chi2(int(keep.sum()) - 1).sf(statistic.item()) > 1e-6


@pytest.mark.parametrize("toy", TOYS)
def test_second_moment_of_samples(toy):
    """Also the cross entropy to a standard normal, but for constants; z-test, false alarm 6e-7."""
    torch.manual_seed(1)
    square = toy(dtype=torch.float64).sample((200_000,)).square().sum(-1)
    z = (square.mean() - SECOND_MOMENTS[toy]) / (square.std() / math.sqrt(len(square)))
    assert abs(z) < 5


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtype_and_expand(toy, dtype):
    target = toy(dtype=dtype, device="cpu")
    assert target.event_shape == (2,)
    assert target.batch_shape == ()
    assert target.sample().shape == (2,)
    x = target.sample((4, 3))
    assert x.shape == (4, 3, 2)
    assert x.dtype == dtype
    assert target.log_prob(x).dtype == dtype
    wide = target.expand((3,))
    assert wide.batch_shape == (3,)
    assert target.batch_shape == ()
    assert wide.sample((4,)).shape == (4, 3, 2)
    assert wide.log_prob(x[0, 0]).shape == (3,)
    torch.testing.assert_close(wide.log_prob(x), target.log_prob(x))


@pytest.mark.parametrize("toy", TOYS)
def test_default_dtype_and_validation(toy):
    target = toy(validate_args=True)
    assert target.sample().dtype == torch.get_default_dtype()
    with pytest.raises(ValueError, match="support"):
        target.log_prob(torch.full((2,), math.nan))
    assert toy(validate_args=False).log_prob(torch.full((3, 2), math.nan)).shape == (3,)


@pytest.mark.parametrize("toy", [NineGaussians, TwoRings])
def test_gradient_is_right_inside_and_finite_everywhere(toy):
    target = toy()
    x = torch.tensor([[0.5, 0.7], [1.2, -0.3], [-0.1, 0.6]], dtype=torch.float64)
    assert torch.autograd.gradcheck(target.log_prob, x.requires_grad_())
    for dtype in (torch.float32, torch.float64):
        edge = torch.tensor([[0.0, 0.0], [1e3, -1e3]], dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(target.log_prob(edge).sum(), edge)
        assert gradient.isfinite().all()
        assert target.log_prob(edge).isfinite().all()


def test_two_rings_keep_double_precision(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda shape, **kwargs: torch.zeros(shape, **kwargs))
    radius = TwoRings(dtype=torch.float64).sample((100,)).norm(dim=-1)
    nearest = torch.where(radius < 1, 0.6 * torch.ones_like(radius), 1.3)
    torch.testing.assert_close(radius, nearest, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkerboard_samples_never_round_onto_a_white_square(monkeypatch, dtype):
    torch.manual_seed(2)
    rand, calls = torch.rand, []

    def adverse(shape, **kwargs):
        calls.append(shape)
        if shape[-1] != 2:  # the choice of a square
            return rand(shape, **kwargs)
        return torch.full(shape, 1 - torch.finfo(dtype).eps / 2, **kwargs)

    monkeypatch.setattr(torch, "rand", adverse)
    target = Checkerboard(dtype=dtype)
    x = target.sample((1000,))
    assert calls[-1] == (1000, 2)
    torch.testing.assert_close(target.log_prob(x), torch.full_like(x[:, 0], -math.log(8)))


@pytest.mark.parametrize("toy", TOYS)
def test_sample_is_reproducible_and_log_prob_draws_nothing(toy):
    torch.manual_seed(3)
    first = toy().sample((10,))
    torch.manual_seed(3)
    torch.testing.assert_close(toy().sample((10,)), first, rtol=0, atol=0)
    state = torch.get_rng_state()
    toy().log_prob(first)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("toy", TOYS)
def test_everything_stays_on_the_device(toy):
    target = toy(device="meta", validate_args=False)
    x = target.sample((4,))  # any tensor from the CPU would raise
    assert x.device.type == target.log_prob(x).device.type == "meta"


@pytest.mark.parametrize("toy", TOYS)
def test_log_prob_under_vmap(toy):
    torch.manual_seed(4)
    x = toy().sample((6, 5))
    torch.testing.assert_close(
        torch.func.vmap(toy(validate_args=False).log_prob)(x), toy().log_prob(x)
    )


def test_expand_refuses_what_does_not_broadcast():
    with pytest.raises(RuntimeError, match="must match"):
        NineGaussians().expand((3,)).expand((2,))
