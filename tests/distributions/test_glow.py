"""Glow in Pyro's programs: temperatures, contexts, likelihoods, priors and guides."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam, TransformReparam
from pyro.optim import Adam

from pyro_ext.distributions import Dequantized, Glow, InvertibleTransform
from pyro_ext.nn import Coupling, GlowLevel, GlowNet

SHAPE, DIM = (1, 4, 4), 16


def small(start=True, **options):
    net = GlowNet(SHAPE, depth=2, levels=2, width=8, **options).double()
    context = torch.randint(3, (50,)) if net.num_classes else None
    if start:
        net.initialize(torch.randn(50, *SHAPE).double(), context)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
    return net


def images(*batch):
    return torch.randn(*batch, *SHAPE).double()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_temperature_is_the_scale_of_the_latents(temperature):
    net, x = small(), images(5)
    z, log_det = net.encode(x)
    base = dist.Normal(torch.zeros(DIM).double(), temperature).to_event(1)
    seen = Glow(net, temperature=temperature).log_prob(x)
    assert torch.allclose(seen, base.log_prob(z) + log_det, atol=1e-10)
    if temperature == 1:
        assert torch.equal(seen, Glow(net).log_prob(x))
        assert torch.allclose(seen, net(x), atol=1e-10)


def test_each_image_may_have_its_temperature():
    """Variances of 16,000 latents; a relative error of 0.06 is 5.4 standard errors: 1e-7."""
    net, temperature = small(), torch.tensor([0.5, 2.0])
    d = Glow(net, temperature=temperature)
    assert d.batch_shape == (2,)
    x = d.sample((1000,))
    seen = d.encode(x).var((0, 2)).sqrt()
    assert torch.allclose(seen, temperature.double(), rtol=0.06)


def test_zero_temperature_is_a_point():
    net, x = small(), images(3)
    d = Glow(net, temperature=0.0)
    draws = d.sample((3,))
    expected = net.decode(torch.zeros(DIM).double())[0]
    assert torch.equal(draws, expected.expand_as(draws))
    assert torch.equal(d.log_prob(x), torch.full((3,), -math.inf).double())
    assert not d.rsample_and_log_prob()[1].isnan()


def test_one_pass_equals_two():
    d = Glow(small(num_classes=3), torch.tensor([0, 2]), 0.8)
    x, log_prob = d.rsample_and_log_prob((4,))
    assert x.shape == (4, 2, *SHAPE)
    assert torch.allclose(log_prob, d.log_prob(x), atol=1e-8)
    assert x.requires_grad
    assert log_prob.requires_grad
    assert not d.sample_and_log_prob()[0].requires_grad


def test_path_of_draws_is_that_of_finite_differences():
    net = small()
    parameter = net.levels[0].norms[0].bias

    def mean(shift):
        with torch.no_grad():
            parameter[0] += shift
        pyro.set_rng_seed(0)
        x = Glow(net).rsample((10,))
        with torch.no_grad():
            parameter[0] -= shift
        return x.sin().sum()

    pyro.set_rng_seed(0)
    (seen,) = torch.autograd.grad(Glow(net).rsample((10,)).sin().sum(), [parameter])
    expected = (mean(1e-5) - mean(-1e-5)) / 2e-5
    assert torch.allclose(seen[0], expected.detach(), rtol=1e-6)


def test_round_trip_through_latents():
    d = Glow(small(num_classes=3), torch.tensor([0, 1, 2]))
    x = images(4, 1)
    z = d.encode(x)
    assert z.shape == (4, 3, DIM)
    assert torch.allclose(d.decode(z), x.expand(4, 3, *SHAPE), atol=1e-10)


def test_new_parameters_are_seen_at_once():
    """A cached value would be the old one, for the same tensor."""
    net, x = small(), images(3)
    d = Glow(net)
    before = d.log_prob(x)
    with torch.no_grad():
        net.levels[0].norms[0].log_scale.add_(0.1)
    assert not torch.allclose(d.log_prob(x), before, atol=1e-2)
    with torch.no_grad():
        net.levels[0].norms[0].log_scale.sub_(0.1)
        assert torch.allclose(d.log_prob(x), before, atol=1e-10)


def test_drawing_starts_nothing_and_a_guide_scores_as_it_drew():
    net = small(start=False)
    Glow(net).sample((3,))
    assert not net.is_initialized
    d = Glow(net)
    x, log_prob = d.rsample_and_log_prob((3,))
    assert torch.allclose(d.log_prob(x), log_prob, atol=1e-10)
    assert not net.is_initialized
    log_prob.sum().backward()
    integers = Dequantized(Glow(net))
    integers.score_parts(integers.sample((3,)))
    assert not net.is_initialized

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(SHAPE).double(), 1.0).to_event(3))

    SVI(model, lambda: pyro.sample("z", Glow(net)), Adam({}), Trace_ELBO()).evaluate_loss()
    assert not net.is_initialized
    Glow(net).log_prob(images(10))
    assert net.is_initialized


def test_subsampled_likelihood_trains_full_batch_steps():
    """Steps on one tensor: where values are cached, the second one fails."""
    net = small(start=False)
    x = images(12)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), subsample_size=6) as index:
            pyro.sample("x", Glow(net), obs=x[index])

    svi = SVI(
        model,
        lambda x: None,
        Adam({"lr": 1e-2}),
        Trace_ELBO(num_particles=2, vectorize_particles=True),
    )
    losses = [svi.step(x) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[5:15])


@pytest.mark.filterwarnings("ignore")  # torch deprecates its tracer
def test_traced_objective_is_the_same():
    net, x = small(), images(12)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", 12):
            pyro.sample("x", Glow(net), obs=x)

    losses = [
        SVI(model, lambda x: None, Adam({"lr": 0.0}), elbo).step(x)
        for elbo in (Trace_ELBO(), JitTrace_ELBO(ignore_jit_warnings=True))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_full_batch_steps_see_one_tensor():
    """With a value remembered for it, the second step fails or repeats the first."""
    net, x = small(), images(12)

    def model():
        pyro.module("net", net)
        with pyro.plate("data", 12):
            pyro.sample("x", Glow(net), obs=x)

    svi = SVI(model, lambda: None, Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step() for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


def test_temperature_has_a_gradient_but_at_zero():
    temperature = torch.tensor([0.0, 0.7], dtype=torch.float64, requires_grad=True)
    d, x = Glow(small(), temperature=temperature), images()
    (seen,) = torch.autograd.grad(d.log_prob(x)[1], [temperature])
    z = d.encode(x)
    expected = z.square().sum(-1) / 0.7**3 - DIM / 0.7
    assert seen[1] == pytest.approx(expected.item(), rel=1e-10)
    assert seen[0] == 0


@pytest.mark.parametrize("make", ["Coupling", "GlowLevel"])
def test_layers_with_contexts_are_batches_of_transforms(make):
    options = {"width": 8, "context_dim": 2}
    layer = Coupling(4, **options) if make == "Coupling" else GlowLevel(4, 2, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    contexts = torch.randn(3, 2)
    base = dist.Normal(torch.zeros(4, 2, 2), 1.0).to_event(3)
    d = dist.TransformedDistribution(base, [InvertibleTransform(layer, contexts)])
    assert d.batch_shape == (3,)
    x = d.sample((5,))
    assert x.shape == (5, 3, 4, 2, 2)
    seen = d.log_prob(x)
    for k, context in enumerate(contexts):
        z, log_det = layer.encode(x[:, k], context.expand(5, 2))
        assert torch.allclose(seen[:, k], base.log_prob(z) + log_det, atol=1e-4)


def test_nets_with_contexts_are_batches_of_transforms():
    net, labels = small(num_classes=3), torch.tensor([0, 1, 2])
    base = dist.Normal(torch.zeros(DIM).double(), 1.0).to_event(1)
    d = dist.TransformedDistribution(base, [InvertibleTransform(net, labels)])
    assert d.batch_shape == (3,)
    x = d.sample((5,))
    assert torch.allclose(d.log_prob(x), Glow(net, labels).log_prob(x), atol=1e-10)
    assert x[:, 0].sub(x[:, 1]).abs().min() > 0  # each from latents of its own


def test_particles_count_the_same():
    net, x = small(), images(6)

    def model():
        pyro.module("net", net)
        with pyro.plate("data", 6):
            pyro.sample("x", Glow(net), obs=x)

    losses = [
        Trace_ELBO(num_particles=3, vectorize_particles=vectorized).loss(model, lambda: None)
        for vectorized in (True, False)
    ]
    assert losses == pytest.approx([-net(x).sum().item()] * 2)


def test_labels_are_summed_out_exactly():
    net, x = small(num_classes=3), images(5)
    log_prior = torch.tensor([0.2, 0.3, 0.5]).double().log()

    @config_enumerate
    def model():
        with pyro.plate("data", 5):
            y = pyro.sample("y", dist.Categorical(logits=log_prior))
            pyro.sample("x", Glow(net, y), obs=x)

    seen = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    expected = -(net.log_prob_all_classes(x) + log_prior).logsumexp(-1).sum().item()
    assert seen == pytest.approx(expected, rel=1e-8)


def test_prior_can_be_sampled_by_its_latents():
    net = small()

    def model(x=None):
        base = dist.Normal(torch.zeros(DIM).double(), 1.0).to_event(1)
        z = pyro.sample("z", dist.TransformedDistribution(base, [InvertibleTransform(net)]))
        return pyro.sample("x", dist.Normal(z, 0.5).to_event(3), obs=x)

    reparameterized = pyro.poutine.reparam(model, {"z": TransformReparam()})
    trace = pyro.poutine.trace(reparameterized).get_trace(images())
    assert trace.nodes["z_base"]["value"].shape == (DIM,)
    assert torch.allclose(net.decode(trace.nodes["z_base"]["value"])[0], trace.nodes["z"]["value"])
    guide = AutoNormal(model)
    SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO()).step(images())


def test_guide_fits_a_posterior():
    """Linear Gaussian truth: the evidence is known, and so is the gap after training."""
    net = small(start=False, coupling="additive")
    x = images()

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(SHAPE).double(), 1.0).to_event(3))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(3), obs=x)

    def guide():
        pyro.module("net", net)
        pyro.sample("z", Glow(net))

    evidence = dist.Normal(torch.zeros(SHAPE).double(), 1.25**0.5).log_prob(x).sum().item()
    elbo = Trace_ELBO(num_particles=8)
    svi = SVI(model, guide, Adam({"lr": 2e-2}), elbo)
    start = elbo.loss(model, guide) + evidence
    for _ in range(200):
        svi.step()
    gap = Trace_ELBO(num_particles=200).loss(model, guide) + evidence
    assert start > 10
    assert -0.5 < gap < 1.0


def test_automatic_guide_trains_without_a_start_and_serves_neutra():
    """The same truth; a transform scores its own draws and so must not start from them."""
    nets, x = [], torch.randn(1, 8, 8)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(1, 8, 8), 1.0).to_event(3))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(3), obs=x)

    def flow(latent_dim):
        assert latent_dim == 64
        nets.append(GlowNet((1, 8, 8), depth=1, levels=2, width=8, coupling="additive"))
        return InvertibleTransform(nets[0], flat=True)

    guide = AutoNormalizingFlow(model, flow)
    elbo = Trace_ELBO(num_particles=4)
    start = elbo.loss(model, guide)
    assert not nets[0].is_initialized
    svi = SVI(model, guide, Adam({"lr": 2e-2}), elbo)
    for _ in range(200):
        svi.step()
    evidence = dist.Normal(torch.zeros(1, 8, 8), 1.25**0.5).log_prob(x).sum().item()
    gap = Trace_ELBO(num_particles=100).loss(model, guide) + evidence
    assert -1 < gap < 0.1 * (start + evidence)

    neutra = NeuTraReparam(guide.requires_grad_(False))
    trace = pyro.poutine.trace(neutra.reparam(model)).get_trace()
    shared = trace.nodes["z_shared_latent"]["value"]
    assert torch.equal(neutra.transform_sample(shared)["z"], trace.nodes["z"]["value"])


def test_predictive_in_parallel():
    net = small()

    def model():
        pyro.sample("x", Glow(net, temperature=0.7))

    assert Predictive(model, num_samples=4, parallel=True)()["x"].shape == (4, *SHAPE)


def test_parameters_survive_the_store(tmp_path):
    """Pyro's store keeps parameters, no buffers: there are none to lose."""
    net, x = small(), images(3)
    expected = net(x)
    pyro.module("net", net)
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    other = small(start=False)
    pyro.module("net", other, update_module_params=True)
    assert torch.equal(other(x), expected)
    assert other.is_initialized


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_in_a_model(dtype):
    net = small().to(dtype)
    data = torch.randint(256, (7, *SHAPE), dtype=torch.uint8)

    def model():
        pyro.module("net", net)
        with pyro.plate("data", 7):
            pyro.sample("x", Dequantized(Glow(net), bits=8), obs=data)

    assert math.isfinite(Trace_ELBO().loss(model, lambda: None))


