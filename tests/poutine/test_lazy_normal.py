"""Lazy weights: views of them, linear maps with them, and the one draw of everything else."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_ext.distributions.log_variance_normal import LogVarianceNormal
from pyro_ext.poutine.lazy_normal import LazyNormal
from pyro_ext.poutine.lazy_rules import rules


def lazy(*shape, contract=lambda contraction: NotImplemented, name="w"):
    law = dist.Normal(torch.randn(shape).double(), torch.rand(shape).double() + 0.1)
    return LazyNormal(law, name, rules(contract))


def record(met):
    def contract(contraction):
        met.append(contraction)
        contraction.weight.integrate_out()
        bias = contraction.bias
        bias = bias.loc if isinstance(bias, LazyNormal) else bias
        return contraction.apply(contraction.input, contraction.weight.loc, bias)

    return contract


X = torch.randn(5, 4).double()
MASK = torch.tensor([1.0, 0.0, 1.0, 0.0]).double()
VIEWS = {
    "T": lambda w: w.T,
    "mT": lambda w: w.mT,
    "transpose": lambda w: w.transpose(0, 1),
    "torch.transpose": lambda w: torch.transpose(w, 0, -1),
    "permute": lambda w: w.permute(1, 0),
    "reshape": lambda w: w.reshape(2, 6),
    "view": lambda w: w.view(-1),
    "flatten": lambda w: w.flatten(),
    "unsqueeze": lambda w: w.unsqueeze(0).squeeze(0),
    "chunk": lambda w: w.chunk(2, dim=1)[1],
    "split": lambda w: w.split([1, 2])[1],
    "torch.split": lambda w: torch.split(w, 2)[0],
    "unbind": lambda w: w.unbind(1)[3],
    "iterate": lambda w: list(w)[1],
    "item": lambda w: w[1:, ::2],
    "integers": lambda w: w[..., 2][None],
    "times": lambda w: w * 3.0,
    "times from left": lambda w: -2.0 * w,
    "mask": lambda w: w * MASK,
    "over": lambda w: w / -4.0,
    "minus": lambda w: -w,
    "float": lambda w: w.float().to(torch.float64),
    "detach": lambda w: w.detach(),
    "expand": lambda w: w.expand(3, 4),
    "many": lambda w: (w * MASK)[1:].T.reshape(2, 4) * -2,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_stay_lazy_and_share_the_draw(name):
    view, w = VIEWS[name], lazy(3, 4)
    viewed = view(w)
    assert isinstance(viewed, LazyNormal)
    assert not w.is_drawn
    torch.testing.assert_close(viewed.loc, view(w.loc))
    torch.testing.assert_close(viewed.force(), view(w.force()))
    jacobian = torch.autograd.functional.jacobian(view, w.state.law.loc)
    jacobian = jacobian.reshape(*viewed.shape, -1)
    variance = (jacobian**2) @ w.state.law.variance.flatten()
    if name == "detach":
        variance = w.state.law.variance
    torch.testing.assert_close(viewed.variance, variance)
    torch.testing.assert_close(viewed.scale**2, variance)


DRAWS = {
    "sum": lambda w: w.sum(),
    "exp": torch.exp,
    "cat": lambda w: torch.cat([w, w]),
    "fancy index": lambda w: w[torch.tensor([0, 0])],
    "boolean index": lambda w: w[w.loc > 0],
    "repeat": lambda w: w.unsqueeze(0).expand(2, 3, 4),
    "larger product": lambda w: w * torch.ones(2, 3, 4).double(),
    "quotient of": lambda w: 1 / w,
    "embedding": lambda w: F.embedding(torch.tensor([1, 1]), w),
    "two weights": lambda w: w @ w.T,
    "as input": lambda w: F.linear(w, torch.ones(2, 4).double()),
    "three operands": lambda w: torch.einsum("oi,bi,bi->bo", w, X, X),
    "diagonal": lambda w: torch.einsum("ii,bi->b", w[:, :3], X[:, :3]),
    "summed index": lambda w: torch.einsum("oi,bc->oi", w, X),
    "layer norm": lambda w: F.layer_norm(X, (4,), w[0]),
    "deepcopy": copy.deepcopy,
    "norm": lambda w: torch.linalg.norm(w),
}


@pytest.mark.parametrize("name", DRAWS)
def test_anything_else_is_one_draw(name):
    w = lazy(3, 4, contract=record([]))
    result = DRAWS[name](w)
    assert w.is_drawn
    assert type(result) is torch.Tensor
    if name not in ("diagonal", "layer norm", "boolean index"):
        torch.testing.assert_close(result, DRAWS[name](w.force()))
    torch.testing.assert_close(w + 0, w.force())


MAPS = {
    "linear": ((3, 4), X, F.linear),
    "linear with keywords": ((3, 4), X, lambda x, w: F.linear(weight=w, input=x)),
    "linear, one datum": ((3, 4), X[0], F.linear),
    "matmul": ((4, 3), X, torch.matmul),
    "operator": ((4, 3), X, lambda x, w: x @ w),
    "from the left": ((3, 4), X.T, lambda x, w: w @ x),
    "mm": ((4, 3), X, torch.mm),
    "mv": ((4,), X, torch.mv),
    "vector": ((3, 4), X[0], lambda x, w: w @ x),
    "bmm": ((2, 4, 3), X.expand(2, 5, 4), torch.bmm),
    "batched": ((2, 1, 4, 3), X, torch.matmul),
    "einsum": ((3, 4), X, lambda x, w: torch.einsum("bi,oi->bo", x, w)),
    "einsum, weight first": ((3, 4), X, lambda x, w: torch.einsum("oi, bi", w, x)),
    "einsum with dots": ((3, 4), X, lambda x, w: torch.einsum("...i,oi->...o", x, w)),
    "einsum, particles": ((2, 3, 4), X, lambda x, w: torch.einsum("bi,koi->kbo", x, w)),
    "einsum, marginal": ((3, 4), X, lambda x, w: torch.einsum("bi,oi->b", x, w)),
    "addmm": ((4, 3), X, lambda x, w: torch.addmm(torch.ones(3).double(), x, w)),
    "transposed": ((4, 3), X, lambda x, w: F.linear(x, (2 * w).T)),
    "bias": ((3,), torch.randn(5, 3).double(), lambda x, w: x + w),
    "bias first": ((3,), torch.randn(5, 3).double(), lambda x, w: w + x),
    "conv1d": ((3, 2, 3), torch.randn(2, 2, 7).double(), lambda x, w: F.conv1d(x, w, stride=2)),
    "conv2d": (
        (4, 1, 3, 2),
        torch.randn(2, 2, 6, 5).double(),
        lambda x, w: F.conv2d(x, w, None, 1, (1, 2), 2, groups=2),
    ),
    "conv2d same": (
        (3, 2, 3, 3),
        torch.randn(2, 2, 4, 4).double(),
        lambda x, w: F.conv2d(x, w, padding="same"),
    ),
    "conv3d": ((2, 1, 2, 2, 2), torch.randn(1, 1, 3, 3, 3).double(), F.conv3d),
    "conv_transpose1d": (
        (2, 3, 3),
        torch.randn(2, 2, 4).double(),
        lambda x, w: F.conv_transpose1d(x, w, stride=2, padding=1),
    ),
    "conv_transpose2d": ((2, 3, 2, 2), torch.randn(2, 2, 3, 3).double(), F.conv_transpose2d),
    "conv_transpose3d": ((1, 2, 2, 2, 2), torch.randn(1, 1, 2, 2, 2).double(), F.conv_transpose3d),
}


@pytest.mark.parametrize("name", MAPS)
def test_moments_of_linear_maps(name):
    shape, x, function = MAPS[name]
    met = []
    w = lazy(*shape, contract=record(met))
    law = w.state.law
    output = function(x, w)
    assert not w.is_drawn
    (c,) = met
    torch.testing.assert_close(output, function(x, law.loc))
    data = torch.zeros_like(x) if c.kind == "add" else c.input**2
    variance = c.apply(data, c.weight.variance, None if c.bias is None else 0 * c.bias)
    jacobian = torch.autograd.functional.jacobian(lambda w: function(x, w), law.loc)
    expected = jacobian.reshape(*output.shape, -1) ** 2 @ law.variance.flatten()
    torch.testing.assert_close(variance, expected)
    torch.testing.assert_close(c.apply(c.input, c.weight.loc, c.bias), output)


@pytest.mark.parametrize("shape", [(3, 2, 3, 2), (4, 1, 3, 2)])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": (2, 1)}])
def test_convolution_variance_is_that_of_the_dense_map_on_patches(shape, options):
    x, met, groups = torch.randn(2, 2, 7, 6).double(), [], 2 // shape[1]
    w = lazy(*shape, contract=record(met))
    F.conv2d(x, w, groups=groups, **options)
    variance = met[0].apply(x**2, w.variance, None)
    patches = F.unfold(x, shape[2:], **options).unflatten(1, (groups, -1))
    dense = w.variance.reshape(groups, shape[0] // groups, -1)
    expected = torch.einsum("bgip,goi->bgop", patches**2, dense).flatten(1, 2)
    torch.testing.assert_close(variance.flatten(2), expected)


SHARED = {
    "linear of tokens": ((3, 4), X.reshape(1, 5, 4).expand(2, 5, 4), F.linear, True),
    "linear of one sequence": ((3, 4), X.reshape(1, 5, 4), F.linear, True),
    "linear of tokens of one": ((3, 4), X.reshape(5, 1, 4), F.linear, True),
    "linear of data": ((3, 4), X, F.linear, False),
    "product of one sequence": ((4, 3), X.reshape(1, 5, 4), torch.matmul, True),
    "product of one sequence, tokens first": ((4, 3), X.reshape(5, 1, 4), torch.matmul, True),
    "batched product of one sequence": ((1, 4, 3), X.reshape(1, 5, 4), torch.bmm, True),
    "product of data": ((4, 3), X, torch.matmul, False),
    "rows and particles": ((2, 1, 4, 3), X.reshape(5, 1, 4), torch.matmul, False),
    "later layers of particles": ((2, 1, 4, 3), X.expand(2, 1, 5, 4), torch.matmul, False),
    "einsum of one sequence": (
        (3, 4),
        X.reshape(1, 5, 4),
        lambda x, w: torch.einsum("bti,oi->bto", x, w),
        True,
    ),
    "bias of one sequence": ((4,), X.reshape(1, 5, 4), torch.add, True),
    "bias of one sequence, with dimensions": ((1, 1, 4), X.expand(1, 5, 4), torch.add, True),
    "bias of data": ((4,), X, torch.add, False),
    "bias of one output": ((1,), X[:, :1], torch.add, False),
    "scalar bias of one output": ((), X[:, :1], torch.add, False),
    "scalar bias of data": ((), X[:, 0], torch.add, False),
    "embedding of positions": ((5, 4), X.expand(2, 5, 4), torch.add, False),
    "bias of pixels": ((4, 1, 1), torch.randn(2, 4, 3, 3).double(), torch.add, True),
    "matmul of tokens": ((4, 3), X.expand(2, 5, 4), torch.matmul, True),
    "matmul of particles": ((2, 4, 3), X.expand(2, 5, 4), torch.matmul, False),
    "einsum of tokens": (
        (3, 4),
        X.expand(2, 5, 4),
        lambda x, w: torch.einsum("bti,oi->bto", x, w),
        True,
    ),
    "conv": ((3, 2, 3, 3), torch.randn(2, 2, 4, 4).double(), F.conv2d, True),
    "conv of a whole image": ((3, 2, 4, 4), torch.randn(2, 2, 4, 4).double(), F.conv2d, False),
    "transposed of a pixel": (
        (2, 3, 2, 2),
        torch.randn(2, 2, 1, 1).double(),
        F.conv_transpose2d,
        False,
    ),
    "transposed of a pixel, with a bias": (
        (2, 3, 2, 2),
        torch.randn(2, 2, 1, 1).double(),
        lambda x, w: F.conv_transpose2d(x, w, lazy(3)),
        True,
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_repeated_use_within_a_datum_is_seen(name):
    shape, x, function, is_shared = SHARED[name]
    met = []
    function(x, lazy(*shape, contract=record(met)))
    assert met[0].is_shared is is_shared


def test_second_map_of_the_same_elements_is_the_draw_with_a_warning():
    w = lazy(3, 4)
    assert w.T.integrate_out()
    with pytest.warns(UserWarning, match="'w' meets a second linear map"):
        assert not w[1].integrate_out()
    w.force()
    w = lazy(3, 4)
    w.integrate_out()
    with pytest.warns(UserWarning, match="'w' is drawn after"):
        w.force()


def test_disjoint_parts_are_integrated_out_one_by_one():
    w = lazy(6, 4)
    assert all(part.T.integrate_out() for part in w.chunk(3))
    with pytest.warns(UserWarning, match="second"):
        assert not w.T[:, 2:3].integrate_out()
    columns = lazy(6, 4).chunk(2, dim=1)  # interleaved in memory
    assert all(part.integrate_out() for part in columns)


@pytest.mark.parametrize("is_self", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 5}])
def test_attention_projects_lazily(is_self, sizes):
    if is_self and sizes:
        return
    net = nn.MultiheadAttention(4, 2, **sizes).double().eval()
    met = []
    weights = {
        name: LazyNormal(dist.Normal(p.detach(), 0.1), name, rules(record(met)))
        for name, p in net.named_parameters()
    }
    x = torch.randn(6, 2, 4).double()
    key = torch.randn(7, 2, sizes.get("kdim", 4)).double()
    value = torch.randn(7, 2, sizes.get("vdim", 4)).double()
    inputs = (x, x, x) if is_self else (x, key, value)
    output, attention = torch.func.functional_call(net, weights, inputs)
    assert not any(w.is_drawn for w in weights.values())
    assert len(met) == (2 if is_self else 4)
    assert all(contraction.is_shared for contraction in met)
    for ours, theirs in zip((output, attention), net(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_encoder_layer_takes_no_fast_path():
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double().eval()
    met = []
    weights = {
        name: LazyNormal(dist.Normal(p.detach(), 0.1), name, rules(record(met)))
        for name, p in net.named_parameters()
        if "norm" not in name
    }
    with torch.no_grad():
        output = torch.func.functional_call(net, weights, (torch.randn(2, 3, 4).double(),))
    assert output.shape == (2, 3, 4)
    assert len(met) == 4
    assert all(contraction.is_shared for contraction in met)


@pytest.mark.parametrize("net", [nn.LSTM(4, 3), nn.GRU(4, 3), nn.Bilinear(4, 4, 2)])
def test_other_layers_take_the_draw(net):
    weights = {
        name: LazyNormal(dist.Normal(p.detach(), 0.1), name, rules(record([])))
        for name, p in net.named_parameters()
    }
    inputs = (torch.randn(5, 2, 4),) * (2 if isinstance(net, nn.Bilinear) else 1)
    output = torch.func.functional_call(net, weights, inputs)
    draws = {name: w.force() for name, w in weights.items()}
    assert all(w.is_drawn for w in weights.values())
    expected = torch.func.functional_call(net, draws, inputs)
    first = lambda x: x[0] if isinstance(x, tuple) else x  # noqa: E731
    torch.testing.assert_close(first(output), first(expected))


def fill_diagonal(w):
    w.diagonal().fill_(7.0)
    return w


def write_through(w):
    view = w.T[1:]
    view.mul_(3.0)
    return w


def write_after_copy(w):
    copy = w * 1.0
    w.zero_()
    return copy + w


def write_item(w):
    w = w.clone()
    w[:, 0] = 0.0
    return w


def add_in_place(w):
    w = 2 * w
    w += 1
    return w


CHANGES = {
    "clamp": lambda w: (w * 1.0).clamp_(min=0),
    "clamp itself": lambda w: w.clamp_(min=0),
    "relu": lambda w: F.relu(w / 2, inplace=True),
    "out": lambda w: torch.exp(X[:3], out=w),
    "diagonal": lambda w: fill_diagonal(-w),
    "item": write_item,
    "through a view": write_through,
    "after a copy": write_after_copy,
    "augmented": add_in_place,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place_are_those_of_a_plain_weight(name):
    w = lazy(3, 4, contract=record([]))
    noise = torch.Generator().manual_seed(0)
    w.state.fresh_draw = lambda: torch.randn(3, 4, generator=noise).double()
    plain = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    result, expected = CHANGES[name](w), CHANGES[name](plain)
    torch.testing.assert_close(F.linear(X, result), F.linear(X, expected))
    torch.testing.assert_close(w + 0, plain)


def test_changes_in_place_reach_views_that_are_lazy():
    w = lazy(3, 4)
    view = w * 1.0
    same = view.T
    view.clamp_(min=0)
    assert (same + 0 >= 0).all()
    assert (w + 0 < 0).any()


@pytest.mark.parametrize("view", [lambda w: w, lambda w: 2 * w])
def test_a_first_look_without_gradient_does_not_lose_it(view):
    loc = torch.zeros(3, requires_grad=True)
    w = view(LazyNormal(dist.Normal(loc, 1.0), "w", rules(lambda contraction: NotImplemented)))
    with torch.no_grad():
        w.norm()
    w.sum().backward()
    torch.testing.assert_close(loc.grad, view(torch.ones(3)))


@pytest.mark.parametrize("is_drawn", [True, False])
def test_views_taken_without_gradient_have_none(is_drawn):
    loc, scale = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    w = LazyNormal(dist.Normal(loc, scale), "w", rules(lambda contraction: NotImplemented))
    with torch.no_grad():
        view = 2 * w
    used = view + 0 if is_drawn else view.loc + view.variance
    assert not used.requires_grad


def test_pickles_as_its_draw():
    w = lazy(3, 4)
    copied = pickle.loads(pickle.dumps(w.T))
    assert type(copied) is torch.Tensor
    torch.testing.assert_close(copied, w.force().T)


def test_gradients_reach_mean_and_deviation_through_the_draw():
    loc, scale = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    w = LazyNormal(dist.Normal(loc, scale))
    noise = w.force().detach()
    (w * torch.tensor([1.0, 2.0, 3.0])).exp().sum().log().backward()
    assert loc.grad.abs().min() > 0
    torch.testing.assert_close(scale.grad, loc.grad * noise)


def test_metadata_needs_no_draw():
    w = lazy(3, 4)
    assert (w.shape, w.dtype, w.dim(), w.numel(), len(w)) == ((3, 4), torch.float64, 2, 12, 3)
    assert torch.zeros_like(w).sum() == 0
    assert w.new_zeros(2).dtype is torch.float64
    assert "LazyNormal(name='w', shape=(3, 4))" in repr(w)
    assert (w == w).all()
    assert not w.is_drawn


def test_nothing_goes_around_the_rules():
    w = lazy(3, 4)
    with (
        torch._C.DisableTorchFunctionSubclass(),
        pytest.raises(RuntimeError, match=r"below Python.*force"),
    ):
        torch.exp(w)


def test_log_variance_normal_is_the_normal():
    loc, log_var = torch.randn(3, 1), torch.randn(4)
    ours, theirs = LogVarianceNormal(loc, log_var), dist.Normal(loc, (log_var / 2).exp())
    x = torch.randn(3, 4)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.variance, theirs.variance)
    ours, theirs = ours.expand((2, 3, 4)).to_event(2), theirs.expand((2, 3, 4)).to_event(2)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    divergences = [torch.distributions.kl_divergence(q, theirs) for q in (ours, theirs)]
    torch.testing.assert_close(*divergences)
    with pytest.raises(ValueError, match="log_var"):
        LogVarianceNormal(0.0, torch.tensor(float("nan")), validate_args=True)
