"""The law of outputs, and what other implementations got wrong."""

import math
import threading
import warnings
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyro_ext.infer import AutoAdditiveNormal, MeanFieldELBO
from pyro_ext.poutine import (
    flipout,
    local_reparameterization,
    variational_dropout,
    weight_sampling,
)
from pyro_ext.poutine.lazy_normal import LazyNormal
from pyro_ext.testing.case import isolated

HANDLERS = {
    "local": lambda: local_reparameterization(conv="independent"),
    "flipout": flipout,
    "weights": weight_sampling,
}
N = 20_000
LOC, SCALE = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]]), torch.tensor([[0.3], [1.0]])
BIAS_LOC, BIAS_SCALE = torch.tensor([0.5, -1.0]), torch.tensor([0.2, 0.7])


def weight(name="w", loc=LOC, scale=SCALE):
    return pyro.sample(name, dist.Normal(loc, scale.expand_as(loc)).to_event(loc.dim()))


def bias():
    return weight("b", BIAS_LOC, BIAS_SCALE)


def is_within(value, expected, standard_error, num=5.0):
    return bool(((value - expected).abs() <= num * standard_error + 1e-6).all())


MAPS = {
    "linear": (lambda x: F.linear(x, weight(), bias()), True),
    "no bias": (lambda x: F.linear(x, weight()), False),
    "keywords": (lambda x: F.linear(bias=bias(), weight=weight(), input=x), True),
    "parameter bias": (lambda x: F.linear(x, weight(), nn.Parameter(torch.zeros(2))), False),
    "operator": (lambda x: x @ weight().T + bias(), True),
    "einsum": (lambda x: torch.einsum("bi,oi->bo", x, weight()) + bias(), True),
    "addmm": (lambda x: torch.addmm(bias(), x, weight().T), True),
    "conv": (lambda x: F.conv1d(x[..., None], weight()[..., None], bias())[..., 0], True),
    "transposed conv": (
        lambda x: F.conv_transpose1d(x[..., None], weight().T[..., None], bias())[..., 0],
        True,
    ),
}


@pytest.mark.parametrize("handler", ["local", "flipout"])
@pytest.mark.parametrize("name", MAPS)
def test_mean_and_covariance_of_each_datum(handler, name):
    # Each z-test has a false alarm with probability 6e-7.
    function, has_bias = MAPS[name]
    x = torch.tensor([1.0, -1.0, 2.0])
    draws = []
    with HANDLERS[handler]():
        for _ in range(1 if handler == "local" else 1500):
            draws.append(function(x.expand(N if handler == "local" else 5, 3)))
    mean = LOC @ x + has_bias * BIAS_LOC
    variance = (SCALE**2 * x**2).sum(-1) + has_bias * BIAS_SCALE**2
    y = torch.stack(draws) - mean
    within = y.reshape(-1, 2)
    num = len(within) if handler == "local" else len(draws)  # data of flipout are dependent
    assert is_within(within.mean(0), 0.0, (variance / num).sqrt())
    assert is_within(within.var(0), variance, variance * (3 / num) ** 0.5)
    between = (within[:, 0] * within[:, 1]).mean()
    assert is_within(between, 0.0, (variance.prod() * 3 / num).sqrt())
    across = (y[:, 0] * y[:, 1]).mean(0) if handler == "flipout" else (y[0, 1:] * y[0, :-1]).mean(0)
    assert is_within(across, 0.0, variance * (3 / num) ** 0.5)


@pytest.mark.parametrize("handler", ["local", "flipout"])
def test_a_bias_that_outputs_share_is_drawn_once(handler):
    x, scale = torch.ones(4, 3), torch.ones(1)
    with HANDLERS[handler]():
        w = weight(loc=torch.ones(3, 2), scale=1e-6 * scale)
        y = torch.addmm(weight("b", torch.zeros(1), scale), x, w)
    torch.testing.assert_close(y, y[:1, :1].expand_as(y))


