"""The tempered leapfrog against known paths, Jacobians and finite differences, in float64."""

import math

import pyro
import pytest
import torch

from pyro_ext.nn import EnergyNet
from pyro_ext.ops import inverse_leapfrog, leapfrog
from pyro_ext.ops.leapfrog import _gradient

WEIGHT = torch.ones(3, requires_grad=True)
ZERO = torch.zeros((), dtype=torch.float64)
MIXED = [1.4, 0.9, 0.8, 0.95]  # the product is not one


def slide(x):
    return -x


def rugged(x):
    """A potential of vectors without symmetry."""
    return (x.sin() * torch.arange(1.0, 1 + x.shape[-1])).sum(-1) + x.prod(-1) ** 2 / 4


def pair(*shape):
    return torch.randn(2, *shape, dtype=torch.float64).unbind(0)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize(
    ("step_size", "positions", "momenta"),
    [(1.0, (0.5, 2, 4.5), (1, 2, 3)), (0.5, (0.125, 0.5, 1.125), (0.5, 1, 1.5))],
)
def test_paths_down_a_slope(num_steps, step_size, positions, momenta):
    x, momentum = leapfrog(slide, ZERO, ZERO, step_size, [1.0] * (num_steps + 1))
    assert x.item() == pytest.approx(positions[num_steps - 1], abs=1e-14)
    assert momentum.item() == pytest.approx(momenta[num_steps - 1], abs=1e-14)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_damped_paths_down_a_slope(num_steps, as_tensor):
    tempering = [1.0, 0.1, 0.01, 0.001][: num_steps + 1]
    if as_tensor:
        tempering = torch.tensor(tempering, dtype=torch.float64)
    x, momentum = leapfrog(slide, ZERO, ZERO, 1.0, tempering)
    assert x.item() == pytest.approx((0.5, 1.1, 1.611)[num_steps - 1], abs=1e-14)
    assert momentum.item() == pytest.approx((0.1, 0.011, 0.001011)[num_steps - 1], abs=1e-14)


def test_the_first_tempering_comes_before_the_first_kick():
    _, momentum = leapfrog(slide, ZERO, ZERO + 1, 1.0, [3.0, 1.0])
    assert momentum.item() == pytest.approx(4)


def test_quarter_of_an_oscillation():
    num_steps = 1000
    x, momentum = leapfrog(
        lambda x: x**2 / 2, ZERO, ZERO + 1, math.pi / 2 / num_steps, [1.0] * (num_steps + 1)
    )
    torch.testing.assert_close((x, momentum), (ZERO + 1, ZERO), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("tempering", [MIXED, [1 / (0.9 * 0.8 * 0.95), 0.9, 0.8, 0.95]])
@pytest.mark.parametrize("function", [leapfrog, inverse_leapfrog])
def test_jacobian_determinant(dim, tempering, function):
    def flat(state):
        x, momentum = state.chunk(2)
        return torch.cat(function(rugged, x, momentum, 0.3, tempering))

    jacobian = torch.autograd.functional.jacobian(flat, torch.cat(pair(dim)))
    sign = 1 if function is leapfrog else -1
    expected = math.prod(tempering) ** (sign * dim)
    assert torch.det(jacobian).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("step_size", [0.3, torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)])
def test_round_trip_in_double_precision(step_size):
    x, momentum = pair(5, 3)
    there = leapfrog(rugged, x, momentum, step_size, MIXED)
    assert (there[0] - x).abs().max() > 0.1
    back = inverse_leapfrog(rugged, *there, step_size, MIXED)
    torch.testing.assert_close(back, (x, momentum), atol=1e-12, rtol=0)
    again = leapfrog(rugged, *inverse_leapfrog(rugged, x, momentum, 0.1, MIXED), 0.1, MIXED)
    torch.testing.assert_close(again, (x, momentum), atol=1e-12, rtol=0)


def test_round_trip_in_single_precision():
    x, momentum = torch.randn(2, 1000, 50)
    energy, tempering = EnergyNet(50), [0.9995**-5, *[0.9995] * 5]
    there = leapfrog(energy, x, momentum, 0.1, tempering)
    back = inverse_leapfrog(energy, *there, 0.1, tempering)
    torch.testing.assert_close(back, (x, momentum), atol=2e-6, rtol=0)


def test_each_dimension_has_its_own_step_size():
    x, momentum = pair(4, 2)
    steps = torch.tensor([0.1, 0.7], dtype=torch.float64)
    both = leapfrog(lambda x: x.cos().sum(-1), x, momentum, steps, MIXED)
    for i in range(2):
        alone = leapfrog(torch.cos, x[:, i], momentum[:, i], steps[i], MIXED)
        torch.testing.assert_close((both[0][:, i], both[1][:, i]), alone)


def test_one_gradient_per_position():
    seen = []

    def counting(x):
        seen.append(x)
        return x.square().sum(-1)

    leapfrog(counting, *pair(4, 2), 0.1, [1.0] * 6)
    assert len(seen) == 6
    inverse_leapfrog(counting, *pair(4, 2), 0.1, [1.0] * 6)
    assert len(seen) == 12


