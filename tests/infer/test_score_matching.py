"""Score matching against least squares, moments and closed forms."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_ext.infer import DenoisingScoreMatching, SlicedScoreMatching
from pyro_ext.nn import ConditionalEnergy, ConvEnergyNet, EnergyNet


class Gaussian(nn.Module):
    """The energy of a centred Normal with a given precision."""

    def __init__(self, precision):
        super().__init__()
        self.precision = nn.Parameter(precision)

    def forward(self, x):
        return torch.einsum("...i,ij,...j->...", x, self.precision, x) / 2


def gaussian_family(num_classes):
    """Statistics (x, x^2) of each coordinate, so that the score is linear in the weights."""
    ebm = ConditionalEnergy(2, 2, num_classes, feature_net=nn.Identity(), augment=True)
    return ebm.double()


def minimiser(loss, table):
    """Of a loss that is quadratic in a table, by one step of Newton."""
    gradient = lambda t: torch.autograd.functional.jacobian(loss, t)  # noqa: E731
    hessian = torch.autograd.functional.hessian(loss, table).reshape(table.numel(), -1)
    step = torch.linalg.solve(hessian, gradient(table).flatten())
    return (table.flatten() - step).reshape(table.shape)


def loss_of_table(objective, ebm, x, label):
    """The loss as a function of the weights, with the same noise at each call."""

    def loss(table):
        torch.manual_seed(0)
        return torch.func.functional_call(
            Call(objective(ebm)), {"loss.ebm.weight_head.table": table}, (x, label)
        )

    return loss


class Call(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x, context):
        return self.loss(x, context)


def class_moments(x, label, num_classes):
    rows = [x[label == k] for k in range(num_classes)]
    loc = torch.stack([row.mean(0) for row in rows])
    return loc, torch.stack([row.var(0, correction=0) for row in rows])


def draw_classes(num, num_classes=3):
    label = torch.arange(num) % num_classes
    scale = torch.tensor([[0.5, 1.0], [2.0, 0.3], [1.0, 1.0]], dtype=torch.float64)
    loc = torch.tensor([[1.0, -1.0], [0.0, 0.5], [-2.0, 0.0]], dtype=torch.float64)
    return loc[label] + scale[label] * torch.randn(num, 2, dtype=torch.float64), label


# Without noise.


@pytest.mark.parametrize("num_slices", [None, 1, 7])
def test_exact_score_matching_of_gaussians_is_moment_matching(num_slices):
    """The minimiser has the sample's mean and variance of each class; directions do not matter
    where the Jacobian is diagonal, since all signs have square one."""
    x, label = draw_classes(60)
    ebm = gaussian_family(3)
    loss = loss_of_table(SlicedScoreMatching(num_slices), ebm, x, label)
    best = minimiser(loss, ebm.weight_head.table.detach())
    loc, variance = class_moments(x, label, 3)
    expected = torch.cat([loc / variance, -0.5 / variance], -1)
    torch.testing.assert_close(best, expected)


def test_value_of_a_gaussian_in_closed_form():
    root = torch.randn(3, 3, dtype=torch.float64)
    precision = root @ root.T
    x = torch.randn(50, 3, dtype=torch.float64)
    found = SlicedScoreMatching(None)(Gaussian(precision))(x)
    expected = (x @ precision).square().sum(-1).mean() / 2 - precision.trace()
    torch.testing.assert_close(found, expected)


def test_all_signs_average_to_the_trace(monkeypatch):
    """The expectation over directions, by enumeration."""
    ebm = ConditionalEnergy(3, 4, 2, hidden_dims=(8,), base=EnergyNet(3, (8,))).double()
    x, label = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 2
    exact = SlicedScoreMatching(None)(ebm)(x, label)
    signs = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    sliced = SlicedScoreMatching(8)(ebm)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *a, **k: signs[:, None].expand(8, 5, 3))
        torch.testing.assert_close(sliced(x, label), exact)
    hessians = [
        torch.autograd.functional.hessian(lambda row, n=n: ebm(row[None], label[n][None])[0], x[n])
        for n in range(5)
    ]
    score = -torch.autograd.functional.jacobian(lambda x: ebm(x, label).sum(), x)
    trace = torch.stack([-hessian.trace() for hessian in hessians])
    torch.testing.assert_close(exact, (score.square().sum(-1) / 2 + trace).mean())


def test_one_dimension_is_exact_with_one_slice():
    ebm = EnergyNet(1, (8,)).double()
    x = torch.randn(9, 1, dtype=torch.float64)
    exact = SlicedScoreMatching(None)(ebm)(x)
    for _ in range(3):
        torch.testing.assert_close(SlicedScoreMatching()(ebm)(x), exact)


def test_difference_of_losses_is_half_the_fisher_divergence():
    """Normal data of variance one and a Normal model: E |s - s'|^2 / 2, at 5 standard errors."""
    x = torch.randn(200_000, 1, dtype=torch.float64)
    precision = torch.tensor([[1.7]], dtype=torch.float64)
    loss = SlicedScoreMatching()
    best, other = Gaussian(torch.ones_like(precision)), Gaussian(precision)
    found = (loss(other)(x) - loss(best)(x)).item()
    error = ((1.7**2 - 1) / 2 * x.square()).std().item() / len(x) ** 0.5
    assert abs(found - 0.7**2 / 2) < 5 * error  # false-alarm probability 6e-7


