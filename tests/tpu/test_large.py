"""SparseGPT of a kernel of 4096 x 4096, by outputs over four chips.

Nothing runs, and no chip is needed, but `libtpu` is: `pip install -e '.[tpu]'`.
"""

import pytest

from benchmarks import _chips
from tests.tpu import large

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'"
    ),
]


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_a_large_kernel_stays_where_it_is(kind):
    found = large.compiled(kind)
    assert {kind for kind, _ in found["collectives"]} <= {"all-reduce"}
    assert max(max(sizes) for _, sizes in found["collectives"]) <= 64  # counts alone
    matrix = 4 * large.SIZE**2  # bytes; each chip has the Gram matrix, and a quarter
    # Four of its size, 256 MiB, and 3 MiB for the rows at work.
    assert found["temporary"] <= 4.1 * matrix
    assert found["code"] <= 12 * 2**20
