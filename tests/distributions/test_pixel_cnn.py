"""PixelCNN in Pyro's programs, its draws and its completions, against enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from pyro.optim import Adam
from scipy.stats import chi2

from pyro_ext.distributions import ConditionalPixelCNN, PixelCNN
from pyro_ext.nn import PixelCNNNet
from pyro_ext.nn.pixel_sampler import PixelSampler

ALARM = 1e-6


def net_of(shape=(1, 2, 2), perturb=0.4, **options):
    options = {"hidden_channels": 6, "num_resnets": 1, "num_components": 2, "stages": 2, **options}
    net = PixelCNNNet(shape, **options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return net.eval()


def counts_of(draws, images):
    """How often each image was drawn."""
    base = images.max() + 1
    weights = base ** torch.arange(images[0].numel()).double()
    codes, known = ((x.flatten(1) @ weights).long() for x in (draws, images))
    return torch.bincount(codes, minlength=int(known.max()) + 1)[known].double()


def misfit(counts, probs):
    """Chi-squared of cells of at least five expected, and their number."""
    expected = counts.sum() * probs
    is_large = expected >= 5
    return ((counts - expected).square() / expected)[is_large].sum().item(), int(is_large.sum())


@pytest.mark.parametrize(
    "options",
    [
        {"levels": 3},
        {"levels": 2, "head": "bernoulli", "shape": (3, 2, 2)},
        {"levels": 2, "shape": (3, 2, 2)},
        {"levels": 3, "head": "categorical"},
        {"levels": 3, "window": (3, 1)},
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@torch.no_grad()
def test_draws_have_the_law_that_is_scored(options, temperature):
    """Chi-squared; false alarm 1e-6 for each case."""
    d = PixelCNN(net_of(**options), temperature=temperature)
    images = d.enumerate_support()
    probs = d.log_prob(images).exp()
    assert probs.sum() == pytest.approx(1, abs=1e-10)
    statistic, cells = misfit(counts_of(d.sample((50_000,)), images), probs)
    assert statistic < chi2.isf(ALARM, cells)


def test_a_seed_makes_the_same_images_whatever_their_number():
    d = PixelCNN(net_of((1, 4, 4), levels=17))
    samples = []
    for num in (2, 5):
        pyro.set_rng_seed(7)
        samples.append(d.sample((num,)))
    assert torch.equal(samples[0], samples[1][:2])
    noise = d.noise((3,))
    assert torch.equal(d.decode(noise), d.decode(noise))


def test_map_sums_to_the_log_probability_and_takes_any_dtype():
    d = PixelCNN(net_of((3, 4, 5), levels=17))
    x = torch.randint(17, (6, 3, 4, 5))
    surprise = d.log_prob_map(x)
    assert surprise.shape == (6, 4, 5)
    assert torch.allclose(surprise.sum((1, 2)), d.log_prob(x))
    for dtype in (torch.uint8, torch.float32, torch.float64):
        assert torch.equal(d.log_prob(x.to(dtype)), d.log_prob(x))


def test_contexts_and_temperatures_make_batches():
    net = net_of((1, 4, 4), levels=5, num_classes=3)
    labels, temperature = torch.tensor([0, 2]), torch.tensor([1.0, 0.5])
    d = PixelCNN(net, labels, temperature)
    x = d.sample((4,))
    assert x.shape == (4, 2, 1, 4, 4)
    for k in range(2):
        one = PixelCNN(net, labels[k], temperature[k])
        assert torch.allclose(d.log_prob(x)[:, k], one.log_prob(x[:, k]))
    wide = d.expand((3, 2))
    assert torch.allclose(wide.log_prob(x[:3]), d.log_prob(x[:3]))
    family = ConditionalPixelCNN(net)
    assert torch.equal(family.condition(labels).log_prob(x), PixelCNN(net, labels).log_prob(x))


def test_labels_are_summed_out_exactly():
    net = net_of((1, 4, 4), levels=5, num_classes=3)
    x, probs = torch.randint(5, (6, 1, 4, 4)), torch.tensor([0.2, 0.3, 0.5]).double()

    @config_enumerate
    def model():
        with pyro.plate("data", 6):
            label = pyro.sample("label", dist.Categorical(probs))
            pyro.sample("x", PixelCNN(net, label), obs=x)

    seen = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    joint = net(x, torch.arange(3).unsqueeze(1)) + probs.log().unsqueeze(1)
    assert seen == pytest.approx(-joint.logsumexp(0).sum().item(), rel=1e-8)


def test_particles_and_subsamples_count_as_they_should():
    net, x = net_of((1, 4, 4), levels=5), torch.randint(5, (6, 1, 4, 4))

    def model(x, size=6):
        pyro.module("net", net)
        with pyro.plate("data", size, subsample=x):
            pyro.sample("x", PixelCNN(net), obs=x)

    losses = [
        Trace_ELBO(num_particles=3, vectorize_particles=flag, max_plate_nesting=1).loss(
            model, lambda x: None, x
        )
        for flag in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    half = Trace_ELBO(max_plate_nesting=1).loss(model, lambda x: None, x[:3])
    assert half == pytest.approx(-2 * net(x[:3]).sum().item(), rel=1e-10)
    draws = Predictive(lambda: pyro.sample("x", PixelCNN(net)), num_samples=4, parallel=True)()
    assert draws["x"].shape == (4, 1, 4, 4)


def test_it_learns_in_a_model():
    """Bits per pixel of two images fall from above two to below one."""
    net = PixelCNNNet((1, 4, 4), 5, 2, 8, 1, 2, dropout=0.0)
    x = torch.randint(5, (2, 1, 4, 4)).repeat(8, 1, 1, 1)

    def model():
        pyro.module("net", net)
        with pyro.plate("data", 16):
            pyro.sample("x", PixelCNN(net), obs=x)

    svi = SVI(model, lambda: None, Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step() / (16 * 16 * math.log(2)) for _ in range(150)]
    assert losses[0] > 2
    assert losses[-1] < 1


# Completions, against enumeration.

MASKS = {
    "first pixels": [[1, 1, 1], [1, 0, 0], [0, 0, 0]],
    "scattered": [[0, 1, 0], [0, 0, 1], [1, 0, 1]],
    "last pixels": [[0, 0, 0], [0, 0, 1], [1, 1, 1]],
    "none": [[0, 0, 0]] * 3,
    "all": [[1, 1, 1]] * 3,
}


@pytest.mark.parametrize("window", [None, (3, 2)])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@torch.no_grad()
def test_weights_estimate_the_probability_of_what_is_known(mask, window):
    """Two hundred estimates; a bias of six standard errors is a false alarm of 2e-9."""
    d = PixelCNN(net_of((1, 3, 3), levels=2, head="bernoulli", window=window))
    mask, images = torch.tensor(mask).bool(), d.enumerate_support()
    probs = d.log_prob(images).exp()
    x = images[torch.tensor([100, 300])]
    seen = torch.stack([d.complete(x, mask, 30).log_weights.exp().mean(0) for _ in range(200)])
    for k in range(2):
        fits = ((images == x[k]) | ~mask).flatten(1).all(1)
        error = 6 * seen[:, k].std() / 200**0.5 + 1e-10
        assert abs(seen[:, k].mean() - probs[fits].sum()) < error


@torch.no_grad()
def test_weights_stay_unbiased_when_particles_are_replaced(monkeypatch):
    """Five hundred estimates with a net so sure that particles die; a false alarm of 2e-9."""
    net = net_of((1, 3, 3), levels=2, head="bernoulli", window=(3, 2))
    net.output.g.mul_(20)
    d = PixelCNN(net)
    mask, images = torch.tensor(MASKS["scattered"]).bool(), d.enumerate_support()
    probs, replaced = d.log_prob(images).exp(), []
    select = PixelSampler.select
    monkeypatch.setattr(PixelSampler, "select", lambda *args: (replaced.append(1), select(*args)))
    x = images[[137]]
    fits = ((images == x) | ~mask).flatten(1).all(1)
    weights = d.complete(x.expand(500, 1, 3, 3), mask, 8).log_weights.exp().mean(0)
    assert replaced
    error = 6 * weights.std() / 500**0.5
    assert abs(weights.mean() - probs[fits].sum()) < error


@torch.no_grad()
def test_first_pixels_are_completed_exactly():
    """Chi-squared of what follows; false alarm 1e-6."""
    d = PixelCNN(net_of((1, 3, 3), levels=2, head="bernoulli"))
    mask, images = torch.tensor(MASKS["first pixels"]).bool(), d.enumerate_support()
    x = images[[300]]
    fits = ((images == x) | ~mask).flatten(1).all(1)
    probs = d.log_prob(images[fits]).exp()
    draws, log_weights = d.complete(x.expand(20_000, 1, 3, 3), mask)
    assert torch.allclose(log_weights, probs.sum().log())
    statistic, cells = misfit(counts_of(draws[0], images[fits]), probs / probs.sum())
    assert statistic < chi2.isf(ALARM, cells)


@torch.no_grad()
def test_weighted_completions_have_the_conditional_law():
    """Means of pixels of 3,000 particles, within 0.06: above six standard errors of a half."""
    d = PixelCNN(net_of((1, 3, 3), levels=2, head="bernoulli"))
    mask, images = torch.tensor(MASKS["scattered"]).bool(), d.enumerate_support()
    x = images[[100]]
    fits = ((images == x) | ~mask).flatten(1).all(1)
    probs = d.log_prob(images[fits]).softmax(0)
    expected = (probs[:, None] * images[fits].flatten(1)).sum(0)
    draws, log_weights = d.complete(x[0], mask, 3000)
    weights = log_weights.softmax(0)
    assert torch.equal(draws[:, 0][:, mask], x[0][0][mask].expand(3000, -1))
    assert torch.allclose((weights[:, None] * draws.flatten(1)).sum(0), expected, atol=0.06)


def latent_net():
    net = net_of((1, 4, 4), levels=5)
    to_pyro_module_(net)
    net.output.g = PyroSample(dist.LogNormal(torch.zeros_like(net.output.bias), 1.0).to_event(1))
    return net


@torch.no_grad()
def test_expanded_laws_keep_their_batch():
    d = PixelCNN(net_of((1, 4, 4), levels=5)).expand((5,))
    x, mask = d.sample()[0], torch.ones(4, 4).bool()
    mask[3] = False
    images, log_weights = d.complete(x, mask, 2)
    assert images.shape == (2, 5, 1, 4, 4)
    assert log_weights.shape == (2, 5)
    uniforms = d.noise()
    assert torch.equal(d.decode(uniforms[0])[3], d.decode(uniforms)[0])
    assert d.sample((0,)).shape == (0, 5, 1, 4, 4)
    assert d.sample((0,)).dtype == torch.float64


def test_bad_inputs():
    net = net_of((1, 4, 4), levels=5)
    d, x = PixelCNN(net), torch.randint(5, (3, 1, 4, 4))
    for bad in (torch.rand(3, 1, 4, 4), 2 * torch.rand(3, 1, 4, 4) - 1, x + 5):
        with pytest.raises(ValueError, match="rounded to levels first"):
            d.log_prob(bad)
    with pytest.raises(ValueError, match="temperature must be positive"):
        PixelCNN(net, temperature=0.0)
    with pytest.raises(ValueError, match="takes no context"):
        PixelCNN(net, torch.tensor(1))
    with pytest.raises(ValueError, match="cannot be expanded"):
        PixelCNN(net, temperature=torch.ones(2)).expand((3,))
    with pytest.raises(NotImplementedError, match=r"5\*\*16 images"):
        d.enumerate_support()
    mask = torch.zeros(4, 4).bool()
    mask[2, 2] = True
    with pytest.raises(ValueError, match="not the first ones"):
        d.complete(x, mask)
    with pytest.raises(ValueError, match="of bool"):
        d.complete(x, mask.float(), 10)
    with pytest.raises(ValueError, match="temperature 1"):
        PixelCNN(net, temperature=0.5).complete(x, mask, 10)
    for seen, what in ((x / 5, "rounded to levels first"), (x[..., :3], "takes images")):
        with pytest.raises(ValueError, match=what):
            d.complete(seen, ~mask, 10)
    with pytest.raises(ValueError, match="mask has shape"):
        d.complete(x, mask[:2, :2], 10)
    for uniforms in (2 * d.noise((2,)), d.noise((2,)) - 1):
        with pytest.raises(ValueError, match=r"in \[0, 1\)"):
            d.decode(uniforms)
    with pytest.raises(ValueError, match=r"takes images \(\.\.\., \(1, 4, 4\)\)"):
        d.log_prob(x[..., :2])
    with pytest.raises(ValueError, match="do not broadcast"):
        PixelCNN(net, temperature=torch.ones(2)).log_prob(x)
    for bad, what in (
        (net_of((1, 4, 4), levels=5).half(), "float16"),
        (latent_net(), "PyroSample"),
    ):
        with pytest.raises(ValueError, match=what):
            PixelCNN(bad)
    broken = net_of((1, 4, 4), levels=5)
    with torch.no_grad():
        broken.output.bias[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        PixelCNN(broken).sample()
    with pytest.raises(NotImplementedError, match="from its net"):
        PixelCNN.infer_shapes()
    with pytest.raises(ValueError, match="contiguous_format"):
        PixelCNN(net_of((1, 4, 4), levels=5).to(memory_format=torch.channels_last))


@pytest.mark.gpu
def test_gpu():
    net = net_of((1, 4, 4), levels=5).float()
    x = torch.randint(5, (3, 1, 4, 4))
    expected = net(x)
    net.cuda()
    assert torch.allclose(PixelCNN(net).log_prob(x.cuda()).cpu(), expected, atol=1e-3)
    assert PixelCNN(net).sample((2,)).is_cuda
