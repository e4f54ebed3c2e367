"""On a GPU or a TPU every call of the registry gives what it gives on the CPU.

pytest -n 0 -m gpu
"""

import jax
import numpy as np
import pytest

from tests.calls import CALLS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        jax.default_backend() == "cpu", reason="needs a GPU or a TPU, has a CPU"
    ),
]


def numpy(tree):
    def host(x):
        keys = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if keys else x)

    return jax.tree.map(host, tree)


def assert_alike(found, expected):
    """Floats may round otherwise; all else is the same bit by bit."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not np.issubdtype(a.dtype, np.floating):
            np.testing.assert_array_equal(a, b)
            continue
        scale = np.abs(b[np.isfinite(b)]).max(initial=1e-30)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_it_gives_what_it_gives_on_the_cpu(call):
    args = call.arguments()
    with jax.default_matmul_precision("highest"):
        found = numpy(jax.jit(call.run)(*args))
        with jax.default_device(jax.devices("cpu")[0]):
            expected = numpy(jax.jit(call.run)(*args))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert_alike(found, expected)
