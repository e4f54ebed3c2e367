"""Masks onto parameters; what holds of every tree is in `test_laws.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import masking, packing, where
from tests import trees

over_trees = pytest.mark.parametrize("name", trees.NAMES)
over_dtypes = pytest.mark.parametrize("dtype", trees.DTYPES)

MASK = jnp.array([[True, False, True], [False, False, True]])


def test_apply_is_at_the_top_of_the_package():
    assert maskjax.apply is masking.apply


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_entries_along_an_axis_of_one_share_a_decision(shape, packed, transform):
    params = {"w": jnp.arange(1.0, 7.0).reshape(2, 3)}
    mask = {"w": MASK[: shape[0], : shape[1]]}
    expected = np.where(np.broadcast_to(mask["w"], (2, 3)), params["w"], 0)
    if packed:
        mask = packing.pack(mask)
    out = transform(masking.apply)(params, mask)
    np.testing.assert_array_equal(out["w"], expected)


@over_dtypes
def test_fill_supplies_the_removed_entries(dtype, every_transform):
    params = {"w": jnp.full((2, 3), jnp.nan, dtype), "b": jnp.ones(3, dtype)}
    fill = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}
    out = every_transform(masking.apply)(params, {"w": MASK, "b": None}, fill)
    assert out["w"].dtype == dtype
    np.testing.assert_array_equal(
        trees.to_numpy(out["w"]), np.where(MASK, np.nan, fill["w"])
    )
    np.testing.assert_array_equal(trees.to_numpy(out["b"]), np.ones(3))


def test_a_leaf_of_fill_may_be_none_or_shared():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
    fill = {"a": None, "b": jnp.array([[2.0, 3.0, 4.0]])}
    out = masking.apply(params, {"a": MASK, "b": MASK}, fill)
    np.testing.assert_array_equal(out["a"], np.where(MASK, 1, 0))
    np.testing.assert_array_equal(out["b"], np.where(MASK, 1, [[2, 3, 4]]))


def test_gradients_flow_to_the_fill_where_entries_are_removed():
    params, fill = {"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3))}

    def total(params, fill):
        return masking.apply(params, {"w": MASK}, fill)["w"].sum()

    by_params, by_fill = jax.grad(total, argnums=(0, 1))(params, fill)
    np.testing.assert_array_equal(by_params["w"], MASK.astype("f4"))
    np.testing.assert_array_equal(by_fill["w"], (~MASK).astype("f4"))


@over_dtypes
@pytest.mark.parametrize("filled", [False, True])
def test_soft_masks_multiply_and_gradients_reach_them(filled, dtype, transform):
    rng = np.random.default_rng(0)
    w, f = (jnp.asarray(rng.normal(size=(2, 3)), dtype) for _ in range(2))
    soft = jnp.asarray(rng.random((2, 3)), "float32")
    fill = {"w": f} if filled else None

    def total(params, soft, fill):
        return masking.apply(params, {"w": soft}, fill)["w"].sum(dtype="float32")

    params = {"w": w}
    out = transform(masking.apply)(params, {"w": soft}, fill)["w"]
    w64, f64, m64 = (np.asarray(x).astype(np.float64) for x in (w, f, soft))
    f64 = f64 if filled else np.zeros((2, 3))
    tolerance = {"float32": 1e-6, "bfloat16": 2**-5}[dtype]
    assert out.dtype == dtype
    np.testing.assert_allclose(
        trees.to_numpy(out), m64 * w64 + (1 - m64) * f64, atol=tolerance
    )
    gradient = transform(jax.grad(total, argnums=1))(params, soft, fill)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, w64 - f64, atol=tolerance)


def test_integer_parameters_can_be_masked_and_keep_their_dtype():
    params = {"table": jnp.arange(6).reshape(2, 3)}
    out = masking.apply(params, {"table": MASK})["table"]
    assert out.dtype == params["table"].dtype
    np.testing.assert_array_equal(out, np.where(MASK, np.arange(6).reshape(2, 3), 0))


def test_numpy_leaves_are_arrays_too():
    params = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    out = masking.apply(params, {"w": np.asarray(MASK), "b": None})
    np.testing.assert_array_equal(out["w"], MASK)


def test_a_single_array_is_a_tree():
    out = masking.apply(jnp.ones((2, 3)), MASK)
    np.testing.assert_array_equal(out, MASK)


@over_trees
def test_everything_chooses_by_where(name):
    params = trees.make(name)
    mask = masking.everything(params, where=where.kernels)
    for value, kept in trees.pairs(params, mask):
        if value.ndim >= 2 and value.dtype == np.float32:
            assert kept.shape == value.shape
            assert kept.dtype == bool
            assert kept.all()
        else:
            assert kept is None


def test_parameters_without_a_mask_are_returned_as_they_are():
    params = trees.make("nested_dict")
    out = masking.apply(params, masking.everything(params))
    assert out["out"]["bias"] is params["out"]["bias"]
