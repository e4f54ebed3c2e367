"""Every public function, in every way in which arrays lie on several devices.

Types are checked for all calls here. Programs are compiled and run in a process of its
own (`tests/everywhere.py`), which pretends to have eight devices: a few in the ordinary
suite, and all with `-m slow`.
"""

import pytest

from tests import everywhere
from tests.calls import CALLS, EXCLUDED
from tests.test_public_api import FUNCTIONS

QUICK = [  # one of each kind that was wrong once
    ("masking.apply", "auto"),
    ("masking.everything", "eager"),
    ("masking.everything", "auto"),
    ("initializer.redraw", "eager"),
    ("initializer.signed_deviation", "auto"),
    ("score.fisher", "auto"),
    ("score.snip", "explicit"),
    ("select.drop", "vmap"),
    ("select.iterative_top_k", "auto"),
    ("select.random_like", "shard_map"),
    ("select.top_k: global", "auto"),
    ("select.top_k: blocks across shards, applied", "explicit"),
    ("select.top_k: layers, sharded by layers", "explicit"),
    ("optim.prune", "eager"),
    ("compaction.narrow: a training step", "explicit"),
    ("recipes.edge_popup.soft_mask: gradient, with cutoffs", "explicit"),
    ("recipes.packnet.commit", "auto"),
    ("recipes.sparsegpt.prune", "auto"),
    ("recipes.sparsegpt.prune: layers, sharded by layers", "explicit"),
    ("metrics.temperature", "shard_map"),
    ("metrics.auroc", "explicit"),
]
# Gradients that vary, of parameters that do not: an error, see `test_optim`.
ONE_MASK = {
    "optim.rigl",
    "optim.rigl: units",
    "optim.rigl: ablated outputs",
    "optim.rigl: in a scan",
    "optim.prune: in a scan",
    "optim.prune: blocks across shards, in a scan",
}
PAIRS = [(call.name, way) for call in CALLS for way in everywhere.WAYS]


@pytest.fixture(scope="module")
def quick():
    return everywhere.run(QUICK)


@pytest.fixture(scope="module")
def grid():
    return everywhere.run(PAIRS)


def test_every_public_function_is_called_or_excluded_with_a_reason():
    public = {param.id.removeprefix("maskjax.") for param in FUNCTIONS}
    called = {call.function for call in CALLS}
    assert called | set(EXCLUDED) == public
    assert not called & set(EXCLUDED)
    assert all(EXCLUDED.values())


def test_names_are_unique():
    assert len({call.name for call in CALLS}) == len(CALLS)


@pytest.mark.parametrize("way", ["explicit", "shard_map"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_types_fit(call, way):
    assert not everywhere.types(call, way)


@pytest.mark.parametrize("name", ["select.drop", "recipes.packnet.prune"])
def test_one_argument_may_vary_and_others_not(name):
    assert not everywhere.types(everywhere.BY_NAME[name], "one varies")


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_any_argument_may_vary_and_others_not(call):
    found = everywhere.types(call, "one varies")
    if call.name in ONE_MASK:
        assert "argument 1: " in found
    else:
        assert not found


@pytest.mark.parametrize("pair", QUICK, ids=" ".join)
def test_a_few_do_the_same_on_eight_devices(pair, quick):
    assert not quick[" ".join(pair)]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_all_do_the_same_on_eight_devices(pair, grid):
    assert not grid[" ".join(pair)]
