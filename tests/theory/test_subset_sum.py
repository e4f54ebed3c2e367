"""Subsets that sum to a target: against every subset, and by the laws they obey."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax.theory import _halves, subset_sum
from tests import trees
from tests.reference import theory as reference

pytestmark = pytest.mark.optimized

EXACT = {
    "nearest": subset_sum.nearest,
    "smallest": functools.partial(subset_sum.smallest, tolerance=0.03),
}
METHODS = EXACT | {"greedy": subset_sum.greedy}
# Few targets are walked to bin by bin, many in order.
over_shapes = pytest.mark.parametrize(("rows", "many"), [(6, 1), (2, 5)])


def drawn(rows, many, n, *, seed=0, scale=0.5):
    """Targets and coefficients that are multiples of 2**-16, so that sums are exact."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-1, 1, (rows, many))
    c = rng.uniform(-scale, scale, (rows, n))
    return tuple((np.round(x * 2**16) / 2**16).astype(np.float32) for x in (t, c))


def pairs(t, c):
    """Every target with its coefficients and its place."""
    for row, col in np.ndindex(t.shape):
        yield (row, col), float(t[row, col]), c[row].astype(np.float64)


# Many targets for few coefficients, one for each, and cuts of both kinds.
@pytest.mark.parametrize(
    ("rows", "many", "n"), [(3, 20, 9), (12, 1, 9), (1, 3, 12), (5, 2, 1), (2, 300, 7)]
)
def test_nearest_is_as_near_as_any_subset(rows, many, n):
    t, c = drawn(rows, many, n)
    found = subset_sum.nearest(t, c)
    assert found.mask.shape == (rows, many, n)
    assert found.mask.dtype == bool
    assert found.error.dtype == np.float64
    for at, target, coefficients in pairs(t, c):
        kept = np.flatnonzero(found.mask[at])
        error = abs(reference.total(coefficients, kept) - target)
        assert found.error[at] == error  # what is reported is what the subset does
        assert error == reference.least_error(target, coefficients)


@pytest.mark.parametrize(
    ("rows", "many", "n"), [(2, 20, 9), (8, 1, 9), (1, 3, 11), (5, 2, 1), (2, 100, 6)]
)
@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.2])
def test_smallest_has_the_fewest_and_of_these_the_nearest(rows, many, n, tolerance):
    t, c = drawn(rows, many, n, seed=1)
    found = subset_sum.smallest(t, c, tolerance=tolerance)
    for at, target, coefficients in pairs(t, c):
        least = reference.least_size(target, coefficients, tolerance)
        if least is None:
            assert found.error[at] == reference.least_error(target, coefficients)
            assert found.error[at] > tolerance
        else:
            assert (found.mask[at].sum(), found.error[at]) == least


@pytest.mark.parametrize(("pair", "few"), [(0, 8), (1000, 8), (1000, 0)])
def test_every_way_to_search_finds_the_same(pair, few, monkeypatch):
    # At a cost of nothing pairs are looked at one by one, at a high one never.
    t, c = drawn(4, 12, 10, seed=2)
    expected = subset_sum.nearest(t, c), subset_sum.smallest(t, c, tolerance=0.01)
    monkeypatch.setattr(_halves, "_PAIR", pair)
    monkeypatch.setattr(_halves, "_CALL", 1)
    monkeypatch.setattr(_halves, "_FEW", few)
    found = subset_sum.nearest(t, c), subset_sum.smallest(t, c, tolerance=0.01)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.error, b.error)
    np.testing.assert_array_equal(expected[1].mask.sum(-1), found[1].mask.sum(-1))


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("shape", [(7, 1), (2, 40), (1, 1)])
def test_pieces_change_nothing(method, shape):
    t, c = drawn(*shape, 10, seed=3)
    whole = EXACT[method](t, c)
    # Two targets at most are worked on at once.
    split = _halves.split_at(shape[1], 10, 2**30, fn="")
    memory = 2 * _halves.needed(10, split, 1)
    trees.assert_same(EXACT[method](t, c, memory=memory), whole)


