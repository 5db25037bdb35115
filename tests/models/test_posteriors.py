"""Posterior families against formulas, autograd and quadrature."""

import copy
import pickle

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import Normal
from torch.nn.functional import softplus

from pyro_ext.infer import MultiSampleELBO, dreg, pathwise
from pyro_ext.models import (
    DiagonalNormal,
    FullCovarianceNormal,
    InverseAutoregressiveFlow,
    VariationalAutoencoder,
)

FAMILIES = [DiagonalNormal, FullCovarianceNormal, InverseAutoregressiveFlow]
COPIERS = [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]


def flow(dim=3, num_transforms=3, **kwargs):
    return InverseAutoregressiveFlow(dim, num_transforms, **kwargs).double()


def features_of(family, *batch):
    return torch.randn(*batch, family.feature_dim, dtype=torch.float64)


def test_diagonal_against_the_formula():
    family = DiagonalNormal(3)
    features, z = features_of(family, 5), torch.randn(5, 3, dtype=torch.float64)
    loc, raw = features[:, :3], features[:, 3:]
    expected = Normal(loc, softplus(raw) + 1e-5).log_prob(z).sum(-1)
    torch.testing.assert_close(family(features).log_prob(z), expected)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_full_covariance_against_its_parts(dim):
    family = FullCovarianceNormal(dim)
    features = features_of(family, 2, 5)
    q = family(features)
    torch.testing.assert_close(q.mean, features[..., :dim])
    tril = q.scale_tril
    diagonal = softplus(features[..., dim : 2 * dim]) + 1e-5
    torch.testing.assert_close(tril.diagonal(dim1=-2, dim2=-1), diagonal)
    below = [tril[..., i, j] for i in range(dim) for j in range(i)]
    for column, entry in enumerate(below):
        torch.testing.assert_close(entry, features[..., 2 * dim + column])
    assert torch.equal(tril, tril.tril())


def test_flow_density_against_the_jacobian_by_autograd():
    family = flow()
    features = features_of(family, 4)

    def forward(feature, noise):
        z = noise
        for transform in family(feature).transforms:
            z = transform(z)
        return z

    noise = family.base(features[:, :6]).sample()
    z = torch.stack([forward(*pair) for pair in zip(features, noise, strict=True)])
    jacobian = [
        torch.autograd.functional.jacobian(lambda e, f=feature: forward(f, e), point)
        for feature, point in zip(features, noise, strict=True)
    ]
    expected = (
        family.base(features[:, :6]).log_prob(noise)
        - torch.linalg.slogdet(torch.stack(jacobian)).logabsdet
    )
    torch.testing.assert_close(family(features).log_prob(z.detach()), expected.detach())


def test_flow_against_the_gated_formula():
    family = flow(num_transforms=2)
    features, z = features_of(family, 4), torch.randn(4, 3, dtype=torch.float64)
    expected = z
    for network in family.networks:
        loc, gate = network(expected, features[:, 6:])
        scale = torch.sigmoid(gate + 2)
        expected = scale * expected + (1 - scale) * loc
    for transform in family(features).transforms:
        z = transform(z)
    torch.testing.assert_close(z, expected)


def test_flow_order_is_reversed():
    def reach(network):
        """Which coordinates the location of each depends on."""
        context = torch.zeros(3, dtype=torch.float64)
        loc = torch.autograd.functional.jacobian(lambda z: network(z, context)[0], context)
        return loc.abs() > 0

    first, second = map(reach, flow(num_transforms=2, hidden_dims=(50,)).networks)
    lower = torch.ones(3, 3).tril(-1).bool()
    assert torch.equal(first, lower)
    assert torch.equal(second, lower.T)


