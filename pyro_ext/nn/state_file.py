"""Tensors with metadata on disk, written as a whole or not at all."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = "1"


def write_file(path: Any, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file beside its place, then moves it there.

    Interrupted at any time it leaves what was there before.

    Args:
        path: of the file, whose folder exists.
        tensors: by name.
        metadata: strings by name; ``format`` and ``version`` are added.

    Raises:
        ImportError: if safetensors is not installed.
    """
    from safetensors.torch import save

    known = {"format": FORMAT, "version": version("pyro-ext")}
    apart = {k: x.detach().cpu().contiguous().clone() for k, x in tensors.items()}
    whole = save(apart, metadata | known)  # tied tensors too are written each
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_file(path: Any) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors, on the CPU. Nothing in the file is executed.

    Raises:
        ValueError: if it is no safetensors file, is not whole, or is of a later format.
        ImportError: if safetensors is not installed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is not whole: {error}.") from error
    found = metadata.get("format", FORMAT)
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}, written by pyro_ext {metadata.get('version')}; this "
            f"version reads format {FORMAT}. Load it with the version that wrote it."
        )
    return metadata, tensors


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