# With noise.


@pytest.mark.parametrize("weight", [torch.square, lambda s: s**4])
@pytest.mark.parametrize("scale", [0.3, (0.1, 0.5, 2.0)])
def test_denoising_by_hand(scale, weight):
    ebm = ConditionalEnergy(2, 4, 3, hidden_dims=(8,)).double()
    x, label = draw_classes(20)
    torch.manual_seed(0)
    found = DenoisingScoreMatching(scale, weight)(ebm)(x, label)
    torch.manual_seed(0)
    scales = torch.tensor(scale, dtype=torch.float64).reshape(-1)
    index = torch.randint(len(scales), (20, 1))
    sigma, noise = scales[index], torch.randn_like(x)
    noisy = x + sigma * noise
    total = 0.0
    for n in range(20):
        energy = lambda row, n=n: ebm(row[None], label[n][None])[0]  # noqa: E731
        score = -torch.autograd.functional.jacobian(energy, noisy[n])
        target = -(noisy[n] - x[n]) / sigma[n] ** 2  # of the Normal around the datum
        total += weight(sigma[n]).squeeze() * (score - target).square().sum() / 2
    torch.testing.assert_close(found, total / 20)


@pytest.mark.parametrize("scale", [0.3, (0.1, 1.0)])
def test_denoising_of_linear_energies_is_least_squares(scale):
    x, label = draw_classes(90)
    ebm = gaussian_family(3)
    loss = loss_of_table(DenoisingScoreMatching(scale), ebm, x, label)
    best = minimiser(loss, ebm.weight_head.table.detach())
    torch.manual_seed(0)
    scales = torch.tensor(scale, dtype=torch.float64).reshape(-1)
    sigma = scales[torch.randint(len(scales), (90, 1))]
    noise = torch.randn_like(x)
    noisy = x + sigma * noise
    for k in range(3):
        for i in range(2):
            keep = label == k
            rows = torch.stack([torch.ones(30).double(), 2 * noisy[keep, i]], -1) * sigma[keep]
            solved = torch.linalg.lstsq(rows, -noise[keep, i : i + 1]).solution[:, 0]
            torch.testing.assert_close(best[k, [i, i + 2]], solved)


@pytest.mark.parametrize("weight", ["square", "fourth power"])
def test_minimum_of_gaussian_data(weight):
    """Normal data: the best energy has the noisy variance, and the loss its known minimum.

    At 5 standard errors: false-alarm probability 6e-7.
    """
    spread, sigma, dim, num = 1.5, 0.8, 2, 200_000
    variance = spread**2 + sigma**2
    ebm = Gaussian(torch.eye(dim, dtype=torch.float64) / variance)
    x = spread * torch.randn(num, dim, dtype=torch.float64)
    power = 2 if weight == "square" else 4
    loss = DenoisingScoreMatching(sigma, lambda s: s**power)(ebm)
    minimum = dim / 2 * (sigma**2 - sigma**4 / variance) * sigma ** (power - 4)
    error = minimum * (2 / (num * dim)) ** 0.5  # a chi-squared variable
    found = loss(x)
    assert abs(found.item() - minimum) < 5 * error
    found.backward()
    # d/d(precision) of each term has mean zero and variance sigma^2 y^2 r^2, r the residual
    noise_of_gradient = sigma ** (power - 2) * (minimum * 2 / dim * sigma ** (4 - power)) ** 0.5
    bound = 5 * noise_of_gradient * variance**0.5 / num**0.5
    assert ebm.precision.grad.diagonal().abs().max() < bound


