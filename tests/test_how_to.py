"""The code of the how-to pages runs, block after block in one session."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parent.parent / "docs" / "how-to"
RUN = [
    "build-a-vae",
    "choose-a-bound",
    "evaluate-a-latent-variable-model",
    "is-my-model-identifiable",
    "load-data",
    "read-a-posterior-in-arviz",
    "save-and-load",
    "sparsify-a-network",
    "train-an-energy-inspired-prior",
    "use-a-flow",
    "use-a-pixel-cnn",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas to ArviZ
@pytest.mark.parametrize("name", RUN)
def test_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(), re.S)
    assert blocks
    session: dict = {"__name__": name}
    for block in blocks:
        exec(compile(block, name, "exec"), session)