@pytest.mark.parametrize("kind", ["cast", "autocast"])
def test_deviations_of_half_precision(kind):
    # 1e5 draws: the relative error of the deviation is 0.0023, five of which are a false alarm
    # with probability 6e-7; half precision adds 0.0005.
    deviation, x = 1e-5 if kind == "autocast" else 1e-3, torch.full((100_000, 4), 300.0)
    with local_reparameterization(), torch.autocast("cpu", torch.float16, kind == "autocast"):
        w = weight(loc=torch.zeros(1, 4), scale=torch.tensor(deviation))
        y = F.linear(x, w) if kind == "autocast" else F.linear(x.half(), w.half())
    assert y.dtype is torch.float16
    assert abs(y.float().std().item() / (600 * deviation) - 1) < 5 * 0.0023 + 0.0005


def test_data_share_the_draw_under_weight_sampling():
    with local_reparameterization(), weight_sampling():
        y = F.linear(torch.ones(5, 3), weight())
    assert (y == y[0]).all()


def test_flipout_of_a_convolution_has_the_law_of_one_weight_over_all_pixels():
    # False alarm: 6e-7 for each of 9 numbers.
    loc, scale = torch.tensor([[[0.5, -1.0]]]), torch.tensor([[[0.7, 0.4]]])
    x = torch.tensor([[[1.0, 2.0, -1.0, 0.5]]]).expand(1, 1, 4)
    with flipout():
        y = torch.stack([F.conv1d(x, weight(loc=loc, scale=scale))[0, 0] for _ in range(4000)])
    patches = x[0, 0].unfold(0, 2, 1)
    covariance = patches @ torch.diag(scale.flatten() ** 2) @ patches.T
    error = (covariance.diagonal()[:, None] * covariance.diagonal() * 2 / 4000).sqrt()
    assert is_within(torch.cov(y.T), covariance, error)


@pytest.mark.parametrize("handler", HANDLERS)
def test_zero_variance_has_finite_gradients(handler):
    loc = torch.ones(2, 3, requires_grad=True)
    log_var = torch.full((2, 3), -500.0, requires_grad=True)
    x = torch.cat([torch.zeros(1, 3), torch.ones(1, 3)]).requires_grad_()
    with HANDLERS[handler]():
        scale = (log_var / 2).exp()
        y = F.linear(x + 0, pyro.sample("w", dist.Normal(loc, scale, validate_args=False)))
    y.pow(2).sum().backward()
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
    assert all(p.grad.isfinite().all() for p in (loc, log_var, x))


def test_gradient_is_that_of_the_reparameterised_output():
    loc, scale = LOC.clone().requires_grad_(), SCALE.expand(2, 3).clone().requires_grad_()
    x = torch.tensor([[1.0, -1.0, 2.0]])
    with local_reparameterization():
        y = F.linear(x, pyro.sample("w", dist.Normal(loc, scale).to_event(2)))
    deviation = (x**2 @ (scale**2).T).sqrt().detach()
    noise = ((y - x @ loc.T) / deviation).detach()
    y.sum().backward()
    torch.testing.assert_close(loc.grad, x.expand(2, 3))
    expected = noise.T * x**2 * scale.detach() / deviation.T
    torch.testing.assert_close(scale.grad, expected)


# What a predecessor with patched functions got wrong.


class Net(PyroModule):
    def __init__(self, sizes=(3, 5, 2)):
        super().__init__()
        self.layers = PyroModule[nn.Sequential](
            *(PyroModule[nn.Linear](*pair) for pair in pairwise(sizes))
        )
        for layer in self.layers:
            shape = layer.weight.shape
            layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand(shape).to_event(2))
            layer.bias = PyroSample(
                lambda self: dist.Normal(torch.zeros(self.out_features), 1.0).to_event(1)
            )

    def forward(self, x):
        return self.layers(x)


