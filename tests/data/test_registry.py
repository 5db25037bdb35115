import re

import pytest

from pyro_ext.data.registry import SETS, DataSet, File, Source

FILES = [file for entry in SETS.values() for source in entry.sources for file in source.files]


def test_files_are_pinned_once_each():
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in FILES)
    assert len({file.sha256 for file in FILES}) == len({file.path for file in FILES}) == len(FILES)


def test_mirrors_serve_files_of_the_same_name():
    for file in FILES:
        assert not file.path.startswith("/")
        assert ".." not in file.path
        for url in file.urls:
            assert re.match("https?://", url)
            assert url.rsplit("/", 1)[1] == file.path.rsplit("/", 1)[1]


@pytest.mark.parametrize("name", SETS)
def test_layouts_are_consistent(name):
    layout = SETS[name].layout
    for key, (dtype, shape) in layout.items():
        assert all(size > 0 for size in shape)
        if key.startswith("x_"):
            assert dtype == "uint8"
            partner = layout.get("y" + key[1:])
            assert partner in (None, ("int64", shape[:1]))
            assert shape[1:] == layout["x_train"][1][1:]


def test_mirrored_is_the_first_source_with_all_its_mirrors():
    local, half, whole = File("a", "0"), File("b", "1", ("u",)), File("c", "2", ("v",))
    sources = [Source((local,), dict), Source((half, local), dict), Source((half, whole), dict)]
    assert DataSet({}, tuple(sources)).mirrored is sources[2]
    assert DataSet({}, tuple(sources[:2])).mirrored is None


def test_what_can_be_downloaded():
    able = {name for name, entry in SETS.items() if entry.mirrored and entry.mirrored.files}
    assert able == {"mnist", "fashion_mnist", "static_mnist", "cifar10"}
