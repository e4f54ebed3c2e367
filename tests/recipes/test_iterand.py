"""IteRand: by hand, against NumPy, and that nothing which is kept ever moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import initializer, masking, packing
from maskjax.recipes import edge_popup, iterand
from tests import trees

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)
SIZE = (40, 50)


def fives(key, shape, dtype):
    del key
    return jnp.full(shape, 5.0, dtype)


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=SIZE), "float32"), "b": jnp.ones(50)}


@pytest.fixture
def mask():
    kept = np.random.default_rng(1).random(SIZE) < 0.4
    return {"w": jnp.asarray(kept), "b": None}


def test_a_draw_by_hand():
    # sqrt(1 - 0.6^2) * 2 + 0.6 * 5 = 0.8 * 2 + 3 = 4.6
    weights = {"w": jnp.array([[2.0, 2.0, 7.0]])}
    mask = {"w": jnp.array([[False, True, True]])}
    found = iterand.redraw(weights, mask, fives, key=KEY)["w"]
    np.testing.assert_array_equal(found, [[5.0, 2.0, 7.0]])
    found = iterand.redraw(weights, mask, fives, mix=0.6, key=KEY)["w"]
    np.testing.assert_allclose(found, [[4.6, 2.0, 7.0]], rtol=1e-6)


def test_only_what_is_removed_is_drawn_and_as_often_as_said(weights, mask):
    draw = initializer.scaled_normal()
    redraw = jax.jit(
        lambda probability, mix, key: iterand.redraw(
            weights, mask, draw, probability=probability, mix=mix, key=key
        )
    )
    removed = ~np.asarray(mask["w"])
    before = np.asarray(weights["w"])
    for probability in (0.0, 0.3, 1.0):
        after = redraw(jnp.float32(probability), jnp.float32(1.0), KEY)
        trees.assert_same(masking.apply(after, mask), masking.apply(weights, mask))
        changed = np.asarray(after["w"]) != before
        assert not changed[~removed].any()
        np.testing.assert_allclose(changed[removed].mean(), probability, atol=0.05)
    np.testing.assert_allclose(
        np.asarray(after["w"])[removed].std(), (2 / 40) ** 0.5, rtol=0.06
    )
    # The asymptotic mix of old and new is that of the draw at mix 1.
    mixed = redraw(jnp.float32(1.0), jnp.float32(0.5), KEY)["w"]
    expected = 0.75**0.5 * before + 0.5 * np.asarray(after["w"])
    expected = np.where(removed, expected, before)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)
    other = redraw(jnp.float32(1.0), jnp.float32(1.0), jax.random.key(1))["w"]
    assert (np.asarray(other) != np.asarray(after["w"]))[removed].all()
    assert redraw._cache_size() == 1


def test_packed_and_broad_masks_remove_what_their_entries_do(weights, mask):
    rows = {"w": mask["w"][:, :1], "b": None}
    entries = {"w": jnp.broadcast_to(rows["w"], SIZE), "b": None}
    draw = initializer.signed_constant()  # whose values no compiler rounds
    redraw = jax.jit(lambda m: iterand.redraw(weights, m, draw, key=KEY))
    trees.assert_same(redraw(rows), redraw(entries))
    trees.assert_same(redraw(packing.pack(mask)), redraw(mask))


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_and_its_dtype(name):
    weights = trees.make(name, "bfloat16")
    removed = masking.everything(weights)
    removed = jax.tree.map(jnp.zeros_like, removed)
    after = jax.jit(lambda w, m: iterand.redraw(w, m, fives, key=KEY))(weights, removed)
    expected = jax.tree.map(lambda w: jnp.full_like(w, 5), weights)
    trees.assert_same(after, masking.apply(weights, removed, fill=expected))


def test_scores_find_better_weights_below_the_mask():
    # Weights of 1 can't say 4 with 3 inputs: drawn anew, they can.
    loss = lambda params: (jnp.sum(params["w"]) - 4.0) ** 2  # noqa: E731
    weights, sgd = {"w": jnp.ones((3, 1))}, optax.sgd(0.1)
    state = edge_popup.init(weights, sgd, key=KEY)
    step = jax.jit(lambda s: edge_popup.step(s, loss, sgd, density=0.34))
    for _ in range(3):
        state, before = step(state)
    kept = edge_popup.mask(state, density=0.34)
    new = iterand.redraw(state.weights, kept, lambda *_: jnp.full((3, 1), 4.0), key=KEY)
    state = state._replace(weights=new)
    for _ in range(10):
        state, after = step(state)
    assert (before, after) == (9.0, 0.0)


def test_numbers_may_be_whole(weights, mask):
    whole = iterand.redraw(weights, mask, fives, probability=1, mix=1, key=KEY)
    trees.assert_same(whole, iterand.redraw(weights, mask, fives, key=KEY))
    none = iterand.redraw(weights, mask, fives, probability=0, key=KEY)
    trees.assert_same(none, weights)
    kept = iterand.redraw(weights, mask, fives, mix=0, key=KEY)
    trees.assert_same(kept, weights)


def test_bad_input_is_refused(weights, mask):
    def needs(text):
        return re.escape(f"`maskjax.recipes.iterand.redraw` needs {text}")

    for name in ("probability", "mix"):
        with pytest.raises(ValueError, match=needs(f"`{name}` in [0, 1]")):
            iterand.redraw(weights, mask, fives, key=KEY, **{name: 1.5})
    with pytest.raises(TypeError, match=needs("`key` as a typed key")):
        iterand.redraw(weights, mask, fives, key=jax.random.PRNGKey(0))
    with pytest.raises(
        TypeError, match=needs("every leaf of `mask`") + ".*\n  w: float"
    ):
        iterand.redraw(weights, {"w": jnp.ones(SIZE), "b": None}, fives, key=KEY)
    with pytest.raises(ValueError, match=needs("`mask` with at least one leaf")):
        iterand.redraw(weights, {"w": None, "b": None}, fives, key=KEY)
    with pytest.raises(
        TypeError, match=needs("every leaf of `weights`") + ".*\n  w: int32"
    ):
        iterand.redraw({**weights, "w": jnp.ones(SIZE, int)}, mask, fives, key=KEY)
    wrong = {"w": jnp.ones((3, 50), bool), "b": None}
    with pytest.raises(
        ValueError, match=needs("every leaf") + r".*\n  w: mask \(3, 50\)"
    ):
        iterand.redraw(weights, wrong, fives, key=KEY)
