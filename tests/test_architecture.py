"""Imports point one way, modules stay small, and importing costs little."""

import ast
import pathlib
import subprocess
import sys

import pytest

import maskjax

ROOT = pathlib.Path(maskjax.__file__).parent

# Each ring imports from rings before it, and from its own where no cycle arises.
RINGS = [
    {"_dtypes", "_packed"},
    {"_tree"},
    {"_checks"},
    {"_count", "_quota", "_contraction", "_objective", "_family", "_keys", "_wide"},
    {"_slots"},
    {"_search"},
    {"where", "structure", "algebra", "packing", "initializer", "bank"},
    {"_choice"},
    {
        "score",
        "select",
        "allocation",
        "estimator",
        "masking",
        "stacking",
        "superposition",
        "_rounds",
    },
    {"_opt_state", "_opt_update", "_rewiring", "_disk"},
    {"_ownership", "_penalty", "_predicted", "_thin"},
    {"_continual", "_classification", "_calibration", "_detection", "_regression"},
    {"_drawing", "_diagrams"},
    {"optim", "layers", "storage", "report", "metrics", "kernels", "theory"},
    {"recipes"},
]
RING = {name: i for i, ring in enumerate(RINGS) for name in ring}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py")


def ring_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return RING[parts[0]]


def imported(path):
    """Top-level maskjax modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] != "maskjax":
                continue
            if len(parts) > 1:
                yield parts[1]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] != "maskjax", "import from, not import"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_point_inward(path):
    for name in imported(path):
        assert RING[name] <= ring_of(path), f"{path.stem} imports {name}"


def test_no_import_cycles():
    graph = {p.stem: set(imported(p)) for p in MODULES if p.parent == ROOT}
    done = set()
    while graph.keys() - done:
        free = {name for name in graph.keys() - done if graph[name] <= done}
        assert free, f"cycle among {sorted(graph.keys() - done)}"
        done |= free


def test_recipes_never_import_each_other():
    for path in (ROOT / "recipes").glob("*.py"):
        assert "recipes" not in set(imported(path)), path.name


def test_relative_imports_are_absent():
    for path in MODULES:
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(n, ast.ImportFrom) and n.level for n in nodes)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_modules_are_one_concept_long(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (300 if "recipes" in path.parts else 400)


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
