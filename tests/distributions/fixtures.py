"""One line or more per public distribution and transform: what the contract is checked on.

The key is the public name, with a variant after a hyphen. Modules are defined here rather than in
functions, so that they can be pickled.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext.distributions import (
    AutoregressiveShift,
    Dequantized,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    ExponentialTilt,
    GaussianFamily,
    Glow,
    HamiltonianImportance,
    HardConcrete,
    HardKumaraswamy,
    IdentifiablePrior,
    IMCAPrior,
    InvertibleTransform,
    LaplaceFamily,
    LearnedAcceptReject,
    ModelMarginal,
    MultiplicativeNormal,
    PixelCNN,
    SelfNormalizedImportance,
    SemiImplicit,
    StatisticsFamily,
    TruncatedLogNormal,
    TruncatedLogUniform,
    TruncatedRejection,
    leave_one_out,
)
from pyro_ext.nn import GlowLevel, GlowNet, MomentumNet, MovingNormalizer, PixelCNNNet
from pyro_ext.testing import check_distribution, check_transform

torch.manual_seed(0)  # parameters are the same whatever was imported before


class Fixture(NamedTuple):
    """``check(constructor, params, values=..., skip=...)`` must pass."""

    constructor: Callable[..., Any]
    params: dict[str, Any]
    values: Tensor | None = None
    skip: Sequence[str] = ()
    check: Callable[..., None] = check_distribution


class Energy(nn.Module):
    """A smooth energy of scalars or vectors."""

    def __init__(self, dim: int | None = None):
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(dim or 1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x if self.dim else x.unsqueeze(-1)).squeeze(-1)


def normal(loc: Tensor, event_dim: int, validate_args: bool | None) -> Any:
    scale = torch.ones_like(loc)
    base = dist.Normal(loc, scale, validate_args=validate_args)
    return dist.Independent(base, event_dim, validate_args=validate_args) if event_dim else base


def importance(loc, energy, event_dim=0, share_proposals=True, validate_args=None):
    return SelfNormalizedImportance(
        normal(loc, event_dim, validate_args),
        energy,
        num_proposals=5,
        share_proposals=share_proposals,
        validate_args=validate_args,
    )


def hamiltonian(
    loc, potential, step_size, tempering, momentum_net=None, event_dim=0, validate_args=None
):
    return HamiltonianImportance(
        normal(loc, event_dim, validate_args),
        potential,
        2,
        step_size,
        tempering,
        momentum_net,
        validate_args=validate_args,
    )


def rejection(
    loc, logit, event_dim=0, share_proposals=True, reverse_logit=None, validate_args=None
):
    return TruncatedRejection(
        normal(loc, event_dim, validate_args),
        logit,
        num_tries=3,
        share_proposals=share_proposals,
        reverse_logit=reverse_logit,
        validate_args=validate_args,
    )


class BellLogit(nn.Module):
    """Accepts with probability ``0.9 exp(-|x|^2 / 2)``: 0.9 / sqrt(2)^dim of standard normals."""

    def __init__(self, event_dim: int):
        super().__init__()
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().flatten(-self.event_dim).sum(-1) if self.event_dim else x.square()
        log_accept = math.log(0.9) - square / 2
        return log_accept - torch.log(-torch.expm1(log_accept))


def bell_rate(dim: int) -> float:
    return 0.9 * 0.5 ** (dim / 2)


def known_rejection(shape=(), event_dim=0, validate_args=None):
    return TruncatedRejection(
        normal(torch.zeros(shape, dtype=torch.float64, device="cpu"), event_dim, validate_args),
        BellLogit(event_dim),
        num_tries=5,
        normalizer=bell_rate(shape[-1] if event_dim else 1),
        validate_args=validate_args,
    )


def learned_rejection(loc, logit, normalizer, event_dim=0, validate_args=None):
    return LearnedAcceptReject(
        normal(loc, event_dim, validate_args),
        logit,
        5,
        normalizer,
        num_proposals=8,
        validate_args=validate_args,
    )


def evaluated_rejection(normalizer, shape=(), event_dim=0, validate_args=None):
    loc = torch.zeros(shape, dtype=torch.float64, device="cpu")
    return learned_rejection(loc, BellLogit(event_dim), normalizer, event_dim, validate_args)


def stored(batch_shape: Sequence[int], dim: int) -> MovingNormalizer:
    normalizer = MovingNormalizer(batch_shape).double().eval()
    exact = torch.full(tuple(batch_shape), bell_rate(dim), dtype=torch.float64)
    normalizer.store(exact, torch.zeros_like(exact), 10**9)
    return normalizer


# Not a bound, and no upper one: a guide's side raises.
ESTIMATE = ("stochastic", "sandwich", "score_gradient", "normalisation", "particles", "scale")


def binary_importance(logits, energy, validate_args=None):
    proposal = dist.Bernoulli(logits=logits, validate_args=validate_args)
    return SelfNormalizedImportance(
        dist.Independent(proposal, 1, validate_args=validate_args),
        energy,
        num_proposals=5,
        proposal_gradient=leave_one_out,
        validate_args=validate_args,
    )


class LinearProgram(nn.Module):
    """z ~ N(0, 1), x ~ N(a z + b, 1), and a guide that is almost right."""

    def __init__(self, shape: tuple[int, ...], event_dim: int = 0):
        super().__init__()
        self.event_dim = event_dim
        self.slope = nn.Parameter(torch.tensor(0.7))
        self.loc = nn.Parameter(torch.full(shape, 0.2))
        self.gain = nn.Parameter(torch.tensor(0.4))
        self.scale = nn.Parameter(torch.tensor(0.9))

    def normal(self, loc, scale, validate_args):
        base = dist.Normal(loc, scale, validate_args=validate_args)
        return base.to_event(self.event_dim)

    def model(self, validate_args=None):
        one = torch.ones_like(self.loc)
        z = pyro.sample("z", self.normal(torch.zeros_like(one), one, validate_args))
        pyro.sample("x", self.normal(self.slope * z + self.loc, one, validate_args))

    def guide(self, x, validate_args=None):
        loc = self.gain * (x - self.loc)
        pyro.sample("z", self.normal(loc, self.scale.expand(loc.shape), validate_args))


class BinaryProgram(nn.Module):
    """One bit z, two bits x, and a guide."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.3))
        self.decoder = nn.Linear(1, 2)
        self.encoder = nn.Linear(2, 1)

    def model(self, validate_args=None):
        logit = self.logit.unsqueeze(-1)
        z = pyro.sample("z", dist.Bernoulli(logits=logit, validate_args=validate_args).to_event(1))
        x = dist.Bernoulli(logits=self.decoder(z), validate_args=validate_args)
        pyro.sample("x", x.to_event(1))

    def guide(self, x, validate_args=None):
        z = dist.Bernoulli(logits=self.encoder(x), validate_args=validate_args)
        pyro.sample("z", z.to_event(1))


