"""What training steps of compacted networks cost on TPU, beside networks built small.

Nothing runs, and no chip is needed, but `libtpu` is: `pip install -e '.[tpu]'`.
"""

import collections

import pytest

from benchmarks import _chips
from tests.tpu import halved

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'"
    ),
]


@pytest.fixture(scope="module", params=_chips.KINDS)
def found(request):
    return halved.compiled(request.param, list(halved.NETWORKS))


@pytest.mark.parametrize("name", halved.NETWORKS)
def test_a_compacted_step_costs_what_one_built_small_does(name, found):
    compacted, built = (found[name, kind] for kind in halved.KINDS)
    assert compacted["arguments"] == built["arguments"]
    assert compacted["code"] <= 1.2 * built["code"]
    assert compacted["temporary"] <= 1.2 * built["temporary"] + 1024
    assert compacted["flops"] <= 1.01 * built["flops"]
    moved, least = (_moved(f["collectives"]) for f in (compacted, built))
    assert moved.keys() <= least.keys()
    assert sum(moved.values()) <= 1.1 * sum(least.values())


def _moved(collectives):
    """How many numbers travel in each kind of collective."""
    found = collections.Counter()
    for kind, sizes in collectives:
        found[kind] += sum(sizes)
    return found
