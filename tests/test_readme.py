"""The README is one page; its commands are run, its numbers are measured."""

import pathlib
import re

from benchmarks import measured

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DEMONSTRATION = "pip install -e '.[bench]' && python -m benchmarks"
TESTS = "pip install -e '.[test]' && pytest"


def test_it_fits_on_a_page():
    assert len(README.splitlines()) <= 110


def test_the_two_commands_are_there_as_they_are_run():
    assert f"    {DEMONSTRATION}\n" in README
    assert f"    {TESTS}\n" in README
    assert f"\n{TESTS}\n" in (ROOT / ".ci" / "run").read_text()


def test_it_has_an_example_that_is_run():
    assert README.count(">>>") >= 5
    assert "README.md" in (ROOT / "pyproject.toml").read_text()


def test_every_file_it_names_exists():
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        if not name.startswith("http"):
            assert (ROOT / name).exists(), name


def test_every_measured_number_has_its_line():
    assert f"{measured.BEGIN}\n{measured.table()}\n{measured.END}" in README
