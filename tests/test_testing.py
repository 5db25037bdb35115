"""The conformance kit accepts what keeps the contract, and names the clause that a fault breaks."""

import copy
import math
from collections import namedtuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions import transforms as T
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.testing import gof
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from torch.distributions import Transform

from pyro_ext.distributions import SelfNormalizedImportance
from pyro_ext.testing import (
    DISTRIBUTION_CLAUSES,
    TRANSFORM_CLAUSES,
    ConformanceError,
    check_distribution,
    check_transform,
)
from pyro_ext.testing.goodness import p_value

POSITIVE = constraints.independent(constraints.positive, 1)

# Correct distributions.


class Vector(TorchDistribution):
    """Independent normals, one event dimension."""

    arg_constraints = {"loc": constraints.real_vector, "scale": POSITIVE}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc, scale, *, validate_args=None):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        cut = self.loc.dim() - self.support.event_dim
        shape = self.loc.shape
        super().__init__(shape[:cut], shape[cut:], validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, loc, scale):
        shape = torch.broadcast_shapes(loc, scale)
        cut = len(shape) - cls.support.event_dim
        return torch.Size(shape[:cut]), torch.Size(shape[cut:])

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(Vector, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.scale = self.scale.expand(batch_shape + self.event_shape)
        super(Vector, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        terms = -0.5 * z**2 - self.scale.log() - 0.5 * math.log(2 * math.pi)
        return terms.flatten(-self.event_dim).sum(-1)

    def rsample(self, sample_shape=torch.Size()):
        noise = self.loc.new_empty(self._extended_shape(sample_shape)).normal_()
        return self.loc + self.scale * noise


class Image(Vector):
    """Independent normals, three event dimensions."""

    arg_constraints = {
        "loc": constraints.independent(constraints.real, 3),
        "scale": constraints.independent(constraints.positive, 3),
    }
    support = constraints.independent(constraints.real, 3)


class Ramp(TorchDistribution):
    """Density 1 + slope (x - 1/2) on the closed unit interval."""

    arg_constraints = {"slope": constraints.interval(-1.9, 1.9)}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, slope, *, validate_args=None):
        self.slope = slope
        super().__init__(slope.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(Ramp, _instance)
        new.slope = self.slope.expand(batch_shape)
        super(Ramp, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return (self.slope * (value - 0.5)).log1p()

    def rsample(self, sample_shape=torch.Size()):
        u = self.slope.new_empty(self._extended_shape(sample_shape)).uniform_()
        b = 1 - self.slope / 2
        return 2 * u / (b + (b**2 + 2 * self.slope * u).sqrt())


class Coin(TorchDistribution):
    """Bernoulli by its logits."""

    arg_constraints = {"logits": constraints.real}
    support = constraints.boolean
    has_enumerate_support = True

    def __init__(self, logits, *, validate_args=None):
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(Coin, _instance)
        new.logits = self.logits.expand(batch_shape)
        super(Coin, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return nn.functional.logsigmoid((2 * value - 1) * self.logits)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()):
        return self.logits.sigmoid().expand(self._extended_shape(sample_shape)).bernoulli()

    def enumerate_support(self, expand=True):
        values = self.logits.new_tensor([0.0, 1.0]).reshape(2, *(1,) * self.logits.dim())
        return values.expand(2, *self.logits.shape) if expand else values


class Blurred(TorchDistribution):
    """Stochastic: a normal whose mean was drawn first and forgotten."""

    arg_constraints = {"loc": constraints.real}
    support = constraints.real
    has_rsample = True
    density_kind = "lower"
    seed, num = None, 1

    def __init__(self, loc, *, validate_args=None):
        self.loc = loc
        self.draws = []
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(Blurred, _instance)
        new.loc = self.loc.expand(batch_shape)
        new.draws = []
        super(Blurred, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def noise(self, shape):
        if self.seed is None:
            return self.loc.new_empty(shape).normal_()
        generator = torch.Generator().manual_seed(self.seed)
        return torch.empty(shape, dtype=self.loc.dtype).normal_(generator=generator)

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.loc.shape)
        log_w = self.weigh(value, self.loc + self.noise((self.num, *shape)))
        return log_w.logsumexp(0) - math.log(self.num)

    def weigh(self, value, mean):
        return -0.5 * (value - mean) ** 2 - 0.5 * math.log(2 * math.pi)

    def sample(self, sample_shape=torch.Size()):
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape=torch.Size()):
        mean = self.loc + self.noise(self._extended_shape(sample_shape))
        self.draws[:] = [(mean + torch.randn_like(mean), mean)]
        return self.draws[0][0]

    def score_parts(self, x):
        if not self.draws or self.draws[0][0] is not x:
            raise RuntimeError("auxiliaries lost")
        upper = self.weigh(*self.draws[0])
        return ScoreParts(upper, 0, upper)

    def sample_and_log_prob(self, sample_shape=torch.Size()):
        x = self.sample(sample_shape)
        return x, self.score_parts(x).log_prob

    def vary(self, **changes):
        new = copy.copy(self)
        vars(new).update(changes, draws=[])
        return new

    def frozen(self, seed):
        return self.vary(seed=seed)

    def tight(self, num):
        return self.vary(num=num)

    def __getstate__(self):
        return {**vars(self), "draws": []}


class Net(nn.Module):
    """A factor of one, made of a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self):
        return self.weight.mean()


class Neural:
    """Parameters multiplied by a network: a constructor of any class."""

    def __init__(self, cls):
        self.cls = cls

    def __call__(self, loc, scale, net, **kwargs):
        return self.cls(loc, scale * net(), **kwargs)


VECTOR = {"loc": torch.tensor([0.5, -1.0, 2.0]), "scale": torch.tensor([1.0, 0.5, 3.0])}
BATCH = {"loc": torch.arange(6.0).reshape(2, 3), "scale": torch.ones(3)}
RAMP = {"slope": torch.tensor([0.5, -1.0])}
COIN = {"logits": torch.tensor([0.5, -1.0])}
IMAGE = {"loc": torch.randn(2, 3, 2, 2, 2), "scale": torch.ones(())}

GOOD_DISTRIBUTIONS = {
    "pyro-logistic": (dist.Logistic, {"loc": torch.zeros(2, 3), "scale": torch.ones(3)}),
    "pyro-logistic-scalar": (dist.Logistic, {"loc": torch.zeros(()), "scale": torch.ones(())}),
    "vector": (Vector, VECTOR),
    "vector-batch": (Vector, BATCH),
    "vector-float64": (Vector, {name: value.double() for name, value in VECTOR.items()}),
    "image": (Image, IMAGE),
    "neural": (Neural(Vector), {**VECTOR, "net": Net()}),
    "ramp": (Ramp, RAMP),
    "coin": (Coin, COIN),
    "stochastic": (Blurred, {"loc": torch.zeros(2)}),
    "wide": (Vector, {"loc": torch.arange(24.0).reshape(2, 12), "scale": torch.ones(12)}),
}


@pytest.mark.parametrize("case", GOOD_DISTRIBUTIONS)
def test_kit_accepts_distribution(case):
    constructor, params = GOOD_DISTRIBUTIONS[case]
    check_distribution(constructor, params)


class Scalar(Vector):
    """A normal."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        return -0.5 * z**2 - self.scale.log() - 0.5 * math.log(2 * math.pi)


EVENTS = {Scalar: (), Vector: (2,), Image: (2, 1, 3)}


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3), (1,)], ids=str)
@pytest.mark.parametrize("cls", EVENTS)
def test_kit_accepts_shapes(cls, batch_shape):
    shape = batch_shape + EVENTS[cls]
    check_distribution(cls, {"loc": torch.randn(shape), "scale": torch.ones(())})


