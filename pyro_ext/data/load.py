r"""Load a data set by name, from a local folder or, on request, from a verified mirror."""

import difflib
import hashlib
import os
from pathlib import Path

import torch

from pyro_ext.data.decode import Arrays
from pyro_ext.data.fetch import fetch
from pyro_ext.data.registry import SETS, DataSet, File, Source

_VARIABLE = "PYRO_EXT_DATA"


def names() -> tuple[str, ...]:
    r"""List the names that :func:`load` knows.

    Returns:
        The names, sorted.

    Example:
        >>> "mnist" in names()
        True
    """
    return tuple(sorted(SETS))


def load(
    name: str, root: str | os.PathLike[str] | None = None, download: bool = False
) -> dict[str, torch.Tensor]:
    r"""Load a data set as a dictionary of tensors, every file checked against its pinned sha256.

    Images ``x_...`` are ``uint8`` in the grey levels of the source (nothing is rescaled,
    dequantised or binarised); labels ``y_...`` are ``int64`` and count from zero.

    ==========================  =====================  =================  =======================
    name                        train, valid, test     one ``x``          values of ``x``; ``y``
    ==========================  =====================  =================  =======================
    ``digits``                  1500, -, 297           (8, 8)             0...16; digit
    ``mnist``                   60000, -, 10000        (28, 28)           0...255; digit
    ``fashion_mnist``           60000, -, 10000        (28, 28)           0...255; 10 classes
    ``static_mnist``            50000, 10000, 10000    (28, 28)           0, 1; no labels
    ``omniglot``                24345, -, 8070         (28, 28)           0, 1; 50 alphabets
    ``caltech101_silhouettes``  4100, 2264, 2307       (28, 28)           0, 1; 101 classes
    ``cifar10``                 50000, -, 10000        (3, 32, 32)        0...255; 10 classes
    ``cifar10_mini``            4500, -, 1000          (3, 32, 32)        0...255; 10 classes
    ``rat_hippocampus``         6577 bins, see below   (48,)              0...4; position, direction
    ``uci/...``                 one table, see below   (columns,)         ``float32``; ``float32``
    ==========================  =====================  =================  =======================

    - ``digits`` is bundled with scikit-learn and needs no file: a fixed permutation, then the last
      297 images are the test set.
    - ``static_mnist`` is Larochelle's binarisation; its order is not that of ``mnist``.
    - ``omniglot`` was binarised once from the original 105 x 105 drawings. It is not Burda's
      ``chardata.mat``: log likelihoods are near the published ones, not comparable to the digit.
    - ``caltech101_silhouettes`` is Marlin's first split; as there, 1 is the *background* (several
      papers model ``1 - x``).
    - ``cifar10_mini`` is the head of each half of ``cifar10``, under a name of its own.
    - ``rat_hippocampus`` is a rat on a linear track (CRCNS hc-11, the session of Buddy), prepared
      as by the authors of CEBRA: ``spikes`` ``(6577, 48)`` counted for each unit in bins of
      ``bin_seconds`` (0.025), in the order of time; ``position`` in metres, 0...1.6, and
      ``direction`` 0 or 1, ``(6577)`` each.
    - ``uci/boston``, ``concrete``, ``energy``, ``kin8nm``, ``naval``, ``power``, ``protein``,
      ``wine_red``, ``yacht`` have ``x``, ``y`` and a boolean ``test_mask`` of shape
      ``(splits, rows)``: Hernandez-Lobato's 20 splits (protein: 5), true at a test row.

    Files are looked for in the folder that the variable ``PYRO_EXT_DATA`` names, then in
    ``$XDG_CACHE_HOME/pyro_ext`` (``~/.cache/pyro_ext`` if unset). With ``root`` given, only there.

    Args:
        name: one of :func:`names`.
        root: the only folder to look in and to download to.
        download: fetch missing files from a mirror, to the first of the folders. Files that are
            present are used as they are, and never replaced.

    Returns:
        The tensors by name, on the CPU, each call its own copy.

    Raises:
        ValueError: the name is unknown, or a file has not the pinned sha256.
        FileNotFoundError: the set is in none of the folders, or no mirror of it is known.
        OSError: no mirror served the right bytes.

    Example:
        >>> digits = load("digits")
        >>> {key: tuple(value.shape) for key, value in digits.items()}
        {'x_train': (1500, 8, 8), 'x_test': (297, 8, 8), 'y_train': (1500,), 'y_test': (297,)}
        >>> digits["x_train"].dtype, int(digits["x_train"].max())
        (torch.uint8, 16)
    """
    data_set, folders = _find(name), _folders(root)
    located = _locate(data_set, folders)
    if located is None and download:
        located = _download(data_set, folders[0])
    if located is None:
        raise FileNotFoundError(_absence(name, data_set, folders))
    source, folder = located
    return _tensors(data_set, source.decode(*(_read(file, folder) for file in source.files)))


