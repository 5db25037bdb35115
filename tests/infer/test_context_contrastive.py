"""Contexts told apart: against enumeration, Bayes' rule, scikit-learn and quadrature."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_ext.infer import ContextContrastive, NoiseContrastive
from pyro_ext.nn import ConditionalEnergy, EnergyNet


class Table(nn.Module):
    """An energy for each value and context, of labels or of vectors of one number."""

    event_shape = torch.Size(())

    def __init__(self, log_probs):
        super().__init__()
        self.scores = nn.Parameter(log_probs.clone())

    def class_logits(self, x):
        return self.scores[:, x.long()].T

    def log_density(self, x, context):
        context = context.squeeze(-1) if context.is_floating_point() else context
        return self.scores[context.long(), x.long()]


def repeated(counts):
    """Each value as often as its count says."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).double()


# Data of two contexts, the second twice as frequent, in exact proportions.
COUNTS = [[1, 2, 3, 4], [12, 4, 2, 2]]
P = torch.tensor(COUNTS).double() / torch.tensor([[10.0], [20.0]])
JOINT = torch.tensor(COUNTS).double() / 30
X = torch.cat([repeated(counts) for counts in COUNTS])
LABEL = torch.tensor([0] * 10 + [1] * 20)


def gradient(loss, *args):
    for parameter in loss.parameters():
        parameter.grad = None
    loss(*args).backward()
    return torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None])


def small_energy(**options):
    ebm = ConditionalEnergy(2, 3, base=EnergyNet(2, (4,)), hidden_dims=(5,), **options).double()
    nn.init.normal_(ebm.normalizer_head.last)
    return ebm


# What it is minimal at.


@pytest.mark.parametrize("frequencies", [None, torch.tensor([10, 20])])
def test_population_gradient_is_zero_at_the_truth_up_to_a_function_of_the_datum(frequencies):
    """Of unequally frequent labels, without touching the normalisers."""
    ebm = Table(P.log() + torch.randn(4).double())
    loss = ContextContrastive(frequencies)(ebm)
    found = gradient(loss, X, LABEL)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-15)
    best = loss(X, LABEL).item()
    with torch.no_grad():
        for _ in range(20):
            old = ebm.scores.clone()
            ebm.scores.add_(0.3 * torch.randn_like(old))
            assert loss(X, LABEL).item() > best
            ebm.scores.copy_(old)


def test_with_wrong_frequencies_the_truth_is_no_minimum():
    """The power of the test above; the shift goes where normalisers are."""
    equal = ContextContrastive(torch.ones(2))
    assert gradient(equal(Table(P.log())), X, LABEL).abs().max() > 1e-2
    shifted = Table(P.log() + torch.tensor([[1.0], [2.0]]).double().log())
    found = gradient(equal(shifted), X, LABEL)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-15)


@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_frequencies_of_the_batch_are_right_in_batches_of_any_size(size, is_vector):
    """All batches of two or three data, by their probabilities."""
    ebm = Table(P.log() + torch.randn(4).double())
    loss = ContextContrastive()(ebm)
    total = torch.zeros(())
    cells = list(itertools.product(range(2), range(4)))
    with pyro.validation_enabled(False):
        for batch in itertools.product(cells, repeat=size):
            u, x = torch.tensor(batch).T
            context = u.double().unsqueeze(-1) if is_vector else u
            total = total + JOINT[u, x].prod() * loss(x.double(), context)
    total.backward()
    torch.testing.assert_close(ebm.scores.grad, torch.zeros(2, 4).double(), rtol=0, atol=1e-15)


def test_with_noise_the_sum_has_its_minimum_at_the_density():
    """Context and noise: the first leaves a function of the datum, the second nothing."""
    uniform = dist.Categorical(torch.ones(4).double())
    grid = torch.arange(4).double()

    class Grid(dist.Categorical):
        def sample(self, sample_shape=torch.Size()):
            return grid.reshape(4, 1).expand(sample_shape)

    for shift, is_minimum in ((torch.zeros(4), True), (torch.arange(4), False)):
        ebm = Table(P.log() + shift.double())
        noise = NoiseContrastive(4)(ebm, Grid(logits=uniform.logits))
        contrast = ContextContrastive()(ebm)
        assert gradient(contrast, X, LABEL).abs().max() < 1e-15
        assert (gradient(noise, X, LABEL).abs().max() < 1e-15) == is_minimum


# Values.


