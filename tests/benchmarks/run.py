"""Runs the benchmarks: speed beside peers, then the figures of the papers.

``python tests/benchmarks/run.py --budget small|paper [--only NAME]`` writes ``results/*.json``.
A NAME is that of a result of speed (``speed_multi_sample_elbo``) or of a paper's script
(``bm_eim_toys``). Nothing is asserted.
Speed is measured in several passes over all rivals, so that what else the machine does meets each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
TITLES = {
    "speed_bayesian_networks": "A training step of a Bayesian network, and an L0 layer",
    "speed_energy_inspired": "A training step of a VAE by its prior, and draws per second",
    "speed_glow": "Glow beside other libraries and its bare convolutions",
    "speed_pixel_cnn": "PixelCNN++: draws beside a pass per pixel, training beside plain torch",
    "speed_self_normalized_importance": "Speed of SelfNormalizedImportance beside TFP",
    "speed_multi_sample_elbo": "A training step of MultiSampleELBO beside Pyro and NumPyro",
}
SETTINGS = {
    "speed_bayesian_networks": {
        "network": "784-300-100-10, ReLU, batch of 100, one draw, fused Adam over all parameters",
        "prior": "standard normal; of bayesian-torch too, whose means are scaled by weights, "
        "too much for biases",
        "posterior": "standard deviation 0.02 at first, of torchbnn that of the prior; peers with "
        "layers of their own start at means of their own",
        "L0 layer": "784-300, batch of 100, gates per example, penalty; no optimiser",
        "dtype": "float32",
        "note": "blitz estimates the divergence by the draw; zuko clips log variances softly",
    },
    "speed_energy_inspired": {
        "VAE": "784-300-300-50, tanh, Bernoulli pixels, batch of 128, one particle, fused Adam",
        "energy and acceptance logit": "50-100-100-1, tanh, as they start",
        "candidates of SNIS, TRS and LARS": 1024,
        "HIS": "five leapfrog steps, momentum net 50-100-100-100",
        "sampling": "1,000 draws at once; rejection stops at the first accepted candidate",
        "dtype": "float32",
    },
    "speed_glow": {
        "images": "3 x 32 x 32, three levels",
        "training step": "density and gradients, no optimiser",
        "convolutions": "those of the couplings alone, in three levels, channels last",
        "bf16": "ours: the couplings' networks; peers: autocast and channels last, so their "
        "latents are partly bf16 too",
        "work": "ours has actnorm in the couplings' networks and learned priors at splits; "
        "the peers, as measured here, have neither; FrEIA mixes channels by rotations that stay",
        "saved for backward": "distinct storages, the difference of two batches; 1 MB = 1e6 bytes",
    },
    "speed_pixel_cnn": {
        "net": "32 channels, two blocks, three stages, five components, 256 levels, float32",
        "draws": "64 images of one net, started from images; a pass for each pixel is extrapolated "
        "from two pixels",
        "fixed point": "few passes, as the net has learned nothing yet",
        "training step": "batch of 8, dropout 0.5, loss and gradients, no optimiser",
        "peer": "the same layers in plain torch, its loss with a threshold as published",
    },
    "speed_self_normalized_importance": {
        "energy": "50-100-100-1, tanh",
        "num_proposals": 1024,
        "batch size": 128,
        "dtype": "float32",
        "mean value": "mean log density in nats; of sample, mean square of the draws",
        "note": "TFP draws candidates for each value, so the like-for-like ratio is that to our "
        "own proposals, while shared ones are less work by design; TFP takes the target's "
        "density, so it scores candidates under the proposal too",
    },
    "speed_multi_sample_elbo": {
        "demo VAE": "784-300-300-50, tanh, Bernoulli pixels, batch of 128",
        "small VAE": "20-32-2, batch of 16: what a step costs besides arithmetic",
        "step": "loss, gradients and Adam; rows named fused have one fused torch.optim.Adam, "
        "the others go through SVI and pyro.optim.Adam",
        "num_particles": 10,
        "particles": "vectorised",
        "dtype": "float32",
        "mean value": "bound per datum in nats, before training; of Trace_ELBO, the ELBO",
        "peak memory": "tensors alive at the peak of 10 steps, besides parameters and Adam's "
        "moments, by torch's profiler",
        "GPU synchronisations": "counted where there is a GPU",
        "note": "RenyiELBO at alpha=0 is the same bound, as long as no plate is subsampled; torch "
        "without Pyro is the least that this arithmetic takes",
    },
}
COMMON = {
    "timer": "process_time, CPU seconds of all threads",
    "threads": "one, and one core where the system allows it",
    "validation": "off",
    "compilation": "JAX is jitted and warmed up; torch is eager",
}
PASSES = 5
PEERS = (
    "FrEIA",
    "bayesian-torch",
    "blitz-bayesian-pytorch",
    "jax",
    "nflows",
    "normflows",
    "pytest-benchmark",
    "torchbnn",
    "zuko",
)
TOLD = ("implementation", "reference", "draws")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=["small", "paper"], default="small")
    parser.add_argument("--only", metavar="NAME", help="one result of speed, or one paper")
    parser.add_argument("--passes", type=int, default=PASSES, help="over the rivals of speed")
    options = parser.parse_args()
    speed = {f"speed_{path.stem.removeprefix('test_')}": path for path in paths("speed", "test_")}
    papers = {path.stem: path for path in paths("papers", "bm_")}
    if options.only is not None and options.only not in speed | papers:
        parser.error(f"--only {options.only}: known are {', '.join([*speed, *papers])}")
    for name, path in speed.items():
        if options.only in (None, name):
            run_speed(name, path, options.passes)
    failed = [
        name
        for name, path in papers.items()
        if options.only in (None, name) and not run_paper(path, options.budget)
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def paths(folder: str, prefix: str) -> list[Path]:
    return sorted((HERE / folder).glob(f"{prefix}*.py"))


def run_paper(path: Path, budget: str) -> bool:
    """Runs one script; false if it failed. Without its data it is skipped, which is no failure.

    A script that needs data says so by naming the variable in its text.
    """
    if "PYRO_EXT_DATA" in path.read_text() and not os.environ.get("PYRO_EXT_DATA"):
        print(f"skipped {path.name}: PYRO_EXT_DATA is unset; it names the folder of the data sets")
        return True
    print(f"== {path.name} --budget {budget}", flush=True)
    command = [sys.executable, str(path.relative_to(ROOT)), "--budget", budget]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def run_speed(name: str, path: Path, num: int) -> None:
    """Measures one file on one thread, in a process for each pass, and records its rows."""
    fix_threads()
    from record import record

    print(f"== {path.name}", flush=True)
    settings = {**SETTINGS.get(name, {}), **COMMON, **peer_versions()}
    title = TITLES.get(name, name.replace("_", " "))
    record(name, title, settings, lambda: list(table(measure(path, num))))


def fix_threads() -> None:
    """One thread for torch and XLA, in the processes that this one starts."""
    os.environ.update(ONE_THREAD)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def measure(path: Path, num: int) -> list[dict]:
    """Benchmarks of a file, as pytest-benchmark describes them, with the times of all passes."""
    passes = [one_pass(path) for _ in range(num)]
    for same in zip(*passes, strict=True):
        same[0]["seconds"] = [time for one in same for time in one["stats"]["data"]]
    return passes[0]


def one_pass(path: Path) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = [
            "-m=benchmark",
            "--benchmark-timer=time.process_time",
            "--benchmark-disable-gc",
            f"--benchmark-json={report}",
            "--override-ini=filterwarnings=default",  # the peers' warnings are theirs
            "-q",
            "-pno:cacheprovider",
            f"--rootdir={ROOT}",
            str(path),
        ]
        command = [sys.executable, "-m", "pytest", *arguments]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status != 0 or not report.is_file():
            sys.exit(f"{path.name} failed: pytest returned {status}")
        return json.loads(report.read_text())["benchmarks"]


def table(benchmarks: list[dict]) -> Iterator[dict]:
    """One row each: median, facts of its own, and ratios of medians within the group."""
    for one in sorted(benchmarks, key=lambda one: one["group"]):
        low, median, high = quantiles(one["seconds"])
        row = {
            "operation": one["group"],
            "implementation": implementation(one),
            "median CPU (ms)": round(1e3 * median, 2),
            "interquartile range (ms)": round(1e3 * (high - low), 2),
            "rounds": len(one["seconds"]),
        }
        if "draws" in one["extra_info"]:
            row["draws per CPU second"] = round(one["extra_info"]["draws"] / median)
        facts = {key: rounded(value) for key, value in one["extra_info"].items() if key not in TOLD}
        group = [other for other in benchmarks if other["group"] == one["group"]]
        yield row | facts | ratios(one, group)


def rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def ratios(one: dict, group: list[dict]) -> dict[str, float]:
    """To the reference that a row names; else of a peer to each of ours."""
    median, reference = quantiles(one["seconds"])[1], one["extra_info"].get("reference")
    others = {implementation(other): quantiles(other["seconds"])[1] for other in group}
    if reference is not None:
        return {f"time / that of {reference}": round(median / others[reference], 2)}
    if implementation(one).startswith("ours"):
        return {}
    ours = {name: other for name, other in others.items() if name.startswith("ours")}
    return {f"peer / {name}": round(median / other, 2) for name, other in ours.items()}


def quantiles(seconds: list[float]) -> list[float]:
    return statistics.quantiles(seconds, n=4)


def implementation(one: dict) -> str:
    return one["extra_info"].get("implementation", one["name"])


def peer_versions() -> dict[str, str]:
    """Versions that the format of results does not list."""
    found = {}
    for package in PEERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
