"""IteRand: by hand, against NumPy, and that nothing which is kept ever moves."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import initializer, masking, packing
from maskjax.recipes import edge_popup, iterand
from tests import trees

KEY = jax.random.key(0)
SIZE = (40, 50)
NORMAL = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
SIGNED = initializer.signed_constant()  # whose values no compiler rounds


def fives(key, shape, dtype):
    del key
    return jnp.full(shape, 5.0, dtype)


@functools.partial(jax.jit, static_argnames="draw")
def compiled(draw, weights, mask, probability, mix, key):
    how = {"probability": probability, "mix": mix, "key": key}
    return iterand.redraw(draw, weights, mask, **how)


def redraw(draw, weights, mask, probability, mix, key=KEY):
    return compiled(draw, weights, mask, probability, mix, key)


ONE, HALF = np.float32(1.0), np.float32(0.5)


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=SIZE).astype("float32"), "b": np.ones(50, "float32")}


@pytest.fixture
def mask():
    return {"w": np.random.default_rng(1).random(SIZE) < 0.4, "b": None}


def test_a_draw_by_hand():
    # sqrt(1 - 0.6^2) * 2 + 0.6 * 5 = 0.8 * 2 + 3 = 4.6
    weights = {"w": np.float32([[2.0, 2.0, 7.0]])}
    mask = {"w": np.array([[False, True, True]])}
    for mix, expected in ((1.0, 5.0), (0.6, 4.6), (0.0, 2.0)):
        found = redraw(fives, weights, mask, ONE, np.float32(mix))["w"]
        np.testing.assert_allclose(found, [[expected, 2.0, 7.0]], rtol=1e-6)


def test_only_what_is_removed_is_drawn_and_as_often_as_said(weights, mask):
    kept, before = mask["w"], weights["w"]
    for probability in (0.0, 0.3, 1.0):
        after = redraw(NORMAL, weights, mask, np.float32(probability), ONE)
        changed = np.asarray(after["w"]) != before
        assert not changed[kept].any()
        np.testing.assert_allclose(changed[~kept].mean(), probability, atol=0.05)
        np.testing.assert_array_equal(after["b"], weights["b"])
    after = np.asarray(after["w"])
    np.testing.assert_allclose(after[~kept].std(), (2 / 40) ** 0.5, rtol=0.06)
    # The asymptotic mix of old and new is that of the draw at mix 1.
    mixed = redraw(NORMAL, weights, mask, ONE, HALF)["w"]
    expected = np.where(kept, before, 0.75**0.5 * before + 0.5 * after)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)
    other = redraw(NORMAL, weights, mask, ONE, ONE, jax.random.key(1))["w"]
    assert (np.asarray(other) != after)[~kept].all()
    assert compiled._cache_size() <= 2  # the other one is of the draw by hand


def test_packed_and_broad_masks_remove_what_their_entries_do(weights, mask):
    rows = {"w": mask["w"][:, :1], "b": None}
    entries = {"w": np.broadcast_to(rows["w"], SIZE), "b": None}
    of = functools.partial(redraw, SIGNED, weights, probability=ONE, mix=ONE)
    trees.assert_same(of(mask=rows), of(mask=entries))
    trees.assert_same(of(mask=packing.pack(mask)), of(mask=mask))


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_and_its_dtype(name):
    weights = trees.make(name, "bfloat16")

    def of(weights):
        kept = masking.everything(weights)
        how = {"where": trees.WHERE, "mix": 0.5, "key": KEY}
        return iterand.redraw(fives, weights, kept, **how)

    after = jax.eval_shape(of, weights)
    assert jax.tree.structure(after) == jax.tree.structure(weights)
    for old, new in zip(jax.tree.leaves(weights), jax.tree.leaves(after), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_scores_find_better_weights_below_the_mask():
    # Weights of 1 can't say 4 with 3 inputs: drawn anew, they can.
    def value(scores, weights):
        params = maskjax.apply(weights, edge_popup.soft_mask(scores, density=0.34))
        return (jnp.sum(params["w"]) - 4.0) ** 2

    def descend(scores, weights, steps):
        def step(scores, _):
            slope = jax.grad(value)(scores, weights)
            return jax.tree.map(lambda s, g: s - 0.1 * g, scores, slope), None

        return jax.lax.scan(step, scores, length=steps)[0]

    @jax.jit
    def train():
        weights = {"w": jnp.ones((3, 1))}
        scores = descend(edge_popup.init(weights, key=KEY), weights, 3)
        before = value(scores, weights)
        kept = edge_popup.mask(scores, density=0.34)
        draw = lambda *_: jnp.full((3, 1), 4.0)  # noqa: E731
        weights = iterand.redraw(draw, weights, kept, key=KEY)
        return before, value(descend(scores, weights, 10), weights)

    assert train() == (9.0, 0.0)


def test_numbers_may_be_whole(weights, mask):
    @jax.jit
    def of():
        redraw = functools.partial(iterand.redraw, SIGNED, weights, mask, key=KEY)
        whole, same = redraw(probability=1, mix=1), redraw()
        return whole, same, redraw(probability=0), redraw(mix=0)

    whole, same, none, kept = of()
    trees.assert_same(whole, same)
    trees.assert_same(none, weights)
    trees.assert_same(kept, weights)


def test_bad_input_is_refused(weights, mask):
    def refuses(kind, text, draw=fives, weights=weights, mask=mask, key=KEY, **how):
        needs = "`maskjax.recipes.iterand.redraw` needs "
        with pytest.raises(kind, match=re.escape(needs) + text):
            iterand.redraw(draw, weights, mask, key=key, **how)

    for name in ("probability", "mix"):
        refuses(ValueError, rf"`{name}` in \[0, 1\]", **{name: 1.5})
        refuses(TypeError, f"`{name}` as a number", **{name: "half"})
    refuses(TypeError, "`key` as a typed key", key=0)
    refuses(TypeError, "`draw` as a function", draw=weights)
    bad = {"w": np.ones(SIZE, "float32"), "b": None}
    refuses(TypeError, "every leaf of `mask` .*\n  w: float", mask=bad)
    none = {"w": None, "b": None}
    refuses(ValueError, "`mask` with at least one leaf", mask=none)
    whole = {**weights, "w": np.ones(SIZE, "int32")}
    refuses(TypeError, "every leaf of `weights` .*\n  w: int32", weights=whole)
    wrong = {"w": np.ones((3, 50), bool), "b": None}
    refuses(ValueError, r"every leaf .*\n  w: mask \(3, 50\)", mask=wrong)
    flat = {"w": None, "b": np.ones(50, bool)}
    told = "to know .*fan-in, .*`elementwise`.*\n  b: "
    refuses(ValueError, told, draw=SIGNED, mask=flat)
    refuses(TypeError, "`where` as a function", where="kernel")
