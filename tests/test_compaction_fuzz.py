"""Random programs of many kinds of steps, under random masks, made small in every way.

Rows, times and layers are of one number, so that no axis is told by its length.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import maskjax
from maskjax import compaction
from tests.compaction_zoo import masks

pytestmark = pytest.mark.optimized
N = 3
FEW = (0, 1, 14, 43)
WAYS = {
    "plain": {},
    "folded": {"fold": True},
    "ghosts": {"ghosts": True},
    "both": {"fold": True, "ghosts": True},
}


@pytest.fixture(autouse=True)
def _as_users(_strict_promotion):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Steps: of `(rng, d)` the shapes of parameters, a function of them and of features
# [rows, times, d], and how many features it gives.


def dense(p, h):
    return h @ p["w"] + p["b"] if "b" in p else h @ p["w"]


def shapes(rng, d, n):
    return {"w": (d, n), "b": (n,)} if rng.random() < 0.7 else {"w": (d, n)}


def width(rng):
    return int(rng.integers(3, 7))


def simple(*functions, to=lambda d: d):
    """One of these functions of features alone."""

    def step(rng, d):
        chosen = functions[rng.integers(len(functions))]
        return {}, lambda p, h: chosen(h), to(d)

    return step


def layer(rng, d):
    n = width(rng)
    run = [dense, lambda p, h: lax.map(functools.partial(dense, p), h)]
    run += [jax.checkpoint(lambda p, h: jax.nn.relu(dense(p, h)))]
    return shapes(rng, d, n), run[rng.integers(len(run))], n


def residual(rng, d):
    run = [lambda p, h: h + jnp.tanh(dense(p, h))]
    run += [lambda p, h: lax.fori_loop(0, 2, lambda _, h: run[0](p, h), h)]
    run += [lambda p, h: lax.cond(h.sum() > 0, lambda h: dense(p, h), jnp.sin, h)]
    return shapes(rng, d, d), run[rng.integers(len(run))], d


def norm(rng, d):
    centered, twice = rng.random(2) < 0.5

    def run(p, h):
        mean = h.mean(-1, keepdims=True) * centered
        rest = h - mean
        size = ((rest if twice else h) ** 2).mean(-1, keepdims=True)
        size = size if twice else size - mean**2
        return rest * lax.rsqrt(size + 0.1) * p["scale"] + p.get("shift", 0)

    return {"scale": (d,)} | ({"shift": (d,)} if rng.random() < 0.5 else {}), run, d


def attention(rng, d):
    def run(p, h):
        q, k, v = (jnp.einsum("btd,dhe->bthe", h, p[n]) for n in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k))
        return h + jnp.einsum("bhts,bshe,hed->btd", scores, v, p["out"])

    return {n: (d, 2, 3) for n in "qkv"} | {"out": (2, 3, d)}, run, d


def recurrence(rng, d):
    n = width(rng)

    def run(p, h):
        def time(c, x):
            c = jnp.tanh(dense(p, x) + c @ p["again"])
            return c, c

        start = jnp.zeros((N, n))
        return jnp.swapaxes(lax.scan(time, start, jnp.swapaxes(h, 0, 1))[1], 0, 1)

    return shapes(rng, d, n) | {"again": (n, n)}, run, n


def layers(rng, d):
    n, mixed = width(rng), rng.integers(4)

    def one(h, p):
        up = h @ p["up"] + p.get("b", 0)
        return h + jnp.tanh(up) @ p["down"], up

    def run(p, h):
        stacked = {name: p[name] for name in p if name != "read"}
        if mixed == 3:  # all layers in every step of time
            time = lambda h, x: (lax.scan(one, h + x, stacked)[0],) * 2  # noqa: E731
            return lax.scan(time, jnp.zeros((N, d)), h)[1]
        h, ups = lax.scan(one, h, stacked)
        ups = [ups, jnp.swapaxes(ups, 0, 1), jnp.cumsum(ups, 0)][mixed]
        read = lax.scan(lambda c, up: (c, jnp.sin(up) @ p["read"]), 0, ups)[1]
        return h + read.sum(0)[..., None]

    found = {"up": (N, d, n), "down": (N, n, d), "read": (n,)}
    return found | ({"b": (N, n)} if rng.random() < 0.5 else {}), run, d


def gated(rng, d):
    n = width(rng)

    def run(p, h):
        left, right = jnp.split(dense(p, h), 2, -1)
        return left * jax.nn.sigmoid(right)

    return shapes(rng, d, 2 * n), run, n


def joined(rng, d):
    run = lambda p, h: jnp.concatenate([h, jax.nn.relu(dense(p, h))], -1)  # noqa: E731
    return shapes(rng, d, 2), run, d + 2


def heads(rng, d):
    outer = next((n for n in (2, 3, 5) if d % n == 0), 1)

    def run(p, h):
        h = h.reshape(N, N, outer, d // outer) * p["scale"]
        return jnp.swapaxes(h, 2, 3).reshape(N, N, d)

    return {"scale": (outer, d // outer)}, run, d


def convolution(rng, d):
    n = width(rng)
    conv = functools.partial(
        lax.conv_general_dilated, dimension_numbers=("NWC", "WIO", "NWC")
    )
    run = lambda p, h: conv(h, p["w"], (1,), "SAME") + p.get("b", 0)  # noqa: E731
    return {"w": (2, d, n)} | ({"b": (n,)} if rng.random() < 0.5 else {}), run, n


def bilinear(rng, d):
    run = lambda p, h: jnp.einsum("bti,ijk,btj->btk", h, p["w"], h)  # noqa: E731
    return {"w": (d, d, 4)}, run, 4


def taken(rng, d):
    rows = rng.permutation(np.append(np.arange(d), rng.integers(0, d, 1)))
    return {}, lambda p, h: h[..., rows], d + 1


def window(h, start, combine):
    return lax.reduce_window(h, start, combine, (1, 2, 1), (1, 1, 1), "SAME")


STEPS = (
    *(layer, residual, norm, attention, recurrence, layers, layers, gated, joined),
    *(heads, convolution, bilinear, taken),
    simple(jax.nn.relu, jax.nn.gelu, jnp.sin, jax.nn.softplus, jnp.square),
    simple(
        lambda h: jnp.roll(h, 1, -1),
        lambda h: jnp.roll(h, 1, 1),
        lambda h: h[..., ::-1],
        lambda h: jnp.cumsum(h, 1),
        lambda h: jnp.sort(h, 1),
        lambda h: jax.nn.softmax(h),
        lambda h: h.at[:, 1].add(h[:, 2]),
        lambda h: h.at[:, jnp.array([0, 2])].set(h[:, 1:]),
        lambda h: jnp.zeros_like(h).at[..., 0].set(h[..., -1]),
        lambda h: window(h, -jnp.inf, lax.max),
        lambda h: window(h, 0.0, lax.add),
        lambda h: jnp.where(h > h.mean(-1, keepdims=True), h, 0),
        lambda h: jnp.where(jnp.tril(jnp.ones(h.shape[1:])) > 0, h, 1),
        lambda h: h * jnp.all(h < 2, -1, keepdims=True),
        lambda h: h + lax.dynamic_slice_in_dim(h, jnp.int32(h[0, 0, 0] > 0), 1, 1),
    ),
    simple(
        lambda h: jnp.pad(h, ((0, 0), (0, 0), (1, 0))),
        lambda h: jnp.pad(h, ((0, 0), (1, 0), (1, 0)), constant_values=0.5)[:, 1:],
        to=lambda d: d + 1,
    ),
)


def program(seed):
    """A random program with parameters, inputs, and a mask."""
    rng = np.random.default_rng(seed)
    d = first = int(rng.integers(3, 5))
    steps, sizes = [], {}
    for i in range(rng.integers(2, 6)):
        step = STEPS[rng.integers(len(STEPS))]
        sizes[f"step {i}"], run, d = step(rng, d)
        steps.append(run)
    sizes["head"] = {"w": (d, 2), "b": (2,)}

    def apply(p, x):
        for i, run in enumerate(steps):
            x = run(p.get(f"step {i}"), x)
        return dense(p["head"], x)

    def draw(size):
        signs = rng.choice([-1, 1], size)
        return jnp.asarray(rng.uniform(0.2, 0.9, size) * signs, jnp.float32)

    params = jax.tree.map(draw, sizes, is_leaf=lambda x: isinstance(x, tuple))
    x = jnp.asarray(rng.normal(size=(N, N, first)), jnp.float32)
    return apply, params, x, drawn(rng, apply, params, x)


def drawn(rng, apply, params, x):
    """A mask: whole units, or some of their leaves, layer by layer, or anything."""
    kind = ["units", "kernels", "layers", "layers", "mixed"][rng.integers(5)]

    def layerwise(leaf):
        stacked = leaf.ndim > 2
        axis = rng.integers(int(stacked), leaf.ndim)
        along = (0, axis) if stacked else (axis,)
        shape = [n if i in along else 1 for i, n in enumerate(leaf.shape)]
        return jnp.asarray(rng.random(shape) < 0.6)

    if kind == "layers":
        return jax.tree.map(layerwise, params)
    try:
        groups = compaction.groups(apply, params, x)
    except ValueError:  # none can leave
        groups = ()
    seed = int(rng.integers(1 << 30))
    mask = masks.draw("units" if kind == "kernels" else kind, groups, params, seed)
    if kind == "kernels":
        none = lambda leaf: leaf is None  # noqa: E731
        keep = lambda p, m: m if p.ndim > 1 else None  # noqa: E731
        return jax.tree.map(keep, params, mask, is_leaf=none)
    return mask


@pytest.mark.parametrize(
    "seed",
    [s if s in FEW else pytest.param(s, marks=pytest.mark.slow) for s in range(64)],
)
def test_a_random_program_is_made_small(seed):
    """Outputs in every way; gradients, and a step of training if it is not refused."""
    apply, params, x, mask = program(seed)
    plans = {
        way: compaction.plan(apply, params, mask, x, **how) for way, how in WAYS.items()
    }
    plan = plans["plain"]
    left = compaction.shrink(mask, plan)
    narrow = compaction.narrow(apply, plan)

    def weighed(apply, mask, x, p):
        out = apply(maskjax.apply(p, mask), x)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    def step(p, x):
        slopes = jax.grad(lambda p: weighed(apply, mask, x, p))(p)
        return jax.tree.map(lambda p, slope: p - slope / 8, p, slopes)

    @jax.jit
    def both(params, x):
        masked, found = maskjax.apply(params, mask), {}
        wanted = apply(masked, x)
        for way, plan in plans.items():
            small = compaction.shrink(masked, plan)
            found[way] = compaction.narrow(apply, plan)(small, x), wanted
        small = compaction.shrink(masked, plans["plain"])
        slopes = jax.grad(lambda p: weighed(apply, mask, x, p))(masked)
        ours = jax.grad(lambda p: weighed(narrow, left, x, p))(small)
        found["slopes"] = ours, compaction.shrink(slopes, plans["plain"])
        try:
            ours = compaction.narrow(step, plans["plain"])(small, x)
        except ValueError as error:
            assert "needs what was taken out" in str(error)  # noqa: PT017
        else:
            found["step"] = ours, compaction.shrink(step(masked, x), plans["plain"])
        return found

    for name, (ours, masked) in both(params, x).items():
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(masked)]
        largest = max(np.abs(leaf).max() for leaf in leaves)
        assert np.isfinite(largest), "a program that is worth nothing"
        for one, other in zip(jax.tree.leaves(ours), leaves, strict=True):
            scale = max(1e-3, largest)
            np.testing.assert_allclose(one, other, atol=2e-5 * scale, err_msg=name)
