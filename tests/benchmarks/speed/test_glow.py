"""Glow beside normflows, nflows and FrEIA, and beside the convolutions that all must compute.

The same sizes and batches for all, each as its library has it, started from the same images.
Peers under bf16 autocast compute channels last, and so is their latent state partly bf16; ours
stays float32. A row of ours has its time relative to the bare convolutions of its dtype, a row of
a peer relative to each of ours. What a step saves for its backward pass is counted in bytes of
distinct storages, as the difference of two batches, so that parameters do not count. ``run.py``
fixes the threads.
"""

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import glow_rivals as rivals
from glow_rivals import Rival, Size

pytestmark = pytest.mark.benchmark
BF16 = torch.bfloat16
SMALL, DEEP, LARGE = Size(8, 3, 128), Size(32, 3, 128), Size(32, 3, 512)
FLOORS: dict[str, Callable[[Size], Rival]] = {
    "convolutions, fp32": rivals.floor,
    "convolutions, bf16": partial(rivals.floor, bf16=True),
}
OURS: dict[str, Callable[[Size], Rival]] = {
    "ours, fp32": rivals.ours,
    "ours, bf16 nets": partial(rivals.ours, compute_dtype=BF16),
}
MEMORY: dict[str, Callable[[Size], Rival]] = {
    "checkpoint, bf16 nets": partial(rivals.ours, compute_dtype=BF16, memory="checkpoint"),
    "invertible, bf16 nets": partial(rivals.ours, compute_dtype=BF16, memory="invertible"),
    "invertible, fp32": partial(rivals.ours, memory="invertible"),
}
NORMFLOWS: dict[str, Callable[[Size], Rival]] = {
    "normflows, fp32": rivals.normflows,
    "normflows, bf16 autocast": partial(rivals.normflows, bf16=True),
}
PEERS: dict[str, Callable[[Size], Rival]] = {
    **NORMFLOWS,
    "nflows, fp32": rivals.nflows,
    "nflows, bf16 autocast": partial(rivals.nflows, bf16=True),
    "FrEIA, fp32": rivals.freia,
    "FrEIA, bf16 autocast": partial(rivals.freia, bf16=True),
}
ALL = {**FLOORS, **OURS, **MEMORY, **PEERS}
BATCH = {SMALL: 16, DEEP: 16, LARGE: 4}
ROUNDS = {SMALL: 12, DEEP: 3, LARGE: 2}


@pytest.fixture(autouse=True)
def _without_validation():
    with pyro.validation_enabled(False):
        yield
    gc.collect()  # nets and their gradients, before the next ones are built


def images(num: int) -> Tensor:
    return torch.rand(num, *rivals.IMAGE, generator=torch.Generator().manual_seed(1)) - 0.5


def enter(benchmark, name: str, size: Size) -> Rival:
    """Builds and starts a rival, or skips if its library is not installed."""
    library = name.split(",")[0]
    if name in PEERS:
        pytest.importorskip(library, reason=f"{library} is not installed")
    torch.manual_seed(0)
    rival = ALL[name](size)
    rival.start(images(64))
    benchmark.extra_info["implementation"] = name
    if name not in PEERS:
        benchmark.extra_info["reference"] = reference(name)
    return rival


def reference(name: str) -> str:
    dtype = "bf16" if "bf16" in name else "fp32"
    if name in MEMORY:
        return next(one for one in OURS if dtype in one)
    return next(one for one in FLOORS if dtype in one) if name in OURS else "convolutions, fp32"


def saved_bytes(rival: Rival, x: Tensor) -> int:
    """Bytes of all storages that a backward pass keeps."""
    sizes = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = rival.log_prob(x).sum()
    return sum(sizes.values()) if loss.requires_grad else 0


def saved_per_image(rival: Rival, few: int = 2) -> float:
    """Megabytes of an image."""
    one, two = (saved_bytes(rival, images(num)) for num in (few, 2 * few))
    return (two - one) / few / 1e6


@pytest.mark.benchmark(group="log_prob, K=8, width 128, 16 images")
@pytest.mark.parametrize("name", [*FLOORS, *OURS, *PEERS])
def test_log_prob(benchmark, name):
    rival, x = enter(benchmark, name, SMALL), images(BATCH[SMALL])
    with torch.no_grad():
        benchmark.pedantic(rival.log_prob, (x,), rounds=15, warmup_rounds=2)


@pytest.mark.benchmark(group="sample, K=8, width 128, 16 images")
@pytest.mark.parametrize("name", [*FLOORS, *OURS, *PEERS])
def test_sampling(benchmark, name):
    rival = enter(benchmark, name, SMALL)
    with torch.no_grad():
        benchmark.pedantic(rival.sample, (BATCH[SMALL],), rounds=15, warmup_rounds=2)


def measure_training(benchmark, name: str, size: Size) -> None:
    rival, x = enter(benchmark, name, size), images(BATCH[size])

    def step() -> None:
        rival.net.zero_grad()
        (-rival.log_prob(x).mean()).backward()

    benchmark.pedantic(step, rounds=ROUNDS[size], warmup_rounds=1)
    benchmark.extra_info["saved for backward (MB per image)"] = saved_per_image(rival)


@pytest.mark.benchmark(group="training step, K=8, width 128, 16 images")
@pytest.mark.parametrize("name", ALL)
def test_training(benchmark, name):
    measure_training(benchmark, name, SMALL)


@pytest.mark.benchmark(group="training step, K=32, width 128, 16 images")
@pytest.mark.parametrize("name", [*FLOORS, *OURS, *MEMORY, *NORMFLOWS])
def test_training_of_a_deep_net(benchmark, name):
    measure_training(benchmark, name, DEEP)


@pytest.mark.benchmark(group="training step, K=32, width 512, 4 images")
@pytest.mark.parametrize("name", [*FLOORS, *OURS, *MEMORY, *NORMFLOWS])
def test_training_of_a_large_net(benchmark, name):
    measure_training(benchmark, name, LARGE)
