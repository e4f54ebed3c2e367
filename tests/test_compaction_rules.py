"""Rules by hand: networks in which a wrong fact or link would take too much out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import maskjax
from maskjax import compaction

KEEP = np.array([True, False, True, False])
KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(apply, params, mask, *inputs, **how):
    """What stays, once the small network was seen to say what the masked one does."""
    every = dict.fromkeys(params) | mask
    plan = compaction.plan(apply, params, every, *inputs, **how)

    @jax.jit
    def both(params, inputs):
        masked = maskjax.apply(params, every)
        small = compaction.shrink(masked, plan)
        return compaction.narrow(apply, plan)(small, *inputs), apply(masked, *inputs)

    ours, masked = both(params, inputs)
    assert np.abs(masked).max() > 0.01
    np.testing.assert_allclose(ours, masked, atol=1e-5)
    return plan.shapes


TWO = {"up": draw(3, 4), "down": draw(4, 2, seed=2)}
X = draw(2, 3, seed=3)
UNITS = {"up": KEEP[None]}


def between(function):
    """A network with a function of its hidden units [2, 4]."""
    return lambda p, x: function(jnp.tanh(x @ p["up"])) @ p["down"]


def numbered(h):
    return h * lax.iota(jnp.float32, 4)[None]


def dropped(h):
    return jnp.where(jax.random.bernoulli(KEY, 0.5, h.shape), h, 0)


def written(h):
    return lax.dynamic_update_slice(jnp.zeros((5, 4)), h, (1, 0))


def added(h):
    return jnp.zeros((5, 4)).at[np.array([3, 1])].add(h)


def looped(h):
    return lax.fori_loop(0, 2, lambda _, total: total + h, jnp.zeros((2, 4)))


def chosen(h):
    return lax.cond(jnp.isnan(h[0, 0]), jnp.zeros_like, lambda h: h, h)


FUNCTIONS = [numbered, dropped, written, added, looped, chosen]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_made_for_units_is_theirs(function):
    """Counts and draws are those of the whole; what is 0 at first may change."""
    found = shapes(between(function), TWO, UNITS, X)
    assert found == {"up": (3, 2), "down": (2, 2)}


def test_layers_that_keep_other_units_read_other_constants():
    scale, other = np.arange(1, 5, dtype=np.float32), np.float32(2)

    def apply(p, x):
        same = jnp.broadcast_to(other, 4)

        def layer(x, p):
            return x + (jnp.tanh(x @ p["up"]) * (scale * same)[None]) @ p["down"], None

        return lax.scan(layer, x, p)[0]

    params = {"up": draw(2, 3, 4), "down": draw(2, 4, 3, seed=1)}
    mask = {"up": np.stack([KEEP, ~KEEP])[:, None]}
    assert shapes(apply, params, mask, X) == {"up": (2, 3, 2), "down": (2, 2, 3)}


def test_ones_of_masked_units_stay_in_a_sum():
    def apply(p, x):
        h = jnp.exp(x @ p["up"])
        return h / h.sum(-1, keepdims=True) @ p["down"]

    mask = {"up": KEEP[None], "down": KEEP[:, None]}
    assert shapes(apply, TWO, mask, X)["up"] == (3, 4)


def test_units_in_pairs_leave_in_pairs():
    def apply(p, x):
        return jnp.einsum("bij,ijo->bo", (x @ p["up"]).reshape(2, 2, 2), p["down"])

    params = {"up": TWO["up"], "down": draw(2, 2, 2, seed=1)}
    one, both = np.arange(4)[None] > 0, np.arange(4)[None] > 1
    assert shapes(apply, params, {"up": one}, X)["up"] == (3, 4)
    assert shapes(apply, params, {"up": both}, X)["up"] == (3, 2)


IMAGES = draw(2, 4, 4, 2)
conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def test_a_group_of_channels_needs_each_of_its_inputs():
    def apply(p, x):
        h = conv(conv(x, p["up"]), p["second"], feature_group_count=2)
        return jnp.tanh(h @ p["third"]) @ p["down"]

    params = {**TWO, "up": draw(1, 1, 2, 4), "second": draw(1, 1, 2, 4)}
    params["third"] = draw(4, 4, seed=1)
    mask = {"up": np.array([False, True, True, False])[None, None, None]}
    found = shapes(apply, params, mask, IMAGES)
    assert found["second"] == (1, 1, 2, 4)


def pooled(h):
    ones = 1, 2, 2, 1
    return lax.reduce_window(h, np.float32(0), lax.add, ones, ones, "VALID")


@pytest.mark.parametrize("function", [pooled, lambda h: h.sum((1, 2))])
def test_a_sum_of_constants_is_as_often_one_as_there_are(function):
    """A channel whose kernel is masked, and not its bias, is the same everywhere."""

    def apply(p, x):
        h = jnp.tanh(conv(x, p["up"]) + p["bias"][None, None, None])
        return function(h) @ p["down"]

    params = {"up": draw(1, 1, 2, 4), "bias": draw(4), "down": TWO["down"]}
    shapes(apply, params, {"up": KEEP[None, None, None]}, IMAGES, fold=True)


def test_constants_that_stay_are_not_folded():
    """An axis keeps one position, also if all of its units are constants."""

    def apply(p, x):
        return jnp.tanh(x @ p["up"] + p["bias"][None]) @ p["down"]

    params = {**TWO, "bias": draw(4, seed=1)}
    found = shapes(apply, params, {"up": np.zeros((1, 4), bool)}, X, fold=True)
    assert found["up"] == (1, 1)


def test_positions_are_equal_if_all_that_they_are_made_of_are():
    def apply(p, x):
        h = x @ p["up"]
        h = h - h.mean(-1, keepdims=True) + p["shift"][None]
        h = h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-3)
        return (h * p["scale"][None]) @ p["down"]

    params = {**TWO, "shift": draw(4, seed=4), "scale": draw(4, seed=5)}
    mask = {**UNITS, "scale": KEEP}
    for shift, left in ((None, 4), (np.arange(4) > 1, 4), (KEEP, 3)):
        found = shapes(apply, params, mask | {"shift": shift}, X, ghosts=True)
        assert found["up"] == (3, left)


@pytest.mark.parametrize("mask", [None, np.ones((1, 4), bool), KEEP[None]])
def test_what_nothing_uses_stays_whatever_is_masked(mask):
    def apply(p, x):
        return jnp.tanh(x @ p["up"])[:, :2] @ p["down"]

    params = {"up": TWO["up"], "down": draw(2, 2)}
    found = shapes(apply, params, {"up": mask}, X)
    assert found["up"] == (3, 4 if mask is None or mask.all() else 3)