def _find(name: str) -> DataSet:
    """Look the name up, and suggest the nearest if it is unknown."""
    if name in SETS:
        return SETS[name]
    near = difflib.get_close_matches(str(name), SETS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown data set {name!r}{hint}; known are {', '.join(names())}")


def _folders(root: str | os.PathLike[str] | None) -> list[Path]:
    """List the folders to look in, in order."""
    if root is not None:
        return [Path(root).expanduser()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pyro_ext"
    own = os.environ.get(_VARIABLE)
    return [folder.expanduser() for folder in ([Path(own), cache] if own else [cache])]


def _locate(data_set: DataSet, folders: list[Path]) -> tuple[Source, Path] | None:
    """Find the first folder that holds all the files of a source."""
    for folder in folders:
        for source in data_set.sources:
            if all((folder / file.path).is_file() for file in source.files):
                return source, folder
    return None


def _download(data_set: DataSet, folder: Path) -> tuple[Source, Path] | None:
    """Fetch what is missing of the source that has mirrors, if one has."""
    source = data_set.mirrored
    if source is None:
        return None
    for file in source.files:
        if not (folder / file.path).is_file():
            fetch(file.urls, file.sha256, folder / file.path)
    return source, folder


def _absence(name: str, data_set: DataSet, folders: list[Path]) -> str:
    """Say what is missing, where it should be, and what to do."""
    places = " nor ".join(str(folder) for folder in folders)
    wanted = "\n  or\n".join(
        "\n".join(f"    {_describe(file)}" for file in source.files) for source in data_set.sources
    )
    cure = (
        f"Call load({name!r}, download=True); or put"
        if data_set.mirrored
        else "No verified mirror is known, so it cannot be downloaded: put"
    )
    return (
        f"data set {name!r} is not in {places}; expected there:\n{wanted}\n{cure} the files there "
        f"by hand, or set the variable {_VARIABLE} (or root=) to a folder that has them."
    )


def _describe(file: File) -> str:
    """Write a file's path, digest and mirrors on one line."""
    origin = f", from {' or '.join(file.urls)}" if file.urls else ""
    return f"{file.path} (sha256 {file.sha256}{origin})"


def _read(file: File, folder: Path) -> bytes:
    """Read a file and check its digest."""
    path = folder / file.path
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != file.sha256:
        raise ValueError(
            f"{path} is corrupt, truncated or another file: expected sha256 {file.sha256}, got "
            f"{actual} ({len(content):,} bytes). Delete it and call load again, with download=True "
            "if there is no other copy."
        )
    return content


def _tensors(data_set: DataSet, arrays: Arrays) -> dict[str, torch.Tensor]:
    """Check the arrays against the layout, and widen them to its dtypes."""
    wanted = {key: shape for key, (_, shape) in data_set.layout.items()}
    actual = {key: array.shape for key, array in arrays.items()}
    if actual != wanted:
        raise ValueError(f"expected arrays of shapes {wanted}, got {actual}")
    return {
        key: torch.from_numpy(arrays[key].astype(dtype, order="C", casting="safe"))
        for key, (dtype, _) in data_set.layout.items()
    }
