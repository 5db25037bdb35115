import math
import re
import subprocess
import sys

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch.distributions import Normal

from pyro_ext.diagnostics import (
    ImportanceDiagnostics,
    importance_diagnostics,
    pareto_k,
    particle_chunks,
)
from pyro_ext.diagnostics import importance_weights as module
from pyro_ext.distributions import SelfNormalizedImportance

X = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
ALARM = 1e-6  # of each stochastic assertion


def model(x):
    """z ~ N(0, 1), x ~ N(z, 1): evidence N(x; 0, 2), posterior N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact(x):
    return -(x**2) / 4 - math.log(4 * math.pi) / 2


class Guide:
    """The posterior, with its variance times a ratio."""

    def __init__(self, ratio=1.0):
        self.ratio = ratio

    def __call__(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, (self.ratio / 2) ** 0.5))


def assert_spread_is_one(z, slack=0.0):
    """Checks that z-scores have unit variance; ``slack`` for a variance that is nearly one."""
    low, high = stats.chi2(len(z)).ppf([ALARM / 2, 1 - ALARM / 2]) / len(z)
    assert low * (1 - slack) < z.square().mean() < high * (1 + slack)


# The estimate and its error.


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exact_guide_gives_the_evidence(chunk_size, dtype):
    x = X.to(dtype)
    result = importance_diagnostics(model, Guide(), x, num_particles=50, chunk_size=chunk_size)
    assert result.log_weights.shape == (50, 4)
    for each in (result.log_evidence, result.standard_error, result.ess, result.pareto_k):
        assert each.shape == (4,)
        assert each.dtype == dtype
    tolerance = {"rtol": 0, "atol": 100 * torch.finfo(dtype).eps}
    torch.testing.assert_close(result.log_evidence, exact(x), **tolerance)
    torch.testing.assert_close(result.standard_error, torch.zeros_like(x), **tolerance)
    assert result.total_log_evidence == pytest.approx(exact(x).sum().item(), abs=1e-4)
    assert result.total_standard_error == pytest.approx(0, abs=1e-4)
    assert (result.pareto_k == -math.inf).all()
    assert result.verdict.startswith("Trust it: Pareto k-hat is above 0.41 for 0 of 4 data (4 with")


def test_effective_sample_size_and_error_in_closed_form():
    # the weights' second moment over the squared mean is r / sqrt(2 r - 1) at variance ratio r;
    # 5 standard deviations of its estimate from 200 data, found by repetition, are below 0.01
    ratio, x = 1.5, torch.zeros(200, dtype=torch.float64)
    result = importance_diagnostics(model, Guide(ratio), x, num_particles=1000)
    moment = ratio / math.sqrt(2 * ratio - 1)
    assert (1000 / result.ess).mean().item() == pytest.approx(moment, abs=0.01)
    expected = math.sqrt((moment - 1) / 1000)
    assert result.standard_error.mean().item() == pytest.approx(expected, rel=0.1)
    torch.testing.assert_close(
        result.standard_error, ((1000 / result.ess - 1) / 999).sqrt(), rtol=1e-9, atol=0
    )


def test_errors_have_the_spread_they_state():
    # weights are bounded; at 1,000 particles their average is normal to within the slack
    x = torch.randn(400, dtype=torch.float64)
    result = importance_diagnostics(model, Guide(1.5), x)
    z = (result.log_evidence - exact(x)) / result.standard_error
    assert_spread_is_one(z, slack=0.05)
    assert abs(z.mean().item()) < stats.norm.isf(ALARM / 2) / 20 + 0.01  # bias of SE / 2


def test_totals_have_the_spread_they_state():
    x, z = torch.randn(30, dtype=torch.float64), []
    for _ in range(80):
        total = importance_diagnostics(model, Guide(1.5), x, num_particles=400)
        error = total.total_log_evidence - exact(x).sum().item() - total.total_bias
        z.append(error / total.total_standard_error)
    assert_spread_is_one(torch.tensor(z), slack=0.1)  # 400 particles estimate a variance to 7 %


def test_the_bias_is_what_is_stated(monkeypatch):
    # 40,000 estimates from 100 particles; the second order is below a tenth of the first
    monkeypatch.setattr(module, "pareto_k", lambda log_w: torch.zeros(log_w.shape[1]))
    z = 2 * torch.randn(100, 40_000, dtype=torch.float64)
    result = ImportanceDiagnostics.from_log_weights(
        dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.0, 2.0).log_prob(z)
    )
    moment = 4 / math.sqrt(7)
    assert result.total_bias == pytest.approx(-40_000 * (moment - 1) / 200, rel=0.1)
    spread = stats.norm.isf(ALARM / 2) * result.total_standard_error
    error = spread + 0.1 * abs(result.total_bias)
    assert result.total_log_evidence == pytest.approx(result.total_bias, abs=error)
    assert result.total_log_evidence < -1


def snis_model(x):
    prior = SelfNormalizedImportance(dist.Normal(0.0, 1.0), lambda z: (z - 1) ** 2, 4)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(("chunk_size", "is_honest"), [(1, True), (100, False)])
def test_noise_that_data_share_is_counted_if_particles_are_independent(chunk_size, is_honest):
    # the data of one particle share the proposals of its prior; vectorised particles do, too
    x = torch.linspace(-1.0, 2.0, 10)

    def diagnose():
        return importance_diagnostics(
            snis_model, Guide(1.2), x, num_particles=100, chunk_size=chunk_size
        )

    results = [diagnose() for _ in range(40)]
    totals = torch.tensor([result.total_log_evidence for result in results])
    errors = torch.tensor([result.total_standard_error for result in results])
    z = (totals - totals.mean()) / errors * math.sqrt(40 / 39)
    if is_honest:
        assert_spread_is_one(z, slack=0.2)
    else:
        assert z.square().mean() > 4


# The tail.


@pytest.mark.parametrize(("ratio", "advice"), [(0.7, "Trust it"), (0.1, "Do not trust it")])
def test_a_narrow_guide_is_found_out(ratio, advice):
    # the tail's index is k = 1 - ratio; 5 standard deviations of a mean of 40 are below 0.1
    x = torch.zeros(40, dtype=torch.float64)
    result = importance_diagnostics(model, Guide(ratio), x, num_particles=20_000)
    assert result.pareto_k.mean().item() == pytest.approx(1 - ratio, abs=0.15)
    assert result.verdict.startswith(f"{advice}: Pareto k-hat is above 0.7 for ")


def test_arviz_says_the_same():
    result = importance_diagnostics(model, Guide(0.5), X)
    for column, k_hat in zip(result.log_weights.T, result.pareto_k, strict=True):
        assert k_hat.item() == pytest.approx(float(arviz.psislw(column.numpy())[1]), rel=1e-12)


def test_a_constant_in_the_model_shifts_the_evidence_only():
    def shifted(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.factor("shift", torch.full_like(x, -700.0))

    results = []
    for each in (model, shifted):
        pyro.set_rng_seed(3)
        results.append(importance_diagnostics(each, Guide(0.5), X, chunk_size=100))
    plain, moved = results
    torch.testing.assert_close(moved.log_evidence, plain.log_evidence - 700)
    for name in ("standard_error", "ess", "pareto_k"):
        torch.testing.assert_close(getattr(moved, name), getattr(plain, name), rtol=1e-6, atol=1e-6)


def test_weights_of_a_discrete_latent_raise_no_alarm():
    # two weights: ArviZ sees fewer than five above its threshold, and says infinity
    def binary(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))

    result = importance_diagnostics(binary, guide, X)
    assert (result.pareto_k == -math.inf).all()
    assert arviz.psislw(result.log_weights[:, 0].numpy())[1] == math.inf
    parts = [math.log(p) + Normal(z, 1.0).log_prob(X) for z, p in ((0.0, 0.7), (1.0, 0.3))]
    z = (result.log_evidence - torch.logaddexp(*parts)) / result.standard_error
    assert z.abs().max() < stats.norm.isf(ALARM / 8) + 0.1


def test_rounding_is_no_tail():
    log_w = torch.full((1000,), -300.0) + 1e-4 * torch.randn(1000)
    assert log_w.unique().numel() > 5
    assert pareto_k(log_w) == -math.inf
    assert pareto_k(log_w / 10 + torch.randn(1000)).isfinite()


def test_a_rare_large_weight_is_no_tie():
    log_w = torch.zeros(1000)
    log_w[:3] = 5.0
    assert pareto_k(log_w) == math.inf


# Shapes, chunks, memory.


def test_two_plates():
    def grid(x):
        with pyro.plate("a", 3, dim=-2), pyro.plate("b", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("a", 3, dim=-2), pyro.plate("b", 2, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(3, 2, dtype=torch.float64)
    result = importance_diagnostics(grid, guide, x, num_particles=30, chunk_size=8)
    torch.testing.assert_close(result.log_evidence, exact(x))
    assert result.pareto_k.shape == (3, 2)
    assert "of 6 data" in result.verdict


def test_one_joint_weight_without_a_common_plate():
    def mean_model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        variance = 1 / (1 + len(x))
        pyro.sample("z", dist.Normal(x.sum() * variance, (1.5 * variance) ** 0.5))

    cov = torch.eye(4, dtype=torch.float64) + 1
    truth = dist.MultivariateNormal(torch.zeros(4, dtype=torch.float64), cov).log_prob(X)
    result = importance_diagnostics(mean_model, guide, X, chunk_size=300)
    assert result.log_weights.shape == (1000,)
    assert result.log_evidence.shape == result.pareto_k.shape == ()
    assert result.total_log_evidence == pytest.approx(result.log_evidence.item())
    assert result.total_standard_error == pytest.approx(result.standard_error.item())
    error = stats.norm.isf(ALARM / 2) * result.total_standard_error
    assert result.total_log_evidence == pytest.approx(truth.item(), abs=error)
    assert "0 of 1 joint weight of all data;" in result.verdict


class Hierarchy:
    """A common mean m ~ N(0, 1), z_n ~ N(m, 1), x_n ~ N(z_n, 1), with its posterior as guide."""

    def __init__(self, ratio=1.0):
        self.ratio = ratio
        self.means = []

    def model(self, x, size=None):
        m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with pyro.plate("data", len(x) if size is None else size, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, size=None):
        variance = 1 / (1 + len(x) / 2)
        m = pyro.sample("m", dist.Normal(x.sum() / 2 * variance, variance**0.5))
        self.means.append(m.flatten())
        with pyro.plate("data", len(x) if size is None else size, subsample_size=len(x)):
            pyro.sample("z", dist.Normal((m + x) / 2, (self.ratio / 2) ** 0.5))

    def log_evidence(self, x):
        cov = 2 * torch.eye(len(x), dtype=x.dtype) + 1
        return dist.MultivariateNormal(torch.zeros_like(x), cov).log_prob(x).item()


@pytest.mark.parametrize("chunk_size", [None, 7, 1])
def test_global_and_local_latents_have_one_joint_weight(chunk_size):
    # given the globals, weights are no evidence of a datum
    exact_one, wide = (Hierarchy(ratio) for ratio in (1.0, 1.3))
    options = {"num_particles": 200, "chunk_size": chunk_size}
    result = importance_diagnostics(exact_one.model, exact_one.guide, X, **options)
    assert result.log_weights.shape == (200,)
    assert result.total_log_evidence == pytest.approx(exact_one.log_evidence(X), abs=1e-9)
    assert result.total_standard_error < 1e-9
    result = importance_diagnostics(wide.model, wide.guide, X, **options)
    error = stats.norm.isf(ALARM / 2) * result.total_standard_error
    assert 0 < error < 1
    assert result.total_log_evidence == pytest.approx(wide.log_evidence(X), abs=error)
    assert torch.cat(wide.means).unique().numel() >= 200  # no two particles share their globals


def test_a_subsample_has_no_joint_weight():
    hierarchy = Hierarchy()
    with pytest.raises(ValueError, match="Plate 'data' is subsampled"):
        importance_diagnostics(hierarchy.model, hierarchy.guide, X, size=20)


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_an_enumerated_site_is_summed_out(chunk_size):
    p = torch.tensor(0.3, dtype=X.dtype)

    def mixture(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            y = pyro.sample("y", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    truth = torch.logaddexp((1 - p).log() + exact(X), p.log() + exact(X - 1))
    result = importance_diagnostics(mixture, Guide(1.5), X, chunk_size=chunk_size)
    assert result.log_weights.shape == (1000, 4)
    z = (result.log_evidence - truth) / result.standard_error
    assert z.abs().max() < stats.norm.isf(ALARM / 8) + 0.1


def test_an_automatic_guide():
    automatic, has_gradient = AutoNormal(model, init_scale=0.8), []

    def guide(x):
        has_gradient.append(torch.is_grad_enabled())
        return automatic(x)

    result = importance_diagnostics(model, guide, X.float(), num_particles=100, chunk_size=30)
    assert result.log_weights.shape == (100, 4)
    assert not any(has_gradient)


def test_all_runs_see_one_subsample():
    x = torch.arange(20.0, dtype=torch.float64)

    def subsampled(x):
        with pyro.plate("data", 20, subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("data", 20, subsample_size=3) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, 0.5**0.5))

    result = importance_diagnostics(subsampled, guide, x, num_particles=30, chunk_size=8)
    assert result.standard_error.max() < 1e-7
    # of three different data, without the scale of 20 / 3
    matches = (result.log_evidence[:, None] - exact(x)).abs() < 1e-9
    assert matches.any(0).sum() == matches.sum() == 3


@pytest.mark.parametrize(
    ("num_particles", "chunk_size", "sizes"),
    [(100, 30, [25] * 4), (25, 24, [13] * 2), (30, 1, [1] * 30), (25, 1000, [25])],
)
def test_particles_are_drawn_in_chunks(num_particles, chunk_size, sizes):
    seen = []

    def spy(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.8))
        seen.append(z.numel() // len(x))

    result = importance_diagnostics(
        model, spy, X, num_particles=num_particles, chunk_size=chunk_size, max_plate_nesting=1
    )
    assert seen == sizes
    assert result.log_weights.shape == (num_particles, 4)
    assert result.log_weights.unique().numel() == 4 * num_particles


def test_chunks_keep_the_distribution():
    whole, chunked = (
        importance_diagnostics(model, Guide(1.5), X, num_particles=2000, chunk_size=size)
        for size in (2000, 70)
    )
    error = (whole.standard_error**2 + chunked.standard_error**2).sqrt()
    z = (whole.log_evidence - chunked.log_evidence) / error
    assert z.abs().max() < stats.norm.isf(ALARM / 8) + 0.1
    pairs = zip(whole.log_weights.T, chunked.log_weights.T, strict=True)
    p = [stats.ks_2samp(a, b).pvalue for a, b in pairs]
    assert min(p) > ALARM / 4


def wide_model(x):
    """Holds one tensor 50 times as large as its sites."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        loc = z[..., None].repeat(*[1] * z.dim(), 50).mean(-1)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_the_chunk_is_chosen_by_the_largest_tensor(monkeypatch):
    one_particle = 4 * 50 * 8
    monkeypatch.setattr(particle_chunks, "LARGEST_TENSOR", 10 * one_particle + 1)
    with particle_chunks._LargestTensor() as largest:
        result = importance_diagnostics(
            wide_model, Guide(1.5), X, num_particles=100, max_plate_nesting=1
        )
    assert result.log_weights.shape == (100, 4)
    assert largest.nbytes == 10 * one_particle
    monkeypatch.setattr(particle_chunks, "LARGEST_TENSOR", 1)
    assert importance_diagnostics(wide_model, Guide(), X, num_particles=25).ess.shape == (4,)


