"""Gradients through a hard choice."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import estimator, masking, select
from maskjax.structure import Block, Entries, NofM, Units
from tests import trees

over_dtypes = pytest.mark.parametrize("dtype", trees.DTYPES)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e38])
@over_dtypes
def test_the_value_is_exactly_hard_whatever_soft_holds(bad, dtype, every_transform):
    hard = {"w": jnp.array([True, False, True]), "b": None}
    soft = {"w": jnp.full(3, bad, dtype), "b": None}
    out = every_transform(estimator.straight_through)(hard, soft)
    assert out["b"] is None
    assert out["w"].dtype == dtype
    np.testing.assert_array_equal(trees.to_numpy(out["w"]), [1, 0, 1])


def test_derivatives_of_every_order_are_those_of_soft(transform):
    def smooth(x):
        return jnp.sin(x) * x**2

    def passed(x):
        return estimator.straight_through(jnp.round(x), smooth(x))

    a, b = smooth, passed
    x = jnp.float32(1.3)
    for _ in range(3):
        a, b = jax.grad(a), jax.grad(b)
        np.testing.assert_allclose(transform(b)(x), a(x), rtol=1e-5)
    tangent = jax.jvp(passed, (x,), (jnp.float32(2.0),))[1]
    np.testing.assert_allclose(tangent, 2 * jax.grad(smooth)(x), rtol=1e-6)


def test_a_hessian_through_the_estimator_is_that_of_the_smooth_function(transform):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=5), "float32")
    x = jnp.asarray(rng.normal(size=5), "float32")

    def loss(logits, mask_of):
        # At logits where hard and soft agree, so do all derivatives.
        return jnp.sum(jnp.tanh(mask_of(logits) * w * x)) ** 2

    def passed(logits):
        soft = jax.nn.sigmoid(logits)
        return estimator.straight_through(jax.lax.stop_gradient(soft), soft)

    at = jnp.asarray(rng.normal(size=5), "float32")
    for derivative in (jax.grad, jax.hessian):
        ours = transform(lambda a, d=derivative: d(lambda z: loss(z, passed))(a))(at)
        theirs = derivative(lambda z: loss(z, jax.nn.sigmoid))(at)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_hard():
    def f(x):
        return estimator.straight_through(x**2, jnp.ones_like(x))

    assert jax.grad(f)(jnp.float32(3.0)) == 0


@pytest.mark.parametrize("scope", ["leaf", "global"])
@over_dtypes
def test_top_k_is_the_mask_forward_and_the_identity_backward(dtype, scope, transform):
    scores = {"a": jnp.array([[3.0, -1.0], [0.5, 2.0]], dtype), "b": None}
    scores["c"] = jnp.array([[9.0, 8.0]], dtype)
    incoming = jax.tree.map(lambda s: jnp.arange(1, 1 + s.size, dtype=dtype), scores)
    incoming = jax.tree.map(lambda g, s: g.reshape(s.shape), incoming, scores)

    def soft_mask(scores):
        return estimator.top_k(scores, density=0.5, scope=scope)

    def pull(scores):
        out, vjp = jax.vjp(soft_mask, scores)
        return out, vjp(incoming)[0]

    out, gradients = transform(pull)(scores)
    hard = select.top_k(scores, density=0.5, scope=scope)
    trees.assert_same(out, jax.tree.map(lambda m: m.astype(dtype), hard))
    trees.assert_same(gradients, incoming)  # removed entries included


@pytest.mark.parametrize(
    "structure", [Entries(), NofM(1, 2), Block((2, 2)), Units()], ids=str
)
def test_the_gradient_goes_through_the_mean_of_what_is_decided_together(structure):
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), "float32")

    def pull(scores):
        out, vjp = jax.vjp(
            lambda s: estimator.top_k({"w": s}, density=0.5, structure=structure)["w"],
            scores,
        )
        incoming = jnp.arange(float(out.size)).reshape(out.shape)
        return out, incoming, vjp(incoming)[0]

    out, incoming, gradient = jax.jit(pull)(scores)
    hard = select.top_k({"w": scores}, density=0.5, structure=structure)["w"]
    np.testing.assert_array_equal(out, hard.astype("float32"))
    incoming = np.asarray(incoming)
    if isinstance(structure, Block):
        tiles = incoming.reshape(2, 2, 3, 2).sum(axis=(1, 3)) / 4
        incoming = np.kron(tiles, np.ones((2, 2)))
    elif isinstance(structure, Units):
        incoming = np.broadcast_to(incoming / 4, (4, 6))
    np.testing.assert_allclose(gradient, incoming, rtol=1e-6)


def test_removed_entries_receive_the_gradient_that_brings_them_back():
    w = jnp.array([5.0, 7.0, -2.0])

    def loss(scores):
        mask = estimator.top_k({"w": scores}, density=0.34)
        return masking.apply({"w": w}, mask)["w"].sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.array([3.0, 1.0, 2.0])), w)


@over_dtypes
def test_threshold_is_a_step_forward_and_the_identity_backward(dtype, transform):
    scores = {"w": jnp.array([-1.0, 0.0, 0.5, 2.0], dtype), "b": None}

    def total(scores, at):
        mask = estimator.threshold(scores, at=at)["w"]
        return (mask * jnp.array([1, 2, 3, 4], dtype)).sum()

    for at, kept in [(0.0, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1])]:
        out = transform(lambda s, a: estimator.threshold(s, at=a))(
            scores, jnp.float32(at)
        )
        np.testing.assert_array_equal(trees.to_numpy(out["w"]), kept)
        assert out["w"].dtype == dtype
    gradient = transform(jax.grad(total))(scores, jnp.float32(0.0))
    np.testing.assert_array_equal(trees.to_numpy(gradient["w"]), [1, 2, 3, 4])
    default = estimator.threshold(scores)["w"]
    np.testing.assert_array_equal(trees.to_numpy(default), [0, 1, 1, 1])


def test_bernoulli_samples_the_sigmoid_and_differentiates_it(transform):
    logits = {"w": jnp.repeat(jnp.array([-2.0, 0.0, 1.0]), 4000).reshape(3, -1)}
    out = transform(lambda s, k: estimator.bernoulli(s, key=k))(
        logits, jax.random.key(0)
    )["w"]
    assert set(np.unique(out)) == {0.0, 1.0}
    p = 1 / (1 + np.exp(-np.array([-2.0, 0.0, 1.0])))
    np.testing.assert_allclose(out.mean(axis=1), p, atol=5 * 0.5 / np.sqrt(4000))

    def total(s):
        return estimator.bernoulli({"w": s}, key=jax.random.key(0))["w"].sum()

    gradient = transform(jax.grad(total))(logits["w"])
    np.testing.assert_allclose(gradient[:, 0], p * (1 - p), rtol=1e-5)
    second = jax.grad(lambda s: jax.grad(total)(s).sum())(logits["w"])
    np.testing.assert_allclose(
        second[:, 0], p * (1 - p) * (1 - 2 * p), rtol=1e-4, atol=1e-7
    )


@over_dtypes
def test_bernoulli_keeps_dtypes_and_nones(dtype):
    logits = {"w": jnp.array([-99.0, 99.0], dtype), "b": None}
    out = estimator.bernoulli(logits, key=jax.random.key(0))
    assert out["b"] is None
    assert out["w"].dtype == dtype
    np.testing.assert_array_equal(trees.to_numpy(out["w"]), [0, 1])


def test_vmap_over_scores_and_densities():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), "float32")
    densities = jnp.array([0.25, 0.5, 0.75])

    def total(s, d):
        return (estimator.top_k({"w": s}, density=d)["w"] * jnp.arange(8.0)).sum()

    values, gradients = jax.vmap(jax.value_and_grad(total))(scores, densities)
    for i in range(3):
        np.testing.assert_allclose(values[i], total(scores[i], densities[i]))
        np.testing.assert_array_equal(gradients[i], np.arange(8.0))
