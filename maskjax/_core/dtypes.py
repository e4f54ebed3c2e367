"""Which dtypes numbers are counted and summed in, and arrays made of what is given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def wide_integers() -> bool:
    """Whether integers have 64 bits (`jax_enable_x64`)."""
    return jnp.zeros((), int).dtype == jnp.int64


def at_least_float32(dtype: Any) -> Any:
    """The dtype to sum in: float32 for narrower floats (also with strict promotion)."""
    return jnp.dtype("float64" if jnp.finfo(dtype).bits == 64 else "float32")


def as_array(values: Any) -> jax.Array:
    """The values as a JAX array, without compiling a program for a NumPy array.

    `jnp.asarray` compiles one for each shape and dtype.
    """
    if isinstance(values, np.ndarray):
        return jax.device_put(values)
    return jnp.asarray(values)