def test_one_more_coefficient_never_hurts():
    t, c = drawn(1, 50, 14, seed=4)
    errors = [subset_sum.nearest(t, c[:, :n]).error for n in range(1, 15)]
    for fewer, more in zip(errors, errors[1:], strict=False):
        assert (more <= fewer).all()
    assert (errors[-1] < errors[0]).any()


def test_errors_shrink_exponentially():
    # Mean errors over seeds, of which the logarithm falls by a line.
    sizes = np.arange(4, 19, 2)
    rng = np.random.default_rng(5)
    t = rng.uniform(-1, 1, (300, 1))
    c = rng.uniform(-1, 1, (300, 18))
    means = [np.median(subset_sum.nearest(t, c[:, :n]).error) for n in sizes]
    slope = np.polyfit(sizes, np.log2(means), 1)[0]
    assert -1.2 < slope < -0.6  # bits by each coefficient


@pytest.mark.parametrize("method", METHODS)
def test_a_target_of_zero_has_the_empty_subset(method):
    c = drawn(1, 1, 8)[1]
    found = METHODS[method](np.zeros((1, 2), np.float32), c)
    assert not np.asarray(found.mask).any()
    assert not np.asarray(found.error).any()


@pytest.mark.parametrize("method", METHODS)
def test_targets_beyond_reach_are_reported_and_get_the_most_there_is(method):
    c = np.float32([[0.5, -0.25, 0.125], [0.5, 0.25, 0.125]])
    t = np.float32([[0.75, -0.5, 0.625, -0.25], [0.5, -0.125, 0.875, 1.0]])
    found = jax.tree.map(np.asarray, METHODS[method](t, c))
    np.testing.assert_array_equal(
        found.beyond, [[True, True, False, False], [False, True, False, True]]
    )
    np.testing.assert_array_equal(found.mask[0, :2], [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(found.mask[1, 1::2], [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(found.error[0, :2], [0.125, 0.25])
    np.testing.assert_array_equal(found.error[1, 1::2], [0.125, 0.125])


def assert_walked(found, t, c, bins):
    mask, error = np.asarray(found.mask), np.asarray(found.error)
    for at, target, coefficients in pairs(t, c):
        kept, least = reference.greedy(target, coefficients, bins)
        assert set(np.flatnonzero(mask[at]).tolist()) == kept
        assert error[at] == least


@over_shapes
@pytest.mark.parametrize("bins", [1, 6, 14])
def test_the_walk_agrees_with_the_reference(bins, rows, many):
    t, c = drawn(rows, many, 20, seed=6, scale=0.9)
    assert_walked(subset_sum.greedy(t, c, bins=bins), t, c, bins)


@over_shapes
def test_the_walk_under_jit_and_vmap(rows, many):
    walk = jax.jit(jax.vmap(functools.partial(subset_sum.greedy, bins=6)))
    t, c = zip(*(drawn(rows, many, 20, seed=s, scale=0.9) for s in (6, 7)), strict=True)
    found = jax.tree.map(np.asarray, walk(np.stack(t), np.stack(c)))
    for i in range(2):
        assert_walked(jax.tree.map(lambda x, i=i: x[i], found), t[i], c[i], 6)


def test_the_walk_goes_lane_by_lane_whatever_their_number(monkeypatch):
    monkeypatch.setattr(subset_sum, "_LANES", 4)
    t, c = drawn(3, 13, 12, seed=7)  # of a shape that nothing else here compiles
    assert_walked(subset_sum.greedy(t, c), t, c, 14)


@pytest.mark.parametrize(("bins", "zeros"), [(1, 0), (4, 3), (9, 0)])
def test_full_bins_halve_what_is_left(bins, zeros):
    # Bins of one coefficient of each sign, the worst of which the promise speaks.
    rng = np.random.default_rng(bins)
    sizes = rng.uniform(0.5, 1, (2, bins)) * 2.0 ** -np.arange(bins)
    c = np.concatenate([sizes[0], -sizes[1], np.zeros(zeros)])[None]
    c = rng.permuted(c.astype(np.float32), axis=1)
    t = rng.uniform(-1, 1, (1, 5_000)).astype(np.float32)
    for power in (-8, 0, 6):
        scaled = np.ldexp(t, power), np.ldexp(c, power)
        error = np.asarray(subset_sum.greedy(*scaled, bins=bins).error)
        assert error.max() <= 2.0 ** (power - bins)
        assert error.max() > 2.0 ** (power - bins) / 8  # no empty promise


@over_shapes
def test_coefficients_of_zero_change_nothing(rows, many):
    walk = functools.partial(subset_sum.greedy, bins=6)
    plain = drawn(rows, many, 20, seed=9, scale=0.9)
    for power in (-20, -8, 0, 8):
        t, c = (np.ldexp(x, power) for x in plain)
        without = walk(t, c)
        places = [0, 7, 20]  # at either end and in between
        found = jax.tree.map(np.asarray, walk(t, np.insert(c, places, 0, axis=1)))
        new = np.array(places) + np.arange(3)
        assert not found.mask[..., new].any()
        others = found._replace(mask=np.delete(found.mask, new, axis=-1))
        trees.assert_same(others, without)
        assert_walked(without, t, c, 6)


@over_shapes
def test_powers_of_two_scale_errors_and_change_no_subset(rows, many):
    t, c = drawn(rows, many, 20, seed=10, scale=0.9)
    c[:, 5] = 0
    plain = subset_sum.greedy(t, c, bins=6)
    for power in (-60, -20, -3, -1, 1, 4, 60):
        found = subset_sum.greedy(np.ldexp(t, power), np.ldexp(c, power), bins=6)
        error = np.ldexp(np.asarray(plain.error), power)
        trees.assert_same(found, plain._replace(error=error))


@over_shapes
def test_of_nothing_but_zeros_none_is_chosen(rows, many):
    t, c = drawn(rows, many, 20)
    found = subset_sum.greedy(t, np.zeros_like(c), bins=6)
    assert not np.asarray(found.mask).any()
    np.testing.assert_array_equal(found.error, abs(t))


def test_numbers_without_an_exponent_come_last():
    # None is the largest of its row: infinity, nan, what is subnormal in bfloat16.
    c = np.float32([[2.0**-8, 2.0**-5, 0]])
    for odd in (np.inf, -np.inf, np.nan, 1e-40):
        c[0, 2] = odd
        for dtype in (jnp.float32, jnp.bfloat16):
            t = np.full((1, 1), 2.0**-5, dtype)
            found = subset_sum.greedy(t, c.astype(dtype), bins=3)
            np.testing.assert_array_equal(found.mask, [[[False, True, False]]])


def test_the_walk_is_within_a_thousandth_where_magnitudes_are_of_every_size():
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.uniform(-14, 0, (500, 128))
    c = (sizes * rng.choice([-1, 1], sizes.shape)).astype(np.float32)
    t = rng.uniform(-1, 1, (500, 1)).astype(np.float32)
    found = jax.tree.map(np.asarray, subset_sum.greedy(t, c))
    assert found.error.max() <= 1e-3
    assert found.mask.sum(-1).mean() < 16
    sums = (found.mask * c[:, None].astype(np.float64)).sum(-1)
    np.testing.assert_allclose(np.abs(sums - t), found.error, atol=1e-6)


def test_the_walk_compiles_once():
    walk = jax.jit(subset_sum.greedy)
    for seed in range(2):
        walk(*drawn(3, 4, 10, seed=seed))
    assert walk._cache_size() == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_floats_of_any_width_will_do(method, dtype):
    t, c = (x.astype(jnp.dtype(dtype)) for x in drawn(2, 3, 8, seed=8))
    found = METHODS[method](t, c)
    wide = METHODS[method](*(np.asarray(x, np.float32) for x in (t, c)))
    if method == "greedy":
        assert found.error.dtype == dtype
    else:
        trees.assert_same(found, wide)


@pytest.mark.parametrize("method", METHODS)
def test_arguments_that_are_not_floating_are_refused(method):
    t, c = drawn(1, 2, 4)
    call, name = METHODS[method], f"`maskjax.theory.subset_sum.{method}`"
    with pytest.raises(TypeError, match=f"{name} needs `targets` as a floating.*int32"):
        call(t.astype(np.int32), c)
    with pytest.raises(TypeError, match="`coefficients` as a floating array, got list"):
        call(t, [[0.5]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("t", "c"), [((2,), (1, 3)), ((2, 1), (3,)), ((2, 1), (3, 4)), ((2, 1), (2, 1, 1))]
)
def test_shapes_that_do_not_fit_are_refused(method, t, c):
    message = r"`targets` \[R, M\] and `coefficients` \[R, n\], a row for each"
    with pytest.raises(ValueError, match=message):
        METHODS[method](np.zeros(t, np.float32), np.zeros(c, np.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("t", "c"), [((1, 0), (1, 3)), ((1, 2), (1, 0))])
def test_nothing_to_sum_is_refused(method, t, c):
    with pytest.raises(ValueError, match="at least one target and one coefficient"):
        METHODS[method](np.zeros(t, np.float32), np.zeros(c, np.float32))


@pytest.mark.parametrize("method", EXACT)
def test_what_is_not_finite_is_refused(method):
    t, c = drawn(2, 2, 4)
    t[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"finite `targets`, but 1 are not.*\(1, 0\)"):
        EXACT[method](t, c)
    c[0, 3] = np.inf
    t[1, 0] = 0
    with pytest.raises(ValueError, match=r"finite `coefficients`.*\(0, 3\)"):
        EXACT[method](t, c)


@pytest.mark.parametrize("method", EXACT)
def test_traced_arrays_are_refused_where_values_are_needed(method):
    t, c = drawn(1, 1, 4)
    message = "values are known, got a traced one. Call it outside `jit`, or use"
    with pytest.raises(TypeError, match=message):
        jax.jit(EXACT[method])(t, c)
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda c: EXACT[method](t, c))(c)


@pytest.mark.parametrize("method", EXACT)
def test_too_many_coefficients_are_refused_with_what_they_would_take(method):
    t, c = drawn(1, 1, 60)
    gibibytes = 8 * (2 + 2 + 6) * 2**30 / 2**30
    message = f"needs {gibibytes:.2f} GiB to search all subsets of 60 coefficients, "
    with pytest.raises(ValueError, match=message + "got `memory` of 1.00 GiB"):
        EXACT[method](t, c)
    # The least that there is a promise for is enough.
    t, c = drawn(1, 1, 12)
    needed = _halves.needed(12, 6, 1)
    trees.assert_same(EXACT[method](t, c, memory=needed), EXACT[method](t, c))
    with pytest.raises(ValueError, match=re.escape("0.00 GiB to search")):
        EXACT[method](t, c, memory=needed - 1)


@pytest.mark.parametrize("tolerance", ["0.1", None, True, np.array([0.1])])
def test_a_tolerance_is_a_number(tolerance):
    with pytest.raises(TypeError, match="`tolerance` as a number"):
        subset_sum.smallest(*drawn(1, 1, 3), tolerance=tolerance)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan")])
def test_a_tolerance_is_not_negative(tolerance):
    with pytest.raises(ValueError, match="`tolerance` of at least 0"):
        subset_sum.smallest(*drawn(1, 1, 3), tolerance=tolerance)


def test_the_walk_refuses_other_dtypes_and_numbers_of_bins():
    t, c = drawn(1, 1, 3)
    with pytest.raises(TypeError, match="of one dtype, got float32 and bfloat16"):
        subset_sum.greedy(t, c.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="`bins` of at least 1, got 0"):
        subset_sum.greedy(t, c, bins=0)
    with pytest.raises(TypeError, match="`bins` as a whole number, got float 2.5"):
        subset_sum.greedy(t, c, bins=2.5)
