import math

import pytest
import torch

from pyro_ext.ops import effective_sample_size, iwae, log_mean_exp


def test_log_mean_exp_is_the_naive_formula():
    log_w = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(log_w), log_w.exp().mean(0).log())
    torch.testing.assert_close(log_mean_exp(log_w, 1), log_w.exp().mean(1).log())


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_log_mean_exp_does_not_overflow(shift):
    log_w = torch.tensor([0.0, 1.0, 2.0]) + shift
    expected = math.log((1 + math.e + math.e**2) / 3) + shift
    assert log_mean_exp(log_w).item() == pytest.approx(expected, rel=1e-6)


def test_one_particle_is_returned_exactly():
    log_w = torch.randn(1, 5)
    assert torch.equal(log_mean_exp(log_w), log_w[0])


def test_no_particle_is_refused():
    with pytest.raises(ValueError, match="at least one particle"):
        log_mean_exp(torch.zeros(0, 3))


def test_effective_sample_size_against_its_definition():
    log_w = torch.randn(50, 4, dtype=torch.float64)
    w = log_w.exp()
    torch.testing.assert_close(effective_sample_size(log_w), w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(effective_sample_size(log_w + 800), effective_sample_size(log_w))


def test_effective_sample_size_at_its_ends():
    assert effective_sample_size(torch.zeros(9)).item() == pytest.approx(9)
    one = torch.tensor([0.0, -200.0, -300.0])
    assert effective_sample_size(one).item() == pytest.approx(1)


def test_iwae_is_between_the_mean_and_the_maximum():
    log_w = torch.randn(6, 10)
    bound = iwae(log_w)
    assert bound.shape == (10,)
    assert (bound >= log_w.mean(0)).all()
    assert (bound <= log_w.max(0).values).all()


def test_iwae_gradient_is_the_normalised_weight():
    log_w = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(iwae(log_w).sum(), log_w)
    torch.testing.assert_close(gradient, log_w.detach().softmax(0))
