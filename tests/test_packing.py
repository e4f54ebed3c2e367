"""One bit an entry; that `unpack` undoes `pack` is in `test_laws.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import packing
from tests import trees
from tests.reference import mixing
from tests.reference import packing as reference

pytestmark = pytest.mark.optimized

SHAPES = [(), (0,), (1,), (31,), (32,), (33,), (3, 5, 7), (2, 0), (64, 3)]
MEMBERS = [1, 15, 16, 17, 40]


def random_bits(shape, *, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_lie_as_the_layout_says(shape, every_transform):
    mask = random_bits(shape)
    packed = every_transform(packing.pack)({"w": jnp.asarray(mask), "b": None})
    assert packed["b"] is None
    assert packed["w"].bits.dtype == jnp.uint32
    np.testing.assert_array_equal(packed["w"].bits, reference.pack(mask))


def test_a_packed_mask_knows_its_shape_size_and_bytes():
    packed = packing.pack({"w": jnp.ones((3, 5, 7), bool)})["w"]
    assert packed.shape == (3, 5, 7)
    assert packed.dtype == bool
    assert packed.size == 105
    assert packed.nbytes == 16  # 4 words
    assert jax.tree.leaves(packed) == [packed.bits]


def test_packing_twice_is_packing_once():
    packed = packing.pack({"w": jnp.ones((3, 5), bool)})
    trees.assert_same(packing.pack(packed), packed)
    unpacked = packing.unpack(packed)
    trees.assert_same(packing.unpack(unpacked), unpacked)


def test_numpy_masks_can_be_packed():
    mask = random_bits((3, 5))
    np.testing.assert_array_equal(
        packing.pack({"w": mask})["w"].bits, reference.pack(mask)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_stack_unpacks_to_the_stack(shape, transform):
    stack = {"w": jnp.asarray(random_bits((3, *shape)))}
    packed = jax.vmap(packing.pack)(stack)
    assert packed["w"].shape == shape
    trees.assert_same(transform(packing.unpack)(packed), stack)


@pytest.mark.parametrize("k", MEMBERS)
def test_mix_is_the_weighted_sum(k, transform):
    shapes = {"a": (3, 37), "b": (1, 4), "c": (), "d": (0, 2)}
    stack = {n: jnp.asarray(random_bits((k, *s))) for n, s in shapes.items()}
    weights = jnp.asarray(np.random.default_rng(k).normal(size=k), "float32")
    out = transform(packing.mix)(jax.vmap(packing.pack)(stack), weights)
    for name, shape in shapes.items():
        assert out[name].shape == shape
        expected = mixing.mix(np.asarray(stack[name]), np.asarray(weights))
        np.testing.assert_allclose(out[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", MEMBERS)
def test_dot_is_the_inner_product_with_each_mask(k, transform):
    rng = np.random.default_rng(k)
    shapes = {"a": (3, 37), "b": (1, 4), "c": (5, 1), "d": (1, 1), "e": (0, 2)}
    values = {"a": (3, 37), "b": (6, 4), "c": (5, 9), "d": (3, 3), "e": (0, 2)}
    stack = {n: jnp.asarray(random_bits((k, *s))) for n, s in shapes.items()}
    tree = {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in values.items()}
    packed = jax.vmap(packing.pack)(stack)
    expected = sum(
        mixing.dot(np.asarray(stack[n]), np.asarray(tree[n]).astype(np.float64))
        for n in shapes
    )
    packed["bias"], tree["bias"] = None, jnp.ones(3)
    out = transform(packing.dot)(packed, tree)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_dot_of_bfloat16_sums_in_float32():
    packed = jax.vmap(packing.pack)({"w": jnp.ones((2, 1000), bool)})
    out = packing.dot(packed, {"w": jnp.ones(1000, jnp.bfloat16)})
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, [1000, 1000])


def test_dot_is_float64_if_a_leaf_is(x64):
    stack = {"a": jnp.ones((2, 3), bool), "b": jnp.ones((2, 3), bool)}
    packed = jax.vmap(packing.pack)(stack)
    third = {"a": jnp.full(3, 1 / 3, "float64"), "b": jnp.zeros(3, "float32")}
    out = packing.dot(packed, third)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, [1, 1], rtol=1e-15)


def test_mix_and_dot_are_adjoint():
    rng = np.random.default_rng(0)
    packed = jax.vmap(packing.pack)({"w": jnp.asarray(random_bits((17, 45)))})
    weights = jnp.asarray(rng.normal(size=17), "float32")
    tree = {"w": jnp.asarray(rng.normal(size=45), "float32")}
    left = jnp.vdot(packing.mix(packed, weights)["w"], tree["w"])
    right = jnp.vdot(weights, packing.dot(packed, tree))
    np.testing.assert_allclose(left, right, rtol=1e-4)


def test_dot_is_differentiable_and_its_gradient_is_a_mix():
    packed = jax.vmap(packing.pack)({"w": jnp.asarray(random_bits((17, 45)))})
    weights = jnp.asarray(np.random.default_rng(0).normal(size=17), "float32")

    def weighted(tree):
        return jnp.vdot(weights, packing.dot(packed, tree))

    gradient = jax.grad(weighted)({"w": jnp.ones(45)})
    np.testing.assert_allclose(
        gradient["w"], packing.mix(packed, weights)["w"], rtol=1e-5, atol=1e-5
    )


def test_mix_is_differentiable_in_the_weights():
    packed = jax.vmap(packing.pack)({"w": jnp.asarray(random_bits((17, 45)))})
    tree = {"w": jnp.asarray(np.random.default_rng(0).normal(size=45), "float32")}

    def weighted(weights):
        return jnp.vdot(packing.mix(packed, weights)["w"], tree["w"])

    gradient = jax.grad(weighted)(jnp.ones(17))
    np.testing.assert_allclose(
        gradient, packing.dot(packed, tree), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_many_small_weights_are_summed_in_float32(dtype):
    packed = jax.vmap(packing.pack)({"w": jnp.ones((1000, 2, 2), bool)})
    mixed = packing.mix(packed, jnp.full(1000, 2**-10, dtype))["w"]
    assert mixed.dtype == dtype
    np.testing.assert_allclose(trees.to_numpy(mixed), 1000 / 1024, rtol=2**-8)
