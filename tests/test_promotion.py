"""Floats of different widths, where users forbid that any is promoted in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import calibration, metrics, optim, select, structure
from maskjax.recipes import sparsegpt

KEEP = np.array([[True, False], [False, True]])
PAIRS = [("float32", "float64"), ("bfloat16", "float32"), ("float16", "bfloat16")]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_updates_take_removed_weights_to_zero(pair, x64):
    del x64
    for update, param in (pair, pair[::-1]):
        params, grads = {"w": jnp.ones((2, 2), param)}, {"w": jnp.ones((2, 2), update)}
        optimizer = optim.keep_sparse({"w": KEEP})
        given, _ = optimizer.update(grads, optimizer.init(params), params)
        with jax.numpy_dtype_promotion("standard"):
            new = params["w"] + given["w"]
        np.testing.assert_array_equal(new != 0, KEEP)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_scores_of_a_group_are_pooled(pair, x64):
    del x64
    net = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    params = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
    groups = maskjax.compaction.groups(net, params, jnp.ones((1, 3)))
    up, down = (jnp.arange(4.0).astype(dtype) for dtype in pair)
    scores = {"up": jnp.tile(up, (3, 1)), "down": jnp.tile(down[:, None], (1, 2))}
    how = {"structure": structure.Groups(groups), "density": 0.5, "scope": "global"}
    mask = select.top_k(scores, **how)
    np.testing.assert_array_equal(np.asarray(mask["up"])[0], [False, False, True, True])


def test_sparsegpt_takes_float64_kernels_and_float32_statistics(x64):
    del x64
    apply = lambda p, x: x @ p["w"]  # noqa: E731
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)}
    stats = calibration.collect(apply, params, [x])
    wide = {"w": params["w"].astype("float64")}
    found, expected = (
        sparsegpt.prune(p, stats, density=0.5).params["w"] for p in (wide, params)
    )
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_means_and_targets_may_differ(pair, x64):
    del x64
    mean, targets = jnp.zeros(4, pair[0]), jnp.ones(4, pair[1])
    found = metrics.gaussian_nll(mean, jnp.ones_like(mean), targets)
    expected = 0.5 + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(np.float64(found), expected, rtol=1e-2)
