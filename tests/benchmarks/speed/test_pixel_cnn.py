"""PixelCNN++: drawing with memory and without, and training beside its layers in plain torch.

All draws are of one net, started from images, and from equal numbers, so that all make the same
images. Without memory a pixel takes a pass over the image: a few pixels are drawn, and the time is
that of all in proportion. As a fixed point all pixels are drawn at once, until none changes; a net
that has learned little from its pixels needs few passes. ``run.py`` fixes the threads.
"""

import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import pixel_cnn_rivals as rivals
from pixel_cnn_rivals import Plain

from pyro_ext.distributions import PixelCNN
from pyro_ext.nn import PixelCNNNet

pytestmark = pytest.mark.benchmark
SHAPES = {"28x28x1": (1, 28, 28), "32x32x3": (3, 32, 32)}
DRAWN, BATCH, FEW = 64, 8, 2
each_shape = pytest.mark.parametrize("size", SHAPES)


@pytest.fixture(autouse=True)
def _without_validation():
    with pyro.validation_enabled(False):
        yield


def images(shape: tuple[int, int, int], num: int = BATCH) -> Tensor:
    """Smooth images of integers."""
    channels, height, width = shape
    small = torch.rand(num, channels, 7, 7, generator=torch.Generator().manual_seed(1))
    large = nn.functional.interpolate(small, (height, width), mode="bilinear")
    return (255 * large).round()


def started(shape: tuple[int, int, int]) -> PixelCNNNet:
    torch.manual_seed(0)
    return rivals.ours(shape).initialize(images(shape))


def named(benchmark, operation: str, size: str, name: str) -> None:
    benchmark.group = f"{operation}, {size}"
    benchmark.extra_info["implementation"] = name


def stretch(benchmark, factor: float) -> None:
    """Multiplies the times that were measured, for those of a whole of which a part was done."""
    data = benchmark.stats.stats.data
    data[:] = [factor * seconds for seconds in data]


@each_shape
def test_cached_sampling(benchmark, size):
    named(benchmark, f"{DRAWN} images", size, "ours")
    law = PixelCNN(started(SHAPES[size]))
    benchmark.pedantic(law.sample, (torch.Size([DRAWN]),), rounds=2, warmup_rounds=1)


@torch.no_grad()
def naive(net: PixelCNNNet, uniforms: Tensor, num_pixels: int) -> Tensor:
    """One pass over the image for each pixel."""
    x = torch.zeros(len(uniforms), *net.image_shape)
    for place in range(num_pixels):
        row, column = divmod(place, net.image_shape[-1])
        outputs = net.outputs(x)[..., row, column]
        x[..., row, column] = net.head.sample(uniforms[:, row, column], outputs, 1.0)
    return x


@each_shape
def test_naive_sampling(benchmark, size):
    named(benchmark, f"{DRAWN} images", size, "a pass for each pixel")
    net = started(SHAPES[size]).eval()
    uniforms, pixels = PixelCNN(net).noise((DRAWN,)), net.image_shape[1:].numel()
    benchmark.pedantic(naive, (net, uniforms, FEW), rounds=2, warmup_rounds=1)
    stretch(benchmark, pixels / FEW)
    benchmark.extra_info["extrapolated from pixels"] = f"{FEW} of {pixels}"


@torch.no_grad()
def fixed_point(net: PixelCNNNet, uniforms: Tensor) -> tuple[Tensor, int]:
    """All pixels at once until none changes; the images, and the number of passes."""
    x, passes = torch.zeros(len(uniforms), *net.image_shape), 0
    while True:
        outputs = net.outputs(x).movedim(1, -1)
        last, x = x, net.head.sample(uniforms, outputs, 1.0).movedim(-1, 1)
        passes += 1
        if torch.equal(x, last):
            return x, passes


@each_shape
def test_fixed_point_sampling(benchmark, size):
    named(benchmark, f"{DRAWN} images", size, "fixed point")
    net = started(SHAPES[size]).eval()
    uniforms = PixelCNN(net).noise((DRAWN,))
    x, passes = benchmark.pedantic(fixed_point, (net, uniforms), rounds=1)
    benchmark.extra_info["passes"] = passes
    same = (x == PixelCNN(net).decode(uniforms)).double().mean().item()
    benchmark.extra_info["pixels equal to ours (%)"] = 100 * same


def log_prob_of(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, Any]:
    """A net, and its log probability."""
    if name == "ours":
        net = started(shape)
        return net, lambda x: PixelCNN(net).log_prob(x)
    torch.manual_seed(0)
    plain = Plain(shape)
    return plain, plain.log_prob


each_net = pytest.mark.parametrize("name", ["ours", "layers in plain torch"])


@each_shape
@each_net
def test_training(benchmark, size, name):
    named(benchmark, f"training step, {BATCH} images", size, name)
    net, log_prob = log_prob_of(name, SHAPES[size])
    x = images(SHAPES[size])

    def step() -> None:
        net.zero_grad()
        (-log_prob(x).mean()).backward()

    benchmark.pedantic(step, rounds=10, warmup_rounds=2)
    benchmark.extra_info["parameters"] = sum(p.numel() for p in net.parameters())


@each_shape
@each_net
@torch.no_grad()
def test_log_prob(benchmark, size, name):
    named(benchmark, f"log_prob, {BATCH} images", size, name)
    net, log_prob = log_prob_of(name, SHAPES[size])
    net.eval()
    benchmark.pedantic(log_prob, (images(SHAPES[size]),), rounds=15, warmup_rounds=2)