@pytest.mark.parametrize("counts", [None, [1, 1, 1], [5, 2, 1]])
def test_value_is_that_of_the_posterior_by_bayes_rule(counts):
    """Three Normals whose densities the energy has in closed form."""
    loc, scale = torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([0.5, 1.0, 2.0]).double()
    ebm = ConditionalEnergy(1, 1, 3, feature_net=nn.Identity(), augment=True).double()
    precision = scale**-2
    with torch.no_grad():
        ebm.weight_head.table.copy_(torch.stack([loc * precision, -precision / 2], -1))
        log_z = scale.log() + (loc**2 * precision) / 2
        ebm.normalizer_head.table.copy_(log_z.unsqueeze(-1))
    x, label = torch.randn(8, 1).double(), torch.tensor([0, 1, 2, 0, 0, 0, 1, 0])
    prior = torch.tensor([5.0, 2.0, 1.0] if counts is None else counts).double()
    likelihood = dist.Normal(loc, scale).log_prob(x).exp()  # (8, 3)
    posterior = likelihood * prior / (likelihood * prior).sum(-1, keepdim=True)
    expected = -posterior[torch.arange(8), label].log().mean()
    given = None if counts is None else torch.tensor(counts)
    found = ContextContrastive(given)(ebm)(x, label)
    torch.testing.assert_close(found, expected)
    assert ContextContrastive(given)(ebm)(x.reshape(2, 4, 1), label.reshape(2, 4)) == found


def test_value_for_vectors_by_hand():
    ebm = small_energy(context_dim=2)
    x, context = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    total = 0.0
    for n in range(5):
        scores = ebm.log_density(x[n].expand(5, 2), context)
        total -= scores.softmax(0)[n].log()
    loss = ContextContrastive()(ebm)
    torch.testing.assert_close(loss(x, context), total / 5)
    batch = x[:4].reshape(2, 2, 2), context[:4].reshape(2, 2, 2)
    torch.testing.assert_close(loss(*batch), loss(x[:4], context[:4]))


def test_labels_as_vectors_have_the_same_gradient():
    """Rows of one's own context count among the candidates: a constant, the log of their number."""
    ebm = Table(torch.randn(2, 4).double())
    loss = ContextContrastive()(ebm)
    vectors = LABEL.double().unsqueeze(-1)
    own = torch.tensor([10.0, 20.0]).double()[LABEL].log().mean()
    torch.testing.assert_close(loss(X, vectors) - own, loss(X, LABEL))
    torch.testing.assert_close(gradient(loss, X, vectors), gradient(loss, X, LABEL))


def test_value_is_that_of_logistic_regression():
    """Time-contrastive learning with given features: scikit-learn's optimum is ours."""
    from sklearn.linear_model import LogisticRegression

    label = torch.arange(3).repeat(50)
    x = torch.randn(150, 2).double() + label.unsqueeze(-1) * 0.7
    ebm = ConditionalEnergy(2, 2, 3, feature_net=nn.Identity()).double()
    model = LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(x.numpy(), label.numpy())
    with torch.no_grad():
        ebm.weight_head.table.copy_(torch.from_numpy(model.coef_))
        ebm.normalizer_head.table.copy_(-torch.from_numpy(model.intercept_).unsqueeze(-1))
    loss = ContextContrastive()(ebm)
    log_probs = torch.from_numpy(model.predict_log_proba(x.numpy()))
    expected = -log_probs[torch.arange(150), label].mean()
    torch.testing.assert_close(loss(x, label), expected)
    assert gradient(loss, x, label).abs().max() < 1e-6


def test_labels_that_never_occur_are_not_told_apart():
    ebm = small_energy(num_classes=4)
    x, label = torch.randn(6, 2).double(), torch.tensor([0, 0, 1, 3, 1, 3])
    loss = ContextContrastive()(ebm)
    before = loss(x, label)
    before.backward()
    assert ebm.weight_head.table.grad[2].abs().max() == 0
    with torch.no_grad():
        ebm.weight_head.table[2] += 3.0
    assert loss(x, label) == before


def test_many_rows_are_counted_exactly_in_low_precision():
    """A bfloat16 cannot count to 257."""
    ebm = Table(torch.zeros(2, 4).bfloat16())
    label = torch.cat([torch.zeros(768), torch.ones(256)]).long()
    found = ContextContrastive()(ebm)(torch.zeros(1024), label)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.item() == pytest.approx(expected, rel=2e-2)


# What it leaves alone.


@pytest.mark.parametrize("kind", [{"num_classes": 3}, {"context_dim": 1}])
def test_nothing_that_all_contexts_share_is_seen(kind):
    """The base term, a constant in all normalisers, a vector added to all weights."""
    ebm = small_energy(**kind)
    x, label = torch.randn(7, 2).double(), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    context = label if "num_classes" in kind else torch.randn(7, 1).double()
    loss = ContextContrastive()(ebm)
    before = loss(x, context)
    before.backward()
    assert all(p.grad.abs().max() < 1e-15 for p in ebm.base.parameters())
    with torch.no_grad():
        ebm.base.layers[-1].bias += 5.0
        ebm.base.layers[0].weight.mul_(2.0)
        for head in (ebm.weight_head, ebm.normalizer_head):
            if "num_classes" in kind:
                head.table.add_(torch.randn(head.table.shape[1]))
            else:
                head.layers[-1].bias.add_(torch.randn_like(head.layers[-1].bias))
    torch.testing.assert_close(loss(x, context), before)