def test_several_levels_are_fitted_by_their_mixture():
    """The score of the mixture of noisy densities with weights lambda is a stationary point.

    The slope in a direction is a mean of independent numbers: z-test at 5 standard errors,
    false-alarm probability 6e-7; that of the unweighted mixture is found to be another.
    """
    scales, spread, num = torch.tensor([0.3, 2.0]).double(), 1.0, 400_000

    class Mixture(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.weights, self.step = weights, nn.Parameter(torch.zeros(()).double())

        def forward(self, x):
            parts = dist.Normal(0.0, (spread**2 + scales**2).sqrt()).log_prob(x)
            log_density = (self.weights.log() + parts).logsumexp(-1)
            return -log_density + self.step * torch.cos(x.squeeze(-1))

    x = spread * torch.randn(num, 1, dtype=torch.float64)
    slopes = []
    for weights in (scales**2, torch.ones(2).double()):
        ebm, values = Mixture(weights), []
        for part in x.split(4_000):
            ebm.step.grad = None
            DenoisingScoreMatching(scales)(ebm)(part).backward()
            values.append(ebm.step.grad)
        values = torch.stack(values)
        slopes.append(values.mean() / (values.std() / len(values) ** 0.5))
    assert slopes[0].abs() < 5
    assert slopes[1].abs() > 20


# What both do.


OBJECTIVES = [DenoisingScoreMatching(0.3), SlicedScoreMatching(2), SlicedScoreMatching(None)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_reach_the_parameters(objective):
    """Against finite differences, at the same noise."""
    ebm = ConditionalEnergy(2, 2, 3, hidden_dims=(4,), base=EnergyNet(2, (4,))).double()
    x, label = draw_classes(6)
    loss = objective(ebm)

    def value():
        torch.manual_seed(0)
        return loss(x, label)

    value().backward()
    assert ebm.normalizer_head.table.grad is None
    for name, parameter in ebm.named_parameters():
        if "normalizer_head" in name or parameter.grad is None:
            continue  # the last bias of the base has no score
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        flat[0] += 1e-5
        above = value().item()
        flat[0] -= 2e-5
        below = value().item()
        flat[0] += 1e-5
        assert gradient[0].item() == pytest.approx((above - below) / 2e-5, abs=1e-7)
    assert ebm.weight_head.table.grad.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_gradient_is_recorded_where_none_is_asked_for(objective):
    ebm = ConditionalEnergy(2, 2, 3)
    x, label = torch.randn(6, 2), torch.arange(6) % 3
    with torch.no_grad():
        torch.manual_seed(0)
        found = objective(ebm)(x, label)
    torch.manual_seed(0)
    torch.testing.assert_close(found, objective(ebm)(x, label).detach())
    assert not found.requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shape", [(), (3,), (1, 4, 4)])
def test_events_of_any_shape(objective, shape):
    ebm = ConditionalEnergy(shape, 2, 3)
    found = objective(ebm)(torch.randn(5, 2, *shape), torch.ones(5, 2).long())
    assert found.shape == ()
    assert found.isfinite()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_plain_modules_take_rows_as_events(objective):
    class Plain(nn.Module):
        def forward(self, x):
            return x.square().sum((-2, -1))

    assert objective(Plain())(torch.ones(5, 2, 3)).isfinite()


def test_affine_energies_have_no_curvature():
    ebm = EnergyNet(3, ()).double()
    x = torch.randn(4, 3).double()
    expected = ebm.layers[0].weight.square().sum() / 2
    torch.testing.assert_close(SlicedScoreMatching()(ebm)(x), expected)


# Bad input.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_energies_with_kinks_are_refused(objective):
    for activation in (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, lambda: nn.ELU(0.5)):
        with pytest.raises(ValueError, match="jumps at the kinks of"):
            objective(EnergyNet(2, (4,), activation))
    with pytest.raises(ValueError, match=r"layers.1 \(ReLU\)"):
        objective(ConvEnergyNet((1, 8, 8), (4,), nn.ReLU))
    with pytest.raises(ValueError, match=r"feature_net.*\(ReLU\)"):
        objective(ConditionalEnergy(2, 3, 4, activation=nn.ReLU))
    for activation in (nn.SiLU, nn.Tanh, nn.Softplus, nn.ELU, nn.GELU, nn.Sigmoid):
        objective(EnergyNet(2, (4,), activation))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "function", ["relu", "leaky_relu", "hardtanh", "hardswish", "max_pool1d", "prelu"]
)
def test_kinks_called_as_functions_are_refused(objective, function):
    """What modules do not tell, the graph does; smooth functions that are made of kinks pass."""
    more = {"max_pool1d": (2,), "prelu": (torch.tensor([0.1]),)}.get(function, ())

    class Functional(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), act

        def forward(self, x):
            return self.act(self.layer(x)).sum(-1)

    x = torch.randn(5, 4)
    kinked = objective(Functional(lambda h: getattr(nn.functional, function)(h, *more)))
    with pytest.raises(ValueError, match=r"jumps at the kinks of \w+Backward"):
        kinked(x)
    with pyro.validation_enabled(False):
        assert kinked(x).isfinite()
    smooth = lambda h: h.clamp(min=0) + (-h.abs()).exp().log1p()  # noqa: E731
    for act in (smooth, nn.functional.silu, nn.functional.elu, lambda h: h.clamp(min=0) ** 2):
        assert objective(Functional(act))(x).isfinite()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bad_energies_and_data_are_refused(objective):
    with pytest.raises(ValueError, match="ebm must be a torch module"):
        objective(lambda x: x.square().sum(-1))
    with pytest.raises(ValueError, match=r"returned shape \(5, 1\) for data of batch \(5,\)"):
        objective(nn.Linear(2, 1))(torch.zeros(5, 2))

    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x))

    with pytest.raises(ValueError, match="does not depend on its data"):
        objective(Constant())(torch.zeros(5, 2))
    ebm = ConditionalEnergy(2, 3, 4)
    with pytest.raises(ValueError, match="numbers of the data are NaN"):
        objective(ebm)(torch.full((5, 2), math.nan), torch.zeros(5).long())
    with pytest.raises(ValueError, match="needs a context"):
        objective(ebm)(torch.zeros(5, 2))


