"""Floats as integers of the same order, so that ranking is integer arithmetic.

Comparing floats flushes subnormal numbers to zero on some backends; integers do not.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core.trees import Array


def order_key(
    x: Array,
    alive: Array | None,
    held: Array | None = None,
    *,
    absolute: bool = False,
) -> Array:
    """Integers in the order of the floats: -0.0 ties with 0.0, nan is below -inf.

    Entries that are held are above everything, and those not alive below everything.
    With `absolute` the order is that of the absolute values.
    """
    if jnp.finfo(x.dtype).bits < 32:
        x = exactly(x, jnp.dtype("float32"))
    key = jnp.dtype(f"int{jnp.finfo(x.dtype).bits}")
    infinity = int(np.array(np.inf, x.dtype).view(key))
    bits = lax.bitcast_convert_type(x, key)
    magnitude = bits & int(jnp.iinfo(key).max)
    ordered = magnitude if absolute else jnp.where(bits < 0, -magnitude, magnitude)
    ordered = jnp.where(magnitude > infinity, lowest(key) + 1, ordered)
    if held is not None:
        ordered = jnp.where(held, jnp.iinfo(key).max - 1, ordered)
    return ordered if alive is None else jnp.where(alive, ordered, lowest(key))


def exactly(x: Array, dtype: jnp.dtype) -> Array:
    """Floats in a wider format; to float64 also those that are subnormal in float32."""
    if x.dtype == dtype:
        return x
    if dtype == jnp.float32:
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    magnitude = bits & jnp.iinfo(jnp.int32).max
    tiny = magnitude.astype(dtype) * jnp.array(2.0**-149, dtype)
    tiny = jnp.where(bits < 0, -tiny, tiny)
    smallest = jnp.finfo(jnp.float32).tiny.view(np.int32)
    return jnp.where(magnitude < int(smallest), tiny, x.astype(dtype))


def from_order_key(key: Array, dtype: jnp.dtype) -> Array:
    """The float of a key; nan for the keys of nan and of entries not alive."""
    magnitude = jnp.where(key < 0, -key, key)
    bits = jnp.where(key < 0, magnitude | lowest(key.dtype), magnitude)
    wide = jnp.dtype("float64" if key.dtype == jnp.int64 else "float32")
    return lax.bitcast_convert_type(bits, wide).astype(dtype)


def lowest(key: jnp.dtype) -> int:
    """The lowest integer of a dtype: the key of entries that are not alive."""
    return int(jnp.iinfo(key).min)


def to_unsigned(key: Array) -> Array:
    """Keys as unsigned integers of the same order: differences never overflow."""
    dtype = jnp.dtype(f"u{key.dtype.name}")
    return lax.bitcast_convert_type(key, dtype) ^ _sign_bit(dtype)


def from_unsigned(value: Array, key: jnp.dtype) -> Array:
    """The inverse of `to_unsigned`."""
    return lax.bitcast_convert_type(value ^ _sign_bit(value.dtype), key)


def _sign_bit(dtype: jnp.dtype) -> Array:
    return jnp.array(1 << (jnp.iinfo(dtype).bits - 1), dtype)