def test_flow_integrates_to_one_and_is_not_normal():
    family = flow(2)
    with torch.no_grad():
        for weight in family.networks.parameters():
            weight.mul_(3)
    features = features_of(family)
    side = torch.linspace(-12, 12, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        density = family(features.expand(len(grid), -1)).log_prob(grid).exp()
    step = side[1] - side[0]
    assert abs(density.sum() * step**2 - 1) < 1e-4
    mean = (density[:, None] * grid).sum(0) * step**2
    third = (density[:, None] * (grid - mean) ** 3).sum(0) * step**2
    assert third.abs().max() > 1e-3  # a normal has none


def test_flow_scores_a_foreign_value_as_its_own_and_differentiably():
    family = flow()
    features = features_of(family, 4).requires_grad_()
    q = family(features)
    z = q.rsample((5,))
    own, foreign = q.log_prob(z), family(features).log_prob(z.clone())
    torch.testing.assert_close(own, foreign)
    ours, theirs = (
        torch.autograd.grad(d.sum(), features, retain_graph=True) for d in (own, foreign)
    )
    torch.testing.assert_close(ours, theirs)
    leaf = z.detach()[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda f, v: family(f).log_prob(v), (features, leaf))


def test_flow_scores_its_own_draws_in_one_pass():
    family, passes = flow(num_transforms=2), []
    for network in family.networks:
        network.register_forward_hook(lambda *_: passes.append(1))
    q = family(features_of(family, 4)).expand((6, 4))
    q.log_prob(q.rsample())
    assert len(passes) == 2
    q.log_prob(torch.zeros(6, 4, 3, dtype=torch.float64))
    assert len(passes) == 2 + 2 * 3


def test_flow_sees_an_update_of_its_parameters():
    family = flow()
    features, z = features_of(family, 4), torch.zeros(4, 3, dtype=torch.float64)
    before = family(features).log_prob(z)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.1)
    changed = family(features).log_prob(z)
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(changed, copy.deepcopy(family)(features).log_prob(z))


@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_copies_after_use(kind, copier):
    family = kind(3)
    features = torch.randn(4, family.feature_dim)
    z = family(features).rsample()
    expected = family(features).log_prob(z.clone())
    assert torch.equal(copier(family)(features).log_prob(z.clone()), expected)


def test_flow_state_dict_carries_the_order(tmp_path):
    family, other = flow(), flow()
    torch.save(family.state_dict(), tmp_path / "flow.pt")
    other.load_state_dict(torch.load(tmp_path / "flow.pt", weights_only=True))
    features, z = features_of(family, 4), torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(family(features).log_prob(z), other(features).log_prob(z))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_features(kind, dtype):
    family = kind(3).to(dtype)
    q = family(torch.randn(4, family.feature_dim, dtype=dtype))
    before = torch.get_default_dtype()
    try:
        for default in (torch.float32, torch.float64):
            torch.set_default_dtype(default)
            assert q.rsample().dtype == q.log_prob(torch.zeros(4, 3, dtype=dtype)).dtype == dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(2, vectorize_particles=True),
        MultiSampleELBO(3, gradient=pathwise),
        MultiSampleELBO(3, gradient=dreg),
        MultiSampleELBO(2, vectorize_particles=False),
    ],
    ids=["trace", "pathwise", "dreg", "sequential"],
)
def test_every_parameter_of_the_vae_is_trained(kind, local, elbo):
    with pyro.settings.context(module_local_params=local):
        vae = VariationalAutoencoder(6, 2, (5,), posterior=kind(2))
        x = torch.bernoulli(torch.full((4, 6), 0.5))
        elbo.loss_and_grads(vae.model, vae.guide, x, size=40)
        # the first coordinate has no parents, so the flow's masks cut weights but no tensor
        assert all(p.grad.abs().sum() > 0 for p in vae.parameters())


def laplace(features):
    loc, raw = features.chunk(2, -1)
    return pyro.distributions.Laplace(loc, softplus(raw)).to_event(1)


def test_any_callable_is_a_posterior():
    vae = VariationalAutoencoder(6, 2, (5,), posterior=laplace)
    assert vae.encode(torch.zeros(3, 6)).event_shape == (2,)
    assert isinstance(MultiSampleELBO(2).loss(vae.model, vae.guide, torch.zeros(3, 6)), float)


def test_bad_sizes():
    with pytest.raises(ValueError, match="latent_dim must be an integer >= 1, got latent_dim=0"):
        DiagonalNormal(0)
    with pytest.raises(ValueError, match="latent_dim must be an integer >= 1"):
        FullCovarianceNormal(0)
    with pytest.raises(ValueError, match="latent_dim must be an integer >= 2, got latent_dim=1"):
        InverseAutoregressiveFlow(1)
    with pytest.raises(ValueError, match="num_transforms must be an integer >= 1"):
        InverseAutoregressiveFlow(2, 0)
    with pytest.raises(ValueError, match=r"at least latent_dim=4, got \[3\]"):
        InverseAutoregressiveFlow(4, hidden_dims=(3,))
    with pytest.raises(ValueError, match=r"posterior draws events of shape \(3,\)"):
        VariationalAutoencoder(6, 2, (5,), posterior=FullCovarianceNormal(3))