def test_bad_options_are_refused():
    for scale in (0.0, -1.0, math.inf, [], [0.1, 0.0]):
        with pytest.raises(ValueError, match="Each scale must be a finite number > 0"):
            DenoisingScoreMatching(scale)
    with pytest.raises(ValueError, match="weight must be a function"):
        DenoisingScoreMatching(0.1, 2.0)
    with pytest.raises(ValueError, match="num_slices must be an integer >= 1"):
        SlicedScoreMatching(0)


class Saddle(nn.Module):
    """The energy -x y, whose score has the Jacobian of ones off the diagonal and no trace."""

    def forward(self, x):
        return -x.prod(-1)


def test_directions_are_fresh_for_each_datum():
    """v'Jv is 2 or -2 for each of 400 data at the origin: their mean errs by 0.1, six times 0.6."""
    loss = SlicedScoreMatching()(Saddle())(torch.zeros(400, 2))
    assert abs(loss) < 0.6


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.LeakyReLU(), nn.SELU(), nn.ELU(0.5), nn.Hardtanh(), nn.MaxPool2d(2)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_with_kinks_are_refused(layer):
    net = nn.Sequential(layer, nn.Linear(1, 1))
    for objective in (SlicedScoreMatching(), DenoisingScoreMatching(0.1)):
        with pytest.raises(ValueError, match="jumps at the kinks"):
            objective(net)
