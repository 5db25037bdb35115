r"""Fetch one file from the first of its mirrors that serves the right bytes."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import urlopen

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_BAR_DELAY_SECONDS = 1.0


def _copy(source: BinaryIO, target: BinaryIO, bar: Any) -> str:
    """Copy a stream, and return the sha256 of what passed."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        digest.update(chunk)
        bar.update(len(chunk))
    return digest.hexdigest()


def _download(url: str, path: Path) -> str:
    """Write what a mirror serves, and return its sha256."""
    from tqdm import tqdm

    with urlopen(url, timeout=_TIMEOUT_SECONDS) as source, path.open("wb") as target:
        total = int(source.headers.get("Content-Length") or 0) or None
        style = {"unit": "B", "unit_scale": True, "delay": _BAR_DELAY_SECONDS}
        with tqdm(total=total, desc=path.name, **style) as bar:
            return _copy(source, target, bar)


def _try(url: str, sha256: str, path: Path) -> None:
    """Fetch from one mirror; ``path`` appears whole and verified, or not at all."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        actual = _download(url, part)
        if actual != sha256:
            size = part.stat().st_size
            raise ValueError(f"expected sha256 {sha256}, got {actual} ({size:,} bytes)")
        os.replace(part, path)


def fetch(urls: Sequence[str], sha256: str, path: Path) -> None:
    r"""Fetch a file from the first mirror whose bytes have the pinned sha256.

    The file is written beside its place and moved there when complete, so an interrupted or
    corrupt download leaves nothing. A progress bar appears after a second.

    Args:
        urls: the mirrors, in the order to try them.
        sha256: the pinned digest, in hexadecimal.
        path: where the file goes; missing folders are made.

    Raises:
        OSError: no mirror served the right bytes; the message gives each one's reason.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     served, wanted = Path(folder) / "served", Path(folder) / "cache" / "wanted"
        ...     _ = served.write_bytes(b"pixels")
        ...     fetch([served.as_uri()], hashlib.sha256(b"pixels").hexdigest(), wanted)
        ...     wanted.read_bytes()
        b'pixels'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        try:
            return _try(url, sha256, path)
        except (OSError, HTTPException, ValueError) as error:
            reasons.append(f"\n  {url}: {error}")
            if isinstance(error, HTTPError):
                error.close()  # newer Pythons warn of one left open
    raise OSError(f"no mirror served {path.name} for {path}:{''.join(reasons)}")
