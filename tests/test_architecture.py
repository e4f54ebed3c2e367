"""Imports point one way, modules stay small, and importing costs little."""

import ast
import pathlib
import subprocess
import sys

import pytest

import maskjax

ROOT = pathlib.Path(maskjax.__file__).parent

# Modules and folders from the inside out: each imports only from earlier rings, and
# from its own ring where that makes no cycle.
RINGS = [
    {"_core"},
    {"where", "structure"},
    {"algebra", "packing", "initializer"},
    {"score", "select", "allocation", "masking", "bank", "calibration"},
    {"estimator", "stacking", "superposition", "compaction"},
    {"optim", "layers", "storage", "report", "metrics", "theory"},
    {"recipes"},
]
RING = {name: i for i, ring in enumerate(RINGS) for name in ring}
FILES = sorted(ROOT.rglob("*.py"))
MODULES = [path for path in FILES if path.parent != ROOT or path.stem != "__init__"]


def dotted(path):
    """`maskjax/select/_search.py` as `select._search`, and a folder as its name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path) for path in FILES}


def imported(path):
    """Modules of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path.name}: a relative import"
            root, _, rest = node.module.partition(".")
            if root != "maskjax":
                continue
            for alias in node.names:
                name = f"{rest}.{alias.name}".lstrip(".")
                yield name if name in NAMES else rest
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] != "maskjax", "import from, not import"


GRAPH = {dotted(path): set(imported(path)) for path in MODULES}


def test_imports_point_inward():
    for module, names in GRAPH.items():
        own = module.split(".")[0]
        for name in names:
            assert RING[name.split(".")[0]] <= RING[own], f"{module} imports {name}"


@pytest.mark.parametrize("level", ["folders", "files"])
def test_no_import_cycles(level):
    graph = GRAPH
    if level == "folders":
        graph = {}
        for module, names in GRAPH.items():
            own = module.split(".")[0]
            others = {name.split(".")[0] for name in names} - {own}
            graph.setdefault(own, set()).update(others)
    done = set()
    while graph.keys() - done:
        free = {name for name in graph.keys() - done if graph[name] <= done}
        assert free, f"cycle among {sorted(graph.keys() - done)}"
        done |= free


def test_recipes_never_import_each_other():
    for module, names in GRAPH.items():
        own = module.split(".")[:2]
        for name in names:
            parts = name.split(".")
            if own == ["recipes"]:  # which names them all, for type checkers
                continue
            if own[0] == parts[0] == "recipes" and not parts[1].startswith("_"):
                assert parts[:2] == own, f"{module} imports {name}"


def test_no_core_file_names_a_recipe():
    """Nobody's message blames a recipe but the recipe itself."""
    for path in MODULES:
        if "recipes" not in path.parts:
            strings = [
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
            assert not any(text.startswith("maskjax.recipes.") for text in strings)


def test_modules_are_one_concept_long():
    for path in MODULES:
        limit = 200 if "recipes" in path.parts else 400
        assert len(path.read_text().splitlines()) <= limit, path


def test_a_function_fits_a_screen():
    """Bodies without the docstring; what is nested belongs to what it is nested in."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1 if ast.get_docstring(node) else 0 :]
                lines = node.end_lineno - first[0].lineno + 1 if first else 0
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def test_importing_the_package_imports_only_jax_and_numpy():
    code = (
        "import jax, sys; before = set(sys.modules)\n"
        "import maskjax; print(*(set(sys.modules) - before))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    roots = {name.split(".")[0] for name in out.stdout.split()}
    assert not roots & {
        "flax",
        "optax",
        "chex",
        "matplotlib",
        "rich",
        "sklearn",
        "safetensors",
    }
