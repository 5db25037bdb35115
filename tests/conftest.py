"""Every test starts from the same state, and must leave the global state as it was."""

import os
import sys
import zlib
from pathlib import Path

import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch.distributions import Distribution

# So that test modules can say `from fixtures import FIXTURES`; tests is not a package.
sys.path[:0] = [str(Path(__file__).parent / room) for room in ("distributions", "infer")]


def global_state() -> dict:
    """What a test may not leave changed."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.empty(0).device,
        "grad mode": torch.is_grad_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "validation of torch distributions": Distribution._validate_args,
        "pyro.settings": pyro.settings.get(),
        "open Pyro handlers": list(_PYRO_STACK),
    }


def restore(state: dict) -> None:
    """Repairs what one test broke, so that the next one is judged by itself."""
    torch.set_default_dtype(state["default dtype"])
    if torch.empty(0).device != state["default device"]:
        torch.set_default_device(None)
    torch.set_grad_enabled(state["grad mode"])
    torch.autograd.set_detect_anomaly(state["anomaly mode"])
    Distribution.set_default_validate_args(state["validation of torch distributions"])
    pyro.settings.set(**state["pyro.settings"])
    _PYRO_STACK[:] = state["open Pyro handlers"]


def leaks(before: dict, after: dict) -> list[str]:
    """Names what differs."""
    return [
        f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]
    ]


@pytest.fixture(autouse=True)
def _clean_world(request):
    """Seeds from the test's name, validates, clears the parameter store; fails on leaks."""
    pyro.clear_param_store()
    pyro.set_rng_seed(zlib.crc32(request.node.name.encode()))
    with pyro.validation_enabled():
        before = global_state()
        yield
        leaked = leaks(before, global_state())
        restore(before)
    pyro.clear_param_store()
    if leaked:
        pytest.fail("the test leaks global state: " + "; ".join(leaked))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets."""
    root = os.environ.get("PYRO_EXT_DATA")
    if root is None:
        pytest.skip("PYRO_EXT_DATA is unset: it names the folder of the real data sets")
    return Path(root)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
