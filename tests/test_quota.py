"""How many entries a density keeps, against rational arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax.select._quota import quota
from tests.reference.selection import quota as reference

SIZES = [0, 1, 2, 3, 7, 10, 99, 1000, 266_200, 2**24 - 1, 2**24 + 1, 2**31 - 2]
NUMBERS = [0.0, 1e-9, 0.05, 0.1, 1 / 3, 0.35, 0.5, 0.8, 0.9, 0.999999, 1.0, 0, 1]
HALVES = [0.05, 0.15, 0.25, 0.35, 0.45]  # of 10 or 1000 entries, as decimals

# One program for all densities and sizes; both are operands.
table = jax.jit(
    jax.vmap(jax.vmap(quota, in_axes=(None, 0)), in_axes=(0, None)),
)


@pytest.mark.parametrize("density", NUMBERS)
def test_a_number_is_the_decimal_that_it_is_written_as(density):
    for n in SIZES:
        count = quota(density, n)
        assert type(count) is int
        assert count == reference(density, n)


def test_halves_are_rounded_up_as_they_are_written():
    assert [quota(d, 10) for d in HALVES] == [1, 2, 3, 4, 5]
    assert quota(0.145, 100) == 15  # the float64 nearest 0.145 lies below
    assert quota(np.float32(0.145), 100) == 15


def test_a_density_computed_from_a_sparsity_is_the_one_that_is_meant():
    for percent in range(101):
        for n in (10, 30, 100, 1000, 2**31 - 2):
            meant = quota(percent / 100, n)
            assert quota(1 - (100 - percent) / 100, n) == meant
            assert quota(1.0 - np.float64((100 - percent) / 100), n) == meant
    assert quota(1 - 0.55, 30) == quota(0.45, 30) == 14


def exact(density):
    return Fraction(*float(density).as_integer_ratio())


def acceptable(density, n, eps):
    """What the number rounds to, or numbers up to half a unit in its last place."""
    if not n:
        return {0}
    share = min(max(exact(density), Fraction(0)), Fraction(1))
    slack = min(Fraction(eps) / 2 * share * n, Fraction(1, 256))
    return {reference(share, n), min(reference(share + slack / n, n), n)}


def densities_of(dtype):
    """Special numbers, numbers outside of [0, 1], and random ones."""
    rng = np.random.default_rng(0)
    special = [0.0, 1.0, 0.5, 0.1, 0.9, *HALVES, -0.5, 1.5, 2.0]
    draws = [special, rng.random(60), 10 ** rng.uniform(-7, 0, 60)]
    return np.concatenate(draws).astype(jnp.dtype(dtype))


def assert_counts(dtype, integers):
    densities, eps = densities_of(dtype), float(jnp.finfo(dtype).eps)
    counts = np.asarray(table(densities, np.array(SIZES, integers)))
    for density, row in zip(densities, counts, strict=True):
        for n, count in zip(SIZES, row, strict=True):
            assert int(count) in acceptable(density, n, eps), (density, n)
    return counts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_array_is_the_number_that_it_holds(dtype):
    counts = assert_counts(dtype, "int32")
    assert counts.dtype == "int32"
    if dtype == "float32":  # halves that float32 can't hold are rounded up too
        at = slice(5, 5 + len(HALVES))
        assert counts[at, SIZES.index(10)].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("dtype", "integers"), [("float32", "int32"), ("float64", "int64")]
)
def test_an_array_is_the_number_that_it_holds_under_x64(dtype, integers, x64):
    assert_counts(dtype, integers)


def test_the_number_of_entries_may_be_traced():
    numbers = [0.0, 0.05, 0.1, 0.35, 0.5, 0.9, 1.0, 1 / 3]
    count = jax.jit(jax.vmap(lambda n: jnp.stack([quota(d, n) for d in numbers])))
    for n, row in zip(SIZES, np.asarray(count(np.array(SIZES, "int32"))), strict=True):
        for density, found in zip(numbers, row, strict=True):
            expected = {reference(density, n)}
            if density == 1 / 3:  # too long a decimal: read as float32
                expected |= acceptable(np.float32(density), n, 2.0**-23)
            assert int(found) in expected, (density, n)


def test_whole_densities_may_be_integer_arrays():
    assert jax.jit(quota)(np.int32(1), np.int32(7)) == 7
    assert jax.jit(quota)(np.int32(0), np.int32(7)) == 0


def test_counts_grow_with_density():
    sizes = np.array([7, 999, 2**24 + 1], "int32")
    counts = np.asarray(table(np.linspace(0, 1, 1001, dtype="float32"), sizes))
    assert (np.diff(counts, axis=0) >= 0).all()
    np.testing.assert_array_equal(counts[[0, -1]], [[0, 0, 0], sizes])
