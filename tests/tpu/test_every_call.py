"""Every call of the registry compiles for TPU: one chip, meshes of four, and a pod.

Nothing runs, and no chip is needed, but `libtpu` is: `pip install -e '.[tpu]'`.
"""

import functools

import pytest

from benchmarks import _chips
from tests.calls import CALLS
from tests.tpu import compiling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'"
    ),
]

BY_NAME = {call.name: call for call in CALLS}
V6E, POD = "v6e:2x2", "v5e:16x16"
# On other chips, and on 256 of them: a call of each part of the library.
DOZEN = [
    "select.top_k",
    "select.top_k: global",
    "select.top_k: units",
    "select.top_k: N:M",
    "select.random",
    "masking.apply",
    "packing.pack",
    "packing.dot",
    "bank.append",
    "compaction.narrow: a training step",
    "superposition.one_shot",
    "estimator.top_k: gradient",
    "optim.prune",
    "optim.rigl",
    "recipes.edge_popup.soft_mask: gradient, with cutoffs",
    "recipes.packnet.commit",
]
# Sixteen chips cut the registry's small leaves within a group and within a word.
CUT = {"select.top_k: N:M", "packing.pack"}
CHIPS = [
    *((_chips.V5E, kind, name) for kind in _chips.KINDS for name in BY_NAME),
    *(
        (topology, kind, name)
        for topology in (V6E, POD)
        for kind in ("auto", "explicit")
        for name in DOZEN
        if topology != POD or name not in CUT
    ),
]
MOVES = {
    "all-gather": "gather",
    "all-to-all": "exchange",
    "collective-permute": "exchange",
    "ragged-all-to-all": "exchange",
}
# What ranks and draws sums counts: this compiler may write a gather as a sum, too.
COUNTS = ("select.", "optim.", "estimator.")
ROWS = 64


@pytest.fixture(scope="module")
def outcome(request):
    """What the compiler says, found for all selected tests of a mesh at once."""
    wanted = {}
    for item in request.session.items:
        if item.module is request.module:
            topology, kind, name = item.callspec.params["chips"]
            names = wanted.setdefault((topology, kind), {})
            names[name] = None

    @functools.cache
    def found(topology, kind):
        return compiling.compiled(kind, topology, list(wanted[topology, kind]))

    return lambda topology, kind, name: found(topology, kind)[name]


def not_allowed(call, collectives):
    """What a program moves between chips and should not."""
    for kind, sizes in collectives:
        moves = MOVES.get(kind)
        counts = call.name.startswith(COUNTS) and "gather" not in call.moves
        if moves not in {None, *call.moves} or counts and max(sizes) > ROWS:
            yield kind, sizes


@pytest.mark.parametrize("chips", CHIPS, ids=" ".join)
def test_it_compiles_and_moves_what_its_docstring_says(chips, outcome):
    topology, kind, name = chips
    call = BY_NAME[name]
    found = outcome(topology, kind, name)
    assert "error" not in found, found["error"]
    assert "CustomSPMDPartitioning" not in found["calls"]
    if kind == "one":
        assert found["collectives"] == []
    moved = [tuple(each) for each in found["collectives"]]
    assert list(not_allowed(call, moved)) == []
