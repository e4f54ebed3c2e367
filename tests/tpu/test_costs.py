"""What programs may cost on TPU: code, scratch memory, and what travels between chips.

The programs are those of `benchmarks.speed.tpu_compile`, beside the least that each of
them has to be. Nothing runs, and no chip is needed, but `libtpu` is.
"""

import collections
import json
import subprocess
import sys

import pytest

from benchmarks import _chips
from benchmarks.speed import tpu_compile
from tests.tpu.compiling import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'"
    ),
]

MB = 2**20
# Compacted networks take minutes, and are compiled smaller in `test_halved`.
SELECT, LAYERS, STEP, EVEN, ODD, TASK, *_ = tpu_compile.CASES
CASES = SELECT, f"{LAYERS}, 4 chips", STEP, EVEN, ODD, TASK


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A case, and a contestant of it, to what the compiler says."""
    root = tmp_path_factory.mktemp("tpu")
    only = [word for case in CASES for word in ("--only", case)]
    command = [sys.executable, "-m", "benchmarks.speed.tpu_compile", *only]
    command += ["--out", root]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = (root / tpu_compile.FOLDER / "tpu_compile.jsonl").read_text()
    found = map(json.loads, text.splitlines())
    return {(line["case"], line["contestant"]): line for line in found}


@pytest.mark.parametrize("chips", ["1 chip", "4 chips"])
def test_selection_is_a_small_program(chips, lines):
    line = lines[f"{SELECT}, {chips}", "leaf"]
    assert line["code"] <= 1.5 * MB
    assert line["temporary"] <= MB


@pytest.mark.parametrize("scope", ["leaf", "layer", "global"])
def test_selection_over_a_transformer_needs_no_copy_of_its_scores(scope, lines):
    """Nor of a chip's part of them; counts alone are shared."""
    line = lines[f"{LAYERS}, 4 chips", scope]
    assert line["temporary"] <= 0.05 * line["arguments"]
    assert line["code"] <= 8 * MB
    assert line["collectives"].keys() == {"all-reduce"}
    assert line["largest_collective"] <= 24  # layers


# How much more code than Adam's alone a step may be, and how much scratch memory beside
# its arguments.
STEPS = {
    "mask": (1.2, 0.0),
    "packed mask": (2.0, 0.0),
    "keep_sparse": (1.2, 0.0),
    "prune": (3.2, 1.1),
    "rigl": (6.5, 2.0),
    "edge_popup": (3.6, 1.0),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_with_masks_costs_so_much_more_than_adams(kind, lines):
    case = f"{STEP}, 1 chip"
    line, least = lines[case, kind], lines[case, "Adam"]
    code, temporary = STEPS[kind]
    assert line["code"] <= code * least["code"]
    assert line["temporary"] <= temporary * line["arguments"] + 1024


# 784 rows are no whole words on each of four chips, so packed masks travel there.
@pytest.mark.parametrize("kind", sorted(STEPS.keys() - {"packed mask"}))
def test_a_mask_makes_nothing_else_travel(kind, lines):
    """What Adam's own step moves, and sums."""
    case = f"{STEP}, 4 chips"
    line, least = lines[case, kind], lines[case, "Adam"]
    more = collections.Counter(line["collectives"])
    more.subtract(least["collectives"])
    assert {name for name, count in more.items() if count > 0} <= {"all-reduce"}
    assert line["largest_collective"] <= least["largest_collective"]


@pytest.mark.parametrize("name", ["dot", "mix"])
def test_packed_masks_are_read_where_they_are(name, lines):
    line = lines[f"{EVEN}, 1 chip", name]
    assert line["temporary"] <= 0.02 * line["arguments"]
    assert line["code"] <= 2.5 * MB


@pytest.mark.parametrize(
    ("case", "name"), [(ODD, "dot"), (ODD, "mix"), (TASK, "one_shot")]
)
def test_words_that_fill_no_tile_are_copied_once(case, name, lines):
    """Lanes hold 128 of them, so the compiler keeps such a stack by its masks."""
    line = lines[f"{case}, 1 chip", name]
    assert line["temporary"] <= 1.4 * line["arguments"]
    assert line["code"] <= 1.6 * MB
