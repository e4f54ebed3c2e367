"""Masks onto parameters; what holds of every tree is in `test_laws.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import (
    algebra,
    initializer,
    masking,
    optim,
    packing,
    report,
    score,
    select,
    where,
)
from maskjax.recipes import deconstructing, iterand, meta_ticket, pacnet
from tests import trees

pytestmark = pytest.mark.optimized

over_dtypes = pytest.mark.parametrize("dtype", trees.DTYPES)

KEPT = np.array([[True, False, True], [False, False, True]])
MASK = jax.device_put(KEPT)


def counting(*shape):
    """1, 2, 3, ... in float32."""
    size = int(np.prod(shape))
    return jax.device_put(np.arange(1, size + 1, dtype=np.float32).reshape(shape))


def ones(*shape, dtype="float32"):
    return jax.device_put(np.ones(shape, jnp.dtype(dtype)))


def test_apply_is_at_the_top_of_the_package():
    assert maskjax.apply is masking.apply


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_entries_along_an_axis_of_one_share_a_decision(shape, packed):
    params = {"w": counting(2, 3)}
    mask = {"w": KEPT[: shape[0], : shape[1]]}
    expected = np.where(np.broadcast_to(mask["w"], (2, 3)), params["w"], 0)
    out = masking.apply(params, packing.pack(mask) if packed else mask)
    np.testing.assert_array_equal(out["w"], expected)


@over_dtypes
def test_fill_supplies_the_removed_entries(dtype, every_transform):
    nans = jax.device_put(np.full((2, 3), np.nan, jnp.dtype(dtype)))
    params = {"w": nans, "b": ones(3, dtype=dtype)}
    fill = {"w": counting(2, 3), "b": ones(3)}
    out = every_transform(masking.apply)(params, {"w": MASK, "b": None}, fill)
    assert out["w"].dtype == dtype
    np.testing.assert_array_equal(
        trees.to_numpy(out["w"]), np.where(MASK, np.nan, fill["w"])
    )
    np.testing.assert_array_equal(trees.to_numpy(out["b"]), np.ones(3))


def test_a_leaf_of_fill_may_be_none_or_shared():
    params = {"a": ones(2, 3), "b": ones(2, 3)}
    fill = {"a": None, "b": np.array([[2, 3, 4]], np.float32)}
    out = masking.apply(params, {"a": MASK, "b": MASK}, fill)
    np.testing.assert_array_equal(out["a"], np.where(MASK, 1, 0))
    np.testing.assert_array_equal(out["b"], np.where(MASK, 1, [[2, 3, 4]]))


def test_gradients_flow_to_the_fill_where_entries_are_removed():
    params, fill = {"w": ones(2, 3)}, {"w": ones(2, 3)}

    def total(params, fill):
        return masking.apply(params, {"w": MASK}, fill)["w"].sum()

    by_params, by_fill = jax.jit(jax.grad(total, argnums=(0, 1)))(params, fill)
    np.testing.assert_array_equal(by_params["w"], KEPT)
    np.testing.assert_array_equal(by_fill["w"], ~KEPT)


@over_dtypes
@pytest.mark.parametrize("filled", [False, True])
def test_soft_masks_multiply_and_gradients_reach_them(filled, dtype):
    rng = np.random.default_rng(0)
    kind = jnp.dtype(dtype)
    w, f = (jax.device_put(rng.normal(size=(2, 3)).astype(kind)) for _ in range(2))
    soft = jax.device_put(rng.random((2, 3)).astype(np.float32))
    fill = {"w": f} if filled else None

    def total(params, soft, fill):
        return masking.apply(params, {"w": soft}, fill)["w"].sum(dtype="float32")

    params = {"w": w}
    out = masking.apply(params, {"w": soft}, fill)["w"]
    w64, f64, m64 = (np.asarray(x).astype(np.float64) for x in (w, f, soft))
    f64 = f64 if filled else np.zeros((2, 3))
    tolerance = {"float32": 1e-6, "bfloat16": 2**-5}[dtype]
    assert out.dtype == dtype
    np.testing.assert_allclose(
        trees.to_numpy(out), m64 * w64 + (1 - m64) * f64, atol=tolerance
    )
    gradient = jax.jit(jax.grad(total, argnums=1))(params, soft, fill)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, w64 - f64, atol=tolerance)


def test_soft_masks_multiply_whatever_they_and_the_parameters_hold():
    params = {"w": np.array([np.inf, 2, 3, 4], "float32")}
    soft = {"w": np.array([0, -1, 2.5, 1], "float32")}
    np.testing.assert_array_equal(
        masking.apply(params, soft)["w"], [np.nan, -2, 7.5, 4]
    )
    hard = {"w": soft["w"] > 0}
    np.testing.assert_array_equal(masking.apply(params, hard)["w"], [0, 0, 3, 4])


def test_integer_parameters_can_be_masked_and_keep_their_dtype():
    params = {"table": jax.device_put(np.arange(6, dtype=np.int32).reshape(2, 3))}
    out = masking.apply(params, {"table": MASK})["table"]
    assert out.dtype == params["table"].dtype
    np.testing.assert_array_equal(out, np.where(MASK, np.arange(6).reshape(2, 3), 0))


def test_numpy_leaves_are_arrays_too():
    params = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    out = masking.apply(params, {"w": np.asarray(MASK), "b": None})
    np.testing.assert_array_equal(out["w"], MASK)


NETWORK = {"encoder": {"w": counting(2, 3), "b": counting(3)}, "head": counting(2, 3)}


def test_plain_booleans_and_prefixes_are_masks(every_transform):
    plain = {"encoder": False, "head": True}
    out = every_transform(lambda p: masking.apply(p, plain))(NETWORK)
    expected = {"encoder": jax.tree.map(np.zeros_like, NETWORK["encoder"])}
    same(out, {**expected, "head": NETWORK["head"]})
    mixed = {"encoder": {"w": MASK, "b": None}, "head": np.False_}
    kept = {"w": np.where(KEPT, NETWORK["encoder"]["w"], 0)}
    expected = {"encoder": {**kept, "b": NETWORK["encoder"]["b"]}, "head": np.zeros(())}
    same(masking.apply(NETWORK, mixed), expected)
    fill = jax.tree.map(np.ones_like, NETWORK)
    same(masking.apply(NETWORK, False, fill), fill)  # noqa: FBT003
    same(masking.rescale(NETWORK, {"encoder": None, "head": True}), NETWORK)
    for mask in (None, True, {"encoder": None, "head": None}):
        same(masking.apply(NETWORK, mask), NETWORK)


def test_plain_booleans_are_counted_by_the_parameters_they_decide_on():
    plain = {"encoder": {"w": KEPT, "b": True}, "head": False}
    assert algebra.count(plain, NETWORK) == 3 + 3
    assert algebra.density(plain, NETWORK) == np.float32(6 / 15)
    assert algebra.count({"encoder": None, "head": True}, NETWORK) == 6


_KEY = jax.random.key(0)
TAKERS = {  # every function that takes a mask with its parameters
    "algebra.density": lambda m: algebra.density(m, NETWORK),
    "deconstructing.restart": lambda m: deconstructing.restart(
        NETWORK, NETWORK, m, kept="constant", key=_KEY
    ),
    "deconstructing.scores": lambda m: deconstructing.scores(
        NETWORK, NETWORK, m, key=_KEY
    ),
    "initializer.scores_of": lambda m: initializer.scores_of(
        NETWORK, m, where=where.matching("b$", axes="inputs") | where.kernels
    ),
    "iterand.redraw": lambda m: iterand.redraw(
        initializer.uniform(), NETWORK, m, key=_KEY
    ),
    "meta_ticket.adapt": lambda m: meta_ticket.adapt(
        lambda params: jnp.sum(params["head"]),
        NETWORK,
        m,
        inner_learning_rates=0.5,
        steps=1,
    ),
    "optim.mask_updates": lambda m: optim.mask_updates(m).init(NETWORK),
    "pacnet.l2_sp": lambda m: pacnet.l2_sp(
        NETWORK, jax.tree.map(np.zeros_like, NETWORK), m
    ),
    "report.table": lambda m: [report.table(m, NETWORK).encode()],
    "select.drop": lambda m: select.drop(
        score.magnitude(NETWORK, where=where.floating), m, rate=0.5
    ),
}


@pytest.mark.parametrize("taker", TAKERS.values(), ids=TAKERS)
def test_plain_booleans_are_masks_wherever_a_mask_meets_parameters(taker):
    plain = {"encoder": {"w": True, "b": True}, "head": False}
    whole = jax.tree.map(lambda k, p: np.full((1,) * p.ndim, k), plain, NETWORK)
    out, expected = taker(plain), taker(whole)
    if taker is TAKERS["report.table"]:
        assert out == expected
    else:
        same(out, expected)


def same(out, expected):
    jax.tree.map(np.testing.assert_array_equal, out, broadcast(expected, out))


def broadcast(tree, like):
    return jax.tree.map(lambda x, y: np.broadcast_to(x, y.shape), tree, like)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"]
)
def test_what_is_not_zero_is_the_mask_of_a_sparse_network(dtype):
    w = np.array([[0, -0.0, 1, -2, np.nan, 0]]).astype(jnp.dtype(dtype))
    w.view(f"uint{8 * w.itemsize}")[0, -1] = 1  # the smallest subnormal number
    mask = masking.nonzero({"w": w, "b": w[0]})
    np.testing.assert_array_equal(mask["w"], [[False, False, *[True] * 4]])
    assert mask["b"] is None


def test_a_single_array_is_a_tree():
    out = masking.apply(ones(2, 3), MASK)
    np.testing.assert_array_equal(out, MASK)


@pytest.mark.parametrize("name", trees.NAMES)
def test_everything_chooses_by_where(name):
    params = trees.make(name)
    mask = masking.everything(params, where=where.kernels)
    for value, kept in trees.pairs(params, mask):
        if value.ndim >= 2 and value.dtype == np.float32:
            assert kept.shape == value.shape
            assert kept.dtype == bool
            assert np.asarray(kept).all()
        else:
            assert kept is None


def test_parameters_without_a_mask_are_returned_as_they_are():
    params = trees.make("nested_dict")
    out = masking.apply(params, masking.everything(params))
    assert out["out"]["bias"] is params["out"]["bias"]


# Weights that grow by what a mask leaves out.

KINDS = {
    "boolean": lambda mask: mask,
    "packed": packing.pack,
    "soft": lambda mask: jax.tree.map(
        lambda m: jax.device_put(np.asarray(m, np.float32)), mask
    ),
}
over_kinds = pytest.mark.parametrize("kind", KINDS)


def sum_of(tree):
    return sum(jnp.sum(x.astype("float32")) for x in jax.tree.leaves(tree))


def by_count(w, m):
    """A leaf times n / kept, in NumPy."""
    w, m = (np.asarray(x).astype(np.float64) for x in (w, m))
    return m * w * (m.size / max(m.sum(), 1))


@pytest.mark.parametrize(
    ("name", "dtype"), [("nested_dict", "float32"), ("odd_leaves", "bfloat16")]
)
def test_rescaled_by_a_full_mask_nothing_changes(name, dtype):
    params = trees.make(name, dtype)
    mask = masking.everything(params)
    full = [kind(mask) for kind in KINDS.values()]
    for out in jax.jit(lambda p, masks: [masking.rescale(p, m) for m in masks])(
        params, full
    ):
        trees.assert_same(out, params)


@pytest.mark.parametrize(
    ("kind", "dtype", "transform"),
    [(kind, "float32", "eager") for kind in KINDS]
    + [("soft", "bfloat16", "jit"), ("packed", "float32", "vmap")],
)
def test_each_leaf_is_rescaled_by_its_size_over_what_is_kept(
    kind, dtype, transform, transforms
):
    rng = np.random.default_rng(0)
    params = {
        "w": jax.device_put(rng.normal(size=(2, 3)).astype(jnp.dtype(dtype))),
        "v": jax.device_put(rng.normal(size=(5, 4)).astype(jnp.dtype(dtype))),
        "b": ones(3, dtype=dtype),
    }
    shared = np.array([[True, False, False, True]])
    mask = {"w": MASK, "v": jax.device_put(shared), "b": None}
    out = transforms[transform](masking.rescale)(params, KINDS[kind](mask))
    rtol = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    for leaf in ("w", "v"):
        assert out[leaf].dtype == dtype
        expected = by_count(params[leaf], mask[leaf])
        np.testing.assert_allclose(trees.to_numpy(out[leaf]), expected, rtol=rtol)
    trees.assert_same(out["b"], params["b"])


@over_kinds
@pytest.mark.parametrize("shape", [(7,), (9, 8, 2)])
def test_the_factor_times_what_is_kept_is_the_size(kind, shape):
    kept = np.random.default_rng(1).random(shape) < 0.3
    kept[0] = True
    out = masking.rescale({"w": ones(*shape)}, KINDS[kind]({"w": jax.device_put(kept)}))
    np.testing.assert_allclose(np.asarray(out["w"]).sum(), kept.size, rtol=1e-6)


@over_kinds
def test_where_nothing_is_kept_there_are_zeros_and_gradients_of_numbers(kind):
    params = {"w": counting(2, 3), "none": counting(0, 3)}
    mask = jax.tree.map(lambda w: jax.device_put(np.zeros(w.shape, bool)), params)
    mask = KINDS[kind](mask)
    out = masking.rescale(params, mask)
    np.testing.assert_array_equal(out["w"], np.zeros((2, 3)))
    assert out["none"].shape == (0, 3)

    def total(params, mask):
        return sum_of(masking.rescale(params, mask))

    by_params = jax.jit(jax.grad(total))(params, mask)["w"]
    np.testing.assert_array_equal(by_params, np.zeros((2, 3)))
    if kind == "soft":
        # The count is clamped, so it is a constant here: the factor is 6.
        by_mask = jax.jit(jax.grad(total, argnums=1))(params, mask)["w"]
        np.testing.assert_array_equal(by_mask, 6 * np.asarray(params["w"]))


def test_removed_entries_are_zero_and_have_no_gradient_when_rescaled():
    bad = np.array([[1, np.inf, 2], [np.nan, -np.inf, 3]], np.float32)

    @jax.jit
    def pulled(w, g):
        out, pull = jax.vjp(lambda w: masking.rescale({"w": w}, {"w": MASK})["w"], w)
        return out, pull(g)[0]

    out, gradient = pulled(bad, np.full((2, 3), np.inf, np.float32))
    np.testing.assert_array_equal(out, [[2, 0, 4], [0, 0, 6]])
    np.testing.assert_array_equal(gradient, np.where(MASK, np.inf, 0))


@pytest.mark.parametrize("through_count", [True, False])
@pytest.mark.parametrize(
    "kept", [[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [0.4] * 4]
)
def test_gradients_reach_soft_masks_through_the_count_or_not(kept, through_count):
    # f = n / S and out = f * w * m, so for cotangents g
    #   dL/dm_j = f * g_j * w_j - [through the count] (f / S) * sum(g * w * m).
    w, g = np.array([1.0, -2.0, 3.0, 5.0]), np.array([2.0, 1.0, -1.0, 0.5])
    m, s = np.array(kept), np.sum(kept)
    expected = 4 / s * (g * w - through_count * np.sum(g * w * m) / s)

    def loss(m):
        out = masking.rescale(jnp.float32(w), m, through_count=through_count)
        return jnp.sum(out * jnp.float32(g))

    gradient = jax.jit(jax.grad(loss))(np.float32(m))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_what_cannot_be_rescaled_is_refused():
    fn = "`maskjax.masking.rescale`"
    params = {"a": ones(2, 3), "n": ones(2, 3, dtype="int32")}
    with pytest.raises(TypeError, match=rf"{fn} needs .* floating, got:\n  n: int32"):
        masking.rescale(params, {"a": MASK, "n": MASK})
    masking.rescale(params, {"a": MASK, "n": None})
    with pytest.raises(
        TypeError, match=f"{fn} needs every leaf of `mask` to be a boolean or"
    ):
        masking.rescale(params, {"a": ones(2, 3, dtype="int32"), "n": None})
    with pytest.raises(
        ValueError, match=rf"{fn} .*\n  a: mask \(3, 2\), params \(2, 3"
    ):
        masking.rescale(params, {"a": KEPT.T, "n": None})
    with pytest.raises(ValueError, match=rf"{fn} .*\n  only in `params`: n"):
        masking.rescale(params, {"a": MASK})
    stack = jax.vmap(packing.pack)({"a": KEPT[None], "n": None})
    with pytest.raises(ValueError, match=rf"{fn} .*\n  a: a stack of masks"):
        masking.rescale(params, stack)
