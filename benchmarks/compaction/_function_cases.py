"""The networks of `_torch_cases` as functions: what maskjax does with each."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskjax
from benchmarks.compaction import _cases
from benchmarks.compaction._cases import HALF, SAME
from maskjax import compaction

Tree = Any
CASES, case = _cases.registry()


def run(name: str) -> str:
    """A case's outcome, which may be an error."""
    try:
        return CASES[name]()
    except Exception as error:  # whatever is raised is the outcome
        return f"error: {type(error).__name__}: {str(error).splitlines()[0][:90]}"


def outcome(
    apply: Callable[..., Any],
    params: dict[str, Any],
    gone: dict[str, Any],
    *inputs: Any,
    **options: Any,
) -> str:
    """Mask units of last axes, compact, and compare.

    Args:
        apply: The network.
        params: Its parameters.
        gone: For each leaf, the removed positions of its last axis, or a whole mask.
        *inputs: What it is shown.
        **options: Of `compaction.plan`.
    """
    mask = {name: _mask(leaf, gone.get(name)) for name, leaf in params.items()}
    masked = maskjax.apply(params, mask)
    plan = compaction.plan(apply, params, mask, *inputs, **options)
    small = compaction.shrink(masked, plan)
    expected = jax.jit(apply)(masked, *inputs)
    found = jax.jit(compaction.narrow(apply, plan))(small, *inputs)
    error = float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
    before, after = (sum(x.size for x in jax.tree.leaves(t)) for t in (params, small))
    verdict = "right" if error < 1e-5 else f"wrong by {error:.0%}"
    if before == after:
        return f"kept: nothing was removed ({verdict})"
    return f"{verdict}, {before} -> {after} parameters"