def test_copies_score_alike():
    d = Glow(small(num_classes=3), torch.tensor([0, 2]), 0.8)
    x = images(2)
    assert torch.equal(copy.deepcopy(d).log_prob(x), d.log_prob(x))
    wide, many = d.expand((4, 2)), images(4, 2)
    assert torch.allclose(wide.log_prob(many), torch.stack([d.log_prob(x) for x in many]))
    assert wide.sample().shape == (4, 2, *SHAPE)


def test_bad_arguments():
    net = small()
    with pytest.raises(ValueError, match="temperature must be zero or more"):
        Glow(net, temperature=-1.0)
    with pytest.raises(ValueError, match="temperature must be zero or more"):
        Glow(net, temperature=torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="takes no context"):
        Glow(net, torch.tensor(1))
    with pytest.raises(ValueError, match="cannot be expanded"):
        Glow(small(num_classes=3), torch.tensor([0, 1])).expand((1,))
    with pytest.raises(ValueError, match="needs a context"):
        Glow(small(num_classes=3))
    with pytest.raises(NotImplementedError, match="from its net"):
        Glow.infer_shapes()
    with pytest.raises(ValueError, match="Dequantized"):
        Glow(net).log_prob(torch.zeros(SHAPE, dtype=torch.uint8))
    with pytest.raises(ValueError, match="encode and decode"):
        InvertibleTransform(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="flat"):
        InvertibleTransform(net.levels[0], flat=True)


@pytest.mark.gpu
def test_gpu():
    net, x = small().cuda(), images(3).cuda()
    d = Glow(net, temperature=0.7)
    assert d.log_prob(x).is_cuda
    assert d.sample((2,)).is_cuda
