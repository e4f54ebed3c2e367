"""Every public function, in every way in which arrays lie on several devices.

Types are checked for all calls here. Programs are compiled and run in a process of its
own (`tests/everywhere.py`), which pretends to have eight devices: a few in the ordinary
suite, and all with `-m slow`.
"""

import pytest

from tests import everywhere
from tests.calls import CALLS, EXCLUDED
from tests.test_public_api import FUNCTIONS

QUICK = [
    ("masking.apply", "auto"),
    ("masking.everything", "eager"),
    ("initializer.redraw", "eager"),
    ("score.random", "auto"),
    ("score.snip", "explicit"),
    ("select.drop", "vmap"),
    ("select.top_k: global", "auto"),
    ("select.top_k: units", "explicit"),
    ("optim.prune", "auto"),
    ("recipes.edge_popup.soft_mask: gradient, with cutoffs", "explicit"),
    ("metrics.reliability", "auto"),
]
PAIRS = [(call.name, way) for call in CALLS for way in everywhere.WAYS]
FAILS = {(call.name, way): why for call in CALLS for way, why in call.fails.items()}


@pytest.fixture(scope="module")
def quick():
    return everywhere.run(QUICK)


@pytest.fixture(scope="module")
def grid():
    return everywhere.run(PAIRS)


def check(pair, complaint):
    """No complaint, except where the registry has a reason."""
    if pair in FAILS:
        assert complaint, f"{pair} works now: delete its entry in `fails`"
        pytest.xfail(FAILS[pair])
    assert not complaint, complaint


def test_every_public_function_is_called_or_excluded_with_a_reason():
    public = {param.id.removeprefix("maskjax.") for param in FUNCTIONS}
    called = {call.function for call in CALLS}
    assert called | set(EXCLUDED) == public
    assert not called & set(EXCLUDED)
    assert all(EXCLUDED.values())


def test_names_are_unique_and_failures_of_real_ways():
    assert len({call.name for call in CALLS}) == len(CALLS)
    assert {way for _, way in FAILS} <= set(everywhere.WAYS)


@pytest.mark.parametrize("way", ["explicit", "shard_map"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_types_fit(call, way):
    complaint = everywhere.types(call, way)
    if (call.name, way) in FAILS:  # it may fail in other ways than in its types
        pytest.xfail(FAILS[call.name, way])
    assert not complaint, complaint


@pytest.mark.parametrize("pair", QUICK, ids=" ".join)
def test_a_few_do_the_same_on_eight_devices(pair, quick):
    check(pair, quick[" ".join(pair)])


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_all_do_the_same_on_eight_devices(pair, grid):
    check(pair, grid[" ".join(pair)])
