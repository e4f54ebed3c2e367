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


@pytest.mark.parametrize("density", NUMBERS)
def test_a_number_is_the_decimal_that_it_is_written_as(density):
    for n in SIZES:
        count = quota(density, n)
        assert type(count) is int
        assert count == reference(density, n)


def test_halves_are_rounded_up_as_they_are_written():
    assert [quota(d, 10) for d in (0.05, 0.15, 0.25, 0.35, 0.45)] == [1, 2, 3, 4, 5]
    assert quota(0.145, 100) == 15  # the float64 nearest 0.145 lies below
    assert quota(np.float32(0.145), 100) == 15


def exact(density):
    return Fraction(*density.astype(float).item().as_integer_ratio())


def acceptable(density, n, eps):
    """What the number rounds to, or numbers up to half a unit in its last place."""
    slack = min(Fraction(eps) / 2 * exact(density) * n, Fraction(1, 256))
    return {reference(exact(density), n), reference(exact(density) + slack / n, n)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_array_is_the_number_that_it_holds(dtype):
    rng = np.random.default_rng(0)
    draws = np.concatenate(
        [rng.random(60), 10 ** rng.uniform(-7, 0, 60), [0.0, 1.0, 0.5, 0.1, 0.9]]
    )
    densities = jnp.asarray(draws, dtype)
    eps = float(jnp.finfo(dtype).eps)
    for n in SIZES[1:]:
        counts = jax.jit(jax.vmap(lambda d, n=n: quota(d, n)))(densities)
        assert counts.dtype == jnp.int32
        for density, count in zip(densities, counts, strict=True):
            assert int(count) in acceptable(density, n, eps), (density, n)


def test_an_array_is_the_number_that_it_holds_under_x64(x64):
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float64"):
        densities = jnp.asarray(rng.random(60), dtype)
        eps = float(jnp.finfo(dtype).eps)
        for n in SIZES[1:]:
            counts = jax.jit(jax.vmap(lambda d, n=n: quota(d, n)))(densities)
            for density, count in zip(densities, counts, strict=True):
                assert int(count) in acceptable(density, n, eps), (density, n)


@pytest.mark.parametrize("n", [10, 1000, 266_200, 2**24 + 1, 2**31 - 2])
def test_a_half_that_float32_cannot_hold_is_rounded_up_too(n):
    for density in (0.05, 0.15, 0.35, 0.45):
        assert int(jax.jit(lambda d, n=n: quota(d, n))(jnp.float32(density))) in {
            reference(density, n),
            reference(exact(jnp.float32(density)), n),
        }
    assert int(quota(jnp.float32(0.35), 10)) == 4


@pytest.mark.parametrize("density", [0.0, 0.05, 0.1, 0.35, 0.5, 0.9, 1.0, 1 / 3])
def test_the_number_of_entries_may_be_traced(density):
    count = jax.jit(lambda n: quota(density, n))
    for n in SIZES:
        expected = {reference(density, n)}
        if density == 1 / 3:  # too long a decimal: read as float32
            expected |= acceptable(jnp.float32(density), max(n, 1), 2.0**-23)
        assert int(count(jnp.int32(n))) in expected, n


def test_both_may_be_traced():
    count = jax.jit(quota)
    for n in SIZES[1:]:
        for density in (0.0, 0.1, 0.35, 0.5, 1.0):
            density = jnp.float32(density)
            assert int(count(density, jnp.int32(n))) in acceptable(density, n, 2.0**-23)
    assert count._cache_size() == 1


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_both_may_be_traced_under_x64(dtype, x64):
    for density in (jnp.float32(0.35), jnp.float64(0.35)):
        for n in (10, 2**24 + 1):
            count = jax.jit(quota)(density, jnp.asarray(n, dtype))
            eps = float(jnp.finfo(density.dtype).eps)
            assert int(count) in acceptable(density, n, eps)


@pytest.mark.parametrize(("density", "expected"), [(-0.5, 0), (1.5, 1000), (2.0, 1000)])
def test_an_array_outside_0_and_1_is_clipped(density, expected):
    assert quota(jnp.float32(density), 1000) == expected


def test_whole_densities_may_be_integer_arrays():
    assert quota(jnp.int32(1), 7) == 7
    assert quota(jnp.int32(0), 7) == 0


def test_counts_grow_with_density():
    densities = jnp.linspace(0, 1, 1001)
    for n in (7, 999, 2**24 + 1):
        counts = jax.vmap(lambda d, n=n: quota(d, n))(densities)
        assert (jnp.diff(counts) >= 0).all()
        assert (counts[0], counts[-1]) == (0, n)
