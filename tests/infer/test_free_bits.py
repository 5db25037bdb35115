"""Free bits by hand, as a bound, and as the ELBO when nothing is free."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_ext.infer.free_bits import FreeBitsELBO
from pyro_ext.models import HierarchicalVariationalAutoencoder, VariationalAutoencoder

X = torch.randn(4, 6).sigmoid().round()
LOC, SCALE = torch.tensor([1.5, 0.0]), torch.tensor([0.4, 1.0])  # the second holds nothing


def model(x, size=40):
    with pyro.plate("data", size, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def guide(x, size=40):
    with pyro.plate("data", size, subsample=torch.arange(len(x))):
        loc = pyro.param("loc", LOC.clone())
        pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))


def draws(num_particles, x):
    pyro.set_rng_seed(0)
    return dist.Normal(LOC, SCALE).expand((num_particles, len(x), 2)).sample()


@pytest.mark.parametrize("free_nats", [0.0, 0.3, 2.0, 5.0])
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_value_by_hand(free_nats, per_coordinate):
    x = torch.tensor([0.2, -1.0, 0.7])
    z = draws(7, x)
    standard = dist.Normal(0.0, 1.0)
    divergence = (dist.Normal(LOC, SCALE).log_prob(z) - standard.log_prob(z)).mean((0, 1))
    groups = divergence if per_coordinate else divergence.sum(0, keepdim=True)
    reconstruction = dist.Normal(z.sum(-1), 1.0).log_prob(x).mean()
    expected = 40 * (reconstruction - groups.clamp(min=free_nats).sum())
    elbo = FreeBitsELBO(
        free_nats, per_coordinate=per_coordinate, num_particles=7, max_plate_nesting=1
    )
    pyro.set_rng_seed(0)
    assert math.isclose(-elbo.loss(model, guide, x), expected, rel_tol=1e-5)


@pytest.mark.parametrize("vectorize", [True, False])
def test_nothing_free_is_the_elbo_and_more_is_less(vectorize):
    vae = VariationalAutoencoder(6, 2, (5,))
    losses = []
    for free_nats in (0.0, 0.5, 3.0):
        pyro.set_rng_seed(0)
        elbo = FreeBitsELBO(
            free_nats, num_particles=3, max_plate_nesting=1, vectorize_particles=vectorize
        )
        losses.append(elbo.loss(vae.model, vae.guide, X, size=40))
    pyro.set_rng_seed(0)
    plain = Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=vectorize)
    assert losses[0] >= plain.loss(vae.model, vae.guide, X, size=40) - 1e-3
    assert losses[0] <= losses[1] < losses[2]


def test_free_latents_have_no_gradient_towards_the_prior():
    x = torch.tensor([0.2, -1.0, 0.7])
    gradients = []
    for free_nats in (0.0, 1e3):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = FreeBitsELBO(free_nats, num_particles=5, max_plate_nesting=1)
        elbo.loss_and_grads(model, guide, x)
        gradients.append(pyro.param("loc").grad)
    z = draws(5, x)
    reconstruction = -40 * (x - z.sum(-1)).mean().expand(2)  # of the loss
    torch.testing.assert_close(gradients[1], reconstruction)
    torch.testing.assert_close(gradients[0] - gradients[1], 40 * z.mean((0, 1)))


def test_masked_data_are_not_charged():
    x, keep = torch.tensor([0.2, -1.0, 0.7]), torch.tensor([True, False, True])

    def masked(program):
        def run(x):
            with poutine.mask(mask=keep):
                program(x, 3)

        return run

    pyro.set_rng_seed(0)
    z = draws(1, x)[0]
    elbo = FreeBitsELBO(50.0, max_plate_nesting=1)
    pyro.set_rng_seed(0)
    loss = elbo.loss(masked(model), masked(guide), x)
    expected = 2 * 50.0 - dist.Normal(z.sum(-1), 1.0).log_prob(x)[keep].sum()
    assert math.isclose(loss, expected, rel_tol=1e-5)


@pytest.mark.parametrize("local", [False, True])
def test_layers_are_groups(local):
    with pyro.settings.context(module_local_params=local):
        vae = HierarchicalVariationalAutoencoder(6, (3, 2), (5,))
        elbo = FreeBitsELBO(100.0, max_plate_nesting=1)
        pyro.set_rng_seed(0)
        guide_trace = poutine.trace(vae.guide).get_trace(X)
        logits = vae.decode(guide_trace.nodes["z1"]["value"])
        pyro.set_rng_seed(0)
        loss = elbo.loss(vae.model, vae.guide, X)
        expected = 4 * 2 * 100.0 - logits.log_prob(X).sum().item()
        assert math.isclose(loss, expected, rel_tol=1e-5)
        assert elbo(vae.model, vae.guide)(X).isfinite()
        if not local:
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
            assert math.isfinite(svi.step(X))


def test_bad_input():
    with pytest.raises(ValueError, match="free_nats must be a finite number >= 0, got -1"):
        FreeBitsELBO(-1)
    with pytest.raises(ValueError, match="num_particles must be an integer >= 1"):
        FreeBitsELBO(1.0, num_particles=0)
    elbo, x = FreeBitsELBO(1.0, max_plate_nesting=1), torch.zeros(3)
    with pytest.raises(ValueError, match=r"\['z'\] are in only one of model and guide"):
        elbo.loss(model, lambda x: None, x)

    def discrete(enumerate_=None):
        def run(x=None):
            probs = pyro.param("probs", torch.tensor(0.5))
            pyro.sample("y", dist.Bernoulli(probs), infer={"enumerate": enumerate_})

        return run

    with pytest.raises(ValueError, match="'y' asks for enumeration"):
        elbo.loss(discrete(), discrete("parallel"))
    with pytest.raises(ValueError, match=r"Guide site 'y' \(Bernoulli\) has trainable parameters"):
        elbo.loss_and_grads(discrete(), discrete())


def test_soft_weights_follow_what_a_group_holds():
    """The weight falls by a tenth while too little is held, rises while too much, up to one."""
    x = torch.tensor([0.2, -1.0, 0.7])
    low = FreeBitsELBO(100.0, soft=True, max_plate_nesting=1)
    high = FreeBitsELBO(0.01, soft=True, max_plate_nesting=1)
    for _ in range(3):
        low.loss_and_grads(model, guide, x)
        high.loss_and_grads(model, guide, x)
    torch.testing.assert_close(low.weights["z"], torch.tensor([1.1**-3]))
    torch.testing.assert_close(high.weights["z"], torch.ones(1))
    low.free_nats = 0.01
    low.loss_and_grads(model, guide, x)
    torch.testing.assert_close(low.weights["z"], torch.tensor([1.1**-2]))
    before = low.weights["z"].clone()
    low.loss(model, guide, x)  # without gradients no step
    assert torch.equal(low.weights["z"], before)


def test_soft_loss_by_hand():
    x = torch.tensor([0.2, -1.0, 0.7])
    z, standard = draws(5, x), dist.Normal(0.0, 1.0)
    divergence = (dist.Normal(LOC, SCALE).log_prob(z) - standard.log_prob(z)).sum(-1).mean()
    reconstruction = dist.Normal(z.sum(-1), 1.0).log_prob(x).mean()
    elbo = FreeBitsELBO(100.0, soft=True, num_particles=5, max_plate_nesting=1)
    pyro.set_rng_seed(0)
    seen = -elbo.loss_and_grads(model, guide, x)
    assert math.isclose(seen, 40 * (reconstruction - divergence / 1.1), rel_tol=1e-5)


def test_soft_free_bits_hold_a_group_near_its_share():
    """A decoder that needs nothing of z: without free bits it holds nothing, with them two nats."""
    x = torch.randn(200)

    def idle(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def learner(x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(2 * x.sign(), scale))

    elbo = FreeBitsELBO(2.0, soft=True, max_plate_nesting=1)
    svi = SVI(idle, learner, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(200):
        svi.step(x)
    held = elbo._group(
        *(t.nodes["z"] for t in next(iter(elbo._get_traces(idle, learner, (x,), {}))))
    )
    assert (held[0] / held[1]).item() > 1.5
