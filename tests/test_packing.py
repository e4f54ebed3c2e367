"""One bit an entry; that `unpack` undoes `pack` is in `test_laws.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import algebra, bank, masking, packing, report, stacking
from tests import trees
from tests.reference import mixing
from tests.reference import packing as reference

pytestmark = pytest.mark.optimized

SHAPES = [(), (0,), (1,), (31,), (32,), (33,), (3, 5, 7), (2, 0), (64, 3)]
SHAPES += [(3, 63), (64, 64), (2, 95, 3), (32, 33)]  # the axis that is packed differs
MEMBERS = [1, 15, 16, 17, 40]

pack_stack = jax.jit(jax.vmap(packing.pack))


def random_bits(shape, *, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_lie_as_the_layout_says(shape):
    masks = random_bits((3, *shape))
    one = packing.pack({"w": jax.device_put(masks[0]), "b": None})
    assert one["b"] is None
    assert one["w"].bits.dtype == jnp.uint32
    np.testing.assert_array_equal(one["w"].bits, reference.pack(masks[0]))
    stack = pack_stack({"w": jax.device_put(masks)})
    assert stack["w"].shape == shape
    np.testing.assert_array_equal(
        stack["w"].bits, np.stack([reference.pack(mask) for mask in masks])
    )
    np.testing.assert_array_equal(packing.unpack(stack)["w"], masks)


def test_a_packed_mask_knows_its_shape_size_and_bytes():
    packed = packing.pack({"w": random_bits((3, 5, 7))})["w"]  # NumPy's are masks too
    assert packed.shape == (3, 5, 7)
    assert packed.dtype == bool
    assert packed.size == 105
    assert packed.nbytes == 16  # 4 words
    assert jax.tree.leaves(packed) == [packed.bits]


def test_packing_twice_is_packing_once():
    packed = packing.pack({"w": random_bits((3, 5, 7))})
    trees.assert_same(packing.pack(packed), packed)
    unpacked = packing.unpack(packed)
    trees.assert_same(packing.unpack(unpacked), unpacked)


@pytest.mark.parametrize("k", MEMBERS)
def test_dot_is_the_inner_product_with_each_mask(k):
    rng = np.random.default_rng(k)
    shapes = {"a": (3, 37), "b": (1, 4), "c": (5, 1), "d": (1, 1), "e": (0, 2)}
    values = {"a": (3, 37), "b": (6, 4), "c": (5, 9), "d": (3, 3), "e": (0, 2)}
    stack = {n: random_bits((k, *s)) for n, s in shapes.items()}
    tree = {n: rng.normal(size=s).astype(np.float32) for n, s in values.items()}
    expected = sum(mixing.dot(stack[n], tree[n].astype(np.float64)) for n in shapes)
    packed = {**pack_stack(stack), "bias": None}
    out = jax.jit(packing.dot)(packed, {**tree, "bias": np.ones(3)})
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (5, 40), (64, 3), (2, 32)])
def test_bits_past_the_end_count_for_nothing(shape):
    kept = np.random.default_rng(0).random((2, *shape)) < 0.3
    packed = jax.vmap(packing.pack)({"w": kept})
    flipped = jax.tree.map(np.invert, jax.device_get(packed))
    other = jax.tree.map(lambda words: words[0], flipped)
    np.testing.assert_array_equal(packing.unpack(flipped)["w"], ~kept)
    assert algebra.count(other) == (~kept[0]).sum()
    assert algebra.density(flipped) == np.float32((~kept).sum() / kept.size)
    assert algebra.overlap(other, packing.pack({"w": ~kept[0]})) == 1
    ones = {"w": np.ones(shape, "float32")}
    sums = (~kept).reshape(2, -1).sum(1)
    np.testing.assert_array_equal(packing.dot(flipped, ones), sums)
    np.testing.assert_array_equal(report.overlaps(flipped).diagonal(), [1, 1])
    tasks = bank.from_stack(flipped)
    np.testing.assert_array_equal(tasks.counts["w"], (~kept).sum(0))
    larger = np.max(masking.rescale(ones, other)["w"])
    np.testing.assert_allclose(larger, kept[0].size / sums[0], rtol=1e-6)


def test_dot_of_bfloat16_sums_in_float32():
    packed = pack_stack({"w": np.ones((2, 1000), bool)})
    out = packing.dot(packed, {"w": jax.device_put(np.ones(1000, jnp.bfloat16))})
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, [1000, 1000])


def test_dot_is_float64_if_a_leaf_is(x64):
    stack = {"a": np.ones((2, 3), bool), "b": np.ones((2, 3), bool)}
    third = {"a": np.full(3, 1 / 3), "b": np.zeros(3, np.float32)}
    out = packing.dot(pack_stack(stack), jax.tree.map(jnp.asarray, third))
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, [1, 1], rtol=1e-15)


def test_mix_and_dot_are_adjoint_and_each_other_s_gradient():
    packed = pack_stack({"w": random_bits((17, 45))})
    coefficients, w = normal(17), normal(45, seed=1)

    def of_tree(w):
        return jnp.vdot(coefficients, packing.dot(packed, {"w": w}))

    def of_coefficients(coefficients):
        return jnp.vdot(stacking.mix(packed, coefficients)["w"], w)

    left, by_tree = jax.jit(jax.value_and_grad(of_tree))(w)
    right, by_coefficients = jax.jit(jax.value_and_grad(of_coefficients))(coefficients)
    close = dict(rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(left, right, **close)
    mixed = stacking.mix(packed, jax.device_put(coefficients))["w"]
    np.testing.assert_allclose(by_tree, mixed, **close)
    np.testing.assert_allclose(by_coefficients, packing.dot(packed, {"w": w}), **close)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_many_small_coefficients_are_summed_in_float32(dtype):
    packed = pack_stack({"w": np.ones((1000, 2, 2), bool)})
    coefficients = jax.device_put(np.full(1000, 2**-10, jnp.dtype(dtype)))
    mixed = stacking.mix(packed, coefficients)["w"]
    assert mixed.dtype == dtype
    np.testing.assert_allclose(trees.to_numpy(mixed), 1000 / 1024, rtol=2**-8)
