"""Notebooks run from top to bottom, in their fast mode."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

from tests import processes

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_small_and_were_run(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert path.stat().st_size <= 300_000
    assert sum(len(cell.source.splitlines()) for cell in code) <= 150
    assert all(cell.execution_count for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path, monkeypatch):
    # In their fast mode compiling is most of what they take: less of it, as in tests.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    flags = [os.environ.get("XLA_FLAGS", ""), *processes.FAST]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.count("FAST = False") == 1
    first.source = first.source.replace("FAST = False", "FAST = True")
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