# One deliberately broken distribution or more for each clause.


class _Signature(Vector):
    def __init__(self, loc, scale, validate_args=None):
        super().__init__(loc, scale, validate_args=validate_args)


class _Shapes(Vector):
    def __init__(self, loc, scale, *, validate_args=None):
        super().__init__(loc, scale, validate_args=validate_args)
        self._batch_shape = tuple(self._batch_shape)


class _Support(Vector):
    @property
    def support(self):
        return constraints.real_vector

    def __init__(self, loc, scale, *, validate_args=None):
        self.loc, self.scale = loc, scale
        TorchDistribution.__init__(self, loc.shape[:-1], loc.shape[-1:])


class _SupportDim(Coin):
    support = constraints.independent(constraints.boolean, 1)


class _InferShapes(Vector):
    infer_shapes = TorchDistribution.infer_shapes


class _Samples(Vector):
    def rsample(self, sample_shape=torch.Size()):
        return super().rsample()


class _Detached(Vector):
    def sample(self, sample_shape=torch.Size()):
        return self.rsample(sample_shape)


class _InSupport(Ramp):
    def rsample(self, sample_shape=torch.Size()):
        return super().rsample(sample_shape) + 0.5


class _LogProb(Vector):
    def log_prob(self, value):
        return super().log_prob(value).sum()


class _Validation(Vector):
    def log_prob(self, value):
        return Vector.log_prob(copy.copy(self)._trusting(), value)

    def _trusting(self):
        self._validate_args = False
        return self


class _LeftDims(Vector):
    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return dist.Normal(self.loc, self.scale).log_prob(value).sum(1)


class _Broadcast(Vector):
    def log_prob(self, value):
        return super().log_prob(value).reshape(value.shape[:-1])


class _Deterministic(Vector):
    def log_prob(self, value):
        return super().log_prob(value) + 1e-3 * torch.randn_like(value[..., 0])


class _Expand(Vector):
    expand = TorchDistributionMixin.expand


class _ExpandPure(Vector):
    def expand(self, batch_shape, _instance=None):
        self.loc = self.loc.clone()
        return super().expand(batch_shape, _instance)


