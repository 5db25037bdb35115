import arviz
import pytest
import torch
from scipy.stats import genpareto

from pyro_ext.diagnostics import pareto_k
from pyro_ext.ops.pareto_smoothing import _psislw


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_known_tail(shape):
    # exact generalised Pareto weights; the estimate's spread at 4,000 draws is below 0.06
    weights = genpareto.rvs(shape, size=(4_000, 20), random_state=1)
    k_hat = pareto_k(torch.as_tensor(weights).log())
    assert k_hat.shape == (20,)
    assert k_hat.mean().item() == pytest.approx(shape, abs=0.06)


def test_narrow_proposal_is_found_out():
    # p = N(0, 1), q = N(0, s^2): the weights' tail has k = 1 - s^2
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 10, generator=generator, dtype=torch.float64)
    for scale in (0.5, 0.8):
        log_w = (z**2 - (scale * z) ** 2) / 2
        assert pareto_k(log_w).mean().item() == pytest.approx(1 - scale**2, abs=0.1)


def test_a_shift_changes_nothing_and_arviz_agrees():
    log_w = torch.randn(500, 2, 3, dtype=torch.float64)
    k_hat = pareto_k(log_w)
    assert k_hat.shape == (2, 3)
    torch.testing.assert_close(pareto_k(log_w + 100), k_hat)
    assert k_hat[1, 2].item() == pytest.approx(float(arviz.psislw(log_w[:, 1, 2].numpy())[1]))


def test_equal_weights_have_no_tail():
    log_w = torch.randn(100, 2)
    log_w[:, 1] = -3.0
    k_hat = pareto_k(log_w)
    assert k_hat[0].isfinite()
    assert k_hat[1] == -torch.inf


def test_dtype_and_gradient():
    log_w = torch.randn(100, requires_grad=True)
    k_hat = pareto_k(log_w)
    assert k_hat.dtype == torch.float32
    assert k_hat.shape == ()
    assert not k_hat.requires_grad


def test_the_sign_that_arviz_1_takes(monkeypatch):
    # arviz_stats 1.x negates its argument; the module is imitated by the one of 0.x
    import sys
    import types

    old = arviz.psislw
    stats = types.ModuleType("arviz_stats.base")
    stats.array_stats = types.SimpleNamespace(psislw=lambda x, axis: old(-x))
    monkeypatch.setitem(sys.modules, "arviz_stats", types.ModuleType("arviz_stats"))
    monkeypatch.setitem(sys.modules, "arviz_stats.base", stats)
    log_w = torch.randn(3, 400, dtype=torch.float64).numpy()
    expected = _psislw(log_w)
    monkeypatch.delattr(arviz, "psislw")
    for found, wanted in zip(_psislw(log_w), expected, strict=True):
        assert (found == wanted).all()


def test_an_array_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"torch\.as_tensor\(data\.sample_stats"):
        pareto_k(torch.zeros(100).numpy())


def test_too_few_particles():
    with pytest.raises(ValueError, match="at least 25 particles, got 24"):
        pareto_k(torch.zeros(24))