def test_a_thousand_prior_draws_in_one_context():
    # Each layer has its own law: mean of squares of the output is 1 + 5 * (1 + 3) = 21, of which
    # fourth moments give the standard error; false alarm 6e-7.
    net = Net()
    with local_reparameterization():
        y = torch.cat([net(torch.ones(20, 3)) for _ in range(1000)])
    squares = y.pow(2)
    assert is_within(squares.mean(), 21.0, squares.std() / math.sqrt(squares.numel()))


def test_conditioned_weights_are_respected():
    net = Net()
    values = {f"layers.{i}.{k}": 0.0 for i in (0, 1) for k in ("weight", "bias")}
    data = {
        name: torch.zeros(shape)
        for name, shape in zip(values, [(5, 3), (5,), (2, 5), (2,)], strict=True)
    }
    with local_reparameterization():
        assert (poutine.condition(net, data)(torch.ones(4, 3)) == 0).all()
        del data["layers.0.weight"]
        assert (poutine.condition(net, data)(torch.ones(4, 3)) == 0).all()


def test_substituted_and_observed_weights_are_respected():
    with local_reparameterization():
        w = pyro.sample("w", dist.Normal(0.0, 1.0), obs=torch.tensor(2.0))
        assert type(w) is torch.Tensor
        with poutine.trace() as tracer:
            weight()
        replayed = poutine.replay(weight, tracer.trace)()
    assert replayed is tracer.trace.nodes["w"]["value"]


@pytest.mark.parametrize("spell", ["from", "at", "einsum", "transposed"])
def test_no_spelling_goes_around(spell):
    from torch.nn.functional import linear

    functions = {
        "from": linear,
        "at": lambda x, w: x @ w.T,
        "einsum": lambda x, w: torch.einsum("oi,bi->bo", w, x),
        "transposed": lambda x, w: F.conv_transpose1d(x[..., None], w.T[..., None])[..., 0],
    }
    with local_reparameterization():
        w = weight()
        y = functions[spell](torch.ones(4, 3), w)
    assert not w.is_drawn
    assert not (y[0] == y[1]).any()


def test_lambda_priors_without_a_trace_are_lazy():
    net = Net()
    with local_reparameterization():
        y = net(torch.zeros(4, 3))  # only biases speak
    assert not (y[0] == y[1]).any()


def test_torch_is_untouched_inside_and_after():
    before = {m: dict(vars(m)) for m in (torch, F, torch.Tensor)}
    with local_reparameterization():
        weight()
        assert all(before[m] == dict(vars(m)) for m in before)
    assert all(before[m] == dict(vars(m)) for m in before)
    assert type(weight()) is torch.Tensor


def test_other_threads_see_nothing():
    found = []
    with local_reparameterization():
        thread = threading.Thread(target=lambda: found.append(F.linear(torch.ones(2, 3), LOC)))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], LOC.sum(-1).expand(2, 2))


# Uses that are not exact.


def test_weight_used_twice_warns_and_is_one_draw_from_then_on():
    x = torch.ones(4, 3)
    with local_reparameterization():
        w = weight()
        F.linear(x, w)
        with pytest.warns(UserWarning, match=r"'w' meets a second linear map"):
            second = F.linear(x, w)
        third = F.linear(x, w)
    assert (second == second[0]).all()
    assert (third == second).all()


@pytest.mark.parametrize("is_reentrant", [True, False])
def test_recomputation_is_refused(is_reentrant):
    loc = LOC.clone().requires_grad_()
    with local_reparameterization():
        w = weight(loc=loc)
        x = torch.ones(4, 3, requires_grad=True)
        y = checkpoint(lambda x: F.linear(x + 0, w), x, use_reentrant=is_reentrant)
        with pytest.raises(RuntimeError, match=r"'w' meets a second .* in a backward pass"):
            y.sum().backward()
        drawn = weight("v", loc)
        drawn.norm()
        y = checkpoint(lambda x: F.linear(x + 0, drawn), x, use_reentrant=is_reentrant)
        y.sum().backward()
    torch.testing.assert_close(loc.grad, torch.full((2, 3), 4.0))


