"""Glow beside its peers: each rival scores and draws images after it has started from some."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_ext.distributions import Glow
from pyro_ext.nn import GlowNet

IMAGE = (3, 32, 32)


class Size(NamedTuple):
    """Steps of flow per level, levels, hidden channels of a coupling's network."""

    depth: int
    levels: int
    width: int


class Rival(NamedTuple):
    """A net, and what to ask of it."""

    net: nn.Module
    start: Callable[[Tensor], Any]  # from images (N, C, H, W) in [-1/2, 1/2)
    log_prob: Callable[[Tensor], Tensor]  # (N,) in nats
    sample: Callable[[int], Tensor]


def ours(size: Size, **options) -> Rival:
    """Ours, with options of ``GlowNet``."""
    net = GlowNet(IMAGE, *size, **options)
    return Rival(
        net,
        net.initialize,
        lambda x: Glow(net, validate_args=False).log_prob(x),
        lambda num: Glow(net, validate_args=False).sample(torch.Size([num])),
    )


def normflows(size: Size, bf16: bool = False, **options) -> Rival:
    """As in the example of normflows, with options of its ``GlowBlock``.

    With ``bf16`` it computes under autocast, channels last; it starts without.
    """
    import normflows as nf

    channels, height, width = IMAGE
    bases, flows = [], []
    for level in range(size.levels, 0, -1):  # from coarse to fine
        wide = channels * 2 ** (level + 1)
        blocks = [nf.flows.GlowBlock(wide, size.width, **options) for _ in range(size.depth)]
        flows.append([*blocks, nf.flows.Squeeze()])
        left = wide if level == size.levels else wide // 2
        bases.append(nf.distributions.GlowBase((left, height >> level, width >> level)))
    merges = [nf.flows.Merge() for _ in flows[1:]]
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    return assembled(
        model, lambda x: model.log_prob(x, None), lambda num: model.sample(num)[0], bf16
    )


def nflows(size: Size, bf16: bool = False) -> Rival:
    """Assembled of transforms of nflows, with plain networks in the couplings."""
    from nflows import distributions, flows, transforms

    whole = transforms.MultiscaleCompositeTransform(size.levels)
    shape: Any = IMAGE
    for _ in range(size.levels):
        squeeze = transforms.SqueezeTransform()
        shape = squeeze.get_output_shape(*shape)
        steps = [step for _ in range(size.depth) for step in step_of_nflows(shape[0], size.width)]
        shape = whole.add_transform(transforms.CompositeTransform([squeeze, *steps]), shape)
    model = flows.Flow(whole, distributions.StandardNormal([math.prod(IMAGE)]))
    return assembled(model, model.log_prob, model.sample, bf16)


def step_of_nflows(channels: int, width: int) -> list:
    from nflows import transforms

    mask = torch.arange(channels) >= channels // 2
    return [
        transforms.ActNorm(channels),
        transforms.OneByOneConvolution(channels),
        transforms.AffineCouplingTransform(mask, lambda few, many: PlainNet(few, many, width)),
    ]


def freia(size: Size, bf16: bool = False) -> Rival:
    """Assembled of modules of FrEIA; its mixing of channels is not learned, its norm no actnorm."""
    from FrEIA import framework as ff
    from FrEIA import modules as fm

    nodes, latents = [ff.InputNode(*IMAGE)], []
    for level in range(size.levels):
        nodes.append(ff.Node(nodes[-1].out0, fm.IRevNetDownsampling, {}))
        block = {
            "subnet_constructor": lambda few, many: PlainNet(few, many, size.width),
            "permute_soft": True,
        }
        for _ in range(size.depth):
            nodes.append(ff.Node(nodes[-1].out0, fm.AllInOneBlock, block))
        if level + 1 < size.levels:
            nodes.append(ff.Node(nodes[-1].out0, fm.Split, {}))
            latents.append(ff.OutputNode(nodes[-1].out1))
    latents.append(ff.OutputNode(nodes[-1].out0))
    model = ff.GraphINN(nodes + latents)
    shapes = list(model.global_out_shapes)

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = model(x)
        squares = sum(part.square().flatten(1).sum(1) for part in z)
        return log_det - 0.5 * (squares + math.prod(IMAGE) * math.log(2 * math.pi))

    def sample(num: int) -> Tensor:
        return model([torch.randn(num, *shape) for shape in shapes], rev=True, jac=False)[0]

    return assembled(model, log_prob, sample, bf16)


def floor(size: Size, bf16: bool = False) -> Rival:
    """The couplings' convolutions alone, channels last: no flow, but what all must compute."""
    model = Convolutions(size).to(torch.bfloat16 if bf16 else torch.float32)
    model.to(memory_format=torch.channels_last)
    shape, dtype = IMAGE, next(model.parameters()).dtype

    def score(x: Tensor) -> Tensor:
        return model(x.to(dtype)).float().square().flatten(1).sum(1)

    return Rival(
        model, lambda x: None, score, lambda num: model(torch.randn(num, *shape, dtype=dtype))
    )


class PlainNet(nn.Sequential):
    """The network of a coupling, without norms."""

    def __init__(self, few: int, many: int, width: int):
        last = nn.Conv2d(width, many, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(
            nn.Conv2d(few, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


class Convolutions(nn.Module):
    """Networks of couplings one after the other, each fed by a half of what the last one made."""

    def __init__(self, size: Size):
        super().__init__()
        channels = [IMAGE[0] * 2 ** (level + 2) for level in range(size.levels)]
        self.levels: Any = nn.ModuleList(
            nn.ModuleList(PlainNet(wide // 2, wide, size.width) for _ in range(size.depth))
            for wide in channels
        )

    def forward(self, x: Tensor) -> Tensor:
        for level in self.levels:
            x = nn.functional.pixel_unshuffle(x, 2)
            x = x.contiguous(memory_format=torch.channels_last)
            for net in level:
                x = net(x.chunk(2, 1)[0])
            x = x.chunk(2, 1)[0] if level is not self.levels[-1] else x
        return x


def assembled(
    model: nn.Module,
    log_prob: Callable[[Tensor], Tensor],
    sample: Callable[[int], Tensor],
    bf16: bool,
) -> Rival:
    """A peer, which starts by scoring; under autocast, channels last, on request."""
    if not bf16:
        return Rival(model, torch.no_grad()(log_prob), log_prob, torch.no_grad()(sample))
    model.to(memory_format=torch.channels_last)

    def within() -> AbstractContextManager:
        return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)

    def score(x: Tensor) -> Tensor:
        with within():
            return log_prob(x.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def draw(num: int) -> Tensor:
        with within():
            return sample(num)

    return Rival(model, torch.no_grad()(log_prob), score, draw)
