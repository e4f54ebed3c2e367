"""SparseGPT of stacked layers on eight devices.

jaxlib gives the matrices of one call to the threads that run programs, and waits. Eight
devices that do so at once wait for ever.
"""

import re

import jax
import numpy as np
import pytest

from maskjax.recipes.sparsegpt._linear import cholesky, inverse
from tests import processes

# Matrices so large that they are worth a thread each.
PROGRAM = """
import json

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskjax import calibration, where
from maskjax.recipes import sparsegpt

mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
axes = where.Axes(stack=(1,), inputs=(0,), outputs=(2,))
rng = np.random.default_rng(0)
x = rng.normal(size=(4, 300, 128)).astype("f")
w, sums = rng.normal(size=(128, 4, 64)).astype("f"), np.einsum("lni,lnj->lij", x, x)


def prune(w, sums):
    stats = {"w": calibration.Statistics(sums, axes, w.shape)}
    return sparsegpt.prune({"w": w}, stats, density=0.5)


alone, found = prune(w, sums), []
for way in (prune, jax.jit(prune)):
    for spec, met in (
        (("data", None, "model"), (None, "data")),
        ((None, "model", "data"), ("model",)),
        (("model",), ("data",)),
    ):
        result = way(put(w, spec), put(sums, met))
        mask, new = (np.asarray(tree["w"]) for tree in (result.mask, result.params))
        found.append([
            float(np.mean(mask != alone.mask["w"])),
            float(np.abs(new - alone.params["w"]).max()),
            all(
                x["w"].sharding.is_equivalent_to(put(w, spec).sharding, 3)
                for x in (result.params, result.mask)
            ),
        ])
print(json.dumps(found))
"""


def test_stacks_on_eight_devices_are_pruned_as_on_one():
    found = processes.run("-c", PROGRAM, timeout=300)
    assert len(found) == 6
    for differ, far, _ in found:
        assert differ < 1e-3
        assert far < 1e-3
    eager = found[:3]
    assert all(same for *_, same in eager)


def _spread(many):
    """What a matrix is factored from, and what is inverted, with the references."""
    strict = np.tril(many, -1) / np.abs(many).sum((1, 2))[:, None, None]
    one = np.eye(many.shape[-1])
    yield cholesky, many, np.linalg.cholesky(many.astype("d"))
    yield inverse, strict, np.linalg.inv(one[None] + strict)


@pytest.mark.parametrize("d", [1, 5, 64, 130])
def test_many_matrices_need_no_library_on_a_cpu(d):
    x = np.random.default_rng(0).normal(size=(3, 2 * d, d)).astype("f")
    for function, many, expected in _spread(np.einsum("bij,bik->bjk", x, x)):
        program = jax.jit(jax.vmap(function))
        near = {"rtol": 0, "atol": 2e-6 * np.abs(expected).max()}
        np.testing.assert_allclose(program(many), expected, **near)
        np.testing.assert_allclose(function(many[0]), expected[0], **near)
        if jax.default_backend() == "cpu":
            text = program.lower(many).as_text()
            assert not re.search("lapack|blas|triangular_solve", text)


def test_a_matrix_without_a_factor_is_nan_and_spoils_no_other():
    one = np.eye(5, dtype="f")
    found = jax.vmap(cholesky)(np.stack([one, -one, 4 * one]))
    assert np.isnan(found[1]).any()
    np.testing.assert_array_equal(found[::2], np.stack([one, 2 * one]))