def test_draw_before_the_map_is_used_without_a_warning():
    with local_reparameterization():
        w = weight()
        norm = w.norm()
        y = F.linear(torch.ones(4, 3), w)
    torch.testing.assert_close(norm, w.force().norm())
    torch.testing.assert_close(y, w.force().sum(-1).expand(4, 2))


def test_draw_after_the_map_warns():
    with local_reparameterization():
        w = weight()
        F.linear(torch.ones(4, 3), w)
        with pytest.warns(UserWarning, match=r"'w' is drawn after.*MeanFieldELBO"):
            w.norm()


def conv_net():
    w = weight(loc=torch.zeros(2, 1, 2, 2), scale=torch.ones(1))
    return F.conv2d(torch.ones(3, 1, 4, 4), w)


def test_convolutions_are_exact_with_a_warning_unless_told():
    with (
        local_reparameterization(),
        pytest.warns(UserWarning, match=r"'w' meets a convolution.*conv='independent'"),
    ):
        y = conv_net()
    assert (y == y[:1, :, :1, :1]).all()  # one weight for all data and pixels
    with local_reparameterization(conv="weights"):
        y = conv_net()
    assert (y == y[:1, :, :1, :1]).all()
    with local_reparameterization(conv="independent"):
        y = conv_net()
    assert y.unique().numel() == y.numel()


def test_sequences_are_exact_with_a_warning_unless_told():
    x = torch.ones(3, 4, 3)
    with local_reparameterization(), pytest.warns(UserWarning, match=r"a linear map of a sequence"):
        y = F.linear(x, weight())
    assert (y == y[:1, :1]).all()
    with local_reparameterization(tokens="independent"):
        y = F.linear(x, weight())
    assert y.unique().numel() == y.numel()


EXACT = {
    "local": partial(local_reparameterization, conv="independent"),
    "flipout": flipout,
    "dropout": partial(variational_dropout, conv="independent"),
}


@pytest.mark.parametrize("handler", EXACT)
@pytest.mark.parametrize("shape", [(3, 4, 3), (1, 4, 3), (4, 1, 3)])
def test_all_handlers_say_that_a_sequence_takes_a_draw(handler, shape):
    x = torch.ones(shape)
    with EXACT[handler](), pytest.warns(UserWarning, match=r"'w' meets a linear map of a sequence"):
        y = F.linear(x, weight())
    assert (y == y[:1, :1]).all()
    with EXACT[handler](tokens="weights"):
        y = F.linear(x, weight())
    assert (y == y[:1, :1]).all()
    with EXACT[handler](tokens="independent"):
        y = F.linear(x, weight())
    assert y[..., 0].unique().numel() > 1


class SelfAttention(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    def forward(self, x):
        return self.heads(x, x, x, need_weights=self.training)[0]


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(*self.project(x).chunk(3, -1)))


