"""The ELBO in closed form, and equal to Pyro's where both are defined."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

from pyro_ext.distributions import HardConcrete, L0Prior
from pyro_ext.infer import AutoAdditiveNormal, MeanFieldELBO
from pyro_ext.infer.divergence import analytic_divergence
from pyro_ext.poutine import local_reparameterization
from pyro_ext.poutine.lazy_normal import LazyNormal

X, Y = torch.randn(6, 3), torch.randn(6)


def model(x, y, size=6):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    s = pyro.sample("s", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", size, subsample=torch.arange(len(y))):
        z = pyro.sample("z", dist.Normal((x * w).sum(-1), 1.0))
        t = pyro.sample("t", dist.StudentT(5.0, z, 1.0))
        pyro.sample("y", dist.Normal(z + t, s.sqrt()), obs=y)


def guide(x, y, size=6):
    pyro.sample("w", dist.Normal(pyro.param("a", torch.ones(3)), 0.5).to_event(1))
    pyro.sample("s", dist.Gamma(pyro.param("b", torch.tensor(4.0)), 2.0))
    with pyro.plate("data", size, subsample=torch.arange(len(y))):
        loc = pyro.param("c", torch.zeros(6))[: len(y)]
        pyro.sample("z", dist.Normal(loc, 0.3))
        pyro.sample("t", dist.Normal(loc, 0.7))


def gradients(elbo, *args, model=model, guide=guide):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss = elbo.loss_and_grads(model, guide, *args)
    store = pyro.get_param_store()
    return {"loss": torch.tensor(loss)} | {
        name: store._params[name].grad
        for name in list(store)
        if store._params[name].grad is not None
    }


@pytest.mark.parametrize("args", [(X, Y), (X[:4], Y[:4], 10)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_particles": 3},
        {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
        {"num_particles": 2, "vectorize_particles": True},
    ],
)
def test_equals_that_of_pyro(args, options):
    if "vectorize_particles" in options:
        options = {"max_plate_nesting": 1, **options}
    ours = gradients(MeanFieldELBO(**options), *args)
    theirs = gradients(TraceMeanField_ELBO(**options), *args)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_masks_and_scales_equal_those_of_pyro():
    mask = torch.tensor([True, False, True, True, False, True])

    def masked(program):
        def run(x, y):
            with poutine.scale(scale=0.5), poutine.mask(mask=mask):
                program(x, y)

        return run

    # the sites outside of plates would broadcast against the mask
    def small(x, y):
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def small_guide(x, y):
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.ones(6)), 0.5))

    programs = {"model": masked(small), "guide": masked(small_guide)}
    ours = gradients(MeanFieldELBO(), X, Y, **programs)
    theirs = gradients(TraceMeanField_ELBO(), X, Y, **programs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


@pytest.mark.parametrize("is_local", [True, False])
def test_linear_model_in_closed_form(is_local):
    # E of the reconstruction by hand; z-test with false alarm 6e-7.
    x, y, loc, scale = X.double(), Y.double(), torch.randn(3).double(), torch.rand(3).double()

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3).double(), 2.0).to_event(1))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Normal(loc, scale).to_event(1))

    elbo, losses = MeanFieldELBO(), []
    handler = local_reparameterization() if is_local else poutine.scale(scale=1.0)
    with handler:
        for _ in range(2000):
            losses.append(elbo.loss(model, guide, x, y))
    losses = torch.tensor(losses, dtype=torch.float64)
    squares = (y - x @ loc) ** 2 + x**2 @ scale**2
    expected = (squares / (2 * 0.49) + math.log(0.7) + math.log(2 * math.pi) / 2).sum()
    ratio = (scale / 2) ** 2
    expected = expected + ((ratio + (loc / 2) ** 2 - 1 - ratio.log()) / 2).sum()
    assert abs(losses.mean() - expected) < 5 * losses.std() / math.sqrt(2000)


def test_weights_stay_lazy_and_densities_are_not_evaluated():
    met = []

    class Watched(dist.Normal):
        def log_prob(self, value):
            met.append(value)
            return super().log_prob(value)

    def model(x):
        w = pyro.sample("w", Watched(torch.zeros(2, 3), 1.0).to_event(2))
        met.append(w)
        pyro.sample("y", dist.Normal(F.linear(x, w), 1.0).to_event(2), obs=torch.zeros(6, 2))

    def guide(x):
        pyro.sample("w", dist.Normal(torch.ones(2, 3), 1.0).to_event(2))

    with local_reparameterization():
        MeanFieldELBO().loss(model, guide, X)
    (w,) = met
    assert isinstance(w, LazyNormal)
    assert not w.is_drawn


def test_lazy_weight_without_a_known_divergence_is_estimated_apart():
    def model(x):
        w = pyro.sample("w", dist.StudentT(3.0, torch.zeros(2, 3), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(F.linear(x, w), 1.0).to_event(2), obs=torch.zeros(6, 2))

    def guide(x):
        pyro.sample("w", dist.Normal(torch.ones(2, 3), 1.0).to_event(2))

    elbo = MeanFieldELBO()
    with local_reparameterization():
        local = torch.tensor([elbo.loss(model, guide, 0.1 * X) for _ in range(1000)])
    exact = torch.tensor([Trace_ELBO().loss(model, guide, 0.1 * X) for _ in range(1000)])
    error = (local.var() / 1000 + exact.var() / 1000).sqrt()  # false alarm 6e-7
    assert abs(local.mean() - exact.mean()) < 5 * error


def test_autonormal_stays_lazy_and_equals_its_normal():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(F.linear(x, w), 1.0).to_event(2), obs=torch.zeros(6, 2))

    guide = AutoNormal(model, init_scale=0.5)
    with local_reparameterization():
        loss = MeanFieldELBO(2).loss_and_grads(model, guide, X)
    assert math.isfinite(loss)
    assert guide.scales.w_unconstrained.grad.isfinite().all()
    pyro.set_rng_seed(0)
    plain = MeanFieldELBO().loss(model, guide, X)
    pyro.set_rng_seed(0)
    assert math.isclose(plain, Trace_ELBO().loss(model, guide, X), rel_tol=1e-5)


def test_autonormal_of_positive_sites_keeps_the_jacobian():
    def model():
        pyro.sample("s", dist.LogNormal(0.0, 1.0))

    guide = AutoNormal(model, init_scale=0.5)
    guide()
    losses = []
    for elbo in (MeanFieldELBO(), Trace_ELBO()):
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(model, guide))
    assert math.isclose(*losses, rel_tol=1e-5)


def test_works_as_a_module_and_in_svi():
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.tensor(3.0))

        def forward(self):
            pyro.sample("z", dist.Normal(self.loc, 1.0))

    class Model(PyroModule):
        def forward(self):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pyro.settings.context(module_local_params=True):
        loss = MeanFieldELBO()(Model(), Guide())
        loss().backward()
        assert [p.grad.item() for p in loss.parameters()] == [3.0]
    guide = Guide()
    svi = SVI(Model(), guide, pyro.optim.Adam({"lr": 0.1}), MeanFieldELBO())
    assert svi.step() == pytest.approx(4.5)
    assert guide.loc < 3.0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("num_dims", [0, 1, 2])
def test_normal_divergences_equal_those_of_torch(shape, num_dims):
    num_dims = min(num_dims, len(shape))
    q = dist.Normal(torch.randn(shape), torch.rand(shape) + 0.1).to_event(num_dims)
    for p in (
        dist.Normal(0.0, 1.0).expand(shape),
        dist.Normal(0.5, 2.0).expand(shape),
        dist.Normal(torch.randn(shape), 2.0),
        dist.Normal(torch.tensor(0.3, requires_grad=True), 2.0).expand(shape),
    ):
        p = p.to_event(num_dims)
        expected = torch.distributions.kl_divergence(q, p)
        torch.testing.assert_close(analytic_divergence(q, p), expected)


def test_divergence_is_zero_of_a_large_weight_to_itself():
    q = dist.Normal(0.0, 1.0).expand((300, 784)).to_event(2)
    own = dist.Normal(torch.zeros(300, 784), torch.ones(300, 784)).to_event(2)
    assert abs(analytic_divergence(own, q)) < 1e-2


def test_gates_with_a_known_divergence_pass_and_others_are_refused():
    log_alpha = torch.tensor([0.5, -1.0], requires_grad=True)

    def guide():
        pyro.sample("z", HardConcrete(log_alpha).to_event(1))

    def program(prior):
        return lambda: pyro.sample("z", prior.to_event(1))

    loss = MeanFieldELBO().differentiable_loss(program(L0Prior(0.7).expand((2,))), guide)
    torch.testing.assert_close(loss, 0.7 * HardConcrete(log_alpha).prob_nonzero.sum())
    with pytest.raises(ValueError, match=r"'z' has atoms.*L0Prior"):
        MeanFieldELBO().loss(program(dist.Normal(torch.zeros(2), 1.0)), guide)


def chain(second=dist.Normal):
    z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
    pyro.sample("z2", second(loc=2 * z1, scale=1.0))


def test_warns_of_a_guide_in_another_order():
    # the exact posterior of a chain, drawn backwards: the divergence is 0, but not site by site
    def backwards():
        z2 = pyro.sample("z2", dist.Normal(0.0, math.sqrt(5.0)))
        pyro.sample("z1", dist.Normal(0.4 * z2, math.sqrt(0.2)))

    def forwards():
        z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
        pyro.sample("z2", dist.Normal(2 * z1, 1.0))

    with pytest.warns(UserWarning, match=r"draws \['z2'\] before \['z1'\], the model after"):
        assert abs(MeanFieldELBO(100).loss(chain, backwards)) > 1e-2
    assert abs(MeanFieldELBO(100).loss(chain, forwards)) < 1e-5


def test_warns_of_the_order_once():
    names = [f"w{i}" for i in range(5)]

    def draw(order):
        for name in order:
            pyro.sample(name, dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="the model after") as record:
        MeanFieldELBO().loss(lambda: draw(["z", *names]), lambda: draw([*names, "z"]))
    assert len(record) == 1
    assert all(name in str(record[0].message) for name in names)


def test_another_order_is_right_if_the_later_parent_meets_no_closed_form():
    def student():
        chain(lambda loc, scale: dist.StudentT(3.0, loc, scale))

    def backwards():
        z2 = pyro.sample("z2", dist.Normal(0.0, 2.0))
        pyro.sample("z1", dist.Normal(0.4 * z2, 0.5))

    options = {"num_particles": 1000, "vectorize_particles": True, "max_plate_nesting": 0}
    ours, theirs = (
        torch.tensor([elbo(**options).loss(student, backwards) for _ in range(20)])
        for elbo in (MeanFieldELBO, Trace_ELBO)
    )
    error = ((ours.var() + theirs.var()) / 20).sqrt()  # of 20 means; 7 of them, false alarm 2e-6
    assert abs(ours.mean() - theirs.mean()) < 7 * error


@pytest.mark.parametrize("other", [None, torch.tensor([True, False, True])])
def test_masks_inside_of_events_are_met(other):
    law, mask = dist.Normal(torch.ones(3), 1.0), torch.tensor([True, True, False])

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).mask(mask).to_event(1))

    def guide():
        pyro.sample("z", (law if other is None else law.mask(other)).to_event(1))

    losses = []
    for elbo in (MeanFieldELBO(5), Trace_ELBO(5)):
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(model, guide))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_parts_of_other_shapes_are_summed_apart():
    def guide():
        pyro.sample("z", dist.Normal(torch.ones(3), 0.7))

    with pyro.validation_enabled(False):
        for prior in (dist.StudentT(3.0, torch.zeros(3), 1.0), dist.Normal(torch.zeros(3), 1.0)):
            losses = []
            for elbo in (MeanFieldELBO(), Trace_ELBO()):
                pyro.set_rng_seed(0)
                losses.append(elbo.loss(lambda p=prior: pyro.sample("z", p.to_event(1)), guide))
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_data_that_broadcast_against_particles_are_refused():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(z.unsqueeze(-1), 1.0), obs=Y)

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    elbo = MeanFieldELBO(4, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        elbo.loss(model, guide)


def test_refusals():
    def model(scale=1.0, **infer):
        with poutine.scale(scale=scale):
            pyro.sample("z", dist.Normal(0.0, 1.0), infer=infer)

    def guide(**kwargs):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    elbo = MeanFieldELBO()
    with pytest.raises(ValueError, match=r"'z' has scale 1.0 in the guide, but 2.0"):
        elbo.loss(model, guide, scale=2.0)
    with pytest.raises(ValueError, match=r"'z' asks for enumeration"):
        elbo.loss(
            lambda: model(),
            lambda: pyro.sample("z", dist.Normal(0.0, 1.0), infer={"enumerate": "parallel"}),
        )
    p = torch.tensor(0.3, requires_grad=True)
    with pytest.raises(ValueError, match=r"'z' \(Bernoulli\) has trainable"):
        elbo.differentiable_loss(
            lambda: pyro.sample("z", dist.Bernoulli(0.5)),
            lambda: pyro.sample("z", dist.Bernoulli(p)),
        )
    with (
        pytest.warns(UserWarning, match="model but not guide"),
        pytest.raises(ValueError, match=r"\['z'\] are neither"),
    ):
        elbo.loss(model, lambda: None)


@pytest.mark.gpu
def test_on_gpu():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand((2, 3)).to_event(2))
        pyro.sample("y", dist.Normal(F.linear(x, w), 1.0).to_event(2), obs=torch.zeros(6, 2).cuda())

    guide = AutoAdditiveNormal(model, init_loc_fn=lambda site: torch.ones(2, 3, device="cuda"))
    with local_reparameterization():
        assert math.isfinite(MeanFieldELBO().loss_and_grads(model, guide, X.cuda()))
