"""An update of the Gram matrix of a 4,096 x 4,096 kernel compiles for TPU.

Nothing runs, and no chip is needed, but `libtpu` is: `pip install -e '.[tpu]'`.
"""

import pytest

from benchmarks import _chips
from tests.tpu.calibrating import CASES, ROWS, D, compiled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'"
    ),
]

MATRIX = 4 * D**2  # bytes
DATA = 4 * D * ROWS[0] * ROWS[1]


@pytest.fixture(scope="module")
def found():
    return compiled(CASES)


@pytest.mark.parametrize("case", CASES)
def test_an_update_compiles(case, found):
    assert found[case]["temporary"] <= MATRIX + 3 * DATA
    assert found[case]["code"] <= 16 * 2**20


def test_one_chip_computes_little_more_than_a_half(found):
    whole = 2 * D**2 * ROWS[0] * ROWS[1]
    assert found["rows, one"]["flops"] < 0.65 * whole
    assert not found["rows, one"]["collectives"]


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_four_chips_share_sums_alone(kind, found):
    collectives = found[f"rows, {kind}"]["collectives"]
    assert {name for name, _ in collectives} == {"all-reduce"}
    assert sum(sum(sizes) for _, sizes in collectives) <= D**2


@pytest.mark.parametrize("case", CASES[3:])
def test_a_sharded_matrix_is_nowhere_whole(case, found):
    """Each chip has a quarter, as argument and result."""
    assert found[case]["outputs"] <= 0.26 * MATRIX