class _ExpandValidation(Vector):
    def expand(self, batch_shape, _instance=None):
        new = super().expand(batch_shape, _instance)
        new._validate_args = True
        return new


class _ExpandSubclass(Vector):
    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.event_shape
        loc, scale = self.loc.expand(shape), self.scale.expand(shape)
        return _ExpandSubclass(loc, scale, validate_args=self._validate_args)


class _ExpandDensity(Vector):
    def expand(self, batch_shape, _instance=None):
        new = super().expand(batch_shape, _instance)
        new.scale = 2 * new.scale
        return new


class _Edges(Ramp):
    def log_prob(self, value):
        return super().log_prob(value) + 0 * value.sqrt()


class _Pathwise(Vector):
    def rsample(self, sample_shape=torch.Size()):
        return super().rsample(sample_shape) - self.loc + self.loc.detach()


class _Unnormalised(Vector):
    def log_prob(self, value):
        return super().log_prob(value) + 0.5


class _WrongSampler(Vector):
    def rsample(self, sample_shape=torch.Size()):
        return self.loc + 1.5 * (super().rsample(sample_shape) - self.loc)


class _LoadedCoin(Coin):
    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()):
        return torch.maximum(super().sample(sample_shape), super().sample(sample_shape))


class _Vmaps(Vector):
    def log_prob(self, value):
        return super().log_prob(value) + 0 * value.sum().item()


class _Enumeration(Coin):
    def enumerate_support(self, expand=True):
        return super().enumerate_support(True)


class _EnumerationMass(Coin):
    def enumerate_support(self, expand=True):
        return super().enumerate_support(expand)[:1]


class _ScoreParts(Vector):
    def score_parts(self, x):
        return ScoreParts(self.log_prob(x), 0, 0)


class _ToEvent(Vector):
    def to_event(self, reinterpreted_batch_ndims=None):
        return self


class _Mask(Vector):
    mask = None


class _Scale(Vector):
    def score_parts(self, x):
        log_prob = self.log_prob(x)
        return namedtuple("Parts", ScoreParts._fields)(log_prob, 0, log_prob)


class _Plate(Vector):
    factor = 1.0

    def expand(self, batch_shape, _instance=None):
        new = super().expand(batch_shape, _instance)
        for frame in _PYRO_STACK:
            if isinstance(frame, pyro.plate):
                new.factor = frame.size / frame.subsample_size
        return new

    def log_prob(self, value):
        return self.factor * super().log_prob(value)


class _Particles(Vector):
    def score_parts(self, x):
        log_prob = self.log_prob(x)
        log_prob = log_prob.mean(0) if log_prob.dim() else log_prob
        return ScoreParts(log_prob, 0, log_prob)


class _Predictive(Vector):
    """Shares its noise in large batches."""

    def rsample(self, sample_shape=torch.Size()):
        draws = super().rsample(sample_shape)
        return draws[:1].expand_as(draws) if self.batch_shape[:1] == (20,) else draws


def _local_params(loc, scale, *, validate_args=None):
    pyro.param("calls", torch.zeros(()))
    return Vector(loc, scale, validate_args=validate_args)


class _Dtype(Vector):
    def log_prob(self, value):
        log_prob = super().log_prob(value)
        return log_prob + torch.zeros(log_prob.shape)


class _FiniteGradients(Vector):
    has_rsample = False

    def log_prob(self, value):
        return super().log_prob(value) + 0 * torch.where(value > 0, value.sqrt(), 0.0).sum(-1)


class _Derivatives(Vector):
    has_rsample = False

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return dist.Normal(self.loc, self.scale.detach()).to_event(1).log_prob(value)


class _To(Vector):
    def log_prob(self, value):
        return super().log_prob(value) * (1 + 1e6 * torch.finfo(value.dtype).eps)


class _Pickles(Vector):
    def __init__(self, loc, scale, *, validate_args=None):
        super().__init__(loc, scale, validate_args=validate_args)
        self.link = lambda x: x

    def expand(self, batch_shape, _instance=None):
        new = self.__new__(type(self)) if _instance is None else _instance
        return super().expand(batch_shape, new)


class _Deepcopies(Vector):
    def log_prob(self, value):
        self.last = 1 * value
        return super().log_prob(value)


class Hidden(Net):
    """Keeps state where state_dict does not look."""

    def __init__(self):
        super().__init__()
        self.gain = torch.tensor(1.0)

    def forward(self):
        return super().forward() * self.gain


class Custom(Net):
    """Keeps state that only an unsafe load can read."""

    def get_extra_state(self):
        return Custom

    def set_extra_state(self, state):
        pass


class Captured(Net):
    """Keeps a second reference to its parameter."""

    def __init__(self):
        super().__init__()
        self.views = [self.weight]

    def forward(self):
        return self.views[0].mean()