def marginal(program, validate_args=None):
    return ModelMarginal(
        partial(program.model, validate_args),
        partial(program.guide, validate_args=validate_args),
        validate_args=validate_args,
    )


class Blur(nn.Module):
    """N(psi, 1) with a location that the network bends."""

    def __init__(self, dim: int | None = None):
        super().__init__()
        self.energy = Energy(dim)
        self.event_dim = 0 if dim is None else 1

    def forward(self, psi: Tensor) -> Any:
        bend = self.energy(psi)
        loc = psi + (bend.unsqueeze(-1) if self.event_dim else bend)
        base = dist.Normal(loc, torch.ones_like(loc), validate_args=False)
        return dist.Independent(base, self.event_dim, validate_args=False)


class Unblur(nn.Module):
    """N(x / 2, s^2), almost the posterior of the location."""

    def __init__(self, event_dim: int = 0):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-0.3))
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Any:
        base = dist.Normal(x / 2, self.log_scale.exp().expand(x.shape), validate_args=False)
        return dist.Independent(base, self.event_dim, validate_args=False)


def semi_implicit(loc, conditional, reverse=None, event_dim=0, validate_args=None):
    mixing = normal(loc, event_dim, validate_args)
    return SemiImplicit(mixing, conditional, reverse, validate_args=validate_args)


def started(net: GlowNet, context: Tensor | None = None) -> GlowNet:
    """A net of small images whose parameters are all at work."""
    net.initialize(torch.randn(50, *net.image_shape), context)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return net


def glow(net, temperature, context=None, validate_args=None):
    return Glow(net, context, temperature, validate_args=validate_args)