TRANSFORMERS = {
    "heads": SelfAttention,
    "heads, tokens first": partial(SelfAttention, batch_first=False),
    "by hand": ByHand,
    "layer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
    "layer, norm first": lambda: nn.TransformerEncoderLayer(
        4, 2, 8, dropout=0.0, batch_first=True, norm_first=True
    ),
    "decoder": lambda: nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("handler", EXACT)
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_tokens_of_attention_see_one_weight(handler, is_training, name):
    net = TRANSFORMERS[name]().train(is_training)
    x = torch.randn(4).expand(2, 3, 4).clone()  # equal tokens stay equal
    inputs = (x, x) if name == "decoder" else (x,)
    with EXACT[handler](tokens="weights"), torch.no_grad():
        weights = {n: weight(n, torch.zeros(p.shape), SCALE[1]) for n, p in net.named_parameters()}
        y = torch.func.functional_call(net, weights, inputs)
    torch.testing.assert_close(y, y[:1, :1].expand_as(y))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's compiler
def test_compiled_networks_draw_at_each_call():
    with isolated(), local_reparameterization():
        net = torch.compile(nn.Linear(3, 2), backend="eager")
        pair = [
            torch.func.functional_call(net, {"_orig_mod.weight": weight()}, (torch.ones(4, 3),))
            for _ in range(2)
        ]
    assert torch.stack(pair)[..., 0].unique().numel() == 8


def test_convolution_bias_of_independent_noise():
    # E[(mean over pixels)^2]: pixels of one weight are perfectly correlated for constant images.
    with local_reparameterization(conv="independent"):
        local = torch.stack([conv_net().mean((-1, -2)) for _ in range(200)]).var()
    with flipout():
        exact = torch.stack([conv_net().mean((-1, -2)) for _ in range(200)]).var()
    assert exact > 5 * local  # 4 against 4 / 9


# Which sites.


def test_latents_in_plates_are_drawn():
    with local_reparameterization(), pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    assert type(z) is torch.Tensor


def test_sites_select():
    with local_reparameterization(sites=["w"]):
        assert isinstance(weight(), LazyNormal)
        assert not isinstance(bias(), LazyNormal)
    with (
        local_reparameterization(sites=["w"]),
        pytest.raises(ValueError, match=r"'w' is Gamma.*not a Normal"),
    ):
        pyro.sample("w", dist.Gamma(1.0, 1.0))


def test_bad_arguments():
    with pytest.raises(ValueError, match="tokens must be one of"):
        flipout(tokens="all")
    for handler in (local_reparameterization, flipout, weight_sampling):
        with pytest.raises(ValueError, match=r"collection of names"):
            handler(sites="w")
    with pytest.raises(ValueError, match="conv must be one of"):
        local_reparameterization(conv="no")
    with pytest.raises(ValueError, match="tokens must be one of"):
        local_reparameterization(tokens=True)
    with pytest.raises(ValueError, match=r"\['v'\] .* none of the program"), flipout(sites=["v"]):
        weight()


def test_parameter_as_the_other_factor_is_no_datum():
    mixing = torch.ones(5, 3, requires_grad=True)
    with local_reparameterization():
        z = weight("z", torch.zeros(3), torch.ones(3))
        y = mixing @ z
    assert z.is_drawn
    assert (y == y[0]).all()


@pytest.mark.parametrize("kind", ["context", "decorator"])
@pytest.mark.parametrize("handler", HANDLERS)
def test_vectorised_particles(handler, kind):
    def model(x, y):
        w = weight(loc=torch.zeros(3, 1), scale=torch.ones(1))
        mean = (x.unsqueeze(-2) @ w).squeeze(-1).squeeze(-1)
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    x, y = torch.randn(6, 3), torch.randn(6)
    guide = AutoAdditiveNormal(model, init_log_var=-1.0)
    guide(x, y)
    elbo = MeanFieldELBO(4000, vectorize_particles=True, max_plate_nesting=1)
    if kind == "decorator":
        loss = elbo.loss(model, HANDLERS[handler]()(guide), x, y)
    else:
        with HANDLERS[handler]():
            loss = elbo.loss(model, guide, x, y)
    reconstruction = -dist.Normal(0.0, 1.0).log_prob(y).sum() + math.exp(-1) * (x**2).sum() / 2
    divergence = torch.distributions.kl_divergence(
        dist.Normal(torch.zeros(3), math.exp(-0.5)), dist.Normal(0.0, 1.0)
    ).sum()
    variance = (y**2 * (x**2).sum(1) * math.exp(-1)).sum() * 6 + (x**2).sum() ** 2
    assert abs(loss - reconstruction - divergence) < 5 * math.sqrt(variance / 4000)


def test_predictive_draws_agree_with_outputs_under_weight_sampling():
    net = Net()
    with weight_sampling():
        draws = Predictive(net, num_samples=3, return_sites=["layers.0.weight", "_RETURN"])(
            torch.ones(2, 3)
        )
    assert draws["_RETURN"].shape == (3, 2, 2)


def test_stock_objective_is_right_but_warned_about():
    def model(x):
        pyro.sample("y", dist.Normal(F.linear(x, weight()), 1.0).to_event(2), obs=torch.ones(4, 2))

    def guide(x):
        weight(loc=pyro.param("loc", LOC))

    with local_reparameterization(), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Trace_ELBO().loss(model, guide, torch.ones(4, 3))
    assert any("MeanFieldELBO" in str(w.message) for w in found)


def noise_of_gradient(model, guide, handler, x, y, num=60):
    elbo = MeanFieldELBO()
    gradients = []
    for _ in range(num):
        guide.zero_grad()
        with handler:
            elbo.loss_and_grads(model, guide, x, y)
        gradients.append(
            [p.grad.clone() for name, p in guide.named_parameters() if "weight" in name]
        )
    return torch.stack([torch.stack(g).var(0).sum() for g in zip(*gradients, strict=True)])


def test_noise_of_the_gradient_at_a_thousand_data():
    from pyro_ext.infer import bayesianize

    torch.manual_seed(3)
    x = torch.randn(1000, 10)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    model = bayesianize(
        net,
        guide=lambda program: AutoAdditiveNormal(program, init_log_var=-5.0),
        likelihood=lambda logits: dist.Categorical(logits=logits),
    )
    args = model, model.guide
    local = noise_of_gradient(*args, local_reparameterization(), x, y)
    assert (noise_of_gradient(*args, weight_sampling(), x, y) > 4 * local).all()
    assert (noise_of_gradient(*args, flipout(), x, y)[:2] < 1.6 * local[:2]).all()  # of the means


@pytest.mark.parametrize("handler", HANDLERS)
def test_training_recovers_the_posterior_of_a_linear_model(handler):
    torch.manual_seed(1)
    x = torch.randn(40, 3)
    y = x @ torch.tensor([1.0, -1.0, 0.5]) + 0.5 * torch.randn(40)

    def model(x, y):
        w = weight(loc=torch.zeros(1, 3), scale=torch.ones(1))
        mean = F.linear(x, w).squeeze(-1)
        with pyro.plate("data", 40):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    guide = AutoAdditiveNormal(model, init_log_var=-4.0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.992}), MeanFieldELBO())
    with HANDLERS[handler]():
        for _ in range(600):
            svi.step(x, y)
    precision = x.T @ x / 0.25 + torch.eye(3)
    posterior = torch.linalg.solve(precision, x.T @ y / 0.25)
    torch.testing.assert_close(guide.median()["w"][0], posterior, atol=0.03, rtol=0.0)
    variance = guide.log_vars.w.detach().exp()[0]
    torch.testing.assert_close(variance, 1 / precision.diagonal(), atol=0.0, rtol=0.25)


@pytest.mark.gpu
@pytest.mark.parametrize("handler", HANDLERS)
def test_on_gpu(handler):
    with HANDLERS[handler]():
        w = weight(loc=LOC.cuda(), scale=SCALE.cuda())
        y = F.linear(torch.ones(4, 3, device="cuda"), w)
        kernel = weight("k", torch.zeros(2, 1, 2, 2).cuda(), torch.ones(1).cuda())
        image = F.conv2d(torch.ones(3, 1, 4, 4, device="cuda"), kernel)
        heads = nn.MultiheadAttention(3, 1).cuda()
        query = torch.ones(2, 1, 3, device="cuda")
        weights = {
            name: weight(name, p.detach(), torch.ones(1).cuda())
            for name, p in heads.named_parameters()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attended = torch.func.functional_call(heads, weights, (query, query, query))[0]
    assert y.is_cuda
    assert image.is_cuda
    assert attended.isfinite().all()
