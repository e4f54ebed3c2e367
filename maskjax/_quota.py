"""How many of n entries a density keeps: `round_half_up(density * n)`, exactly.

float32 loses integers past 2**24 and int32 overflows long before density * n is
formed, so the product is taken in whole numbers.
"""

import fractions
import math

import jax
import jax.numpy as jnp

from maskjax import _checks
from maskjax._tree import Array, Density

# Numerators and denominators below this leave room for `2 * p * b + q` in 32 bits.
_SMALL = 2**15


def quota(density: Density, n: int | Array) -> Array | int:
    """The number of entries to keep, in [0, n].

    A Python number is read as the decimal it is written as, so that 0.35 of 10 is 4
    though the float64 nearest 0.35 lies below it. An array is read as the number it
    holds, up to half a unit in its last place (at most 1/256 of an entry).

    Args:
        density: Fraction to keep, a Python number or a scalar array, maybe traced.
        n: How many entries there are; traced when it depends on data.

    Returns:
        A Python integer when both arguments are, else a scalar integer array.
    """
    if isinstance(density, jax.Array):
        if not jnp.issubdtype(density.dtype, jnp.floating):
            density = density.astype(jnp.float32)
    else:
        exact = fractions.Fraction(str(density))
        if isinstance(n, int):
            return math.floor(exact * n + fractions.Fraction(1, 2))
        if exact.denominator < _SMALL:
            return _of_fraction(exact, n)
        density = jnp.asarray(density, jnp.float32)
    if _checks.wide_integers():
        count = _of_float64(density, n)
    else:
        count = _of_float32(density, n)
    return jnp.clip(count, 0, n)


def _of_fraction(exact: fractions.Fraction, n: Array) -> Array:
    """P * n / q, split so that nothing exceeds 32 bits: n = a * q + b."""
    p, q = exact.numerator, exact.denominator
    whole, rest = n // q, n % q
    partial = (2 * p * rest.astype(jnp.uint32) + q) // (2 * q)
    return p * whole + partial.astype(n.dtype)


def _of_float64(density: Array, n: int | Array) -> Array:
    product = density.astype(jnp.float64) * n
    slack = jnp.minimum(jnp.finfo(density.dtype).eps / 2 * product, 1 / 256)
    return jnp.floor(product + 0.5 + slack).astype(jnp.int64)


def _of_float32(density: Array, n: int | Array) -> Array:
    """The product of 0.31 fixed point and a 31-bit integer, in 16-bit limbs."""
    eps = float(jnp.finfo(density.dtype).eps)
    density = jnp.clip(density.astype(jnp.float32), 0.0, 1.0)
    slack = jnp.minimum(eps / 2 * density * n, 1 / 256)
    fixed = (density * 2.0**31).astype(jnp.uint32)
    n = jnp.asarray(n).astype(jnp.uint32)
    a, b = fixed >> 16, fixed & 0xFFFF
    c, d = n >> 16, n & 0xFFFF
    middle = ((b * d) >> 16) + ((a * d) & 0xFFFF) + ((b * c) & 0xFFFF)
    high = a * c + ((a * d) >> 16) + ((b * c) >> 16) + (middle >> 16)
    low = (middle << 16) | ((b * d) & 0xFFFF)
    rounded = low + jnp.uint32(2**30) + (slack * 2.0**31).astype(jnp.uint32)
    high = high + (rounded < low).astype(jnp.uint32)
    return ((high << 1) | (rounded >> 31)).astype(jnp.int32)