class Strided(Net):
    """Has a transposed parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3).t())


class _Updates(Vector):
    last = (None, None)

    def log_prob(self, value):
        if self.last[0] is not value:
            self.last = value, super().log_prob(value)
        return self.last[1]

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "last"}


class _Device(Vector):
    def log_prob(self, value):
        return super().log_prob(value) + torch.tensor(0.0)


class _Compiles(Vector):
    def log_prob(self, value):
        torch._dynamo.graph_break()
        return super().log_prob(value)


class _Undeclared(Blurred):
    """A normal whose mean was drawn first."""


class _Tepid(Blurred):
    """Stochastic, and frozen only in name."""

    def frozen(self, seed):
        return self


class _FallsBack(Blurred):
    """Stochastic, and silently fresh on the guide's side."""

    def score_parts(self, x):
        return ScoreParts(self.log_prob(x), 0, self.log_prob(x))


class _AcceptsOutside(Ramp):
    def log_prob(self, value):
        if self._validate_args and value.isnan().any():
            raise ValueError("nan")
        return (self.slope * (value - 0.5)).log1p()


class _AcceptsHalves(Coin):
    def log_prob(self, value):
        if self._validate_args and (value.isnan() | (value < 0) | (value > 1)).any():
            raise ValueError("neither head nor tail")
        return nn.functional.logsigmoid((2 * value - 1) * self.logits)