def drawn(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Normal arrays of these shapes."""
    rng = np.random.default_rng(0)
    arrays = {k: rng.standard_normal(s) / s[0] ** 0.5 for k, s in shapes.items()}
    return {k: jnp.asarray(a, jnp.float32) for k, a in arrays.items()}


def _mask(leaf: jax.Array, gone: Any) -> Any:
    if gone is None:
        return None
    if isinstance(gone, np.ndarray):
        return jnp.asarray(gone)
    mask = np.ones((1,) * (leaf.ndim - 1) + leaf.shape[-1:], bool)
    mask[..., gone] = False
    return jnp.asarray(mask)


def image() -> jax.Array:
    return drawn(x=(2, 8, 8, 3))["x"]


def rows() -> jax.Array:
    return drawn(x=(5, 6))["x"]


def tokens() -> jax.Array:
    return drawn(x=(2, 5, 6))["x"]


def conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, groups: int = 1):
    form = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=form, feature_group_count=groups
    )
    return y + bias


CHAIN = {"a": (3, 3, 3, 8), "a_bias": (8,), "b": (1, 1, 8, 4), "b_bias": (4,)}
NORM = {"scale": (8,), "shift": (8,)}
BATCH = {**NORM, "mean": (8,), "var": (8,)}


def chain(between: Callable[..., Any]) -> Callable[..., Any]:
    """Convolution `a`, something between, convolution `b`."""

    def apply(p, x):
        y = between(p, conv(x, p["a"], p["a_bias"]))
        return conv(y, p["b"], p["b_bias"])

    return apply


def chained(between: Callable[..., Any], units: Any = HALF, **leaves: Any) -> str:
    """A chain, with units of all its leaves but those of `b` masked."""
    params = drawn(**CHAIN, **leaves)
    gone = dict.fromkeys(["a", "a_bias", *leaves], units)
    return outcome(chain(between), params, gone, image())


def batch_norm(p: Any, y: jax.Array) -> jax.Array:
    y = (y - p["mean"]) * jax.lax.rsqrt(p["var"] ** 2 + 1e-5)
    return jax.nn.relu(y * p["scale"] + p["shift"])


@case("convolution, BatchNorm, ReLU")
def _chain() -> str:
    return chained(batch_norm, **BATCH)


@case("filters masked, BatchNorm's bias not")
def _bias() -> str:
    params, gone = drawn(**CHAIN, **BATCH), dict.fromkeys(["a", "a_bias"], HALF)
    plain = outcome(chain(batch_norm), params, gone, image())
    folded = outcome(chain(batch_norm), params, gone, image(), fold=True)
    return f"{plain}; fold=True: {folded}"


@case("flatten between convolution and dense")
def _flatten() -> str:
    def apply(p, x):
        y = jax.nn.relu(conv(x, p["a"], p["a_bias"]))
        return y.reshape(len(x), -1) @ p["b"] + p["b_bias"]

    params = drawn(**{**CHAIN, "b": (288, 4)})
    return outcome(apply, params, {"a": HALF, "a_bias": HALF}, image())


@case("concatenation of two layers")
def _concatenation() -> str:
    def apply(p, x):
        c, a = conv(x, p["c"], p["c_bias"]), conv(x, p["a"], p["a_bias"])
        return conv(jax.nn.relu(jnp.concatenate([c, a], -1)), p["b"], p["b_bias"])

    shapes = {**CHAIN, "b": (1, 1, 12, 4), "c": (3, 3, 3, 4), "c_bias": (4,)}
    return outcome(apply, drawn(**shapes), {"a": HALF, "a_bias": HALF}, image())


@case("squeeze and excite")
def _excite() -> str:
    def apply(p, x):
        y = jax.nn.relu(conv(x, p["a"], p["a_bias"]))
        gate = jax.nn.relu(y.mean((1, 2)) @ p["down"] + p["down_bias"])
        gate = jax.nn.sigmoid(gate @ p["up"] + p["up_bias"])
        return conv(y * gate[:, None, None], p["b"], p["b_bias"])

    gates = {"down": (8, 2), "down_bias": (2,), "up": (2, 8), "up_bias": (8,)}
    gone = dict.fromkeys(["a", "a_bias", "up", "up_bias"], HALF)
    return outcome(apply, drawn(**CHAIN, **gates), gone, image())


def grouped(units: Any) -> str:
    """A convolution in two groups, with units of what it reads masked."""

    def apply(p, x):
        y = jax.nn.relu(conv(x, p["a"], p["a_bias"]))
        y = conv(y, p["b"], p["b_bias"], groups=2)
        return conv(y, p["c"], p["c_bias"])

    more = {"b": (1, 1, 4, 6), "b_bias": (6,), "c": (1, 1, 6, 4), "c_bias": (4,)}
    gone = {"a": units, "a_bias": units}
    return outcome(apply, drawn(**{**CHAIN, **more}), gone, image())


@case("grouped convolution, the same two channels of each group")
def _grouped() -> str:
    return grouped(SAME)


@case("grouped convolution, other channels in each group")
def _grouped_other() -> str:
    return grouped(HALF)


@case("GroupNorm, whole groups")
def _group_norm() -> str:
    def between(p, y):
        parts = y.reshape(*y.shape[:-1], 4, 2)
        mean = parts.mean((1, 2, 4), keepdims=True)
        var = (parts**2).mean((1, 2, 4), keepdims=True) - mean**2
        y = ((parts - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(y.shape)
        return jax.nn.relu(y * p["scale"] + p["shift"])

    return chained(between, [0, 1, 4, 5], **NORM)


@case("LayerNorm over a residual stream")
def _layer_norm() -> str:
    def apply(p, x):
        x = x @ p["a"] + p["a_bias"]
        x = x + x @ p["b"] + p["b_bias"]
        mean = x.mean(-1, keepdims=True)
        var = (x**2).mean(-1, keepdims=True) - mean**2
        y = (x - mean) * jax.lax.rsqrt(var + 1e-5) * p["scale"] + p["shift"]
        return y @ p["c"] + p["c_bias"]

    layers = {"a": (6, 8), "a_bias": (8,), "b": (8, 8), "b_bias": (8,)}
    shapes = {**layers, **NORM, "c": (8, 3), "c_bias": (3,)}
    gone = dict.fromkeys(["a", "a_bias", "b", "b_bias", "scale", "shift"], HALF)
    return outcome(apply, drawn(**shapes), gone, rows())


@case("softmax over the channels")
def _softmax() -> str:
    return chained(lambda p, y: jax.nn.softmax(y))


def shuffle(p: Any, y: jax.Array) -> jax.Array:
    """Two parts of the channels, dealt out in turns."""
    parts = y.reshape(*y.shape[:-1], 2, 4)
    return jnp.swapaxes(parts, -1, -2).reshape(y.shape)


@case("channel shuffle by reshape, the same channels of each part")
def _shuffle() -> str:
    return chained(shuffle, SAME)


@case("channel shuffle by reshape, other channels of each part")
def _shuffle_other() -> str:
    return chained(shuffle, HALF)


@case("channels reordered by an index")
def _index() -> str:
    return chained(lambda p, y: y[..., np.array([3, 1, 4, 0, 5, 7, 2, 6])])


@case("pixel shuffle: four channels become space")
def _pixels() -> str:
    def apply(p, x):
        y = conv(x, p["a"], p["a_bias"])
        b, h, w, _ = y.shape
        y = y.reshape(b, h, w, 2, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return conv(jax.nn.relu(y.reshape(b, 2 * h, 2 * w, 2)), p["b"], p["b_bias"])

    params = drawn(**{**CHAIN, "b": (1, 1, 2, 4)})
    gone = dict.fromkeys(["a", "a_bias"], [0, 1, 2, 3])
    return outcome(apply, params, gone, image())


@case("one layer used twice")
def _twice() -> str:
    def apply(p, x):
        x = jax.nn.relu(x @ p["a"] + p["a_bias"])
        for _ in range(2):
            x = jax.nn.relu(x @ p["b"] + p["b_bias"])
        return x @ p["c"] + p["c_bias"]

    layers = {"a": (6, 8), "a_bias": (8,), "b": (8, 8), "b_bias": (8,)}
    gone = dict.fromkeys(layers, HALF)
    return outcome(apply, drawn(**layers, c=(8, 3), c_bias=(3,)), gone, rows())


@case("embedding tied to the head")
def _tied() -> str:
    def apply(p, x):
        x = p["a"][x]
        return (x + x @ p["b"] + p["b_bias"]) @ p["a"].T

    params, gone = drawn(a=(11, 8), b=(8, 8), b_bias=(8,)), {}
    gone = dict.fromkeys(params, HALF)
    return outcome(apply, params, gone, jnp.arange(10).reshape(2, 5))


@case("a function of a tree of arrays")
def _function() -> str:
    apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    return outcome(apply, drawn(a=(6, 8), b=(8, 3)), {"a": HALF}, rows())


@case("parameters that belong to no layer")
def _raw() -> str:
    apply = lambda p, x: jax.nn.relu(x @ p["a"] + p["bias"]) @ p["w"]  # noqa: E731
    params = drawn(a=(6, 8), bias=(8,), w=(8, 3))
    return outcome(apply, params, {"a": HALF, "bias": HALF}, rows())


@case("layers stacked in one array, other units in each")
def _stack() -> str:
    def apply(p, x):
        def layer(x, p):
            return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

        return jax.lax.scan(layer, x, p)[0]

    up = np.ones((3, 6, 8), bool)
    for i, units in enumerate(([0, 3, 4, 6], [1, 2, 4, 7], [0, 1, 6, 7])):
        up[i][:, units] = False
    return outcome(apply, drawn(up=(3, 6, 8), down=(3, 8, 6)), {"up": up}, rows())


def attention(
    gone: dict[str, Any], *, kv: int = 2, fused: bool = False, scaled: bool = False
) -> str:
    """Two heads of four, with channels of some of the layers masked."""

    def apply(p, x):
        b, t, _ = x.shape
        if fused:
            parts = jnp.split(x @ p["qkv"] + p["qkv_bias"], 3, -1)
        else:
            parts = [x @ p[n] + p[f"{n}_bias"] for n in "qkv"]
        q, k, v = (y.reshape(b, t, -1, 4) for y in parts)
        k, v = (jnp.repeat(y, 2 // kv, 2) if kv < 2 else y for y in (k, v))
        if scaled:
            y = jax.nn.dot_product_attention(q, k, v)
        else:
            s = jax.nn.softmax(jnp.einsum("bthc,bshc->bhts", q, k) / 2)
            y = jnp.einsum("bhts,bshc->bthc", s, v)
        return y.reshape(b, t, -1) @ p["out"] + p["out_bias"]

    sizes = {"qkv": 24} if fused else {"q": 8, "k": 4 * kv, "v": 4 * kv}
    shapes = {n: (6, size) for n, size in sizes.items()}
    shapes |= {f"{n}_bias": (size,) for n, size in sizes.items()}
    params = drawn(**shapes, out=(8, 6), out_bias=(6,))
    gone = gone | {f"{n}_bias": units for n, units in gone.items() if n != "out"}
    return outcome(apply, params, gone, tokens())


@case("attention, two channels of each head")
def _channels() -> str:
    return attention(dict.fromkeys("qkv", SAME))


@case("attention, one of two heads")
def _heads() -> str:
    out = np.ones((8, 6), bool)
    out[:4] = False
    return attention({**dict.fromkeys("qkv", [0, 1, 2, 3]), "out": out})


@case("attention, channels of queries and keys, values left alone")
def _queries() -> str:
    return attention(dict.fromkeys("qk", SAME))


@case("attention, sizes written out in the reshape")
def _written() -> str:
    return attention(dict.fromkeys("qkv", SAME))


@case("attention, scaled by its own width")
def _scaled() -> str:
    return attention(dict.fromkeys("qkv", SAME), scaled=True)


@case("grouped queries, two channels of each head")
def _grouped_queries() -> str:
    return attention({"q": SAME, "k": [0, 3], "v": [0, 3]}, kv=1)


@case("fused query, key and value")
def _fused() -> str:
    return attention({"qkv": [i + o for o in (0, 8, 16) for i in SAME]}, fused=True)


@case("gated: one layer split into gate and value")
def _gated() -> str:
    def apply(p, x):
        gate, value = jnp.split(x @ p["a"] + p["a_bias"], 2, -1)
        return (jax.nn.silu(gate) * value) @ p["b"] + p["b_bias"]

    params = drawn(a=(6, 16), a_bias=(16,), b=(8, 3), b_bias=(3,))
    units = [*HALF, *(8 + i for i in HALF)]
    return outcome(apply, params, {"a": units, "a_bias": units}, rows())


@case("rotary positions on a layer's halves")
def _rotary() -> str:
    angle = np.arange(5)[:, None] * np.arange(1, 5)
    sin, cos = (np.tile(f(angle), 2).astype(np.float32) for f in (np.sin, np.cos))

    def turned(y):
        other = jnp.concatenate([-y[..., 4:], y[..., :4]], -1)
        return y * cos + other * sin

    def apply(p, x):
        q, k = (turned(x @ p[n] + p[f"{n}_bias"]) for n in "qk")
        return jnp.einsum("btc,bsc->bts", q, k)

    params = drawn(q=(6, 8), q_bias=(8,), k=(6, 8), k_bias=(8,))
    return outcome(apply, params, dict.fromkeys(params, [0, 3, 4, 7]), tokens())


@case("two branches, one taken")
def _branches() -> str:
    def apply(p, x):
        y = jax.nn.relu(x @ p["a"] + p["a_bias"])
        one, other = (lambda y, n=n: y @ p[n] + p[f"{n}_bias"] for n in "bc")
        return jax.lax.cond(x.sum() > 0, one, other, y)

    last = {"b": (8, 3), "b_bias": (3,), "c": (8, 3), "c_bias": (3,)}
    params, gone = drawn(a=(6, 8), a_bias=(8,), **last), {"a": HALF, "a_bias": HALF}
    outcomes = {outcome(apply, params, gone, x) for x in (rows(), -rows())}
    return " or ".join(sorted(outcomes))


@case("LSTM")
def _lstm() -> str:
    def apply(p, x):
        def step(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(x @ p["x"] + h @ p["h"] + p["bias"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = (jnp.zeros((x.shape[1], 8)),) * 2
        return jax.lax.scan(step, start, x)[1] @ p["b"] + p["b_bias"]

    params = drawn(x=(6, 32), h=(8, 32), bias=(32,), b=(8, 3), b_bias=(3,))
    units = [i + o for o in (0, 8, 16, 24) for i in HALF]
    gone = dict.fromkeys(["x", "h", "bias"], units)
    return outcome(apply, params, gone, drawn(x=(5, 2, 6))["x"])


@case("Adam's moments shrink along, and training goes on")
def _adam() -> str:
    def loss(p, x):
        return ((jax.nn.relu(x @ p["a"] + p["a_bias"]) @ p["b"]) ** 2).sum()

    params, x = drawn(a=(6, 8), a_bias=(8,), b=(8, 3)), rows()
    mask = {n: _mask(params[n], HALF) for n in ("a", "a_bias")} | {"b": None}
    adam = optax.adam(0.1)

    def step(loss, params, state):
        updates, state = adam.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    masked = lambda p, x: loss(maskjax.apply(p, mask), x)  # noqa: E731
    params, state = step(masked, params, adam.init(params))
    plan = compaction.plan(loss, params, mask, x)
    small = compaction.shrink((maskjax.apply(params, mask), state), plan)
    small, small_state = step(compaction.narrow(loss, plan), *small)
    large, state = step(masked, params, state)
    wanted = compaction.shrink((maskjax.apply(large, mask), state), plan)
    same = jax.tree.map(
        lambda a, b: bool(jnp.allclose(a, b, atol=1e-5)), wanted, (small, small_state)
    )
    return "right" if all(jax.tree.leaves(same)) else "wrong: the next step differs"
