"""Which dtypes numbers are counted and summed in, and arrays made of what is given."""

import contextlib
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


def reals(x: jax.Array) -> jax.Array:
    """Real numbers in a format to compute in: float32 at least."""
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(at_least_float32(x.dtype if floats else jnp.zeros((), float).dtype))


def operand(number: Any, dtype: Any = np.float32) -> Any:
    """A number as an argument of a program, so that a new number compiles nothing."""
    return number if isinstance(number, jax.Array) else np.dtype(dtype).type(number)


def total(scalars: Sequence[jax.Array]) -> jax.Array:
    """The sum of floating scalars: float64 if one is, else float32."""
    wide = widest(*scalars)
    return functools.reduce(operator.add, [x.astype(wide) for x in scalars])


def common(*arrays: Any) -> Any:
    """The dtype that holds all values of all arrays (also with strict promotion)."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, [x.dtype for x in arrays])


def widest(*arrays: Any) -> Any:
    """The dtype for sums over several arrays: float64 if one is, else float32."""
    wide = {at_least_float32(x.dtype) for x in arrays}
    return max(wide, key=lambda dtype: dtype.itemsize)


def bits(x: jax.Array) -> jax.Array:
    """What tells floats apart that compare as equal; other numbers as they are.

    Those are 0.0 and -0.0, and subnormal numbers where comparisons round them to 0.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return lax.bitcast_convert_type(x, jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}"))


def nonzero(x: jax.Array) -> jax.Array:
    """Where numbers are not 0 or -0; nan is not, nor are subnormal numbers."""
    signed = jnp.issubdtype(x.dtype, jnp.floating)
    signed &= not str(x.dtype).endswith("fnuz")  # those have no -0
    return bits(x) << 1 != 0 if signed else bits(x) != 0


def summed(x: jax.Array, lead: int, dtype: Any, *, most: int = 1) -> jax.Array:
    """Sums of whole numbers over all axes but the first ones. See `counting`.

    Args:
        x: Flags or integers, each at most `most`.
        lead: How many of the first axes stay.
        dtype: Of the sums. Those of each block are added up in 32 bits (`blocks`).
        most: The largest number that an entry may be.
    """
    end = lead + blocks((*x.shape, most), lead)
    sums = jnp.sum(x, axis=tuple(range(end, x.ndim)), dtype=jnp.int32).astype(dtype)
    return jnp.sum(sums, axis=tuple(range(lead, sums.ndim)), dtype=dtype)


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
