"""Which dtypes numbers are counted and summed in, and arrays made of what is given."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# From here on counts need 64 bits. Tests lower it.
_MOST = 2**31 - 1


def wide_integers() -> bool:
    """Whether integers have 64 bits (`jax_enable_x64`)."""
    return jnp.zeros((), int).dtype == jnp.int64


def counts(most: int) -> jnp.dtype:
    """The dtype of counts up to a number. See `counting`."""
    return jnp.dtype("int32" if most < _MOST else "int64")


def counting(most: int) -> contextlib.AbstractContextManager[Any]:
    """In this context counts up to a number are exact, also without `jax_enable_x64`.

    What is computed with 64-bit integers in it has to leave it as something else:
    outside of it JAX would cut such arrays to 32 bits.
    """
    return contextlib.nullcontext() if most < _MOST else jax.enable_x64(True)


def blocks(shape: Sequence[int], lead: int = 0) -> int:
    """How many axes after the first `lead` have to be blocks of fewer than 2^31.

    Each index of these axes is a block, which can be counted with 32 bits. A 64-bit
    number of each entry would take memory on TPU.
    """
    sizes = (math.prod(shape[end:]) for end in range(lead, len(shape) + 1))
    return next(n for n, size in enumerate(sizes) if counts(size) == jnp.int32)


def at_least_float32(dtype: Any) -> Any:
    """The dtype to sum in: float32 for narrower floats (also with strict promotion)."""
    return jnp.dtype("float64" if jnp.finfo(dtype).bits == 64 else "float32")


def ratio(part: jax.Array, whole: Any, dtype: Any) -> jax.Array:
    """Counts divided by counts that `dtype` holds (float32: up to 2^24), rounded once.

    XLA would replace the division of many numbers by one that they share, or by a
    constant, by a product with its reciprocal, which is one unit in the last place off
    for 35 of 37. So each divisor depends on its count, as far as XLA knows.
    """
    return part.astype(dtype) / jnp.where(part >= 0, jnp.asarray(whole, dtype), jnp.nan)


def as_array(values: Any) -> jax.Array:
    """The values as a JAX array, without compiling a program for a NumPy array.

    `jnp.asarray` compiles one for each shape and dtype.
    """
    if isinstance(values, np.ndarray):
        return jax.device_put(values)
    return jnp.asarray(values)
