"""Layers of a stack may keep other positions: where they are told apart, and where not.

All loops and stacks here are of one length, so that none is taken for another by it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import maskjax
from maskjax import compaction

N = 4
LAYERS = np.array(
    [
        [1, 0, 1, 1, 0, 1],
        [0, 1, 1, 1, 0, 1],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 1, 1, 0, 0],
    ],
    bool,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {
    "up": draw(N, 5, 6),
    "down": draw(N, 6, 5, seed=1),
    "head": draw(6, 2, seed=2),
    "mix": draw(N, N, seed=3),
}
X = draw(N, 5, seed=4)


def stacked(p, x):
    """What each layer makes of the same rows, [layers, rows, units]."""
    return lax.scan(lambda c, up: (c, jnp.tanh(x @ up)), 0, p["up"])[1]


def headed(p, h):
    """A head on each of the first axis."""
    return lax.scan(lambda c, h: (c, h @ p["head"]), 0, h)[1]


def recurrent(p, x):
    """All layers in every step of time."""

    def layer(h, p):
        return h + jnp.tanh(h @ p["up"]) @ p["down"], None

    def time(h, x):
        layers = {"up": p["up"], "down": p["down"]}
        h = lax.scan(layer, h + x, layers)[0]
        return h, h

    return lax.scan(time, jnp.zeros(5), x)[1]


def paired(p, x, *, how):
    """Each layer's units meet rows of another stack: of the same layer, or of all."""
    met = jnp.einsum(how, stacked(p, x), p["down"])
    own = lax.scan(lambda c, d: (c, jnp.square(d).sum(0)), 0, p["down"])[1]
    return met + jnp.expand_dims(own, (*range(1, met.ndim - 1),))


crossed = functools.partial(paired, how="iru,juf->ijrf")


def squared(p, x):
    """Units of each layer meet those of each other."""
    h = stacked(p, x)
    return jnp.einsum("iru,jru->ijr", h, h)


def kept(p, x):
    """A buffer of layers, written one by one and read one by one."""

    def write(i, buffer):
        up = lax.dynamic_index_in_dim(p["up"], i, keepdims=False)
        return lax.dynamic_update_index_in_dim(buffer, jnp.tanh(x @ up), i, 0)

    return headed(p, lax.fori_loop(0, N, write, jnp.zeros((N, N, 6))))


ORDER = jnp.array([3, 0, 5, 1, 4, 2])


@jax.custom_jvp
def moved(h):
    return jnp.sin(h)


@moved.defjvp
def _(primals, tangents):
    """It puts rows by numbers, which can't be others in each layer."""
    [h], [rate] = primals, tangents
    put = jnp.zeros_like(rate).at[..., ORDER].set(rate, unique_indices=True)
    return moved(h), jnp.cos(h) * put[..., ORDER]


# Layers stay layers: each keeps its own four units.
APART = {
    "as they are": lambda p, x: headed(p, 2 * jnp.sin(stacked(p, x))),
    "in every step of time": recurrent,
    "with another stack": functools.partial(paired, how="lru,luf->lrf"),
}
# Entries of other layers meet: positions that any layer keeps stay in all of them.
TOGETHER = {
    "swapped": lambda p, x: headed(p, stacked(p, x).swapaxes(0, 1)),
    "crossed": crossed,
    "squared": squared,
    "flipped": lambda p, x: headed(p, jnp.flip(stacked(p, x), 0)),
    "rolled": lambda p, x: headed(p, jnp.roll(stacked(p, x), 1, 0)),
    "taken": lambda p, x: headed(p, stacked(p, x)[jnp.array([3, 0, 0, 1])]),
    "sorted": lambda p, x: headed(p, jnp.sort(stacked(p, x), 0)),
    "summed": lambda p, x: headed(p, jnp.cumsum(stacked(p, x), 0)),
    "mixed": lambda p, x: headed(p, jnp.einsum("lru,lm->mru", stacked(p, x), p["mix"])),
    "moved in a derivative": lambda p, x: headed(p, moved(stacked(p, x))),
    "put": lambda p, x: headed(p, stacked(p, x).at[jnp.array([2, 0])].add(1.0)),
    "kept": kept,
}