@pytest.mark.parametrize("function", [leapfrog, inverse_leapfrog])
def test_second_derivatives_against_finite_differences(function):
    net = EnergyNet(2, (3,)).double()

    def run(weight, x, momentum, step_size, tempering):
        def energy(y):
            return torch.func.functional_call(net, {"layers.0.weight": weight}, (y,))

        return function(energy, x, momentum, step_size, tempering)

    values = (
        net.layers[0].weight.detach().clone(),
        *pair(4, 2),
        torch.tensor([0.3, 0.6], dtype=torch.float64),
        torch.tensor([1.2, 0.9, 0.8], dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(run, [value.requires_grad_() for value in values])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_results_carry_none(mode):
    energy, (x, momentum) = EnergyNet(2, (3,)).double(), pair(4, 2)
    expected = leapfrog(energy, x, momentum, 0.3, MIXED)
    assert expected[0].requires_grad
    with mode():
        seen = leapfrog(energy, x.clone().requires_grad_(), momentum * 1, 0.3, MIXED)
    assert not seen[0].requires_grad
    assert not seen[1].requires_grad
    torch.testing.assert_close(seen, tuple(part.detach() for part in expected))


def test_nothing_to_train_leaves_no_graph():
    energy, (x, momentum) = EnergyNet(2, (3,)).double().requires_grad_(False), pair(4, 2)
    position, momentum = leapfrog(energy, x, momentum, 0.3, MIXED)
    assert not position.requires_grad
    assert not momentum.requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize("trained", [False, True])
def test_both_ways_to_the_gradient_agree(trained):
    energy, x = EnergyNet(3, (4,)).double(), pair(5, 3)[0]
    expected = torch.func.grad(lambda y: energy(y).sum())(x)
    torch.testing.assert_close(_gradient(energy, x.requires_grad_(trained)), expected)


def test_vmap():
    energy, (x, momentum) = EnergyNet(2, (3,)).double(), pair(4, 2)
    expected = leapfrog(energy, x, momentum, 0.3, MIXED)
    mapped = torch.func.vmap(lambda x, momentum: leapfrog(energy, x, momentum, 0.3, MIXED))
    torch.testing.assert_close(mapped(x, momentum), expected)
    with torch.no_grad():
        torch.testing.assert_close(mapped(x, momentum)[0], expected[0].detach())


def test_compiles_with_its_gradient():
    energy, (x, momentum) = EnergyNet(2, (3,)).double(), pair(4, 2)
    variables = list(energy.parameters())[:-1]  # a constant has no force

    def slope(function):
        position, momenta = function(x, momentum)
        return torch.autograd.grad(position.square().sum() + momenta.sum(), variables)

    def run(x, momentum):
        return leapfrog(energy, x, momentum, 0.3, MIXED)

    torch._dynamo.reset()
    with pyro.validation_enabled(False):  # as the compiler would for all
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, momentum), run(x, momentum))
        torch.testing.assert_close(slope(compiled), slope(run))
    torch._dynamo.reset()


@pytest.mark.parametrize("tempering", [[1.0], [], torch.tensor(1.0), torch.ones(2, 2)])
def test_bad_temperings(tempering):
    with pytest.raises(ValueError, match="num_steps \\+ 1"):
        leapfrog(slide, ZERO, ZERO, 1.0, tempering)


@pytest.mark.parametrize(
    ("potential", "match"),
    [
        (lambda x: x.long(), "int64"),
        (lambda x: 3.0, "float"),
        (lambda x: x.detach() ** 2, "without gradient"),
        (lambda x: torch.zeros(3), "without gradient"),
        (lambda x: WEIGHT * x.detach(), "depend on the position|without gradient"),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_potentials_that_are_not_differentiable(potential, match, grad):
    x = torch.zeros(3).requires_grad_(grad)
    with pytest.raises(ValueError, match=f"not differentiable: it returned .*({match})"):
        leapfrog(potential, x, torch.zeros(3), 1.0, [1.0, 1.0])
    with torch.no_grad(), pytest.raises(ValueError, match="not differentiable"):
        leapfrog(potential, x, torch.zeros(3), 1.0, [1.0, 1.0])


def test_a_constant_potential_is_free_motion():
    x, momentum = leapfrog(lambda x: 0 * x, ZERO, ZERO + 2, 0.5, [1.0] * 4)
    assert (x.item(), momentum.item()) == (3, 2)


@pytest.mark.gpu
def test_on_a_gpu_no_step_synchronises():
    energy = EnergyNet(2).cuda()
    x, momentum = torch.randn(2, 8, 2, device="cuda")
    tempering = torch.tensor([1.0, 0.9, 0.9], device="cuda")

    def step():
        sum(part.sum() for part in leapfrog(energy, x, momentum, 0.1, tempering)).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
