"""The floors of the house, read from syntax trees; no side effects; the list of public names.

Each checker takes sources as a mapping from path to text, so that planted faults are tested too.
"""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
API = ROOT / "docs" / "reference" / "api.txt"
FLOORS = ("ops", "nn", "distributions", "poutine", ("infer", "models"), "diagnostics")
LEVEL = {
    room: level
    for level, rooms in enumerate(FLOORS)
    for room in (rooms if isinstance(rooms, tuple) else (rooms,))
}
ISLANDS = {"data": {"torch", "numpy", "sklearn"}, "testing": {"torch", "pyro"}}
ROOMS = sorted(LEVEL.keys() | ISLANDS.keys())
DEMO = "pyro_ext/demo.py"
ROOF = {"pyro_ext/__init__.py", DEMO}
HEAVY = {"arviz", "lightning", "matplotlib", "scipy", "sklearn"}

Sources = Mapping[str, str]


def read_sources() -> Sources:
    paths = sorted((ROOT / "pyro_ext").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imports(source: str, everywhere: bool = True) -> Iterator[str]:
    """Imported dotted names, ``from a import b`` as ``a.b``; relative ones begin with a dot."""
    tree = ast.parse(source)
    for node in ast.walk(tree) if everywhere else at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def ours(sources: Sources) -> Iterator[tuple[str, str]]:
    """Pairs of a path off the roof and a name of ours that it imports."""
    for path, source in sources.items():
        if path not in ROOF:
            for name in imports(source):
                if name.split(".")[0] == "pyro_ext":
                    yield path, name


def leaf_of(name: str, modules: set[str]) -> str:
    """The module that an imported name comes from."""
    while name not in modules and "." in name:
        name = name.rpartition(".")[0]
    return name


def upward_imports(sources: Sources) -> list[str]:
    """Imports of a higher floor, or of the sibling on the same one."""
    found = []
    for path, name in ours(sources):
        here, there = room_of(module_name(path)), room_of(name)
        if here in LEVEL and there in LEVEL and here != there and LEVEL[there] >= LEVEL[here]:
            found.append(f"{path} imports {name}: {here} may not look at {there}")
    return found


def roof_imports(sources: Sources) -> list[str]:
    """Imports of the demo, which stands on every room."""
    return [
        f"{path} imports {name}: the demo is on the roof"
        for path, source in sources.items()
        for name in imports(source)
        if path != DEMO and is_under(name, "pyro_ext.demo")
    ]


def pyro_in_ops(sources: Sources) -> list[str]:
    """Imports of Pyro where pure functions on tensors live."""
    return [
        f"{path} imports {name}: ops know no Pyro"
        for path, source in sources.items()
        if room_of(module_name(path)) == "ops"
        for name in imports(source)
        if name.split(".")[0] == "pyro"
    ]


def relative_imports(sources: Sources) -> list[str]:
    return [
        f"{path} imports {name}: write the absolute name"
        for path, source in sources.items()
        for name in imports(source)
        if name.startswith(".")
    ]


def floor_imports(sources: Sources) -> list[str]:
    """Imports from an ``__init__``, where the names of a whole room are gathered."""
    packages = {module_name(path) for path in sources if path.endswith("__init__.py")}
    modules = {module_name(path) for path in sources}
    return [
        f"{path} imports {name}: import from the leaf module"
        for path, name in ours(sources)
        if leaf_of(name, modules) in packages
    ]


def heavy_imports(sources: Sources) -> list[str]:
    return [
        f"{path} imports {name} at its top: do it inside the function"
        for path, source in sources.items()
        for name in imports(source, everywhere=False)
        if name.split(".")[0] in HEAVY
    ]


def island_breaches(sources: Sources) -> list[str]:
    found = []
    for path, source in sources.items():
        room = room_of(module_name(path))
        if room in ISLANDS:
            allowed = ISLANDS[room] | {"tqdm"} | sys.stdlib_module_names
            for name in imports(source):
                if name.split(".")[0] not in allowed and not is_under(name, f"pyro_ext.{room}"):
                    found.append(f"{path} imports {name}: {room} is an island")
    for path, name in ours(sources):
        if room_of(name) in ISLANDS and room_of(name) != room_of(module_name(path)):
            found.append(f"{path} imports {name}: {room_of(name)} is an island")
    return found


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def import_cycles(sources: Sources) -> list[str]:
    """Cycles among imports that run when the modules are imported."""
    modules = {module_name(path) for path in sources}
    edges = {
        module_name(path): {leaf_of(name, modules) for name in imports(source, everywhere=False)}
        & modules - {module_name(path)}
        for path, source in sources.items()
    }
    while leaves := [module for module, below in edges.items() if not below]:
        for module in leaves:
            del edges[module]
        edges = {module: below - set(leaves) for module, below in edges.items()}
    return [f"cycle among {sorted(edges)}"] if edges else []


CHECKERS = [
    upward_imports,
    roof_imports,
    pyro_in_ops,
    relative_imports,
    floor_imports,
    heavy_imports,
    island_breaches,
    import_cycles,
]


@pytest.mark.parametrize("checker", CHECKERS)
def test_house_keeps_its_floors(checker):
    found = checker(read_sources())
    assert not found, "\n".join(found)


PLANTED = [
    (upward_imports, {"pyro_ext/nn/a.py": "from pyro_ext.models.vae import VAE"}),
    (upward_imports, {"pyro_ext/ops/a.py": "def f():\n    import pyro_ext.nn.b"}),
    (upward_imports, {"pyro_ext/infer/a.py": "from pyro_ext.models.vae import VAE"}),
    (upward_imports, {"pyro_ext/models/a.py": "import pyro_ext.infer.elbo"}),
    (roof_imports, {"pyro_ext/nn/a.py": "from pyro_ext.demo import main"}),
    (roof_imports, {"pyro_ext/models/a.py": "def f():\n    import pyro_ext.demo"}),
    (roof_imports, {"pyro_ext/data/a.py": "from pyro_ext import demo"}),
    (roof_imports, {"pyro_ext/__init__.py": "from pyro_ext import demo"}),
    (pyro_in_ops, {"pyro_ext/ops/a.py": "import pyro"}),
    (pyro_in_ops, {"pyro_ext/ops/a.py": "def f():\n    from pyro.ops.stats import hpdi"}),
    (relative_imports, {"pyro_ext/nn/a.py": "from . import b"}),
    (relative_imports, {"pyro_ext/nn/a.py": "from ..ops.b import c"}),
    (
        floor_imports,
        {"pyro_ext/nn/a.py": "from pyro_ext.ops import log_mean", "pyro_ext/ops/__init__.py": ""},
    ),
    (floor_imports, {"pyro_ext/nn/a.py": "import pyro_ext", "pyro_ext/__init__.py": ""}),
    (heavy_imports, {"pyro_ext/diagnostics/a.py": "import arviz as az"}),
    (heavy_imports, {"pyro_ext/ops/a.py": "if True:\n    from scipy.special import erf"}),
    (heavy_imports, {"pyro_ext/ops/a.py": "class A:\n    import matplotlib.pyplot"}),
    (island_breaches, {"pyro_ext/data/a.py": "import pyro"}),
    (island_breaches, {"pyro_ext/data/a.py": "def f():\n    import pandas"}),
    (island_breaches, {"pyro_ext/testing/a.py": "from pyro_ext.ops.b import c"}),
    (island_breaches, {"pyro_ext/models/a.py": "from pyro_ext.data.load import load"}),
    (island_breaches, {"pyro_ext/nn/a.py": "from pyro_ext.testing.case import Case"}),
    (
        import_cycles,
        {
            "pyro_ext/nn/a.py": "from pyro_ext.nn.b import B",
            "pyro_ext/nn/b.py": "from pyro_ext.nn.a import A",
        },
    ),
]


@pytest.mark.parametrize(("checker", "sources"), PLANTED)
def test_planted_import_is_found(checker, sources):
    assert len(checker(sources)) == 1


@pytest.mark.parametrize("checker", CHECKERS)
def test_lawful_imports_pass(checker):
    sources = {
        "pyro_ext/__init__.py": "from pyro_ext import data, ops",
        "pyro_ext/demo.py": "import arviz_stats\nfrom pyro_ext.data import load",
        "pyro_ext/ops/__init__.py": "from pyro_ext.ops.log_mean import log_mean",
        "pyro_ext/ops/log_mean.py": "import torch",
        "pyro_ext/nn/a.py": "import pyro\nimport tqdm\nfrom pyro_ext.ops.log_mean import log_mean",
        "pyro_ext/data/load.py": "import json\nimport numpy as np\nfrom pyro_ext.data.url import u",
        "pyro_ext/data/url.py": "def f():\n    from pyro_ext.data.load import load",
        "pyro_ext/diagnostics/a.py": "def f():\n    import matplotlib.pyplot as plt",
        "pyro_ext/testing/a.py": "import pyro\nfrom pyro_ext.testing.b import c",
        "pyro_ext/testing/b.py": "def f():\n    import pickle",
    }
    assert checker(sources) == []


def test_every_file_has_a_floor():
    rooms = {room_of(module_name(path)) for path in read_sources() if path not in ROOF}
    assert rooms <= set(ROOMS), f"{sorted(rooms - set(ROOMS))} stand on no floor"


# Importing changes nothing.

PROBE = """
import json, random, sys, warnings
import numpy, torch, pyro, pyro.settings
import torch.nn.functional
from torch.distributions import Distribution

def members(module):
    return {name: id(value) for name, value in vars(module).items() if callable(value)}

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.empty(0).device),
        "grad mode": torch.is_grad_enabled(),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(numpy.random.get_state()),
        "random generator": repr(random.getstate()),
        "Pyro settings": repr(pyro.settings.get()),
        "parameter store": sorted(pyro.get_param_store().keys()),
        "validation flag": Distribution._validate_args,
        "warning filters": repr(warnings.filters),
        "threads": torch.get_num_threads(),
        "torch functions": [
            members(m) for m in (torch, torch.nn.functional, torch.nn, torch.Tensor, pyro)
        ],
    }

heavy = {heavy!r}
before, loaded = state(), set(sys.modules)
{statement}
after = state()
changed = [name for name in before if before[name] != after[name]]
changed += sorted(name for name in heavy if name in set(sys.modules) - loaded)
print(json.dumps(changed))
"""


def side_effects(statement: str) -> list[str]:
    """What a statement changes in a fresh process."""
    code = PROBE.replace("{heavy!r}", repr(sorted(HEAVY))).replace("{statement}", statement)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_import_has_no_side_effect():
    rooms = ", ".join(f"pyro_ext.{room}" for room in ROOMS)
    assert side_effects(f"import pyro_ext, {rooms}") == []


def test_planted_side_effects_are_found():
    faults = {
        "torch.set_default_dtype(torch.float64)": "default dtype",
        "torch.set_grad_enabled(False)": "grad mode",
        "torch.rand(1)": "torch generator",
        "numpy.random.rand()": "numpy generator",
        "random.random()": "random generator",
        "pyro.settings.set(module_local_params=True)": "Pyro settings",
        "pyro.param('a', torch.zeros(1))": "parameter store",
        "pyro.enable_validation(not Distribution._validate_args)": "validation flag",
        "warnings.simplefilter('ignore')": "warning filters",
        "torch.nn.functional.linear = lambda *a: None": "torch functions",
        "torch.set_default_device('meta')": "default device",
        "import matplotlib" if "matplotlib" in installed() else "import sys": "matplotlib",
    }
    found = side_effects("\n".join(faults))
    expected = set(faults.values()) - ({"matplotlib"} - installed())
    assert expected <= set(found), f"missed {sorted(expected - set(found))}"


def installed() -> set[str]:
    return {name for name in HEAVY if importlib.util.find_spec(name)}


# Public names.


def public_names() -> list[str]:
    """Every room's ``__all__``, fully qualified."""
    found = []
    for room in ROOMS:
        module = importlib.import_module(f"pyro_ext.{room}")
        found += [f"pyro_ext.{room}.{name}" for name in getattr(module, "__all__", [])]
    return sorted(found)


def compare_api(names: list[str], lines: list[str]) -> str:
    """A message that says how to mend the list, empty if it is right."""
    extra = [f"- {line}" for line in lines if line not in names]
    missing = [f"+ {name}" for name in names if name not in lines]
    order = [] if lines == sorted(set(lines)) else ["(sort the lines, once each)"]
    return "\n".join(extra + missing + order)


def test_api_list_equals_the_rooms():
    message = compare_api(public_names(), API.read_text().split())
    assert not message, f"mend docs/reference/api.txt:\n{message}"


def test_public_names_exist_and_are_documented():
    for name in public_names():
        room, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(room), attribute)
        assert not callable(value) or value.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize(
    ("names", "lines", "message"),
    [
        (["a.b", "a.c"], ["a.b"], "+ a.c"),
        (["a.b"], ["a.b", "a.c"], "- a.c"),
        (["a.b", "a.c"], ["a.c", "a.b"], "(sort the lines, once each)"),
        (["a.b"], ["a.b"], ""),
    ],
)
def test_planted_api_line_is_found(names, lines, message):
    assert compare_api(names, lines) == message


# Every public distribution and transform has its line in the contract's fixtures.


def without_fixture(names: list[str], fixtures: list[str], exempt: list[str]) -> list[str]:
    """Public names with neither a fixture ``Name`` or ``Name-variant`` nor an exemption."""
    covered = {fixture.partition("-")[0] for fixture in fixtures} | set(exempt)
    return [name for name in names if name not in covered]


def test_every_public_distribution_has_its_fixture():
    from fixtures import EXEMPT, FIXTURES

    module = importlib.import_module("pyro_ext.distributions")
    missing = without_fixture(getattr(module, "__all__", []), list(FIXTURES), list(EXEMPT))
    assert not missing, f"add to tests/distributions/fixtures.py a line for {missing}"


def test_planted_missing_fixture_is_found():
    assert without_fixture(["A", "B", "C"], ["A-scalar"], ["B"]) == ["C"]


def test_test_folders_are_named_after_rooms():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    assert folders <= {*ROOMS, "benchmarks"}