def both(apply, mask, plan):
    """The small network's outputs and gradients, and the masked one's."""
    left = compaction.shrink(mask, plan)

    def outputs(apply, mask, p):
        run = lambda p: apply(maskjax.apply(p, mask), X)  # noqa: E731
        out = run(p)
        weigh = lambda p: run(p) * jnp.cos(jnp.arange(out.size)).reshape(out.shape)  # noqa: E731
        return out, jax.grad(lambda p: weigh(p).sum())(p)

    @jax.jit
    def run(p):
        ours = outputs(compaction.narrow(apply, plan), left, compaction.shrink(p, plan))
        out, slopes = outputs(apply, mask, p)
        return ours, (out, compaction.shrink(slopes, plan))

    return run(PARAMS)


@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_layers_are_told_apart_only_where_they_stay_layers(name):
    apply = APART[name] if name in APART else TOGETHER[name]
    mask = {"up": LAYERS[:, None], "down": LAYERS[..., None]}
    mask |= {"head": None, "mix": None}
    plan = compaction.plan(apply, PARAMS, mask, X)
    assert plan.shapes["up"] == (N, 5, 4 if name in APART else 6)
    ours, masked = both(apply, mask, plan)
    for one, other in zip(*map(jax.tree.leaves, (ours, masked)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("name", ["swapped", "crossed", "sorted"])
def test_units_that_no_layer_keeps_leave_all_the_same(name):
    mask = {"up": LAYERS[:1, None], "down": LAYERS[:1, :, None]}
    mask |= {"head": None, "mix": None}
    plan = compaction.plan(TOGETHER[name], PARAMS, mask, X)
    assert plan.shapes["up"] == (N, 5, 4)
    (ours, _), (masked, _) = both(TOGETHER[name], mask, plan)
    np.testing.assert_allclose(ours, masked, atol=2e-5 * np.abs(masked).max())


def test_equal_positions_are_told_from_those_of_other_steps():
    """Where a layer has constants of its own, beside those that any may have."""

    def apply(p, x):
        def layer(h, p):
            u = h @ p["up"] + p["b"][None]
            return h + jnp.tanh(u) @ p["down"], u.sum(-1)

        h, sums = lax.scan(layer, x, {n: p[n] for n in ("up", "down", "b")})
        return h + sums.sum(0)[:, None]

    params = {"up": PARAMS["up"], "down": PARAMS["down"], "b": draw(N, 6, seed=5)}
    units, read = np.array([[0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 0, 0]], bool)
    rows = np.arange(N) == N - 1
    mask = {"up": units[None, None], "down": read[None, :, None]}
    mask["b"] = rows[:, None]
    masked = maskjax.apply(params, mask)
    plan = compaction.plan(apply, params, mask, X, fold=True, ghosts=True)
    small = compaction.shrink(masked, plan)
    ours = jax.jit(compaction.narrow(apply, plan))(small, X)
    np.testing.assert_allclose(ours, jax.jit(apply)(masked, X), rtol=1e-4)


def test_steps_of_training_hold_the_masks_of_layers():
    """Masks with axes of 1 belong to layers too."""
    mask = {"up": LAYERS[:, None], "down": None, "head": None, "mix": None}

    def loss(p, x):
        return jnp.square(recurrent(p, x)).sum()

    def steps(p, x):
        for _ in range(2):
            slopes = jax.grad(loss)(p, x)
            p = jax.tree.map(lambda a, slope: a - slope / 500, p, slopes)
            p = maskjax.apply(p, mask)
        return p

    plan = compaction.plan(loss, PARAMS, mask, X)
    assert plan.shapes["up"] == (N, 5, 4)

    @jax.jit
    def both(p):
        masked = maskjax.apply(p, mask)
        ours = compaction.narrow(steps, plan)(compaction.shrink(masked, plan), X)
        return ours, compaction.shrink(steps(masked, X), plan)

    ours, masked = both(PARAMS)
    for one, other in zip(*map(jax.tree.leaves, (ours, masked)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
