"""What the page on Pyro's transforms says is so; the day that Pyro mends one, this fails."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "upstream-transforms.md"
BLOCK = re.compile(r"```python\n(.*?)```\n+(?:```text\n(.*?)```)?", re.DOTALL)


def printed(code, session):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, session)
    return output.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pyro's own
def test_the_page_prints_what_it_says():
    session: dict = {}
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 8
    for code, shown in blocks:
        assert printed(code, session) == shown