@pytest.mark.parametrize("kind", [{"num_classes": 3}, {"context_dim": 1}])
def test_gradients_against_finite_differences(kind):
    ebm = small_energy(**kind)
    x, label = torch.randn(4, 2).double(), torch.tensor([0, 1, 2, 2])
    context = label if "num_classes" in kind else torch.randn(4, 1).double()
    loss = ContextContrastive()(ebm)
    names = [name for name, _ in ebm.named_parameters()]

    def value(*tensors):
        given = {f"ebm.{name}": t for name, t in zip(names, tensors, strict=True)}
        return torch.func.functional_call(loss, given, (x, context))

    assert torch.autograd.gradcheck(value, tuple(ebm.parameters()), atol=1e-6)


def test_extreme_logits_are_finite():
    ebm = Table(torch.tensor([[0.0, 1e4], [1e4, 0.0]]).double())
    found = ContextContrastive()(ebm)(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    assert found.item() == 1e4
    found.backward()
    assert ebm.scores.grad.isfinite().all()


# Effect.


@pytest.mark.slow
def test_with_noise_the_features_and_the_normaliser_are_learned():
    """Two sources of which contexts modulate the variance, three times as many of one context."""
    scale = torch.tensor([[0.4, 1.5], [1.5, 0.4], [1.2, 1.2]])
    label = torch.tensor([0, 1, 2, 2, 2]).repeat(800)

    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    net = nn.Sequential(nn.Linear(2, 2), Square())
    ebm = ConditionalEnergy(2, 2, 3, feature_net=net, base=EnergyNet(2, (20,), nn.SiLU))
    with torch.no_grad():
        ebm.weight_head.table.sub_(0.5)
    contrast = ContextContrastive()(ebm)
    noise = NoiseContrastive(5)(ebm, dist.Normal(torch.zeros(2), 1.8).to_event(1))
    optimizer = torch.optim.Adam(ebm.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    rotation = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    for _ in range(1000):
        chosen = label[torch.randint(len(label), (256,))]
        sources = scale[chosen] * torch.randn(256, 2)
        x = sources @ rotation.T
        optimizer.zero_grad()
        (contrast(x, chosen) + noise(x, chosen)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        sources = 1.5 * torch.randn(4000, 2)
        found = torch.corrcoef(torch.cat([ebm.features(sources @ rotation.T), sources**2], -1).T)
        assert found[:2, 2:].abs().amax(-1).min() > 0.99
        axis = torch.linspace(-9, 9, 301)
        grid = torch.cartesian_prod(axis, axis)
        for u in range(3):
            labels = torch.full((len(grid),), u)
            log_z = (-ebm(grid, labels)).logsumexp(0) + 2 * (axis[1] - axis[0]).log()
            assert ebm.log_normalizer(labels[0]).item() == pytest.approx(log_z.item(), abs=0.05)


# Bad input.


def test_bad_arguments_are_refused():
    for bad in (torch.tensor([1.0]), torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="finite numbers >= 0 of two labels or more"):
            ContextContrastive(bad)
    with pytest.raises(ValueError, match="Two labels or more must be frequent"):
        ContextContrastive(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="ebm must be a torch module"):
        ContextContrastive()(lambda x, u: x.sum(-1))
    with pytest.raises(ValueError, match="EnergyNet does not have"):
        ContextContrastive(torch.ones(2))(EnergyNet(2))


def test_bad_contexts_are_refused():
    labelled, x = small_energy(num_classes=3), torch.randn(4, 2).double()
    vectors = small_energy(context_dim=1)
    label, vector = torch.tensor([0, 1, 2, 0]), torch.randn(4, 1).double()
    bad = [
        (None, labelled, None, "got context=None"),
        (None, labelled, label[:3], r"batch \(4,\), but contexts \(3,\)"),
        (None, labelled, label + 1, "Labels reach from 1 to 3, expected 0 to 2"),
        (None, labelled, label - 1, "Labels reach from -1 to 1, expected 0 to 2"),
        (None, labelled, label * 0, "All labels of the batch are the same"),
        (torch.ones(4), labelled, label, "There are 4 frequencies, but 3 labels"),
        (torch.tensor([1, 1, 0]), labelled, label, r"labels \[2\] occur"),
        (torch.ones(3), vectors, vector, "frequencies are those of labels"),
        (None, vectors, vector * 0, "All vectors of the batch are the same"),
        (None, vectors, label, "This energy has no labels"),
        (None, labelled, vector, "Labels are integers"),
    ]
    for frequencies, ebm, context, message in bad:
        with pytest.raises(ValueError, match=message):
            ContextContrastive(frequencies)(ebm)(x, context)
    with pytest.raises(ValueError, match="EnergyNet does not have"):
        ContextContrastive()(EnergyNet(2))(x.float(), label)
    with pytest.raises(ValueError, match=r"batch \(\)"):
        ContextContrastive()(labelled)(x[0], label[0])
    with pytest.raises(ValueError, match="NaN"):
        ContextContrastive()(labelled)(x * math.nan, label)
