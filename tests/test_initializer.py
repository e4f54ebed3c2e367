"""Weights that stay random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import initializer, masking, packing, select, where
from tests import trees

KEY = jax.random.key(7)
INITIALIZERS = [initializer.signed_constant, initializer.scaled_normal]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("shape", [(50, 40), (3, 3, 4, 30)])
def test_signed_constant_has_two_values_of_the_wanted_variance(shape, density, dtype):
    w = initializer.signed_constant(density)(KEY, shape, jnp.dtype(dtype))
    assert w.dtype == dtype
    assert w.shape == shape
    fan_in = np.prod(shape[:-1])
    size = np.sqrt(2 / (density * fan_in))
    values = np.unique(trees.to_numpy(w))
    rtol = 1e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(values, [-size, size], rtol=rtol)
    balance = np.mean(trees.to_numpy(w) > 0)
    assert abs(balance - 0.5) < 5 * 0.5 / np.sqrt(w.size)


@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize("shape", [(50, 400), (3, 3, 4, 500)])
def test_scaled_normal_has_the_wanted_mean_and_variance(shape, density):
    w = np.asarray(initializer.scaled_normal(density)(KEY, shape))
    variance = 2 / (density * np.prod(shape[:-1]))
    assert abs(w.mean()) < 5 * np.sqrt(variance / w.size)
    np.testing.assert_allclose(w.var(), variance, rtol=5 * np.sqrt(2 / w.size))
    assert len(np.unique(w)) > w.size / 2


@pytest.mark.parametrize("init", INITIALIZERS)
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_a_random_mask_of_that_density_keeps_the_size_of_activations(init, density):
    w = {"w": init(density)(KEY, (400, 600))}
    mask = select.random(w, density=density, key=jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (50, 400))
    out = x @ masking.apply(w, mask)["w"]
    # E|x W|^2 = 2 |x|^2 * out / in, what a ReLU halves again.
    ratio = jnp.sum(out**2) / jnp.sum(x**2) * 400 / 600
    np.testing.assert_allclose(ratio, 2, rtol=0.05)


@pytest.mark.parametrize("init", INITIALIZERS)
def test_initializers_go_where_flax_takes_them(init):
    import flax.linen as nn

    dense = nn.Dense(3, kernel_init=init(0.5))
    params = jax.jit(dense.init)(KEY, jnp.ones((1, 4)))["params"]
    assert params["kernel"].shape == (4, 3)
    assert params["kernel"].std() > 0


@pytest.mark.parametrize("name", trees.NAMES)
def test_redraw_changes_only_what_is_chosen(name):
    params = trees.make(name, "bfloat16")
    nonempty = where.kernels & (lambda path, leaf: leaf.size > 0)
    out = initializer.redraw(
        params, initializer.signed_constant(), where=nonempty, key=KEY
    )
    assert jax.tree.structure(out) == jax.tree.structure(params)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(out), strict=True):
        assert new.dtype == old.dtype
        assert new.shape == old.shape
        drawn = where.kernels("", old) and old.size > 0
        assert (new is old) != drawn
        if drawn:
            assert len(np.unique(np.abs(trees.to_numpy(new)))) == 1


def test_redraw_passes_over_leaves_without_entries():
    params = {"w": jnp.ones((2, 2)), "none": jnp.ones((0, 3)), "no": jnp.ones((3, 0))}
    for init in INITIALIZERS:
        out = initializer.redraw(params, init(), key=KEY)
        assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, params)


def test_redraw_gives_leaves_of_one_shape_different_signs():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    out = initializer.redraw(params, initializer.signed_constant(), key=KEY)
    assert (out["a"] != out["b"]).any()
    again = initializer.redraw(params, initializer.signed_constant(), key=KEY)
    trees.assert_same(out, again)


@pytest.mark.parametrize("dtype", trees.DTYPES)
@pytest.mark.parametrize("gain", [3**-0.5, 2**0.5])
def test_uniform_scores_fill_their_bounds(gain, dtype):
    shapes = {"dense": (50, 40), "conv": (3, 3, 4, 30), "bias": (40,)}
    params = {k: jnp.ones(s, dtype) for k, s in shapes.items()}
    scores = initializer.uniform_scores(params, gain=gain, key=KEY)
    assert scores["bias"] is None
    for name in ("dense", "conv"):
        assert scores[name].dtype == dtype
        s = trees.to_numpy(scores[name])
        bound = gain * np.sqrt(3 / np.prod(shapes[name][:-1]))
        assert np.abs(s).max() <= bound * (1 + 2**-8)
        assert np.abs(s).max() > 0.95 * bound
        assert abs(s.mean()) < 5 * bound / np.sqrt(3 * s.size)
    other = initializer.uniform_scores(params, gain=gain, key=jax.random.key(8))
    assert (other["dense"] != scores["dense"]).any()


def test_scores_of_a_mask_begin_with_it_and_are_as_large_as_random_ones():
    params = {"dense": jnp.ones((50, 40)), "bias": jnp.ones(40)}
    mask = select.random(params, density=0.3, key=KEY)
    for given in (mask, packing.pack(mask)):
        scores = initializer.scores_of(given)
        assert scores["bias"] is None
        trees.assert_same(select.threshold(scores, at=0.0), mask)
    drawn = initializer.uniform_scores(params, key=KEY)["dense"]
    rms = [np.sqrt(np.mean(np.square(s))) for s in (scores["dense"], drawn)]
    np.testing.assert_allclose(rms[0], rms[1], rtol=0.05)
    np.testing.assert_allclose(rms[0], 1 / np.sqrt(3 * 50), rtol=1e-6)
    narrow = initializer.scores_of(mask, dtype=jnp.bfloat16)["dense"]
    assert narrow.dtype == jnp.bfloat16
    soft = {"dense": jnp.full((50, 40), 0.5), "bias": None}
    assert not initializer.scores_of(soft)["dense"].any()


def test_scores_need_a_fan_in():
    params = {"dense": jnp.ones((5, 4)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match="(?s)uniform_scores` needs .* bias"):
        initializer.uniform_scores(params, where=where.everything, key=KEY)
    with pytest.raises(ValueError, match="(?s)scores_of` needs .* bias"):
        initializer.scores_of(masking.everything(params, where=where.everything))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (2.0, 5.0), (0.5, 0.5)])
def test_uniform_lies_evenly_between_its_ends(low, high, dtype):
    w = trees.to_numpy(initializer.uniform(low, high)(KEY, (20_000,), jnp.dtype(dtype)))
    assert low <= w.min() <= w.max() <= high
    counts, _ = np.histogram(w, 4, (low, high) if low < high else None)
    if low < high:
        assert abs(counts / w.size - 0.25).max() < 0.02


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("low", "high"), [(2.0**-8, 1.0), (0.5, 8.0), (3.0, 3.0)])
def test_signed_log_uniform_has_as_many_of_every_size(low, high, dtype):
    draw = initializer.signed_log_uniform(low, high)
    w = trees.to_numpy(draw(KEY, (40, 500), jnp.dtype(dtype)))
    size = np.abs(w)
    assert low <= size.min() <= size.max() <= high
    assert abs(np.mean(w > 0) - 0.5) < 0.02
    if low < high:
        places = np.log(size / low) / np.log(high / low)
        counts, _ = np.histogram(places, 4, (0, 1))
        assert abs(counts / w.size - 0.25).max() < 0.03
        # Size and sign are drawn apart.
        assert abs(np.corrcoef(np.sign(w).ravel(), size.ravel())[0, 1]) < 0.03


def test_ends_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="`low` of at most `high`, got 2.0 and 1.0"):
        initializer.uniform(2.0)
    for low in (0.0, -1.0, 2.0):
        with pytest.raises(ValueError, match="`low` above 0 and at most `high`, got"):
            initializer.signed_log_uniform(low)
