"""Who asks a random density for its ``log_prob``: read off the call stack.

Pyro's inference code gives a distribution no other way to know, and its functions are not ours to
replace.
"""

import sys
from collections.abc import Iterator

import torch

# Functions that weigh a guide's draws by log_prob where they should ask score_parts.
_WEIGHING = {
    ("pyro.infer.importance", "_traces"),
    ("pyro.infer.predictive", "forward"),
    ("pyro.infer.smcfilter", "_update_weights"),
}


def is_mcmc() -> bool:
    """Whether an MCMC kernel of Pyro's is calling; its hooks and diagnostics are not meant."""
    return any(
        module.startswith("pyro.infer.mcmc.") and module != "pyro.infer.mcmc.api"
        for module, _ in _callers()
    )


def is_score_parts() -> bool:
    """Whether the ``score_parts`` of a distribution of Pyro's is calling, as it does for guides."""
    return any(
        function == "score_parts" and module.startswith("pyro.distributions.")
        for module, function in _callers()
    )


def is_weighing() -> bool:
    """Whether a function of Pyro's is calling that weighs draws by ``log_prob``."""
    return any(caller in _WEIGHING for caller in _callers())


def is_counting_plates() -> bool:
    """Whether an objective runs a guide only to count its plates."""
    return ("pyro.infer.elbo", "_guess_max_plate_nesting") in _callers()


def _callers() -> Iterator[tuple[str, str]]:
    """Module and function of each frame, from here outwards; none while compiling."""
    if torch.compiler.is_compiling():
        return
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_globals.get("__name__", ""), frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
