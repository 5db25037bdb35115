import gzip
import hashlib
import io
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_ext.data import decode, load, names
from pyro_ext.data.registry import SETS, DataSet, File, Source

FOLDER = Path(os.environ.get("PYRO_EXT_DATA", "no-data-folder"))

LOCAL = [
    name
    for name, entry in SETS.items()
    if entry.sources[0].files[:1] and name not in ("fashion_mnist", "cifar10")
]


def save(folder, content):
    path = folder / "sub" / "toy.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def content():
    buffer = io.BytesIO()
    np.savez(buffer, x_test=np.arange(12, dtype=np.uint8).reshape(3, 4), y_test=np.ones(3, "u1"))
    return buffer.getvalue()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The three places to look in, all empty."""
    monkeypatch.setenv("PYRO_EXT_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "root", tmp_path / "own", tmp_path / "cache" / "pyro_ext"


@pytest.fixture
def toy(monkeypatch, content):
    """A registered set of one local file."""
    file = File("sub/toy.npz", hashlib.sha256(content).hexdigest())
    layout = {"x_test": ("uint8", (3, 4)), "y_test": ("int64", (3,))}
    monkeypatch.setitem(SETS, "toy", DataSet(layout, (Source((file,), decode.npz),)))
    return file


@pytest.fixture
def idx(monkeypatch, tmp_path):
    """A registered set of four files with two mirrors, the first of which is down."""
    served = tmp_path / "served"
    served.mkdir()
    arrays = {"x_train": np.arange(18, dtype=np.uint8).reshape(2, 3, 3)}
    arrays |= {"y_train": np.array([5, 0], "u1"), "x_test": np.zeros((1, 3, 3), "u1")}
    arrays |= {"y_test": np.array([7], "u1")}
    files = []
    for key, array in arrays.items():
        raw = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        path = served / f"{key}.gz"
        path.write_bytes(gzip.compress(raw + array.tobytes()))
        urls = ((served / "down").as_uri(), path.as_uri())
        files.append(File(f"toy/{key}.gz", hashlib.sha256(path.read_bytes()).hexdigest(), urls))
    dtypes = {"x": "uint8", "y": "int64"}
    layout = {key: (dtypes[key[0]], array.shape) for key, array in arrays.items()}
    local = Source((File("toy.npz", "0" * 64),), decode.npz)
    monkeypatch.setitem(SETS, "toy", DataSet(layout, (local, Source(tuple(files), decode.idx))))
    return served


def test_names_are_sorted_and_complete():
    assert list(names()) == sorted(SETS)
    assert {"digits", "mnist", "fashion_mnist", "static_mnist", "omniglot", "cifar10"} < set(
        names()
    )
    assert {"caltech101_silhouettes", "cifar10_mini", "uci/energy", "uci/boston"} < set(names())


def test_every_set_is_documented():
    for name in names():
        assert f"``{name}``" in load.__doc__ or f"``{name.removeprefix('uci/')}``" in load.__doc__


def test_digits_need_no_folder(places):
    data = load("digits", root=places[0])
    assert {key: (value.dtype, tuple(value.shape)) for key, value in data.items()} == {
        "x_train": (torch.uint8, (1500, 8, 8)),
        "x_test": (torch.uint8, (297, 8, 8)),
        "y_train": (torch.int64, (1500,)),
        "y_test": (torch.int64, (297,)),
    }
    assert data["x_train"].min() == 0
    assert data["x_train"].max() == 16
    assert not any(place.exists() for place in places)


def test_load_touches_no_global_generator(places):
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, second = load("digits"), load("digits")
    assert states[0] == random.getstate()
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_values_and_dtypes(toy, content, tmp_path):
    save(tmp_path, content)
    data = load("toy", root=tmp_path)
    assert torch.equal(data["x_test"], torch.arange(12, dtype=torch.uint8).reshape(3, 4))
    assert torch.equal(data["y_test"], torch.ones(3, dtype=torch.int64))


def test_each_call_returns_its_own_writable_copy(toy, content, tmp_path):
    save(tmp_path, content)
    load("toy", root=str(tmp_path))["x_test"].zero_()
    data = load("toy", root=str(tmp_path))
    assert data["x_test"].sum() == 66


def test_tensors_are_contiguous_whatever_the_decoder_did(content, tmp_path, monkeypatch):
    path = save(tmp_path, content)
    file = File("sub/toy.npz", hashlib.sha256(path.read_bytes()).hexdigest())
    source = Source((file,), lambda content: {"x_test": decode.npz(content)["x_test"].T})
    monkeypatch.setitem(SETS, "toy", DataSet({"x_test": ("uint8", (4, 3))}, (source,)))
    data = load("toy", root=tmp_path)
    assert data["x_test"].is_contiguous()
    assert data["x_test"][1].tolist() == [1, 5, 9]


@pytest.mark.parametrize("place", [1, 2])
def test_folders_of_the_environment(toy, content, places, place):
    save(places[place], content)
    assert load("toy")["x_test"].shape == (3, 4)


def test_the_own_folder_comes_before_the_cache(toy, content, places):
    save(places[2], content)
    bad = save(places[1], b"bad")
    with pytest.raises(ValueError, match="corrupt") as info:
        load("toy")
    assert str(bad) in str(info.value)


def test_root_is_the_only_place(toy, content, places):
    save(places[1], content)
    save(places[2], content)
    with pytest.raises(FileNotFoundError, match="is not in") as info:
        load("toy", root=places[0])
    assert str(places[0]) in str(info.value)
    assert str(places[1]) not in str(info.value)
    save(places[0], content)
    assert load("toy", root=places[0])


def test_default_cache_is_in_the_home_folder(toy, content, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYRO_EXT_DATA", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    save(tmp_path / ".cache" / "pyro_ext", content)
    assert load("toy")
    monkeypatch.setenv("PYRO_EXT_DATA", "~/elsewhere")
    save(tmp_path / "elsewhere", b"bad")
    with pytest.raises(ValueError, match="elsewhere"):
        load("toy")


def test_unknown_name_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"'mnits' \(did you mean 'mnist'\?\)") as info:
        load("mnits")
    assert all(name in str(info.value) for name in names())
    with pytest.raises(ValueError, match="unknown data set 'zzzzzz'; known are"):
        load("zzzzzz")


def test_absent_set_names_places_files_digests_mirrors_and_cures(places):
    with pytest.raises(FileNotFoundError) as info:
        load("mnist")
    message = str(info.value)
    for source in SETS["mnist"].sources:
        for file in source.files:
            assert all(part in message for part in (file.path, file.sha256, *file.urls))
    for part in ("'mnist'", str(places[1]), str(places[2]), "PYRO_EXT_DATA", "download=True"):
        assert part in message


@pytest.mark.parametrize(
    "name", ["omniglot", "caltech101_silhouettes", "cifar10_mini", "rat_hippocampus", "uci/yacht"]
)
def test_sets_without_a_mirror_say_so(places, name):
    with pytest.raises(FileNotFoundError, match="No verified mirror") as info:
        load(name, download=True)
    (file,) = SETS[name].sources[0].files
    for part in (file.path, file.sha256, str(places[1]), "PYRO_EXT_DATA"):
        assert part in str(info.value)
    assert not any(place.exists() for place in places)


def test_corrupt_file_names_path_digests_and_cure(toy, content, tmp_path):
    path = save(tmp_path, content[:-1])
    with pytest.raises(ValueError, match="corrupt") as info:
        load("toy", root=tmp_path)
    actual = hashlib.sha256(content[:-1]).hexdigest()
    for part in (str(path), toy.sha256, actual, f"{len(content) - 1} bytes", "Delete", "download"):
        assert part in str(info.value)


def test_arrays_must_have_the_declared_shapes(toy, content, tmp_path, monkeypatch):
    save(tmp_path, content)
    for layout in (
        {"x_test": ("uint8", (4, 3)), "y_test": ("int64", (3,))},
        {"x_test": ("uint8", (3, 4))},
    ):
        monkeypatch.setitem(SETS, "toy", DataSet(layout, SETS["toy"].sources))
        with pytest.raises(ValueError, match="expected arrays of shapes"):
            load("toy", root=tmp_path)


def test_arrays_must_fit_the_declared_dtypes(toy, content, tmp_path, monkeypatch):
    save(tmp_path, content)
    layout = {"x_test": ("bool", (3, 4)), "y_test": ("int64", (3,))}
    monkeypatch.setitem(SETS, "toy", DataSet(layout, SETS["toy"].sources))
    with pytest.raises(TypeError, match="Cannot cast"):
        load("toy", root=tmp_path)


def test_download_goes_to_the_first_folder_and_is_used_from_there(idx, places):
    with pytest.raises(FileNotFoundError):
        load("toy")
    data = load("toy", download=True)
    assert data["y_train"].tolist() == [5, 0]
    assert torch.equal(data["x_train"].flatten(), torch.arange(18, dtype=torch.uint8))
    stored = sorted(path.name for path in (places[1] / "toy").iterdir())
    assert stored == ["x_test.gz", "x_train.gz", "y_test.gz", "y_train.gz"]
    assert not places[2].exists()
    for path in idx.iterdir():
        path.unlink()  # the mirror goes away
    again = load("toy", download=True)
    assert all(torch.equal(again[key], data[key]) for key in data)


def test_download_goes_to_root(idx, places):
    load("toy", root=places[0], download=True)
    assert not places[1].exists()
    assert load("toy", root=places[0])


def test_download_completes_what_is_there(idx, places):
    load("toy", root=places[0], download=True)
    (places[0] / "toy" / "y_test.gz").unlink()
    (idx / "x_train.gz").unlink()  # present already, so not asked for
    assert load("toy", root=places[0], download=True)["y_test"].tolist() == [7]


def test_failed_download_leaves_nothing(idx, places):
    for path in idx.iterdir():
        path.write_bytes(b"other bytes")
    with pytest.raises(OSError, match="no mirror served"):
        load("toy", root=places[0], download=True)
    assert not [path for path in places[0].rglob("*") if path.is_file()]


def test_cifar10_is_not_its_mini(places):
    folder = places[0]
    folder.mkdir()
    (folder / "cifar10_mini.npz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="cifar-10-binary"):
        load("cifar10", root=folder)


@pytest.mark.parametrize("name", LOCAL)
def test_real_sets(name):
    (file,) = SETS[name].sources[0].files
    if not (FOLDER / file.path).is_file():
        pytest.skip(f"needs {file.path} in the folder PYRO_EXT_DATA (now {FOLDER})")
    data = load(name, root=FOLDER)
    for key, (dtype, shape) in SETS[name].layout.items():
        assert data[key].dtype == getattr(torch, dtype)
        assert data[key].shape == shape
        if dtype == "float32":
            assert data[key].isfinite().all()
    heads = {
        "mnist": {"y_train": [5, 0, 4, 1, 9], "y_test": [7, 2, 1, 0, 4]},
        "cifar10_mini": {"y_train": [6, 9, 9, 4, 1], "y_test": [3, 8, 8, 0, 6]},
    }
    for key, head in heads.get(name, {}).items():
        assert data[key][:5].tolist() == head
    levels = {"mnist": 255, "cifar10_mini": 255}.get(name, 1)
    for key in data.keys() & {"x_train", "x_valid", "x_test"}:
        assert (int(data[key].min()), int(data[key].max())) == (0, levels)
    if "test_mask" in data:  # each split tests a tenth of the rows
        share = data["test_mask"].float().mean(1)
        assert ((share - 0.1).abs() < 0.01).all()


def test_rat_hippocampus_is_a_session_on_a_track():
    (file,) = SETS["rat_hippocampus"].sources[0].files
    if not (FOLDER / file.path).is_file():
        pytest.skip(f"needs {file.path} in the folder PYRO_EXT_DATA (now {FOLDER})")
    data = load("rat_hippocampus", root=FOLDER)
    assert data["spikes"].max() == 4
    assert data["spikes"].any(0).sum() == 45  # the others are silent
    assert (data["position"].min(), data["position"].max()) == (0.0, pytest.approx(1.6))
    assert data["direction"].unique().tolist() == [0, 1]
    assert data["bin_seconds"].item() == pytest.approx(0.025)
    trials = (data["direction"].diff() != 0).nonzero().flatten() + 1
    assert len(trials) == 56  # in the order of time it runs to and fro
