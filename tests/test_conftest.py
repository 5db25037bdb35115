"""The autouse fixture fails a test that leaks global state, and repairs it for the next one."""

import shutil
import subprocess
import sys
from pathlib import Path

LEAKS = """
import os, pyro, pytest, torch
from pyro.poutine import trace
from torch.distributions import Distribution

def test_dtype(): torch.set_default_dtype(torch.float64)
def test_device(): torch.set_default_device("meta")
def test_grad(): torch.set_grad_enabled(False)
def test_validation(): Distribution.set_default_validate_args(False)
def test_setting(): pyro.settings.set(module_local_params=True)
def test_handler(): trace().__enter__()

@pytest.mark.parametrize("again", [0, 1])
def test_clean(again):
    assert not len(pyro.get_param_store())
    pyro.param("x", torch.zeros(1))
    assert torch.zeros(1).dtype == torch.float32 and torch.is_grad_enabled()
    assert Distribution._validate_args

SEEDS = set()
@pytest.mark.parametrize("name", ["a", "b"])
def test_seed(name):
    SEEDS.add(torch.initial_seed())
    assert len(SEEDS) == 1 + (name == "b")

@pytest.mark.gpu
def test_gpu(): assert torch.cuda.is_available()

def test_data(data_root): assert data_root == "never"
"""


def test_leaks_are_reported_and_repaired(tmp_path, monkeypatch):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs CUDA\n")
    monkeypatch.delenv("PYRO_EXT_DATA", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = [sys.executable, "-m", "pytest", "-rEsx", "-p", "no:cacheprovider", str(tmp_path)]
    out = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path).stdout
    names = ["dtype", "device", "grad", "validation", "setting", "handler"]
    for name in names:
        assert f"ERROR test_leaks.py::test_{name} - " in out, out
    assert "10 passed, 2 skipped, 6 errors" in out, out
    assert "no CUDA device" in out
    assert "PYRO_EXT_DATA is unset" in out
