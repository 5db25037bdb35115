import gzip
import hashlib
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pyro_ext.data import decode
from pyro_ext.data.registry import SETS

FOLDER = Path(os.environ.get("PYRO_EXT_DATA", "no-data-folder"))

# Of the uncompressed official files; published by many projects beside those of the .gz files.
IDX_SHA256 = {
    "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def needs(name):
    path = FOLDER / name
    return pytest.mark.skipif(
        not path.is_file(), reason=f"needs {name} in the folder PYRO_EXT_DATA (now {FOLDER})"
    )


def random_bytes(*shape, high=256):
    return np.random.default_rng(0).integers(high, size=shape, dtype=np.uint8)


def to_npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def to_idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def to_amat(images):
    text = np.full((len(images), 784, 2), ord(" "), np.uint8)
    text[:, :, 0] = images.reshape(-1, 784) + ord("0")
    text[:, -1, 1] = ord("\n")
    return text.tobytes()


def to_cifar_tar(batches):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def to_records(images, labels):
    """Records of a label and the red, green and blue planes; images with channels last."""
    planes = [images[..., c].reshape(len(images), -1) for c in range(3)]
    return np.concatenate([labels[:, None], *planes], 1).tobytes()


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, strict=True)


def test_npz_keeps_numbers_and_leaves_text_out():
    arrays = {"x": random_bytes(5, 2), "y": np.array([0.5, 2], np.float32)}
    assert_same(decode.npz(to_npz(**arrays, names=np.array(["a", "b"]))), arrays)


def test_npz_refuses_objects():
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        decode.npz(to_npz(x=np.array([{}], dtype=object)))


def test_packed_npz():
    images, labels = random_bytes(7, 28, 28, high=2), random_bytes(7)
    packed = np.packbits(images.reshape(7, -1), axis=1)
    assert packed.shape == (7, 98)
    content = to_npz(x_valid=packed, y_valid=labels)
    assert_same(decode.packed_npz(content), {"x_valid": images, "y_valid": labels})


def test_silhouettes_npz_counts_labels_from_zero():
    labels = np.arange(1, 102, dtype=np.uint8)
    assert_same(decode.silhouettes_npz(to_npz(y_test=labels)), {"y_test": labels - 1})


def test_omniglot_npz_renames_the_alphabets():
    images, alphabets = random_bytes(3, 28, 28, high=2), random_bytes(3, high=50)
    packed = np.packbits(images.reshape(3, -1), axis=1)
    content = to_npz(
        x_test=packed, alphabet_test=alphabets, alphabet_names=np.array(["Greek", "Latin"])
    )
    assert_same(decode.omniglot_npz(content), {"x_test": images, "y_test": alphabets})


def test_colour_npz_puts_channels_first():
    images, labels = random_bytes(4, 32, 32, 3), random_bytes(4, high=10)
    actual = decode.colour_npz(to_npz(x_test=images, y_test=labels))
    np.testing.assert_array_equal(actual["x_test"][2, 1], images[2, :, :, 1])
    np.testing.assert_array_equal(actual["y_test"], labels)


def test_regression_npz():
    mask = random_bytes(20, 13, high=2).astype(bool)
    x, y = random_bytes(13, 4).astype(np.float32), random_bytes(13).astype(np.float32)
    content = to_npz(x=x, y=y, test_mask=np.packbits(mask, axis=1), n=np.array(13))
    assert_same(decode.regression_npz(content), {"x": x, "y": y, "test_mask": mask})


def test_idx():
    arrays = {"x_train": random_bytes(5, 4, 3), "y_train": random_bytes(5, high=10)}
    arrays |= {"x_test": random_bytes(2, 4, 3), "y_test": random_bytes(2, high=10)}
    files = [gzip.compress(to_idx(array)) for array in arrays.values()]
    assert_same(decode.idx(*files), arrays)


@pytest.mark.parametrize(
    "raw", [b"", b"\0\0\x0d\1\0\0\0\0", b"<html>", to_idx(np.ones(9, "u1"))[:-1]]
)
def test_idx_refuses_other_bytes(raw):
    file = gzip.compress(raw)
    with pytest.raises(ValueError, match=r"not an IDX file|reshape"):
        decode.idx(file, file, file, file)


