"""How many of n entries a density keeps: `round_half_up(density * n)`, exactly.

float32 is inexact for integers past 2**24, and density * n overflows int32, so the
product is computed in whole numbers.
"""

import fractions
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import dtypes
from maskjax._core.trees import Array, Density

# Numerators and denominators below this leave room for `2 * p * b + q` in 32 bits.
_SMALL = 2**15


class Ratio(NamedTuple):
    """A density as an exact fraction of two small whole numbers."""

    numerator: Any
    denominator: Any


class Keep(NamedTuple):
    """Keep round_half_up(share * n) of n. An operand of a compiled search."""

    share: Any

    def of(self, n: int | Array) -> Array | int:
        """The number to keep of n."""
        return quota(self.share, n)


class Leave(NamedTuple):
    """Remove round_half_up(share * n) of n, and keep the others."""

    share: Any

    def of(self, n: int | Array) -> Array | int:
        """The number to keep of n."""
        return n - quota(self.share, n)


class Count(NamedTuple):
    """Keep a given number, or all n if there are fewer."""

    number: Any

    def of(self, n: int | Array) -> Array | int:
        """The number to keep of n."""
        return jnp.minimum(self.number, n)


Quota = Keep | Leave | Count


def operand(rule: Keep | Leave, n: int | None) -> Quota:
    """The rule with arrays for numbers, so that a new number never compiles anything.

    Args:
        rule: A rule with the share that the user gave.
        n: The number of entries, or None if it depends on data.
    """
    share = rule.share
    if isinstance(share, jax.Array):
        return rule
    if isinstance(share, np.ndarray):  # one for each of many searches
        if n is None:
            return rule._replace(share=jnp.asarray(share, jnp.float32))
        counts = [rule._replace(share=one).of(n) for one in share.ravel()]
        return Count(np.asarray(counts, dtypes.counts(n)).reshape(share.shape))
    if n is not None:
        return Count(np.asarray(rule.of(n), dtypes.counts(n)))
    exact = as_meant(share)
    if exact.denominator < _SMALL:
        return rule._replace(
            share=Ratio(np.int32(exact.numerator), np.int32(exact.denominator))
        )
    return rule._replace(share=jnp.asarray(share, jnp.float32))


def as_meant(number: Any) -> fractions.Fraction:
    """A number as a decimal of up to 15 digits, all of which a float64 holds.

    What is computed from decimals, such as 1 - 0.55, is off in the 16th or 17th.
    """
    digits = f"{number:.15g}" if isinstance(number, float) else str(number)
    return fractions.Fraction(digits)


def quota(density: Density | Ratio, n: int | Array) -> Array | int:
    """The number of entries to keep, in [0, n].

    Python numbers are read as decimals: 0.35 of 10 is 3.5, which rounds up to 4, though
    the float64 closest to 0.35 is below it, and 1 - 0.55 is 0.45. Arrays are read as
    the number they hold, plus half a unit in its last place (at most 1/256 of an
    entry).

    Args:
        density: The fraction to keep: a Python number, or a scalar array that may be
            traced.
        n: The number of entries; an array if it depends on data.

    Returns:
        A Python integer if both arguments are Python numbers, else a scalar array.
    """
    if isinstance(density, Ratio):
        return _of_fraction(density, jnp.asarray(n))
    if isinstance(density, jax.Array):
        if not jnp.issubdtype(density.dtype, jnp.floating):
            density = density.astype(jnp.float32)
    else:
        if not isinstance(n, int):
            return operand(Keep(density), None).of(n)
        return math.floor(as_meant(density) * n + fractions.Fraction(1, 2))
    if dtypes.wide_integers():
        return _of_float64(density, jnp.asarray(n, jnp.int64))
    return _of_float32(density, jnp.asarray(n, jnp.int32))


def _of_fraction(exact: Ratio, n: Array) -> Array:
    """Compute p * n / q within 32 bits, from n = whole * q + rest."""
    p, q = (jnp.asarray(x).astype(n.dtype) for x in exact)
    whole, rest = n // q, n % q
    p_, q_, rest = (x.astype(jnp.uint32) for x in (p, q, rest))
    partial = (2 * p_ * rest + q_) // (2 * q_)
    return p * whole + partial.astype(n.dtype)


def _of_float64(density: Array, n: Array) -> Array:
    eps = float(jnp.finfo(density.dtype).eps)
    real = n.astype(jnp.float64)
    product = jnp.clip(density.astype(jnp.float64), 0.0, 1.0) * real
    slack = jnp.minimum(eps / 2 * product, 1 / 256)
    count = jnp.floor(product + 0.5 + slack).astype(jnp.int64)
    return jnp.minimum(count, n)


def _of_float32(density: Array, n: Array) -> Array:
    """The density's significand (31 bits at most) times n in 64 bits, shifted back."""
    eps = float(jnp.finfo(density.dtype).eps)
    density = jnp.clip(density.astype(jnp.float32), 0.0, 1.0)
    slack = jnp.minimum(eps / 2 * density * n.astype(jnp.float32), 1 / 256)
    # density = fixed * 2**-shift, with every bit that could matter.
    shift = jnp.clip(31 - jnp.frexp(density)[1], 31, 62)
    high, low = _product(
        jnp.ldexp(density, shift).astype(jnp.uint32), n.astype(jnp.uint32)
    )
    # One half and the slack, in the same units, so that halves go up.
    extra = jnp.ldexp(slack, shift)
    extra_high = jnp.floor(extra * 2.0**-32)
    extra_low = (extra - extra_high * 2.0**32).astype(jnp.uint32)
    high, low = _add(high, low, extra_high.astype(jnp.uint32), extra_low)
    one, bits = jnp.uint32(1), shift.astype(jnp.uint32)
    high, low = _add(
        high,
        low,
        jnp.where(bits > 32, one << (jnp.maximum(bits, 33) - 33), 0),
        jnp.where(bits > 32, 0, one << (jnp.minimum(bits, 32) - 1)),
    )
    small = (high << 1) | (low >> 31)
    count = jnp.where(bits == 31, small, high >> (jnp.maximum(bits, 32) - 32))
    return jnp.minimum(count.astype(jnp.int32), n)


def _product(x: Array, y: Array) -> tuple[Array, Array]:
    """The product as two 32-bit words, high and low, from 16-bit halves."""
    a, b = x >> 16, x & 0xFFFF
    c, d = y >> 16, y & 0xFFFF
    middle = ((b * d) >> 16) + ((a * d) & 0xFFFF) + ((b * c) & 0xFFFF)
    high = a * c + ((a * d) >> 16) + ((b * c) >> 16) + (middle >> 16)
    return high, (middle << 16) | ((b * d) & 0xFFFF)


def _add(high: Array, low: Array, other: Array, less: Array) -> tuple[Array, Array]:
    """The sum of two 64-bit numbers, each given as two 32-bit words."""
    total = low + less
    return high + other + (total < low).astype(jnp.uint32), total
