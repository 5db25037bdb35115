r"""Decoders: from the bytes of a data set's files to arrays named ``x_train``, ``y_train``, ...

No decoder unpickles or writes anything, and each refuses bytes that are not of its format.
"""

import gzip
import io
import struct
import tarfile

import numpy as np

Arrays = dict[str, np.ndarray]

_SIDE = 28
_SIZE = _SIDE * _SIDE


def npz(content: bytes) -> Arrays:
    r"""Read the numeric arrays of an ``.npz`` file; names and other text are left out.

    Args:
        content: the file.

    Returns:
        The arrays by name.

    Raises:
        ValueError: an array holds Python objects (they would have to be unpickled).

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, x=np.arange(3, dtype=np.uint8), names=np.array(["a", "b"]))
        >>> npz(buffer.getvalue())
        {'x': array([0, 1, 2], dtype=uint8)}
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf"}


def packed_npz(content: bytes) -> Arrays:
    r"""Read an ``.npz`` file whose ``x...`` rows are 28 x 28 binary images of eight pixels a byte.

    Args:
        content: the file.

    Returns:
        The arrays by name, images as 0 and 1.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, x_test=np.full((2, 98), 255, dtype=np.uint8))
        >>> packed_npz(buffer.getvalue())["x_test"].sum(axis=(1, 2))
        array([784, 784], dtype=uint64)
    """
    return {
        name: np.unpackbits(array, axis=1).reshape(-1, _SIDE, _SIDE) if name[0] == "x" else array
        for name, array in npz(content).items()
    }


def silhouettes_npz(content: bytes) -> Arrays:
    r"""Read packed silhouettes, their labels moved from 1...101 to 0...100.

    Args:
        content: the file.

    Returns:
        The arrays by name.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, y_test=np.array([1, 101], dtype=np.uint8))
        >>> silhouettes_npz(buffer.getvalue())
        {'y_test': array([  0, 100], dtype=uint8)}
    """
    arrays = packed_npz(content)
    return {name: array - 1 if name[0] == "y" else array for name, array in arrays.items()}


def omniglot_npz(content: bytes) -> Arrays:
    r"""Read packed characters; the label ``y`` is the alphabet.

    Args:
        content: the file.

    Returns:
        The arrays by name.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, alphabet_test=np.array([3, 49], dtype=np.uint8))
        >>> omniglot_npz(buffer.getvalue())
        {'y_test': array([ 3, 49], dtype=uint8)}
    """
    return {name.replace("alphabet", "y"): array for name, array in packed_npz(content).items()}


def colour_npz(content: bytes) -> Arrays:
    r"""Read an ``.npz`` file of colour images, channels last in the file and first in the result.

    Args:
        content: the file, images (N, H, W, C).

    Returns:
        The arrays by name, images (N, C, H, W).

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, x_test=np.zeros((5, 32, 32, 3), dtype=np.uint8))
        >>> colour_npz(buffer.getvalue())["x_test"].shape
        (5, 3, 32, 32)
    """
    return {
        name: array.transpose(0, 3, 1, 2) if name[0] == "x" else array
        for name, array in npz(content).items()
    }


def regression_npz(content: bytes) -> Arrays:
    r"""Read ``x``, ``y`` and the packed ``test_mask`` of ``n`` bits a row.

    Args:
        content: the file.

    Returns:
        ``x``, ``y`` and ``test_mask``, one row a split, true where the row of ``x`` is for testing.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, test_mask=np.array([[0b01100000]], dtype=np.uint8), n=np.array(3))
        >>> regression_npz(buffer.getvalue())
        {'test_mask': array([[False,  True,  True]])}
    """
    arrays = npz(content)
    count = int(arrays.pop("n"))
    bits = np.unpackbits(arrays.pop("test_mask"), axis=1, count=count)
    return {**arrays, "test_mask": bits.astype(bool)}


def _idx(content: bytes) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes: 0, 0, 8, rank, big-endian sizes, values."""
    raw = gzip.decompress(content)
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of unsigned bytes: it starts with {raw[:4]!r}")
    rank = raw[3]
    shape = struct.unpack_from(f">{rank}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def idx(x_train: bytes, y_train: bytes, x_test: bytes, y_test: bytes) -> Arrays:
    r"""Read the four gzipped IDX files of MNIST and of sets made in its image.

    Args:
        x_train: ``train-images-idx3-ubyte.gz``.
        y_train: ``train-labels-idx1-ubyte.gz``.
        x_test: ``t10k-images-idx3-ubyte.gz``.
        y_test: ``t10k-labels-idx1-ubyte.gz``.

    Returns:
        The four arrays.

    Raises:
        ValueError: a file is not IDX, or its header does not fit its length.

    Example:
        >>> labels = gzip.compress(b"\0\0\x08\1\0\0\0\3" + bytes([5, 0, 4]))
        >>> idx(labels, labels, labels, labels)["y_test"]
        array([5, 0, 4], dtype=uint8)
    """
    files = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return {name: _idx(content) for name, content in files.items()}


def _amat(content: bytes) -> np.ndarray:
    """Read lines of 784 zeros and ones, one blank between two."""
    text = np.frombuffer(content, np.uint8)
    if text.size % (2 * _SIZE):
        raise ValueError(f"lines of {2 * _SIZE} bytes expected, {text.size} bytes found")
    lines = text.reshape(-1, _SIZE, 2)
    pixels = lines[..., 0] - ord("0")
    if pixels.max(initial=0) > 1 or not np.isin(lines[..., 1], list(b" \n")).all():
        raise ValueError("zeros and ones with one blank between two expected, other bytes found")
    return pixels.reshape(-1, _SIDE, _SIDE)


def amat(train: bytes, valid: bytes, test: bytes) -> Arrays:
    r"""Read the three text files of Larochelle's binarised MNIST.

    Args:
        train: ``binarized_mnist_train.amat``.
        valid: ``binarized_mnist_valid.amat``.
        test: ``binarized_mnist_test.amat``.

    Returns:
        ``x_train``, ``x_valid`` and ``x_test``.

    Raises:
        ValueError: a file is not made of lines of 784 zeros and ones.

    Example:
        >>> line = b" ".join([b"1"] * 784) + b"\n"
        >>> amat(2 * line, line, line)["x_train"].shape
        (2, 28, 28)
    """
    return {"x_train": _amat(train), "x_valid": _amat(valid), "x_test": _amat(test)}


def _records(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Split CIFAR records of one label and 3 x 32 x 32 pixels."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def cifar_tar(content: bytes) -> Arrays:
    r"""Read the *binary* archive of CIFAR-10, in memory: nothing is unpacked to disk or unpickled.

    Args:
        content: ``cifar-10-binary.tar.gz``.

    Returns:
        ``x_train``, ``y_train``, ``x_test`` and ``y_test``, images (N, C, H, W).

    Raises:
        KeyError: the archive lacks a batch.
        ValueError: a batch is not made of records of 3,073 bytes.

    Example:
        >>> buffer = io.BytesIO()
        >>> with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        ...     for name in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        ...         member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
        ...         member.size = 3073
        ...         archive.addfile(member, io.BytesIO(bytes([7]) * 3073))
        >>> cifar_tar(buffer.getvalue())["x_train"].shape
        (5, 3, 32, 32)
    """
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        members = {m.name: archive.extractfile(m) for m in archive if m.isfile()}
        batches = {name: member.read() for name, member in members.items() if member}
    folder = "cifar-10-batches-bin"
    x_train, y_train = _records(
        b"".join(batches[f"{folder}/data_batch_{i}.bin"] for i in range(1, 6))
    )
    x_test, y_test = _records(batches[f"{folder}/test_batch.bin"])
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def digits() -> Arrays:
    r"""Take scikit-learn's bundled digits; a fixed permutation puts 1,500 before 297 test images.

    Returns:
        ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> digits()["x_test"].shape
        (297, 8, 8)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the set 'digits' needs scikit-learn: pip install scikit-learn"
        ) from error
    x, y = load_digits(return_X_y=True)
    # RandomState, because numpy promises that its stream never changes (NEP 19).
    order = np.random.RandomState(0).permutation(len(x))
    x, y = x.astype(np.uint8).reshape(-1, 8, 8)[order], y[order]
    return {"x_train": x[:1500], "y_train": y[:1500], "x_test": x[1500:], "y_test": y[1500:]}