class _AcceptsShapes(Vector):
    def log_prob(self, value):
        if self._validate_args and value.isnan().any():
            raise ValueError("nan")
        z = (value[..., :3] - self.loc) / self.scale
        return (-0.5 * z**2 - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


class _SharedNoise(Vector):
    """One number for all the elements of the last batch dimension."""

    def rsample(self, sample_shape=torch.Size()):
        shape = self._extended_shape(sample_shape)
        noise = self.loc.new_empty((*shape[:-2], 1, shape[-1])).normal_()
        return self.loc + self.scale * noise


class _SharedWidth(Vector):
    """Uncorrelated but dependent elements: signs are fresh, sizes are shared."""

    def rsample(self, sample_shape=torch.Size()):
        shape = self._extended_shape(sample_shape)
        size = self.loc.new_empty((*shape[:-2], 1, shape[-1])).normal_()
        return self.loc + self.scale * size * torch.randn(shape).sign()


class _SharedRows(Vector):
    """One number for all the values of one call."""

    def rsample(self, sample_shape=torch.Size()):
        rows = torch.Size(sample_shape)[:1]
        noise = self.loc.new_empty(rows + (1,) * len(sample_shape[1:]) + self.loc.shape).normal_()
        return self.loc + self.scale * noise.expand(self._extended_shape(sample_shape))


class _PathwiseWidth(Vector):
    def rsample(self, sample_shape=torch.Size()):
        noise = self.loc.new_empty(self._extended_shape(sample_shape)).normal_()
        return self.loc + self.scale.detach() * noise


class _OneElement(Vector):
    """Wrong in one of many batch elements."""

    def log_prob(self, value):
        wrong = torch.zeros(self.batch_shape, dtype=value.dtype)
        wrong[..., 1] = 0.3
        return super().log_prob(value) + wrong


class _LastRamp(Ramp):
    """The same on an interval."""

    def log_prob(self, value):
        wrong = self.slope.new_zeros(self.slope.shape[-1] - 1)
        return super().log_prob(value) + nn.functional.pad(wrong, (0, 1), value=0.5)


# Wrong stochastic densities.


class Hill(nn.Module):
    """An energy that prefers places near 1, or near (1, ..., 1)."""

    def __init__(self, event_dim=0):
        super().__init__()
        self.event_dim = event_dim
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        energy = -self.weight * 2 * torch.exp(-((x - 1) ** 2))
        return energy.flatten(-self.event_dim).sum(-1) if self.event_dim else energy


class Importance(SelfNormalizedImportance):
    """Stochastic: self-normalised importance sampling."""


class _Lifted(Importance):
    """Stochastic: five nats too likely."""

    def log_prob(self, value):
        return super().log_prob(value) + 5


class _Sunk(Importance):
    """Stochastic: five nats too unlikely, on the lower side only."""

    def log_prob(self, value):
        return super().log_prob(value) - 5


class _Swapped(Importance):
    """Stochastic: scores guides with fresh auxiliaries."""

    def score_parts(self, value):
        auxiliaries = self._recall(value)
        log_prob = self.log_prob(value)
        return ScoreParts(log_prob, self.score_function(auxiliaries), log_prob)


class _ShiftedDraws(Importance):
    """Stochastic: shifts what it chose."""

    def simulate(self, sample_shape, pathwise):
        value, auxiliaries = super().simulate(sample_shape, pathwise)
        return value + 3, auxiliaries


class _TightNo(Importance):
    """Stochastic: never tighter."""

    def tight(self, num):
        return copy.copy(self)


class _NoScore(Importance):
    """Stochastic: forgets what its choice owes."""

    def score_function(self, auxiliaries):
        return 0.0


class _HalfScore(Importance):
    """Stochastic: forgets that it chose, and remembers the candidates."""

    def simulate(self, sample_shape, pathwise):
        value, auxiliaries = super().simulate(sample_shape, pathwise)
        others = self.proposal.log_prob(value)
        return value, auxiliaries._replace(log_q=others)


class Choosing:
    """A constructor of self-normalised importance sampling among normals."""

    def __init__(self, cls=Importance, num_proposals=4, share_proposals=True):
        self.cls, self.options = cls, (num_proposals, share_proposals)
        self.__name__ = cls.__name__ + ("" if share_proposals else "-unshared")

    def __call__(self, loc, energy, *, validate_args=None):
        proposal = dist.Normal(loc, torch.ones_like(loc), validate_args=validate_args)
        proposal = proposal.to_event(energy.event_dim)
        return self.cls(proposal, energy, *self.options, validate_args=validate_args)


HILL = {"loc": torch.zeros(2), "energy": Hill()}
HILLS = {"loc": torch.zeros(2, 5), "energy": Hill(1)}
WIDE = {"loc": torch.arange(12.0).reshape(2, 6), "scale": torch.ones(6)}
MANY = {"loc": torch.randn(20, 3), "scale": torch.ones(3)}
NEURAL = Neural(Vector)
BROKEN_DISTRIBUTIONS = [
    ("sandwich", Choosing(_Lifted), HILL),
    ("sandwich", Choosing(_Lifted, share_proposals=False), HILLS),
    ("sandwich", Choosing(_Sunk), HILL),
    ("sandwich", Choosing(_Sunk, share_proposals=False), HILLS),
    ("normalisation", Choosing(_Swapped), HILL),
    ("normalisation", Choosing(_Swapped), HILLS),
    ("normalisation", Choosing(_ShiftedDraws), HILL),
    ("normalisation", Choosing(_ShiftedDraws, share_proposals=False), HILL),
    ("normalisation", _Unnormalised, WIDE),
    ("normalisation", _WrongSampler, WIDE),
    ("normalisation", _OneElement, MANY),
    ("goodness_of_fit", _LastRamp, {"slope": torch.linspace(-1.5, 1.5, 30)}),
    ("tightening", Choosing(_TightNo), HILL),
    ("score_gradient", Choosing(_NoScore), HILL),
    ("score_gradient", Choosing(_NoScore, share_proposals=False), HILLS),
    ("score_gradient", Choosing(_HalfScore), HILL),
    ("independent", _SharedNoise, BATCH),
    ("independent", _SharedWidth, BATCH),
    ("independent", _SharedRows, BATCH),
    ("validation", _AcceptsOutside, RAMP),
    ("validation", _AcceptsHalves, COIN),
    ("validation", _AcceptsShapes, VECTOR),
    ("pathwise", _PathwiseWidth, VECTOR),
    ("signature", _Signature, VECTOR),
    ("shapes", _Shapes, VECTOR),
    ("support", _Support, VECTOR),
    ("support", _SupportDim, COIN),
    ("infer_shapes", _InferShapes, VECTOR),
    ("samples", _Samples, VECTOR),
    ("detached", _Detached, VECTOR),
    ("in_support", _InSupport, RAMP),
    ("log_prob", _LogProb, BATCH),
    ("validation", _Validation, VECTOR),
    ("left_dims", _LeftDims, BATCH),
    ("broadcast", _Broadcast, BATCH),
    ("deterministic", _Deterministic, VECTOR),
    ("expand", _Expand, VECTOR),
    ("expand_pure", _ExpandPure, VECTOR),
    ("expand_validation", _ExpandValidation, VECTOR),
    ("expand_subclass", _ExpandSubclass, VECTOR),
    ("expand_density", _ExpandDensity, VECTOR),
    ("edges", _Edges, RAMP),
    ("pathwise", _Pathwise, VECTOR),
    ("goodness_of_fit", _Unnormalised, VECTOR),
    ("goodness_of_fit", _WrongSampler, VECTOR),
    ("goodness_of_fit", _LoadedCoin, COIN),
    ("vmaps", _Vmaps, VECTOR),
    ("enumeration", _Enumeration, COIN),
    ("enumeration", _EnumerationMass, COIN),
    ("score_parts", _ScoreParts, VECTOR),
    ("to_event", _ToEvent, VECTOR),
    ("mask", _Mask, VECTOR),
    ("scale", _Scale, VECTOR),
    ("plate", _Plate, VECTOR),
    ("particles", _Particles, VECTOR),
    ("predictive", _Predictive, VECTOR),
    ("local_params", _local_params, VECTOR),
    ("dtype", _Dtype, VECTOR),
    ("finite_gradients", _FiniteGradients, VECTOR),
    ("derivatives", _Derivatives, VECTOR),
    ("to", _To, VECTOR),
    ("pickles", _Pickles, VECTOR),
    ("deepcopies", _Deepcopies, VECTOR),
    ("state_dict", NEURAL, {**VECTOR, "net": Hidden()}),
    ("state_dict", NEURAL, {**VECTOR, "net": Custom()}),
    ("param_store", NEURAL, {**VECTOR, "net": Captured()}),
    ("updates", _Updates, VECTOR),
    ("contiguous", NEURAL, {**VECTOR, "net": Strided()}),
    ("device", _Device, VECTOR),
    ("compiles", _Compiles, VECTOR),
    ("stochastic", _Undeclared, {"loc": torch.zeros(2)}),
    ("stochastic", _Tepid, {"loc": torch.zeros(2)}),
    ("stochastic", _FallsBack, {"loc": torch.zeros(2)}),
]


def _names(rows):
    return [
        f"{clause}-{getattr(maker, '__name__', type(maker).__name__)}" for clause, maker, _ in rows
    ]


@pytest.mark.parametrize(
    ("clause", "constructor", "params"), BROKEN_DISTRIBUTIONS, ids=_names(BROKEN_DISTRIBUTIONS)
)
def test_kit_names_the_broken_clause_of_a_distribution(clause, constructor, params):
    with pytest.raises(ConformanceError, match=f"(?s)^{clause}: .*To fix: "):
        check_distribution(constructor, params)


IMPORTANCE = [(Choosing(), HILL), (Choosing(), HILLS), (Choosing(share_proposals=False), HILLS)]


@pytest.mark.parametrize(("constructor", "params"), IMPORTANCE, ids=["hill", "hills", "unshared"])
def test_kit_accepts_strong_energies(constructor, params):
    check_distribution(constructor, params)


def test_every_distribution_clause_has_a_planted_fault():
    assert {row[0] for row in BROKEN_DISTRIBUTIONS} | {"sandwich"} == {
        c.name for c in DISTRIBUTION_CLAUSES
    }


# Transforms.


class Stretch(Transform):
    """y = loc + scale x on vectors."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc, scale, cache_size=0):
        super().__init__(cache_size)
        self.loc, self.scale = loc, scale

    def _call(self, x):
        return self.loc + self.scale * x

    def _inverse(self, y):
        return (y - self.loc) / self.scale

    def log_abs_det_jacobian(self, x, y):
        return self.scale.abs().log().expand_as(x).sum(-1)


def identity(flow):
    return flow


class Mixing(dist.TransformModule):
    """An invertible 1x1 convolution on images."""

    domain = codomain = constraints.independent(constraints.real, 3)
    bijective = True

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels) + 0.1)

    def _call(self, x):
        return torch.einsum("ij,...jhw->...ihw", self.weight, x)

    def _inverse(self, y):
        return torch.einsum("ij,...jhw->...ihw", self.weight.inverse(), y)

    def log_abs_det_jacobian(self, x, y):
        log_det = x.shape[-1] * x.shape[-2] * self.weight.slogdet().logabsdet
        return log_det.expand(x.shape[:-3])


POINTS = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
GOOD_TRANSFORMS = {
    "torch-affine": (T.AffineTransform, {"loc": VECTOR["loc"], "scale": VECTOR["scale"]}, None),
    "torch-affine-event": (
        T.AffineTransform,
        {"loc": VECTOR["loc"], "scale": VECTOR["scale"], "event_dim": 1},
        POINTS,
    ),
    "torch-exp": (T.ExpTransform, {}, None),
    "torch-sigmoid": (T.SigmoidTransform, {}, None),
    "torch-softmax": (T.SoftmaxTransform, {}, POINTS),
    "vector": (Stretch, VECTOR, POINTS),
    "neural": (Neural(Stretch), {**VECTOR, "net": Net()}, POINTS),
    "image": (identity, {"flow": Mixing(2)}, torch.randn(3, 2, 2, 3)),
    "image-one": (identity, {"flow": Mixing(2)}, torch.randn(2, 2, 2)),
}


@pytest.mark.parametrize("case", GOOD_TRANSFORMS)
def test_kit_accepts_transform(case):
    constructor, params, values = GOOD_TRANSFORMS[case]
    check_transform(constructor, params, values=values)


class _EventDim(Stretch):
    codomain = constraints.real


class _Bijective(Stretch):
    bijective = "yes"


class _Codomain(Stretch):
    codomain = POSITIVE


class _ForwardShape(Stretch):
    def forward_shape(self, shape):
        return shape[:-1]


class _RoundTrip(Stretch):
    def _inverse(self, y):
        return y / self.scale - self.loc


class _LogDetShape(Stretch):
    def log_abs_det_jacobian(self, x, y):
        return self.scale.abs().log().expand_as(x)


class _LogDet(Stretch):
    def log_abs_det_jacobian(self, x, y):
        return -super().log_abs_det_jacobian(x, y)


class _LeftDimsTransform(Stretch):
    def log_abs_det_jacobian(self, x, y):
        return self.scale.abs().log().expand_as(x).sum(1)


class _NoCache(Stretch):
    def __init__(self, loc, scale, cache_size=1):
        super().__init__(loc, scale, cache_size)


class _VmapsTransform(Stretch):
    def _call(self, x):
        return super()._call(x) + 0 * x.sum().item()


class _DtypeTransform(Stretch):
    def _call(self, x):
        return super()._call(x) + torch.zeros(3)


class _FiniteGradientsTransform(Stretch):
    def log_abs_det_jacobian(self, x, y):
        safe = torch.where(x > 0, x.sqrt(), 0.0).sum(-1)
        return super().log_abs_det_jacobian(x, y) + 0 * safe


class _DerivativesTransform(Stretch):
    def log_abs_det_jacobian(self, x, y):
        return super().log_abs_det_jacobian(x, y).detach()


class _ToTransform(Stretch):
    def log_abs_det_jacobian(self, x, y):
        jitter = 1e6 * torch.finfo(x.dtype).eps
        return super().log_abs_det_jacobian(x, y) + jitter


class _PicklesTransform(Stretch):
    def __init__(self, loc, scale):
        super().__init__(loc, scale)
        self.link = lambda x: x


class _DeepcopiesTransform(Stretch):
    def _call(self, x):
        self.last = 1 * x
        return super()._call(x)


class _UpdatesTransform(Stretch):
    last = (None, None)

    def _call(self, x):
        if self.last[0] is not x:
            self.last = x, super()._call(x)
        return self.last[1]

    def __deepcopy__(self, memo):
        return type(self)(self.loc.clone(), self.scale.clone())


class _DeviceTransform(Stretch):
    def log_abs_det_jacobian(self, x, y):
        return super().log_abs_det_jacobian(x, y) + torch.tensor(0.0)


class _CompilesTransform(Stretch):
    def _call(self, x):
        torch._dynamo.graph_break()
        return super()._call(x)


STRETCH = Neural(Stretch)
BROKEN_TRANSFORMS = [
    ("event_dim", _EventDim, VECTOR),
    ("bijective", _Bijective, VECTOR),
    ("codomain", _Codomain, VECTOR),
    ("shapes", _ForwardShape, VECTOR),
    ("round_trip", _RoundTrip, VECTOR),
    ("log_det_shape", _LogDetShape, VECTOR),
    ("log_det", _LogDet, VECTOR),
    ("left_dims", _LeftDimsTransform, VECTOR),
    ("no_cache", _NoCache, VECTOR),
    ("vmaps", _VmapsTransform, VECTOR),
    ("dtype", _DtypeTransform, VECTOR),
    ("finite_gradients", _FiniteGradientsTransform, VECTOR),
    ("derivatives", _DerivativesTransform, VECTOR),
    ("to", _ToTransform, VECTOR),
    ("pickles", _PicklesTransform, VECTOR),
    ("deepcopies", _DeepcopiesTransform, VECTOR),
    ("state_dict", STRETCH, {**VECTOR, "net": Hidden()}),
    ("state_dict", STRETCH, {**VECTOR, "net": Custom()}),
    ("param_store", STRETCH, {**VECTOR, "net": Captured()}),
    ("updates", _UpdatesTransform, VECTOR),
    ("contiguous", STRETCH, {**VECTOR, "net": Strided()}),
    ("device", _DeviceTransform, VECTOR),
    ("compiles", _CompilesTransform, VECTOR),
]


@pytest.mark.parametrize(
    ("clause", "constructor", "params"), BROKEN_TRANSFORMS, ids=_names(BROKEN_TRANSFORMS)
)
def test_kit_names_the_broken_clause_of_a_transform(clause, constructor, params):
    with pytest.raises(ConformanceError, match=f"(?s)^{clause}: .*To fix: "):
        check_transform(constructor, params, values=POINTS)


def test_every_transform_clause_has_a_planted_fault():
    assert {row[0] for row in BROKEN_TRANSFORMS} == {c.name for c in TRANSFORM_CLAUSES}


# What Pyro's own classes do to the contract: all that was found, none more.

PYRO_DISTRIBUTIONS = [
    (dist.Normal, {"loc": torch.zeros(3), "scale": torch.ones(3)}, {"signature"}),
    (dist.Bernoulli, {"logits": torch.zeros(3)}, {"signature"}),
    (dist.Poisson, {"rate": torch.ones(3)}, {"signature"}),
    (dist.Categorical, {"logits": torch.randn(2, 3)}, {"signature", "compiles"}),
    (dist.ProjectedNormal, {"concentration": torch.tensor([1.0, 2.0])}, set()),
    (dist.Dirichlet, {"concentration": torch.ones(3)}, {"signature"}),
    (dist.StudentT, {"df": torch.full((2,), 5.0)}, {"signature", "compiles"}),
    (dist.Gamma, {"concentration": torch.tensor(2.0), "rate": torch.ones(())}, {"signature"}),
    (
        dist.Gamma,  # the gradient of 0 * log(0) is NaN
        {"concentration": torch.ones(()), "rate": torch.ones(())},
        {"signature", "edges"},
    ),
    (
        dist.Beta,
        {"concentration1": torch.ones(()), "concentration0": torch.tensor(3.0)},
        {"signature", "edges"},
    ),
    (
        dist.ZeroInflatedPoisson,
        {"rate": torch.ones(3), "gate": torch.full((3,), 0.3)},
        {"signature", "shapes", "expand"},
    ),
    (
        dist.MultivariateNormal,
        {"loc": torch.zeros(2), "scale_tril": torch.eye(2)},
        {"signature"},
    ),
    (dist.Uniform, {"low": torch.zeros(3), "high": torch.ones(3)}, {"signature"}),
    (
        dist.Beta,
        {"concentration1": torch.tensor(2.0), "concentration0": torch.tensor(3.0)},
        {"signature"},
    ),
]
PYRO_TRANSFORMS = [
    (
        lambda: T.affine_autoregressive(3),
        POINTS,
        {"round_trip", "no_cache", "deepcopies", "updates"},
    ),
    (
        lambda: T.GeneralizedChannelPermute(2),
        torch.randn(3, 2, 2, 3),
        {"no_cache", "deepcopies", "updates", "contiguous"},
    ),
]


def _violations(check, *args, **kwargs):
    found = set()
    while True:
        try:
            check(*args, **kwargs, skip=sorted(found))
        except ConformanceError as error:
            found.add(str(error).split(":")[0])
        else:
            return found


@pytest.mark.parametrize(
    ("constructor", "params", "expected"),
    PYRO_DISTRIBUTIONS,
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_pyro_distributions_violate(constructor, params, expected):
    assert _violations(check_distribution, constructor, params) <= expected


@pytest.mark.parametrize(("make", "values", "expected"), PYRO_TRANSFORMS, ids=["aaf", "permute"])
def test_what_pyro_transforms_violate(make, values, expected):
    assert _violations(check_transform, identity, {"flow": make()}, values=values) <= expected


# The kit itself.


def test_unknown_clause_is_refused():
    with pytest.raises(ValueError, match=r"unknown clauses \['no_such'\].*signature"):
        check_distribution(Vector, VECTOR, skip=["no_such"])


def test_vector_transform_needs_values():
    with pytest.raises(ConformanceError, match="needs values="):
        check_transform(Stretch, VECTOR)


def test_values_reach_the_clauses():
    values = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    with pytest.raises(ConformanceError, match=r"^finite_gradients: "):
        check_distribution(_Edges, RAMP, values=values, skip=["edges"])


def test_no_global_state_leaks():
    pyro.param("mine", torch.ones(()))
    states = torch.get_rng_state(), pyro.settings.get(), dict(pyro.get_param_store().items())
    params = copy.deepcopy(VECTOR)
    check_distribution(Vector, params)
    with pytest.raises(ConformanceError):
        check_distribution(_Scale, params)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert pyro.settings.get() == states[1]
    assert dict(pyro.get_param_store().items()) == states[2]
    assert not _PYRO_STACK
    assert all(torch.equal(params[name], VECTOR[name]) for name in VECTOR)


def test_kit_works_under_no_grad_and_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            check_distribution(Vector, VECTOR)
    finally:
        torch.set_default_dtype(torch.float32)


def _spike(num, weight):
    atoms = torch.rand(num, dtype=torch.float64) < weight
    return torch.where(atoms, 0.0, torch.rand(num, dtype=torch.float64)), atoms


@pytest.mark.parametrize("claimed", [0.3, 0.35])
def test_p_value_sees_atoms(claimed):
    """False alarm 1e-6; an atom of 0.3 claimed to be 0.35 is 10 standard errors away."""
    x, atoms = _spike(10_000, 0.3)
    probs = torch.where(atoms, claimed, 1 - claimed).double()
    assert (p_value(x[:, None], probs, discrete=False) > 1e-6) == (claimed == 0.3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_p_value_where_pyro_is_blind(dim):
    """Pyro's gof sums its chi-squared tail too briefly; false alarm 1e-6."""
    x = torch.randn(5000, dim, dtype=torch.float64)
    true, wide = (dist.Normal(0.0, s).expand([dim]).to_event(1) for s in (1.0, 2.0))
    assert p_value(x, true.log_prob(x).exp(), discrete=False) > 1e-6
    assert p_value(x, wide.log_prob(x).exp(), discrete=False) < 1e-6
    if dim == 1:
        assert gof.auto_goodness_of_fit(x, wide.log_prob(x).exp()) > 0.9


def test_floats_are_parameters_too():
    check_distribution(dist.Logistic, {"loc": 0.0, "scale": 2.0})


@pytest.mark.parametrize(
    ("constructor", "params", "message"),
    [
        (dist.Logistic(0.0, 1.0), {}, "got the instance"),
        (dist.Logistic, torch.zeros(3), "params must be a dictionary"),
        (dist.Logistic, {"loc": 0.0, "skale": 1.0}, r"params \['loc', 'skale'\] do not fit"),
    ],
)
def test_arguments_that_are_no_constructor_or_parameters(constructor, params, message):
    with pytest.raises(ValueError, match=message):
        check_distribution(constructor, params)