MEMORY = """
import resource
import arviz, pyro, torch
from pyro_ext.diagnostics import importance_diagnostics
from pyro_ext.models import VariationalAutoencoder

vae = VariationalAutoencoder(64, latent_dim=5, hidden_dims=(50,))
x = torch.rand(2_000, 64).round()
importance_diagnostics(vae.model, vae.guide, x[:2], num_particles=25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = importance_diagnostics(vae.model, vae.guide, x, num_particles=5_000)
assert result.log_weights.shape == (5_000, 2_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_that_of_the_weights_and_a_few_chunks():
    # 10 million weights are 40 MB; their likelihood's logits in one piece would be 2.6 GB
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 40 < float(run.stdout.split()[-1]) < 600


@pytest.mark.gpu
def test_results_of_a_gpu_lie_on_the_cpu():
    x = X.cuda()
    result = importance_diagnostics(model, Guide(), x, num_particles=50, chunk_size=20)
    torch.testing.assert_close(result.log_evidence, exact(X))
    assert result.log_weights.device.type == "cpu"


def test_a_program_that_cannot_be_vectorised():
    def branching(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        if z[0] > 100:
            raise AssertionError

    with pytest.raises(ValueError, match="pass vectorize_particles=False"):
        importance_diagnostics(model, branching, X, num_particles=25)
    for cure in ({"vectorize_particles": False}, {"chunk_size": 1}):
        result = importance_diagnostics(model, branching, X, num_particles=25, **cure)
        torch.testing.assert_close(result.log_evidence, exact(X))


def test_blocks_of_data_change_nothing(monkeypatch):
    log_w = torch.randn(100, 3, 5, dtype=torch.float64)
    whole = ImportanceDiagnostics.from_log_weights(log_w)
    monkeypatch.setattr(module, "BLOCK", 400)
    blocks = ImportanceDiagnostics.from_log_weights(log_w)
    for name in ("log_evidence", "standard_error", "ess", "pareto_k"):
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name))
    assert blocks.total_standard_error == pytest.approx(whole.total_standard_error)
    torch.testing.assert_close(whole.pareto_k, pareto_k(log_w))


def test_batches_are_joined_by_their_weights():
    parts = [importance_diagnostics(model, Guide(), x).log_weights for x in X.split(3)]
    result = ImportanceDiagnostics.from_log_weights(torch.cat(parts, 1))
    torch.testing.assert_close(result.log_evidence, exact(X))


def test_a_bar_of_the_particles_and_one_of_the_tails(monkeypatch):
    bars = []

    def spy(*args, **kwargs):
        bars.append(kwargs)
        return tqdm(*args, **kwargs)

    tqdm = module.tqdm
    monkeypatch.setattr(module, "tqdm", spy)
    monkeypatch.setattr(particle_chunks, "tqdm", spy)
    importance_diagnostics(model, Guide(), X, num_particles=40, chunk_size=9)
    assert [bar["desc"] for bar in bars] == ["particles", "Pareto k-hat"]
    assert [bar["delay"] for bar in bars] == [5, 5]
    assert bars[0]["total"] == 40


# What cannot be averaged.


def test_a_datum_of_weight_zero():
    log_w = torch.randn(100, 3, dtype=torch.float64)
    log_w[:, 1] = -math.inf
    result = ImportanceDiagnostics.from_log_weights(log_w)
    assert result.log_evidence[1] == result.total_log_evidence == -math.inf
    for each in (result.standard_error, result.ess, result.pareto_k):
        assert each[1].isnan()
        assert each[[0, 2]].isfinite().all()
    assert math.isnan(result.total_standard_error)
    assert result.verdict.startswith("Do not trust it: no finite log evidence for 1 of 3 data,")
    assert repr(result) == result.verdict


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_none(bad):
    log_w = torch.randn(100, 3)
    log_w[5, 2] = bad
    result = ImportanceDiagnostics.from_log_weights(log_w)
    assert not result.log_evidence[2].isfinite()
    assert result.pareto_k[2].isnan()
    assert "no finite log evidence for 1 of 3 data" in result.verdict


def test_some_particles_of_weight_zero():
    # x | z ~ U(z, z + 1): a quarter of a uniform guide on (0, 4) has z in (x - 1, x)
    def uniform(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(x), 4.0))
            pyro.factor("x", ((z < x) & (x < z + 1)).to(x).log())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(torch.zeros_like(x), 4.0))

    x = torch.tensor([1.5, 2.5], dtype=torch.float64)
    result = importance_diagnostics(uniform, guide, x, num_particles=2000)
    z = (result.log_evidence - math.log(0.25)) / result.standard_error
    assert z.abs().max() < stats.norm.isf(ALARM / 4) + 0.1
    torch.testing.assert_close(result.ess, 2000 * result.log_evidence.exp())
    assert (result.pareto_k == -math.inf).all()


def test_a_masked_datum_says_so():
    mask = torch.tensor([True, False, True, True])
    result = importance_diagnostics(
        pyro.poutine.mask(model, mask=mask), pyro.poutine.mask(Guide(1.5), mask=mask), X
    )
    assert result.log_evidence[1] == 0
    assert result.pareto_k[1] == -math.inf
    assert "of 4 data (1 with equal weights: exact or masked);" in result.verdict


@pytest.mark.parametrize(
    ("bad", "advice"), [(0, "Trust it"), (2, "Trust most of it"), (3, "Do not trust it")]
)
def test_the_advice_depends_on_the_share_of_bad_data(bad, advice):
    log_w = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0)) / 5
    log_w[:, :bad] *= 50
    result = ImportanceDiagnostics.from_log_weights(log_w)
    assert result.verdict.startswith(f"{advice}: Pareto k-hat is above 0.67 for {bad} of 20 data")
    assert re.fullmatch(
        r".*; mean ESS \S+ of 1000 particles; log evidence \S+ \+- \S+ nats in total, "
        r"bias about -\S+\.",
        result.verdict,
    )


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 24}, "num_particles must be an integer >= 25, got num_particles=24"),
        ({"num_particles": 50.0}, "num_particles must be an integer"),
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1, got chunk_size=0"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        importance_diagnostics(model, Guide(), X, **arguments)


@pytest.mark.parametrize(
    "log_w", [torch.zeros(0, 3), torch.zeros(30, 0), torch.zeros(()), [0.0] * 30]
)
def test_no_weights(log_w):
    with pytest.raises(ValueError, match=r"log-weights of shape \(num_particles, \*plates\), got"):
        ImportanceDiagnostics.from_log_weights(log_w)


def test_arviz_is_missed_before_the_work(monkeypatch):
    def missing():
        raise ImportError("pip install")

    def never(x):
        raise AssertionError

    monkeypatch.setattr(module, "import_arviz", missing)
    with pytest.raises(ImportError, match="pip install"):
        importance_diagnostics(model, never, X)


def energy(z):
    return 2 * (2 * z).sin().sum(-1)


def test_particles_that_would_share_proposals_are_drawn_one_by_one():
    prior = SelfNormalizedImportance(dist.Normal(torch.zeros(2), 1.0).to_event(1), energy, 8)

    def model():
        with pyro.plate("data", 50):
            pyro.sample("z", prior)

    def guide():
        with pyro.plate("data", 50):
            pyro.sample("z", prior.proposal)

    runs = [
        importance_diagnostics(model, guide, num_particles=40, max_plate_nesting=1)
        for _ in range(20)
    ]
    totals = torch.tensor([run.total_log_evidence for run in runs])
    errors = torch.tensor([run.total_standard_error for run in runs])
    # chi-squared with 19 degrees of freedom: false-alarm probability 1e-8
    assert totals.std() < 2 * errors.mean()
