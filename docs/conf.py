"""Sphinx configuration; needs no network."""

import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent


def copy_notebooks() -> None:
    """Puts the executed notebooks among the tutorials; their copies are not under version control.

    A copy that is up to date is left alone, so that a second build has nothing to do.
    """
    target = HERE / "tutorials"
    sources = {path.name: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    for stale in {path.name for path in target.glob("*.ipynb")} - sources.keys():
        (target / stale).unlink()
    for name, source in sources.items():
        copy = target / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)


copy_notebooks()

project = "pyro_ext"
author = "The pyro_ext developers"
copyright = author
release = re.search(r'__version__ = "(.+)"', (ROOT / "pyro_ext" / "__init__.py").read_text())[1]
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

html_theme = "furo"
html_title = f"pyro_ext {release}"
