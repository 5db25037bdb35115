"""The log-uniform prior, multiplicative noise, and the prior of groups."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import integrate, stats
from torch.distributions import kl_divergence

from pyro_ext.distributions import LogUniform, MultiplicativeNormal
from pyro_ext.distributions.log_variance_normal import LogVarianceNormal
from pyro_ext.ops import log_uniform_kl

DOUBLE = torch.float64


def double(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-1.3, 0.7), (2.0, 0.5), (0.1, 3.0)])
def test_divergence_is_the_mean_log_ratio(loc, scale):
    """By quadrature over log|w| on both sides, with the density of another library."""
    q, p = dist.Normal(double(loc), double(scale)), LogUniform()

    def integrand(s, sign):
        w = sign * math.exp(s)
        ratio = stats.norm.logpdf(w, loc, scale) - float(p.log_prob(double(w)))
        return stats.norm.pdf(w, loc, scale) * ratio * abs(w)

    end = math.log(abs(loc) + 12 * scale)
    pieces = [
        integrate.quad(integrand, -40, end, args=(sign,), epsabs=1e-12, limit=500)[0]
        for sign in (-1, 1)
    ]
    assert float(kl_divergence(q, p)) == pytest.approx(sum(pieces), abs=1e-8)


def test_divergence_of_multiplicative_noise_ignores_the_location():
    loc = double(-3.0, 0.1, 20.0).requires_grad_()
    log_alpha = double(-5.0, 0.0, 3.0).requires_grad_()
    q = MultiplicativeNormal(loc, log_alpha)
    kl = kl_divergence(q, LogUniform())
    torch.testing.assert_close(kl, log_uniform_kl(log_alpha))
    grads = torch.autograd.grad(kl.sum(), (loc, log_alpha), allow_unused=True)
    assert grads[0] is None
    plain = dist.Normal(loc, loc.abs() * (log_alpha / 2).exp())
    other = kl_divergence(plain, LogUniform())
    torch.testing.assert_close(other, kl)
    slopes = torch.autograd.grad(other.sum(), (loc, log_alpha))
    torch.testing.assert_close(slopes[0], torch.zeros(3, dtype=DOUBLE), atol=1e-12, rtol=0)
    torch.testing.assert_close(slopes[1], grads[1])


def test_multiplicative_noise_is_a_normal():
    q = MultiplicativeNormal(double(2.0, -2.0), double(math.log(0.25)))
    torch.testing.assert_close(q.scale, double(1.0, 1.0))
    w = double(1.5, -1.0)
    torch.testing.assert_close(q.log_prob(w), dist.Normal(q.loc, q.scale).log_prob(w))
    prior = dist.Normal(double(0.0), double(1.0))
    torch.testing.assert_close(
        kl_divergence(q, prior), kl_divergence(dist.Normal(q.loc, q.scale), prior)
    )
    assert type(q.expand([5, 2])) is MultiplicativeNormal
    torch.testing.assert_close(
        kl_divergence(q.expand([5, 2]), LogUniform()), kl_divergence(q, LogUniform()).expand(5, 2)
    )


def test_a_weight_of_zero_has_a_gradient():
    """And one without noise a large divergence, not an infinite one."""
    loc = torch.tensor([0.0, 1e-20, 1.0], requires_grad=True)
    scale = torch.tensor([1.0, 1.0, 1e-10], requires_grad=True)
    kl = kl_divergence(dist.Normal(loc, scale), LogUniform())
    for grad in torch.autograd.grad(kl.sum(), (loc, scale)):
        assert grad.isfinite().all()
    assert kl[0] == 0
    assert float(kl[2].detach()) == pytest.approx(10 * math.log(10) + 0.635, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_divergence_of_next_to_no_noise_has_a_gradient(dtype):
    # KL = 0.635 - log(alpha) / 2 where alpha is small
    log_var = torch.tensor([-300.0, -90.0, -90.0, 0.0, 3.0], dtype=dtype, requires_grad=True)
    loc = torch.tensor([0.3, 0.3, -2.0, 0.0, 1e-41], dtype=dtype, requires_grad=True)
    kl = kl_divergence(LogVarianceNormal(loc, log_var), LogUniform())
    expected = 0.635181423 + loc.abs().log() - log_var / 2
    torch.testing.assert_close(kl[:3], expected[:3], rtol=1e-6, atol=0.0)
    slopes = torch.autograd.grad(kl.sum(), (loc, log_var))
    torch.testing.assert_close(slopes[0][:3], 1 / loc.detach()[:3], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(slopes[1], double(-0.5, -0.5, -0.5, 0.0, 0.0).to(dtype))
    assert kl[3].item() == 0.0
    assert float(slopes[0][3]) == 0.0
    assert float(slopes[0][4]) == pytest.approx(0.0, abs=1e-30)


def test_dropout_at_any_rate_is_charged_by_the_rate():
    rates = double(0.05, 0.5, 0.95)
    q = MultiplicativeNormal(double(1.0), torch.logit(rates))
    kl = kl_divergence(q, LogUniform())
    assert float(kl[1]) == pytest.approx(0.426686, abs=1e-6)
    assert bool((kl.diff() < 0).all())


def group_model():
    """Weights w = z w~ of two units with three weights each: normal-Jeffreys by group."""
    with pyro.plate("units", 2):
        pyro.sample("z", LogUniform())
        standard = dist.Normal(torch.zeros(3, dtype=DOUBLE), 1.0).to_event(1)
        pyro.sample("w", standard)


def group_guide():
    with pyro.plate("units", 2):
        pyro.sample("z", dist.Normal(double(0.9, -0.2), double(0.3, 0.5)))
        loc = torch.tensor([[0.1, -0.4, 1.0], [0.0, 2.0, 0.3]], dtype=DOUBLE)
        pyro.sample("w", dist.Normal(loc, 0.2).to_event(1))


def test_group_divergence_is_exact():
    """The sum of its parts, against the mean log ratio of the weights' own joint law.

    In terms of v = z w~ the prior is 1/|z| N(v; 0, z^2) and the guide q(z) N(v; z loc, z^2 s^2):
    the Jacobians cancel. Five standard errors, false-alarm probability 6e-7.
    """
    loss = TraceMeanField_ELBO().loss(group_model, group_guide)
    z = dist.Normal(double(0.9, -0.2), double(0.3, 0.5))
    loc = torch.tensor([[0.1, -0.4, 1.0], [0.0, 2.0, 0.3]], dtype=DOUBLE)
    expected = kl_divergence(z, LogUniform()).sum()
    expected = expected + kl_divergence(dist.Normal(loc, 0.2), dist.Normal(double(0.0), 1.0)).sum()
    assert loss == pytest.approx(float(expected), rel=1e-12)
    draws = z.sample((200_000,))
    v = draws.unsqueeze(-1) * dist.Normal(loc, 0.2).sample((200_000,))
    size = draws.abs().unsqueeze(-1)
    posterior = z.log_prob(draws) + dist.Normal(draws[..., None] * loc, 0.2 * size).log_prob(v).sum(
        -1
    )
    prior = LogUniform().log_prob(draws) + dist.Normal(double(0.0), size).log_prob(v).sum(-1)
    ratio = (posterior - prior).sum(-1)
    assert abs(float(ratio.mean()) - loss) < 5 * float(ratio.std()) / 200_000**0.5


def test_keeps_the_contract_of_a_distribution():
    prior, w = LogUniform(), torch.tensor([-2.0, 1.0, 0.5], dtype=DOUBLE)
    expected = -w.abs().log() - 2.0541199559354117
    torch.testing.assert_close(prior.log_prob(w), expected)
    assert prior.log_prob(w.float()).dtype == torch.float32
    wide = prior.expand(torch.Size([4, 3]))
    assert type(wide) is LogUniform
    assert wide.batch_shape == (4, 3)
    torch.testing.assert_close(wide.log_prob(w), expected.expand(4, 3))
    torch.testing.assert_close(wide.to_event(2).log_prob(w.expand(4, 3)), 4 * expected.sum())
    for twin in (pickle.loads(pickle.dumps(prior)), copy.deepcopy(prior)):
        torch.testing.assert_close(twin.log_prob(w), expected)
    rows = torch.func.vmap(prior.log_prob)(w)
    torch.testing.assert_close(rows, expected)
    kl = kl_divergence(dist.Normal(w, 1.0).to_event(1), prior.expand([3]).to_event(1))
    assert kl.shape == ()
    assert kl_divergence(dist.Normal(0.0, 1.0), prior.expand([3])).shape == (3,)


def test_refuses_bad_input():
    with pytest.raises(
        NotImplementedError, match=r"improper[\s\S]*Predictive.*StudentT are proper"
    ):
        LogUniform().sample()
    with pytest.raises(ValueError, match="support"):
        LogUniform().log_prob(torch.tensor(math.nan))
    with pytest.raises(ValueError, match=r"loc must not be zero"):
        MultiplicativeNormal(torch.tensor([1.0, 0.0]), 0.0)
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Laplace(0.0, 1.0), LogUniform())


@pytest.mark.gpu
def test_on_a_gpu():
    loc = torch.randn(1000, device="cuda", requires_grad=True)
    kl = kl_divergence(dist.Normal(loc, torch.full_like(loc, 0.3)), LogUniform())
    kl.sum().backward()
    assert kl.is_cuda
    assert loc.grad.isfinite().all()
