"""The format of a result file, and the facts about the machine that go into each."""

import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("pyro-ext", "torch", "pyro-ppl", "numpy", "arviz", "numpyro", "jax", "tfp-nightly")


def record(
    name: str, title: str, settings: dict[str, Any], measure: Callable[[], Sequence[dict]]
) -> Path:
    """Runs ``measure``, prints its rows and writes ``results/<name>.json``.

    A row is a flat dictionary of labels and figures; units stand in the labels. Nothing is
    asserted.
    """
    wall, cpu = perf_counter(), process_time()
    rows = list(measure())
    result = {
        "name": name,
        "title": title,
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "settings": settings,
        "rows": rows,
        "wall_seconds": round(perf_counter() - wall, 1),
        "cpu_seconds": round(process_time() - cpu, 1),
        "machine": machine(),
        "versions": versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
    print(f"wrote {path}")
    return path


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that take part, where installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
