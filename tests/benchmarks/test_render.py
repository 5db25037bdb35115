"""The page of results is what the result files say."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "render.py"


@pytest.fixture
def render():
    spec = importlib.util.spec_from_file_location("pyro_ext_benchmarks_render", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def result():
    return {
        "name": "toy",
        "title": "A toy",
        "date": "2020-01-02",
        "command": "python toy.py",
        "settings": {"batch size": 3, "seeds": [0, 1]},
        "rows": [{"who": "a|b", "nats": 1.5}, {"who": "c", "ratio": 2}],
        "wall_seconds": 1.0,
        "cpu_seconds": 0.5,
        "machine": {"processor": "x86_64", "gpu": None},
        "versions": {"torch": "2.13.0"},
    }


@pytest.fixture
def folder(render, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "PAGE", tmp_path / "results.md")
    return tmp_path


def test_committed_page_equals_the_rendering_of_the_committed_results(render, capsys):
    assert render.main(["--check"]) == 0, capsys.readouterr().out


def test_section(render, result):
    assert render.section(result).splitlines() == [
        "",
        "## A toy",
        "",
        "Setting: batch size: 3; seeds: 0 1.",
        "",
        "| who | nats | ratio |",
        "| --- | ---: | ---: |",
        "| a\\|b | 1.5 |  |",
        "| c |  | 2 |",
        "",
        "- Machine: processor: x86_64.",
        "- Versions: torch 2.13.0.",
        "- Measured on 2020-01-02; 1 s of wall time, 0.5 s of CPU.",
        "- To reproduce: `python toy.py`",
    ]


def test_page_says_that_it_is_generated_and_does_not_depend_on_order(render, result):
    other = {**result, "name": "a first one", "title": "First"}
    page = render.render([result, other])
    assert "render.py" in page.splitlines()[0]
    assert page == render.render([other, result])
    assert page.index("First") < page.index("A toy")


def test_page_without_results(render):
    assert "No result" in render.render([])


def test_check_writes_nothing(render, folder, result, capsys):
    (folder / "toy.json").write_text(json.dumps(result))
    assert render.main(["--check"]) == 1
    assert not render.PAGE.exists()
    assert render.main([]) == 0
    assert render.main(["--check"]) == 0
    render.PAGE.write_text(render.PAGE.read_text() + "by hand")
    assert render.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, "toy.json: key 'rows' is a NoneType, expected list"),
        ({"cpu_seconds": "1"}, "toy.json: key 'cpu_seconds' is a str, expected int or float"),
        ({"rows": [{}, 3]}, r"toy.json: key 'rows'\[1\] is a int, expected dict"),
    ],
)
def test_wrong_type_is_named(render, folder, result, change, message):
    (folder / "toy.json").write_text(json.dumps({**result, **change}))
    with pytest.raises(render.MalformedResult, match=message):
        render.read(folder / "toy.json")


def test_missing_key_is_named(render, folder, result):
    del result["settings"]
    (folder / "toy.json").write_text(json.dumps(result))
    with pytest.raises(render.MalformedResult, match=r"toy.json: key 'settings' is missing"):
        render.read(folder / "toy.json")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_file_that_is_no_object_is_named(render, folder, text, capsys):
    (folder / "toy.json").write_text(text)
    assert render.main([]) == 2
    assert "toy.json: " in capsys.readouterr().err
