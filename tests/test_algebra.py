"""Masks as sets; De Morgan's laws are in `test_laws.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import algebra, masking, packing, stacking
from maskjax._core import dtypes

A = np.array([[True, True, False, False], [True, False, True, False]])
B = np.array([[True, False, True, False], [True, True, False, False]])
FORMS = ["boolean", "packed", "mixed"]


def masks(form, *arrays):
    """Each array as a mask with a leaf that is None."""
    trees = [{"w": jax.device_put(x), "b": None} for x in arrays]
    pack = {"boolean": 0, "packed": len(arrays), "mixed": 1}[form]
    return [packing.pack(t) if i < pack else t for i, t in enumerate(trees)]


OPERATIONS = {
    "union": (algebra.union, np.logical_or),
    "intersection": (algebra.intersection, np.logical_and),
    "difference": (algebra.difference, lambda a, b: a & ~b),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("operation", "expected"), OPERATIONS.values(), ids=OPERATIONS)
def test_set_operations(operation, expected, form):
    out = operation(*masks(form, A, B))
    assert out["b"] is None
    assert isinstance(out["w"], packing.PackedMask) == (form == "packed")
    np.testing.assert_array_equal(packing.unpack(out)["w"], expected(A, B))


def test_union_and_intersection_take_any_number_of_masks():
    c = ~A & ~B
    for n in (1, 2, 3):
        some = [A, B, c][:n]
        out = algebra.union(*masks("boolean", *some))["w"]
        np.testing.assert_array_equal(out, np.any(some, axis=0))
        out = algebra.intersection(*masks("boolean", *some))["w"]
        np.testing.assert_array_equal(out, np.all(some, axis=0))


@pytest.mark.parametrize("form", ["boolean", "packed"])
def test_complement_flips_entries_and_nothing_else(form):
    (mask,) = masks(form, A)
    out = algebra.complement(mask)
    assert out["b"] is None
    np.testing.assert_array_equal(packing.unpack(out)["w"], ~A)
    assert algebra.count(out) == 4  # the bits that pad a word stay 0


def test_bits_past_the_last_entry_of_a_complement_stay_0():
    """`storage` refuses others, and equal masks have equal bits."""
    [packed] = masks("packed", A)
    flipped = algebra.complement(packed)["w"].bits
    np.testing.assert_array_equal(flipped, packing.pack({"w": ~A})["w"].bits)


@pytest.mark.parametrize("form", ["boolean", "packed"])
def test_count_and_density(form, every_transform):
    (mask,) = masks(form, A)
    count, density = every_transform(lambda m: (algebra.count(m), algebra.density(m)))(
        mask
    )
    assert count.dtype == jnp.int32
    assert density.dtype == jnp.float32
    assert (count, density) == (4, 0.5)


@pytest.mark.parametrize("form", ["boolean", "packed"])
def test_count_with_parameters_counts_shared_decisions_for_all_they_decide(form):
    (mask,) = masks(form, np.array([[True, False, True, True]]))
    params = {"w": jnp.ones((5, 4)), "b": jnp.ones(4)}
    assert algebra.count(mask) == 3
    assert algebra.count(mask, params) == 15
    assert algebra.density(mask, params) == 0.75


def test_density_is_the_nearest_number_to_the_ratio():
    for size in (37, 41, 49):
        stack = {"w": np.tri(size + 1, size, -1, dtype=bool)}  # 0, 1, ..., all of them
        wanted = np.arange(size + 1, dtype="f4") / np.float32(size)
        for find in (algebra.density, jax.jit(algebra.density)):
            some = {"w": stack["w"][35]}
            assert find(some) == wanted[35]
        np.testing.assert_array_equal(jax.jit(jax.vmap(algebra.density))(stack), wanted)


def test_density_weighs_leaves_by_their_entries():
    mask = {"a": jnp.ones((2, 3), bool), "b": jnp.zeros((1, 2), bool)}
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((9, 2))}
    np.testing.assert_allclose(algebra.density(mask), 6 / 8)
    np.testing.assert_allclose(algebra.density(mask, params), 6 / 24)


@pytest.mark.parametrize("mask", [{"w": None}, {"w": jnp.ones((0, 3), bool)}])
def test_the_density_of_nothing_is_nan(mask):
    assert np.isnan(algebra.density(mask))
    assert algebra.count(mask) == 0


def test_densities_of_more_entries_than_31_bits_count(monkeypatch):
    rng = np.random.default_rng(0)
    first, other = ({"w": rng.random((5, 7, 33)) < p} for p in (0.3, 0.6))
    monkeypatch.setattr(dtypes, "_MOST", 40)
    both, either = first["w"] & other["w"], first["w"] | other["w"]
    for masks in ((first, other), (packing.pack(first), packing.pack(other))):
        assert algebra.density(masks[0]) == np.float32(first["w"].mean())
        assert algebra.overlap(*masks) == np.float32(both.sum() / either.sum())
        larger = masking.rescale({"w": np.ones((5, 7, 33), "f4")}, masks[0])["w"]
        assert np.max(larger) == np.float32(first["w"].size / first["w"].sum())
        assert packing.kept_by_leaf(masks[0])["w"] == first["w"].sum()


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.parametrize("pack", [False, True])
def test_no_sum_of_32_bits_is_of_more_entries_than_they_count(pack):
    params = {"w": jax.ShapeDtypeStruct((2**16, 2**15), "float32")}
    mask = {"w": jax.ShapeDtypeStruct((2**16, 2**15), "bool")}
    mask = jax.eval_shape(packing.pack, mask) if pack else mask
    for measure, *args in (
        (algebra.density, mask),
        (lambda p, m: masking.rescale(p, m), params, mask),
    ):
        program = jax.make_jaxpr(measure)(*args)
        sums = [
            e for e in _equations(program.jaxpr) if e.primitive.name == "reduce_sum"
        ]
        assert {str(e.outvars[0].aval.dtype) for e in sums} == {"int32", "int64"}
        for each in sums:
            if each.outvars[0].aval.dtype == "int32":
                entries = each.invars[0].aval.size // each.outvars[0].aval.size
                assert entries * 32 < 2**31  # they may be words


def test_count_is_of_64_bits_where_those_are_enabled(x64):
    assert algebra.count({"w": jax.device_put(A)}).dtype == jnp.int64


@pytest.mark.parametrize("form", FORMS)
def test_overlap_is_the_jaccard_index(form):
    overlap = jax.jit(algebra.overlap)
    for x, y, expected in [
        (A, B, 2 / 6),
        (A, A, 1.0),
        (A, ~A, 0.0),
        (A & False, B & False, 1.0),
        (A & False, B, 0.0),
    ]:
        value = overlap(*masks(form, x, y))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(overlap(*masks(form, y, x)), expected, rtol=1e-6)


@pytest.mark.parametrize("measure", [algebra.count, algebra.density])
def test_a_packed_stack_measures_like_the_stack(measure):
    stack = stacking.stack(masks("boolean", A, B, ~A, A | B))
    packed = jax.jit(jax.vmap(packing.pack))(stack)
    np.testing.assert_allclose(measure(packed), measure(stack))


def test_vmap_over_a_packed_stack_measures_each_member():
    stack = stacking.stack(masks("packed", A, A | B, A & B))
    np.testing.assert_array_equal(jax.jit(jax.vmap(algebra.count))(stack), [4, 6, 2])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(algebra.density))(stack), [0.5, 0.75, 0.25]
    )


# --- of random masks


def test_expected_counts_are_sums_of_probabilities():
    rng = np.random.default_rng(0)
    p = {"w": rng.random((5, 6)), "v": rng.random((1, 3)), "b": None}
    p = {n: None if x is None else x.astype("float32") for n, x in p.items()}
    p["h"] = jnp.asarray(rng.random(7), jnp.bfloat16)
    params = {"w": np.ones((5, 6)), "v": np.ones((4, 3)), "b": np.ones(2)}
    params["h"] = np.ones(7)
    w, v, h = (np.asarray(p[n]).astype(np.float64).sum() for n in ("w", "v", "h"))

    @jax.jit
    def both(p):
        each = algebra.expected_count, algebra.expected_density
        return [(f(p), f(p, params)) for f in each]

    (count, of_params), (density, share) = both(p)
    np.testing.assert_allclose(count, w + v + h, rtol=1e-6)
    np.testing.assert_allclose(of_params, w + 4 * v + h, rtol=1e-6)
    np.testing.assert_allclose(density, (w + v + h) / 40, rtol=1e-6)
    np.testing.assert_allclose(share, (w + 4 * v + h) / 49, rtol=1e-6)
    slopes = jax.jit(jax.grad(lambda p: algebra.expected_count(p, params)))(p)
    assert slopes["b"] is None
    for name, each in (("w", 1), ("v", 4), ("h", 1)):
        np.testing.assert_array_equal(np.float32(slopes[name]), each)


def test_expected_counts_of_exact_masks_are_their_counts():
    soft = {"w": A.astype("float32"), "v": B.astype("float32")}
    mask = {"w": A, "v": B}
    assert float(algebra.expected_count(soft)) == int(algebra.count(mask))
    assert float(algebra.expected_density(soft)) == float(algebra.density(mask))
    assert np.isnan(algebra.expected_density({"w": np.ones((0, 2), "f4")}))


@pytest.mark.parametrize("name", ["expected_count", "expected_density"])
def test_expected_counts_need_probabilities_that_fit(name):
    function, fn = getattr(algebra, name), f"`maskjax.algebra.{name}` needs"
    with pytest.raises(TypeError, match=rf"{fn} every .*probabilities.*\n  w: bool"):
        function({"w": A})
    with pytest.raises(ValueError, match=f"{fn} `probabilities` with at least one"):
        function({"w": None})
    logits = {"w": np.float32([2, 0.5]), "v": np.ones(3, "f4")}
    match = (
        rf"{fn} `probabilities` in \[0, 1\] .*sigmoid.*\n  w: from 0.5 to 2, with .*$"
    )
    with pytest.raises(ValueError, match=match):
        function(logits)
    function({"w": np.float32([1 + 1e-6, -1e-6])})  # rounding
    p = {"w": A.astype("float32")}
    with pytest.raises(ValueError, match=r"w: probabilities \(2, 4\), params \(2, 3\)"):
        function(p, {"w": np.ones((2, 3))})