def labelled_glow(net, temperature, validate_args=None):
    context = torch.tensor([0, 2], device=net.top.bias.device)
    return Glow(net, context, temperature, validate_args=validate_args)


def dequantized(loc, scale, bits=2, noise=None, validate_args=None):
    base = dist.Normal(loc, scale, validate_args=validate_args)
    base = dist.Independent(base, 1, validate_args=validate_args)
    return Dequantized(base, bits, noise, validate_args=validate_args)


def inward(x: Tensor) -> Any:
    """Noise that prefers the middle of a cell."""
    base = dist.Normal(torch.zeros_like(x), torch.ones_like(x), validate_args=False)
    noise = dist.TransformedDistribution(
        base, dist.transforms.SigmoidTransform(), validate_args=False
    )
    return dist.Independent(noise, 1, validate_args=False)


def pixel_cnn(net, temperature, context=None, validate_args=None):
    return PixelCNN(net, context, temperature, validate_args=validate_args)


def labelled_pixel_cnn(net, temperature, validate_args=None):
    context = torch.tensor([0, 2], device=net.output.bias.device)
    return PixelCNN(net, context, temperature, validate_args=validate_args)


def pixels(**options: Any) -> PixelCNNNet:
    """A net of small images whose parameters are all at work."""
    net = PixelCNNNet((1, 3, 3), 2, 2, 4, 1, **{"stages": 2, "dropout": 0.0, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def itself(transform):
    return transform


def cube(z: Tensor) -> Tensor:
    return z**3


def bell(z: Tensor) -> Tensor:
    return -(z**4) / 4


BOUNDED = StatisticsFamily((torch.square, cube), -1.0, 2.0, limits=(-3.0, 3.0))
ON_LINE = StatisticsFamily(
    (torch.sin, torch.square), -6.0, 6.0, bell, limits=(-2.0, 1.5), unbounded=True
)


def identifiable(prior: Any, validate_args: bool | None = None) -> Any:
    prior.validate_args = validate_args
    device = next(prior.parameters()).device
    return prior.condition(torch.tensor([0, 2, 1], device=device))


def mixture(*batch: int) -> dict[str, Any]:
    return {
        "logits": torch.randn(*batch, 2),
        "loc": 1 + torch.randn(*batch, 2, 2),
        "scale": 0.5 + torch.rand(*batch, 2, 2),
        "coefficients": 0.5 * torch.randn(*batch, 1, 2),
        "levels": 3,
    }


SMALL = {"image_shape": (1, 4, 4), "depth": 2, "levels": 2, "width": 8}
PAIR = torch.tensor([0.1, -0.1])


# Not of ours, and as they are.
BY_PYRO = ("signature", "validation")

# Handlers on a stack, and methods that look it up, are more than one graph.
PROGRAM = ("compiles",)

# Both atoms, their neighbours, and the inside of a gate.
GATES = torch.tensor([0.0, 1e-12, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-7, 1.0], dtype=torch.float64)

FIXTURES: dict[str, Fixture] = {
    "AutoregressiveShift": Fixture(
        itself, {"transform": AutoregressiveShift(3)}, torch.randn(4, 3), check=check_transform
    ),
    "DiscretizedLogistic": Fixture(
        DiscretizedLogistic, {"loc": torch.tensor(2.3), "scale": torch.tensor(1.2), "levels": 6}
    ),
    "DiscretizedLogistic-batch": Fixture(
        DiscretizedLogistic,
        {"loc": torch.linspace(-2, 7, 6).reshape(2, 3), "scale": 0.7, "levels": 6},
    ),
    "DiscretizedLogisticMixture-vector": Fixture(DiscretizedLogisticMixture, mixture()),
    "DiscretizedLogisticMixture-vector-batch": Fixture(DiscretizedLogisticMixture, mixture(2)),
    "PixelCNN-image": Fixture(
        pixel_cnn, {"net": pixels(head="bernoulli"), "temperature": torch.tensor(0.8)}
    ),
    "PixelCNN-image-batch": Fixture(
        labelled_pixel_cnn,
        {"net": pixels(num_classes=3), "temperature": torch.tensor([0.8, 1.2])},
    ),
    "PixelCNN-window": Fixture(
        pixel_cnn, {"net": pixels(window=(3, 2)), "temperature": torch.tensor(1.0)}
    ),
    "Dequantized-vector": Fixture(dequantized, {"loc": PAIR, "scale": 0.2}),
    "Dequantized-vector-batch": Fixture(
        dequantized, {"loc": torch.stack([PAIR, -PAIR]), "scale": 0.3, "noise": inward}
    ),
    "ExponentialTilt-scalar": Fixture(
        ExponentialTilt,
        {"family": BOUNDED, "natural_parameters": torch.tensor([-1.0, 0.7])},
        torch.tensor([-1.0, -0.3, 0.0, 1.7, 2.0]),
    ),
    "ExponentialTilt-scalar-batch": Fixture(
        ExponentialTilt,
        {
            "family": ON_LINE,
            "natural_parameters": torch.tensor([[[1.0, -1.9]], [[0.3, 1.4]], [[-1.8, 0.0]]]),
        },
        torch.tensor([-9.0, -1.2, 0.0, 0.4, 3.0]).reshape(-1, 1, 1),
    ),
    "Glow-image": Fixture(
        glow, {"net": started(GlowNet(**SMALL)), "temperature": torch.tensor(0.8)}
    ),
    "Glow-image-batch": Fixture(
        labelled_glow,
        {
            "net": started(GlowNet(**SMALL, num_classes=3), torch.randint(3, (50,))),
            "temperature": torch.tensor([0.8, 1.2]),
        },
    ),
    **{
        f"{name}-vector-batch": Fixture(identifiable, {"prior": prior}, skip=BY_PYRO)
        for name, prior in {
            "IdentifiablePrior-normal": IdentifiablePrior(2, 3),
            "IdentifiablePrior-scale": IdentifiablePrior(2, 3, family=GaussianFamily(("scale",))),
            "IdentifiablePrior-laplace": IdentifiablePrior(2, 3, family=LaplaceFamily()),
            "IdentifiablePrior-statistics": IdentifiablePrior(2, 3, family=BOUNDED),
            "IMCAPrior": IMCAPrior(2, 3, modulated=("loc", "scale")),
        }.items()
    },
    "InvertibleTransform-net": Fixture(
        InvertibleTransform,
        {"module": started(GlowNet(**SMALL))},
        torch.randn(3, 16),
        check=check_transform,
    ),
    "InvertibleTransform-checkpoint": Fixture(
        InvertibleTransform,
        {"module": started(GlowNet(**SMALL, memory="checkpoint"))},
        torch.randn(3, 16),
        check=check_transform,
    ),
    "InvertibleTransform-invertible": Fixture(
        InvertibleTransform,
        {"module": started(GlowNet(**SMALL, memory="invertible"))},
        torch.randn(3, 16),
        skip=("compiles",),  # its backward pass is a break in the graph
        check=check_transform,
    ),
    "InvertibleTransform-flat": Fixture(
        InvertibleTransform,
        {"module": started(GlowNet(**SMALL, coupling="additive")), "flat": True},
        torch.randn(3, 16),
        check=check_transform,
    ),
    "InvertibleTransform-layer": Fixture(
        InvertibleTransform,
        {"module": GlowLevel(4, 2, 8)},
        torch.randn(3, 4, 2, 2),
        check=check_transform,
    ),
    "HamiltonianImportance-scalar": Fixture(
        hamiltonian,
        {"loc": torch.zeros(()), "potential": Energy(), "step_size": 0.4, "tempering": 0.9},
    ),
    "HamiltonianImportance-scalar-batch": Fixture(
        hamiltonian,
        {
            "loc": torch.zeros(2, 3),
            "potential": Energy(),
            "step_size": 0.4,
            "tempering": 0.9,
            "momentum_net": MomentumNet((), (4,)),
        },
    ),
    "HamiltonianImportance-vector": Fixture(
        hamiltonian,
        {
            "loc": torch.zeros(2),
            "potential": Energy(2),
            "step_size": torch.tensor([0.3, 0.5]),
            "tempering": torch.tensor([0.9, 0.95]),
            "momentum_net": MomentumNet(2, (4,)),
            "event_dim": 1,
        },
    ),
    "HamiltonianImportance-vector-batch": Fixture(
        hamiltonian,
        {
            "loc": torch.randn(3, 2),
            "potential": Energy(2),
            "step_size": 0.4,
            "tempering": torch.tensor([0.9, 0.95]),
            "event_dim": 1,
        },
    ),
    "HardConcrete-scalar": Fixture(
        HardConcrete, {"log_alpha": torch.tensor(0.4), "temperature": 0.6}, values=GATES
    ),
    "HardConcrete-scalar-batch": Fixture(
        HardConcrete,
        {"log_alpha": torch.tensor([[-3.0, 0.0, 2.0], [1.0, -1.0, 4.0]]), "stretch": (-0.2, 1.05)},
        values=GATES[:, None, None],
    ),
    "HardKumaraswamy-scalar": Fixture(
        HardKumaraswamy, {"concentration1": torch.tensor(0.7), "concentration0": 0.4}, values=GATES
    ),
    "HardKumaraswamy-scalar-batch": Fixture(
        HardKumaraswamy,
        {
            "concentration1": torch.tensor([[0.3], [5.0]]),
            "concentration0": torch.tensor([0.5, 2.0, 8.0]),
            "stretch": (-0.2, 1.05),
        },
        values=GATES[:, None, None],
    ),
    "LearnedAcceptReject-scalar": Fixture(
        learned_rejection,
        {"loc": torch.zeros(()), "logit": Energy(), "normalizer": MovingNormalizer(decay=0.0)},
        skip=ESTIMATE,
    ),
    "LearnedAcceptReject-vector-batch": Fixture(
        learned_rejection,
        {
            "loc": torch.randn(3, 2),
            "logit": Energy(2),
            "normalizer": MovingNormalizer((3,), decay=0.0),
            "event_dim": 1,
        },
        skip=ESTIMATE,
    ),
    "LearnedAcceptReject-evaluated-scalar": Fixture(
        evaluated_rejection, {"normalizer": stored((), 1)}
    ),
    "LearnedAcceptReject-evaluated-scalar-batch": Fixture(
        evaluated_rejection, {"normalizer": stored((2, 3), 1), "shape": (2, 3)}
    ),
    "LearnedAcceptReject-evaluated-vector": Fixture(
        evaluated_rejection, {"normalizer": stored((), 2), "shape": (2,), "event_dim": 1}
    ),
    "SelfNormalizedImportance-scalar": Fixture(
        importance, {"loc": torch.zeros(()), "energy": Energy()}
    ),
    "SelfNormalizedImportance-scalar-batch": Fixture(
        importance, {"loc": torch.zeros(2, 3), "energy": Energy()}
    ),
    "SelfNormalizedImportance-scalar-unshared": Fixture(
        importance, {"loc": torch.zeros(3), "energy": Energy(), "share_proposals": False}
    ),
    "SelfNormalizedImportance-vector": Fixture(
        importance, {"loc": torch.zeros(2), "energy": Energy(2), "event_dim": 1}
    ),
    "SelfNormalizedImportance-vector-batch": Fixture(
        importance, {"loc": torch.randn(3, 2), "energy": Energy(2), "event_dim": 1}
    ),
    "SelfNormalizedImportance-vector-unshared": Fixture(
        importance,
        {
            "loc": torch.randn(3, 2),
            "energy": Energy(2),
            "event_dim": 1,
            "share_proposals": False,
        },
    ),
    "SemiImplicit-scalar": Fixture(semi_implicit, {"loc": torch.zeros(()), "conditional": Blur()}),
    "SemiImplicit-scalar-batch": Fixture(
        semi_implicit, {"loc": torch.zeros(2, 3), "conditional": Blur()}
    ),
    "SemiImplicit-vector": Fixture(
        semi_implicit, {"loc": torch.zeros(2), "conditional": Blur(2), "event_dim": 1}
    ),
    "SemiImplicit-vector-batch": Fixture(
        semi_implicit,
        {
            "loc": torch.randn(3, 2),
            "conditional": Blur(2),
            "reverse": Unblur(1),
            "event_dim": 1,
        },
    ),
    "SemiImplicit-reversed": Fixture(
        semi_implicit, {"loc": torch.zeros(()), "conditional": Blur(), "reverse": Unblur()}
    ),
    "MultiplicativeNormal-scalar": Fixture(
        MultiplicativeNormal, {"loc": torch.tensor(-0.7), "log_alpha": 0.3}
    ),
    "MultiplicativeNormal-scalar-batch": Fixture(
        MultiplicativeNormal,
        {"loc": torch.tensor([[0.5], [-2.0]]), "log_alpha": torch.tensor([-3.0, 0.0, 1.0])},
    ),
    "TruncatedLogNormal-scalar": Fixture(
        TruncatedLogNormal, {"loc": torch.tensor(-0.3), "scale": 0.7, "low": -2.0, "high": 0.5}
    ),
    "TruncatedLogNormal-scalar-batch": Fixture(
        TruncatedLogNormal,
        {
            "loc": torch.tensor([[-4.0, -1.0, 0.0], [3.0, -0.5, 0.1]]),
            "scale": torch.tensor([0.5, 2.0, 0.1]),
            "low": -3.0,
            "high": 0.25,
        },
    ),
    "TruncatedLogUniform-scalar": Fixture(
        TruncatedLogUniform, {"low": torch.tensor(-2.0), "high": 0.5}
    ),
    "TruncatedLogUniform-scalar-batch": Fixture(
        TruncatedLogUniform,
        {"low": torch.tensor([[-4.0], [-2.0]]), "high": torch.tensor([-1.0, 0.0, 1.0])},
    ),
    "TruncatedRejection-scalar": Fixture(rejection, {"loc": torch.zeros(()), "logit": Energy()}),
    "TruncatedRejection-scalar-batch": Fixture(
        rejection, {"loc": torch.zeros(2, 3), "logit": Energy()}
    ),
    "TruncatedRejection-scalar-unshared": Fixture(
        rejection, {"loc": torch.zeros(3), "logit": Energy(), "share_proposals": False}
    ),
    "TruncatedRejection-vector": Fixture(
        rejection, {"loc": torch.zeros(2), "logit": Energy(2), "event_dim": 1}
    ),
    "TruncatedRejection-vector-batch": Fixture(
        rejection, {"loc": torch.randn(3, 2), "logit": Energy(2), "event_dim": 1}
    ),
    "TruncatedRejection-guessed": Fixture(
        rejection,
        {"loc": torch.zeros(()), "logit": Energy(), "reverse_logit": torch.tensor(0.3)},
        skip=("sandwich",),  # there is no tight upper bound
    ),
    "TruncatedRejection-known-scalar": Fixture(known_rejection, {}),
    "TruncatedRejection-known-scalar-batch": Fixture(known_rejection, {"shape": (2, 3)}),
    "TruncatedRejection-known-vector": Fixture(known_rejection, {"shape": (3, 2), "event_dim": 1}),
    "SelfNormalizedImportance-binary": Fixture(
        binary_importance,
        {"logits": torch.tensor([0.3, -0.6]), "energy": Energy(2)},
        skip=("derivatives",),  # of bits, by their score function
    ),
    "ModelMarginal-scalar": Fixture(marginal, {"program": LinearProgram(())}, skip=PROGRAM),
    "ModelMarginal-scalar-batch": Fixture(
        marginal, {"program": LinearProgram((2, 3))}, skip=PROGRAM
    ),
    "ModelMarginal-vector": Fixture(marginal, {"program": LinearProgram((2,), 1)}, skip=PROGRAM),
    "ModelMarginal-vector-batch": Fixture(
        marginal, {"program": LinearProgram((3, 2), 1)}, skip=PROGRAM
    ),
    "ModelMarginal-binary": Fixture(
        marginal,
        {"program": BinaryProgram()},
        skip=("derivatives", "vmaps", *PROGRAM),  # vmap draws no bits from given logits
    ),
}

# Public names that are no concrete distribution, and why.
EXEMPT = {
    "AuxiliaryLost": "an exception",
    "ConditionalPixelCNN": "a family of them",
    "GaussianFamily": "makes Pyro's own",
    "HamiltonianSampler": "a module that makes one",
    "ImportanceSampler": "a module that makes one",
    "L0Prior": "improper, cannot be drawn; its contract is in its own test",
    "LaplaceFamily": "makes Pyro's own",
    "LearnedAcceptRejectSampler": "a module that makes one",
    "LogUniform": "improper, cannot be drawn; its contract is in its own test",
    "Rectified": "abstract",
    "StatisticsFamily": "makes one",
    "StochasticDensity": "abstract",
    "TruncatedRejectionSampler": "a module that makes one",
    "leave_one_out": "a gradient",
    "reparameterized": "a gradient",
    "stop_gradient": "a gradient",
    "straight_through": "makes a gradient",
}