def test_amat():
    splits = {f"x_{split}": random_bytes(3, 28, 28, high=2) for split in ("train", "valid", "test")}
    assert_same(decode.amat(*(to_amat(images) for images in splits.values())), splits)


@pytest.mark.parametrize(
    ("old", "new"), [(b"1 ", b"2 "), (b"1 ", b"1,"), (b"\n", b""), (b"1 ", b"/ ")]
)
def test_amat_refuses_other_bytes(old, new):
    content = to_amat(np.ones((3, 28, 28), np.uint8)).replace(old, new, 1)
    with pytest.raises(ValueError, match="expected"):
        decode.amat(content, content, content)


def test_cifar_tar():
    images, labels = random_bytes(12, 32, 32, 3), random_bytes(12, high=10)
    pairs = [slice(2 * i, 2 * i + 2) for i in range(6)]
    parts = [
        "test_batch",
        *(f"data_batch_{i}" for i in (5, 4, 3, 2, 1)),
    ]  # order in the tar is free
    content = to_cifar_tar(
        {
            part: to_records(images[pair], labels[pair])
            for part, pair in zip(parts, pairs, strict=True)
        }
    )
    order = [10, 11, 8, 9, 6, 7, 4, 5, 2, 3]
    expected = {
        "x_train": np.moveaxis(images[order], -1, 1),
        "y_train": labels[order],
        "x_test": np.moveaxis(images[:2], -1, 1),
        "y_test": labels[:2],
    }
    assert_same(decode.cifar_tar(content), expected)


def test_cifar_tar_refuses_incomplete_archives():
    with pytest.raises(KeyError, match="data_batch_1"):
        decode.cifar_tar(to_cifar_tar({"test_batch": bytes(3073)}))
    names = ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
    with pytest.raises(ValueError, match="reshape"):
        decode.cifar_tar(to_cifar_tar({name: bytes(3000) for name in names}))


def test_digits_are_those_of_scikit_learn_split_for_good():
    from sklearn.datasets import load_digits

    state, legacy = np.random.get_state()[1].copy(), load_digits()  # noqa: NPY002
    arrays = decode.digits()
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    rows = np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(1797, 64)
    labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
    pairs = sorted(map(tuple, np.c_[rows, labels].tolist()))
    assert pairs == sorted(map(tuple, np.c_[legacy.data, legacy.target].tolist()))
    assert np.bincount(arrays["y_test"]).min() >= 20
    # The split itself, pinned: published figures depend on it.
    digest = hashlib.sha256(np.ascontiguousarray(arrays["x_test"]).tobytes()).hexdigest()
    assert digest == "160e2c14493b96e96653b208c7bfbe6d23f1530763cf06a8c678dfd58b8fc1dc"


@needs("mnist.npz")
def test_idx_on_the_official_bytes_of_mnist():
    arrays = decode.npz((FOLDER / "mnist.npz").read_bytes())
    raw = {key: to_idx(arrays[key]) for key in IDX_SHA256}
    assert {key: hashlib.sha256(file).hexdigest() for key, file in raw.items()} == IDX_SHA256
    files = [gzip.compress(file, compresslevel=0) for file in raw.values()]
    assert_same(decode.idx(*files), arrays)


@needs("static_mnist_packed.npz")
def test_amat_on_the_official_bytes_of_static_mnist():
    packed, official = SETS["static_mnist"].sources
    arrays = packed.decode((FOLDER / packed.files[0].path).read_bytes())
    texts = [to_amat(images) for images in arrays.values()]
    digests = [hashlib.sha256(text).hexdigest() for text in texts]
    assert digests == [file.sha256 for file in official.files]  # so both sources are one set
    assert_same(official.decode(*texts), arrays)


@needs("cifar10_mini.npz")
def test_cifar_tar_on_images_of_cifar10():
    content = (FOLDER / "cifar10_mini.npz").read_bytes()
    raw, expected = decode.npz(content), decode.colour_npz(content)
    train = to_records(raw["x_train"], raw["y_train"])
    step = 900 * 3073
    batches = {f"data_batch_{i + 1}": train[i * step : (i + 1) * step] for i in range(5)}
    batches["test_batch"] = to_records(raw["x_test"], raw["y_test"])
    assert_same(decode.cifar_tar(to_cifar_tar(batches)), expected)
