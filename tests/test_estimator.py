"""Gradients through a hard choice."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from maskjax import estimator, masking, select
from maskjax.structure import Block, Entries, NofM, Units
from tests import trees

KEY = jax.random.key(0)
over_dtypes = pytest.mark.parametrize("dtype", trees.DTYPES)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@over_dtypes
def test_the_value_is_exactly_hard_whatever_soft_holds(dtype):
    pass_through = jax.jit(estimator.straight_through)
    hard = {"w": np.array([True, False, True]), "b": None}
    for bad in (math.inf, -math.inf, math.nan, 1e38):
        soft = {"w": np.full(3, bad, jnp.dtype(dtype)), "b": None}
        out = pass_through(hard, soft)
        assert out["b"] is None
        assert out["w"].dtype == dtype
        np.testing.assert_array_equal(trees.to_numpy(out["w"]), [1, 0, 1])
    trees.assert_same(estimator.straight_through(hard, soft), out)
    many = jax.tree.map(lambda x: x[None], (hard, soft))
    mapped = jax.vmap(pass_through)(*many)
    np.testing.assert_array_equal(trees.to_numpy(mapped["w"]), [[1, 0, 1]])


def test_derivatives_of_every_order_are_those_of_soft():
    def smooth(x):
        return jnp.sin(x) * x**2

    def passed(x):
        return estimator.straight_through(jnp.round(x), smooth(x))

    @jax.jit
    def orders(x):
        found, a, b = [], smooth, passed
        for _ in range(3):
            a, b = jax.grad(a), jax.grad(b)
            found.append((a(x), b(x)))
        tangent = jax.jvp(passed, (x,), (jnp.float32(2.0),))[1]
        return [*found, (2 * jax.grad(smooth)(x), tangent)], passed(x)

    pairs, value = orders(np.float32(1.3))
    assert value == 1
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_hessian_through_the_estimator_is_that_of_the_smooth_function():
    w, x, at = normal(3, 5)

    def loss(logits, mask_of):
        # At logits where hard and soft agree, so do all derivatives.
        return jnp.sum(jnp.tanh(mask_of(logits) * w * x)) ** 2

    def passed(logits):
        soft = jax.nn.sigmoid(logits)
        return estimator.straight_through(jax.lax.stop_gradient(soft), soft)

    @jax.jit
    def both(at):
        return [
            [derivative(functools.partial(loss, mask_of=way))(at) for way in ways]
            for derivative in (jax.grad, jax.hessian)
        ]

    ways = passed, jax.nn.sigmoid
    for ours, theirs in both(at):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_hard():
    def f(x):
        return estimator.straight_through(x**2, jnp.ones_like(x))

    assert jax.jit(jax.grad(f))(np.float32(3.0)) == 0


@pytest.mark.parametrize(
    ("scope", "dtype"),
    [("leaf", "float32"), ("global", "float32"), ("leaf", "bfloat16")],
)
def test_top_k_is_the_mask_forward_and_the_identity_backward(scope, dtype):
    kind = jnp.dtype(dtype)
    scores = {"a": np.array([[3.0, -1.0], [0.5, 2.0]], kind), "b": None}
    scores["c"] = np.array([[9.0, 8.0]], kind)
    incoming = {"a": np.array([[1, 2], [3, 4]], kind), "b": None}
    incoming["c"] = np.array([[5, 6]], kind)
    how = {"density": 0.5, "scope": scope}

    @jax.jit
    def pull(scores):
        out, vjp, cutoff = jax.vjp(
            lambda s: estimator.top_k(s, **how, return_cutoff=True),
            scores,
            has_aux=True,
        )
        again = estimator.top_k(scores, **how, guess=cutoff)
        hard = select.top_k(scores, **how, return_cutoff=True)
        return out, vjp(incoming)[0], again, (*hard, cutoff)

    out, gradients, again, (hard, *cutoffs) = pull(scores)
    trees.assert_same(out, jax.tree.map(lambda m: np.asarray(m).astype(kind), hard))
    trees.assert_same(gradients, incoming)  # removed entries included
    trees.assert_same(again, out)
    trees.assert_same(*cutoffs)
    assert jax.tree.structure(cutoffs[0]) == jax.tree.structure(scores)


@pytest.mark.parametrize(
    "structure",
    [Entries(), NofM(1, 2, -2), Block((2, 2), (-2, -1)), Units(-1)],
    ids=str,
)
def test_the_gradient_goes_through_the_mean_of_what_is_decided_together(structure):
    scores = normal(4, 6)
    how = {"density": 0.5, "structure": structure}

    @jax.jit
    def pull(scores):
        out, vjp = jax.vjp(lambda s: estimator.top_k({"w": s}, **how)["w"], scores)
        incoming = jnp.arange(float(out.size)).reshape(out.shape)
        return out, incoming, vjp(incoming)[0], select.top_k({"w": scores}, **how)["w"]

    out, incoming, gradient, hard = map(np.asarray, pull(scores))
    np.testing.assert_array_equal(out, hard.astype("float32"))
    if isinstance(structure, Block):
        tiles = incoming.reshape(2, 2, 3, 2).sum(axis=(1, 3)) / 4
        incoming = np.kron(tiles, np.ones((2, 2)))
    elif isinstance(structure, Units):
        incoming = np.broadcast_to(incoming / 4, (4, 6))
    np.testing.assert_allclose(gradient, incoming, rtol=1e-6)


def test_removed_entries_receive_the_gradient_that_brings_them_back():
    w = np.float32([5.0, 7.0, -2.0])

    def loss(scores):
        mask = estimator.top_k({"w": scores}, density=0.34)
        return masking.apply({"w": w}, mask)["w"].sum()

    scores = np.float32([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(scores), w)


@over_dtypes
def test_threshold_is_a_step_forward_and_the_identity_backward(dtype):
    kind = jnp.dtype(dtype)
    scores = {"w": np.array([-1.0, 0.0, 0.5, 2.0], kind), "b": None}
    incoming = {"w": np.array([1, 2, 3, 4], kind), "b": None}

    @jax.jit
    def pull(scores, at):
        out, vjp = jax.vjp(lambda s: estimator.threshold(s, at=at), scores)
        return out, vjp(incoming)[0]

    for at, kept in [(0.0, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1])]:
        at = np.float32(at)
        for each in (at, {"w": at, "b": None}):  # for all, or for each leaf
            out, gradients = pull(scores, each)
            assert out["w"].dtype == dtype
            np.testing.assert_array_equal(trees.to_numpy(out["w"]), kept)
            trees.assert_same(gradients, incoming)
    default = estimator.threshold(scores)["w"]
    np.testing.assert_array_equal(trees.to_numpy(default), [0, 1, 1, 1])
    tree = {"v": scores["w"], "w": scores["w"]}
    out = jax.jit(lambda s: estimator.threshold(s, at={"v": 1.0, "w": 0.25}))(tree)
    np.testing.assert_array_equal(trees.to_numpy(out["v"]), [0, 0, 0, 1])
    np.testing.assert_array_equal(trees.to_numpy(out["w"]), [0, 0, 1, 1])


def test_bernoulli_samples_the_sigmoid_and_differentiates_it():
    levels = np.float32([-2.0, 0.0, 1.0])
    logits = np.repeat(levels, 4000).reshape(3, -1)

    def total(s):
        out = estimator.bernoulli({"w": s}, key=KEY)["w"]
        return out.sum(), out

    @jax.jit
    def pull(s):
        first, out = jax.grad(total, has_aux=True)(s)
        second = jax.grad(lambda s: jax.grad(total, has_aux=True)(s)[0].sum())(s)
        return out, first, second

    out, first, second = map(np.asarray, pull(logits))
    assert set(np.unique(out)) == {0.0, 1.0}
    p = 1 / (1 + np.exp(-levels))
    np.testing.assert_allclose(out.mean(axis=1), p, atol=5 * 0.5 / np.sqrt(4000))
    np.testing.assert_allclose(first[:, 0], p * (1 - p), rtol=1e-5)
    slope = p * (1 - p) * (1 - 2 * p)
    np.testing.assert_allclose(second[:, 0], slope, rtol=1e-4, atol=1e-7)


@over_dtypes
def test_bernoulli_keeps_dtypes_and_nones(dtype):
    logits = {"w": np.array([-99.0, 99.0], jnp.dtype(dtype)), "b": None}
    out = jax.jit(lambda s: estimator.bernoulli(s, key=KEY))(logits)
    assert out["b"] is None
    assert out["w"].dtype == dtype
    np.testing.assert_array_equal(trees.to_numpy(out["w"]), [0, 1])


def test_samples_may_differ_between_devices_and_scores_not():
    mesh = AbstractMesh((4,), ("x",))
    keys = jax.ShapeDtypeStruct((4,), KEY.dtype)

    def slope(scores, keys):
        def total(scores, own):
            scores = jax.lax.pcast(scores, "x", to="varying") if own else scores
            return jnp.sum(estimator.bernoulli(scores, key=keys[0]))

        # Scores of each device's own, or of all: then JAX adds up the gradients.
        each = [jax.grad(total)(scores, own) for own in (True, False)]
        return each, jax.grad(lambda s: total(s, own=False))(scores)

    mapped = jax.shard_map(
        slope,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("x")),
        out_specs=PartitionSpec(),
    )
    found = jax.eval_shape(mapped, jnp.zeros((2, 3)), keys)
    assert [x.shape for x in jax.tree.leaves(found)] == [(2, 3)] * 3


def test_vmap_over_scores_and_densities():
    scores, densities = normal(3, 8), np.float32([0.25, 0.5, 0.75])

    @jax.jit
    @jax.value_and_grad
    def total(s, d):
        ramp = jnp.arange(8, dtype=jnp.float32)
        return (estimator.top_k({"w": s}, density=d)["w"] * ramp).sum()

    values, gradients = map(np.asarray, jax.vmap(total)(scores, densities))
    for i in range(3):
        np.testing.assert_allclose(values[i], total(scores[i], densities[i])[0])
        np.testing.assert_array_equal(gradients[i], np.arange(8.0))


def test_bad_arguments_name_the_function_that_was_called():
    scores = {"a": normal(2, 3), "b": normal(3, 2)}
    fn = "`maskjax.estimator.top_k` needs "
    with pytest.raises(ValueError, match=rf"{fn}`density` in \[0, 1\], got 2"):
        estimator.top_k(scores, density=2)
    with pytest.raises(ValueError, match=f"{fn}`scope` as 'leaf' or 'global'"):
        estimator.top_k(scores, density=0.5, scope="layers")
    with pytest.raises(ValueError, match=f"{fn}.*got:\n  a: .*\n  b: "):
        estimator.top_k(scores, density=0.5, structure=Block((5, 5), (-2, -1)))
    with pytest.raises(ValueError, match=f"{fn}.* same structure.*\n  only .*: b"):
        estimator.top_k(scores, density=0.5, guess={"a": 0.0})
    fn = "`maskjax.estimator.threshold` needs "
    with pytest.raises(ValueError, match=f"{fn}.* same structure.*\n  only .*: b"):
        estimator.threshold(scores, at={"a": 0.0})
