"""Kernels on their way to the data: the matrices of what their entries meet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maskjax import calibration, score, where
from tests.reference import calibration as reference


def normal(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


X, Y = normal(7, 6), normal(7, 6, seed=1)
G, H = reference.gram(X), reference.gram(Y)
_CROSS = X.T @ Y
BOTH = np.block([[G, _CROSS], [_CROSS.T, H]])
# The order of inputs (2, 3) of a kernel that has them as (3, 2).
TURNED = np.arange(6).reshape(2, 3).T.ravel()


def three(w):
    return w.reshape(6, 4, 3)


# The kernel's shape, how it meets X and Y, and its matrix.
KERNELS = {
    "as it is": ((6, 5), lambda w, x, y: x @ w, G),
    "transposed": ((5, 6), lambda w, x, y: x @ w.T, G),
    "twice": ((6, 5), lambda w, x, y: [x @ w, y @ w], G + H),
    "twice the same": ((6, 5), lambda w, x, y: [x @ w, x @ w], 2 * G),
    "two inputs": (
        (2, 3, 5),
        lambda w, x, y: jnp.einsum("thd,hdo->to", x.reshape(7, 2, 3), w),
        G,
    ),
    "two inputs after outputs": (
        (5, 2, 3),
        lambda w, x, y: jnp.einsum("thd,ohd->to", x.reshape(7, 2, 3), w),
        G,
    ),
    "two inputs in another order": (
        (3, 2, 5),
        lambda w, x, y: jnp.einsum("thd,dho->to", x.reshape(7, 2, 3), w),
        G[np.ix_(TURNED, TURNED)],
    ),
    "two inputs apart": (
        (2, 5, 3),
        lambda w, x, y: x @ w.transpose(0, 2, 1).reshape(6, 5),
        G,
    ),
    "two outputs": ((6, 4, 3), lambda w, x, y: x @ w.reshape(6, 12), G),
    "split": ((6, 12), lambda w, x, y: [x @ p for p in jnp.split(w, 3, 1)], G),
    "split by heads": (
        (6, 12),
        lambda w, x, y: [
            x @ p.reshape(6, -1) for p in jnp.split(three(w), [2, 3], axis=1)
        ],
        G,
    ),
    "every other output": ((6, 4), lambda w, x, y: [x @ w[:, ::2], x @ w[:, 1::2]], G),
    "backwards": ((6, 5), lambda w, x, y: x @ w[::-1, ::-1], G[::-1, ::-1]),
    "backwards and split": (
        (6, 4),
        lambda w, x, y: [x @ w[::-1, ::-1][:, :1], x @ w[::-1, ::-1][:, 1:]],
        G[::-1, ::-1],
    ),
    "padded": (
        (6, 5),
        lambda w, x, y: jnp.pad(x, [(0, 0), (1, 2)]) @ jnp.pad(w, [(1, 2), (0, 5)]),
        G,
    ),
    "beside another": (
        (6, 5),
        lambda w, x, y: (
            x @ jnp.concatenate([jnp.ones((6, 2)), w, -jnp.ones((6, 1))], 1)
        ),
        G,
    ),
    "above another": (
        (6, 5),
        lambda w, x, y: (
            jnp.concatenate([x, y], 1) @ jnp.concatenate([w, jnp.ones_like(w)])
        ),
        G,
    ),
    "in a stack": (
        (6, 5),
        lambda w, x, y: jnp.einsum(
            "ti,nio->nto", x, jnp.stack([w * 2, jnp.ones((6, 5))])
        ),
        G,
    ),
    "in groups": ((6, 6), lambda w, x, y: [x @ w[:, :4], y @ w[:, 4:]], [G, G, H]),
    "of a product of its own": (
        (6, 5),
        lambda w, x, y: x @ (w / jnp.linalg.norm(w, axis=0, keepdims=True)),
        G,
    ),
    "by index": (
        (2, 6, 5),
        lambda w, x, y: [x @ w[1], y @ w[0]],
        [H, G],
    ),
    "unstacked": (
        (2, 6, 5),
        lambda w, x, y: [d @ k for d, k in zip((x, y), jnp.unstack(w), strict=True)],
        [G, H],
    ),
    "by index and split": (
        (2, 6, 6),
        lambda w, x, y: [x @ w[0][:, :2], x @ w[0][:, 2:], y @ w[1]],
        [G, H],
    ),
    "for many": (
        (6, 5),
        lambda w, x, y: jnp.stack([x, y]) @ jnp.broadcast_to(w, (2, 6, 5)),
        G + H,
    ),
    "experts": (
        (2, 6, 5),
        lambda w, x, y: jnp.einsum("eti,eio->eto", jnp.stack([x, y]), w),
        [G, H],
    ),
    "groups of rows": (
        (3, 6, 5),
        lambda w, x, y: lax.ragged_dot(x, w, jnp.array([2, 0, 4])),
        [reference.gram(rows) for rows in (X[:2], X[2:2], X[2:6])],
    ),
    "constant in a loop": (
        (6, 5),
        lambda w, x, y: lax.scan(lambda _, d: (0.0, d @ w), 0.0, jnp.stack([x, y])),
        G + H,
    ),
    "rematerialized": ((6, 5), lambda w, x, y: jax.checkpoint(jnp.matmul)(x, w), G),
}


def apply_all(params, x, y):
    return {name: KERNELS[name][1](w, x, y) for name, w in params.items()}


def drawn(names=KERNELS):
    return {name: normal(*KERNELS[name][0], seed=2) for name in names}


@functools.cache
def statistics(gram):
    params = drawn()
    stats = calibration.init(apply_all, params, X, Y, where=where.everything, gram=gram)
    update = jax.jit(functools.partial(calibration.update, apply_all))
    return jax.device_get(update(stats, params, X, Y))


@pytest.mark.parametrize("name", KERNELS)
def test_matrices_of_a_kernel(name):
    own, answer = statistics(gram=True)[name], np.array(KERNELS[name][2])
    assert own.groups == (3 if name == "in groups" else 1)
    np.testing.assert_allclose(own.sums, answer, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(own.sums, np.swapaxes(own.sums, -1, -2))


@pytest.mark.parametrize("name", KERNELS)
def test_squares_are_the_diagonal(name):
    own, answer = statistics(gram=False)[name], np.array(KERNELS[name][2])
    diagonal = np.diagonal(answer, axis1=-2, axis2=-1)
    np.testing.assert_allclose(own.sums, diagonal, rtol=1e-5)


def test_norms_are_those_of_the_whole_data():
    params = drawn()
    measure = jax.jit(
        functools.partial(score.input_norms, apply_all, where=where.everything)
    )
    others = measure(params, X, Y)
    for gram in (True, False):
        norms = calibration.norms(statistics(gram=gram))
        for name, w in params.items():
            found, other = (np.broadcast_to(n[name], w.shape) for n in (norms, others))
            np.testing.assert_allclose(found, other, rtol=1e-5, err_msg=name)


# Loops.


def one(h, w):
    left, right = jnp.split(w, [2], axis=1)
    return jnp.tanh(jnp.concatenate([h @ left, h @ right], axis=1)), None


def scanned(w, x):
    return lax.scan(one, x, w)[0]


def in_halves(w, x):
    return lax.scan(one, lax.scan(one, x, w[:2])[0], w[2:])[0]


def nested(w, x):
    outer = lambda h, layers: lax.scan(jax.checkpoint(one), h, layers)  # noqa: E731
    return lax.scan(outer, x, w.reshape(2, 2, 6, 6))[0]


def by_index(w, x):
    return functools.reduce(lambda h, i: one(h, w[i])[0], range(4), x)


def by_index_in_a_loop(w, x):
    outer = lambda h, two: (one(one(h, two[0])[0], two[1])[0], None)  # noqa: E731
    return lax.scan(outer, x, w.reshape(2, 2, 6, 6))[0]


def backwards(w, x):
    return lax.scan(one, x, w[::-1], reverse=True)[0]


def last_axis(w, x):
    return scanned(w.transpose(2, 0, 1), x)


@pytest.mark.parametrize(
    "loop", [scanned, in_halves, nested, by_index, by_index_in_a_loop, backwards]
)
def test_layers_in_a_loop_have_matrices_of_their_own(loop):
    w = normal(4, 6, 6)
    apply = lambda p, x: loop(p["w"], x)  # noqa: E731
    stats = calibration.init(apply, {"w": w}, X, where=where.everything)
    own = calibration.update(apply, stats, {"w": w}, X)["w"]
    h, answer = X, []
    for layer in w:
        answer.append(reference.gram(h))
        h = np.tanh(h @ layer)
    assert str(own.axes) == "stack inputs outputs"
    np.testing.assert_allclose(own.sums, answer, rtol=1e-4, atol=1e-5)


def test_layers_may_be_stacked_on_any_axis():
    w = normal(6, 6, 4)
    apply = lambda p, x: last_axis(p["w"], x)  # noqa: E731
    stats = calibration.init(apply, {"w": w}, X, where=where.everything)
    own = calibration.update(apply, stats, {"w": w}, X)["w"]
    one = lambda p, x: scanned(p["w"], x)  # noqa: E731
    params = {"w": w.transpose(2, 0, 1)}
    stats = calibration.init(one, params, X, where=where.everything)
    other = calibration.update(one, stats, params, X)["w"]
    assert str(own.axes) == "inputs outputs stack"
    np.testing.assert_array_equal(own.sums, other.sums)
    norms = calibration.norms({"a": own, "b": other})
    np.testing.assert_array_equal(norms["a"], norms["b"].transpose(1, 2, 0))


def test_experts_that_all_tokens_go_through_are_told_by_hand():
    up, down, x = normal(3, 6, 5), normal(3, 5, 6), X

    def apply(p, x):
        h = jnp.einsum("td,edf->tef", x, p["up"])
        return jnp.einsum("te,tef,efd->td", x[:, :3], h, p["down"])

    params = {"up": up, "down": down}
    told = where.matching(".", axes="stack inputs outputs")
    stats = calibration.init(apply, params, x, where=told)
    stats = calibration.update(apply, stats, params, x)
    np.testing.assert_allclose(stats["up"].sums, [G] * 3, rtol=1e-5, atol=1e-5)
    h = np.einsum("td,edf->etf", x, up) * x[:, :3].T[:, :, None]
    answer = [reference.gram(rows) for rows in h]
    np.testing.assert_allclose(stats["down"].sums, answer, rtol=1e-5, atol=1e-5)


def test_axes_are_told_by_hand_before_they_are_traced():
    """By tracing the three kernels of one array are a stack."""
    apply = lambda p, x: [x @ p["w"][i] for i in range(3)]  # noqa: E731
    params = {"w": normal(3, 6, 4)}
    for words, shape in (
        ("stack inputs outputs", (3, 6, 6)),
        ("outputs inputs outputs", (6, 6)),
    ):
        told = where.matching("w", axes=words)
        stats = calibration.init(apply, params, X, where=told)
        own = calibration.update(apply, stats, params, X)["w"]
        assert own.sums.shape == shape
        np.testing.assert_allclose(own.sums, np.broadcast_to(G, shape), rtol=1e-5)


# What can't be had.

_APART = "meets different data along its inputs, which never meet together"
_OUTPUTS = "meets different data along its outputs"
IMPOSSIBLE = {
    "split along its inputs": (
        (6, 5),
        lambda w, x, y: x[:, :3] @ w[:3] + x[:, 3:] @ w[3:],
        _APART,
    ),
    "looped over along its inputs": (
        (6, 5),
        lambda w, x, y: lax.scan(
            lambda h, part: (h + part[0] @ part[1], None),
            jnp.zeros((7, 5)),
            (x.reshape(7, 2, 3).transpose(1, 0, 2), w.reshape(2, 3, 5)),
        )[0],
        _APART,
    ),
    "used in part": ((6, 5), lambda w, x, y: x @ w[:, :3], _OUTPUTS),
    "two outputs of three": (
        (2, 6, 3),
        lambda w, x, y: x @ w[0] + y @ w[1][:, :2].sum(1, keepdims=True),
        "loses its axes in reduce_sum",
    ),
    "one of two layers": (
        (2, 6, 5),
        lambda w, x, y: x @ w[1],
        "meets no data at index 0 of its axis 0",
    ),
    "one row for all": (
        (1, 5),
        lambda w, x, y: x @ jnp.broadcast_to(w, (6, 5)),
        "occurs more than once in one product",
    ),
    "entries mixed": ((6, 6), lambda w, x, y: x @ (w + w.T), "loses its axes in add"),
    "entries moved": (
        (6, 5),
        lambda w, x, y: x @ jnp.roll(w, 1, 0),
        "loses its axes in concatenate",
    ),
    "conditional": (
        (6, 5),
        lambda w, x, y: lax.cond(x.sum() > 0, lambda: x @ w, lambda: y @ w),
        "goes into cond",
    ),
    "no data": ((6, 5), lambda w, x, y: jnp.ones((2, 6)) @ w, "meets no data"),
    "unused": ((6, 5), lambda w, x, y: x, "is not used"),
}
KIND = {
    1: "inputs",
    2: "inputs outputs",
    3: "stack inputs outputs",
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_had_exactly_is_an_error(name):
    shape, meet, why = IMPOSSIBLE[name]
    told = where.matching("wrong", axes=KIND[len(shape)])
    apply = lambda p, x, y: (meet(p["wrong"], x, y), x @ p["fine"])  # noqa: E731
    params = {"wrong": normal(*shape), "fine": normal(6, 2)}
    with pytest.raises(
        ValueError, match=rf"calibration.init` needs .*\n  wrong: {why}"
    ):
        calibration.init(apply, params, X, Y, where=told | where.matching("fine"))


def test_norms_can_be_had_where_matrices_cannot():
    names = ["split along its inputs", "looped over along its inputs"]
    for name in names:
        shape, meet, _ = IMPOSSIBLE[name]
        apply = lambda p, x, meet=meet: meet(p["w"], x, x)  # noqa: E731
        params = {"w": normal(*shape)}
        told = where.matching("w", axes="inputs outputs")
        stats = calibration.init(apply, params, X, where=told, gram=False)
        own = calibration.update(apply, stats, params, X)["w"]
        np.testing.assert_allclose(own.sums, np.diag(G), rtol=1e-5)


def test_axes_in_two_roles_are_an_error():
    apply = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T  # noqa: E731
    with pytest.raises(
        ValueError,
        match=r"`maskjax.calibration.init` needs to know the axes of these "
        r"leaves to calibrate them.*\n  w: shape .*used as inputs and as outputs",
    ):
        calibration.init(apply, {"w": normal(6, 5)}, X)


# What is shared.


def test_kernels_that_meet_the_same_data_share_a_matrix():
    """One product for query, key and value: the program has no more."""
    params = {name: normal(256, 256) for name in ("query", "key", "value")}
    apply = lambda p, x: [x @ w for w in p.values()]  # noqa: E731
    x = jax.ShapeDtypeStruct((64, 256), "float32")
    stats = calibration.init(apply, params, x)
    update = functools.partial(calibration.update, apply)
    products = str(jax.make_jaxpr(update)(stats, params, x)).count("dot_general")
    assert products - 3 == 1
    squares = calibration.init(apply, params, x, gram=False)
    assert str(jax.make_jaxpr(update)(squares, params, x)).count("dot_general") == 3


@pytest.mark.parametrize("d", [100, 512, 1100])
def test_half_of_a_large_matrix_is_computed(d):
    x = normal(5, d)
    apply = lambda p, x: x @ p["w"]  # noqa: E731
    params = {"w": normal(d, 1)}
    stats = calibration.init(apply, params, x)
    update = jax.jit(functools.partial(calibration.update, apply))
    own = update(stats, params, x)["w"].sums
    np.testing.assert_allclose(own, x.T @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(own, own.T)
