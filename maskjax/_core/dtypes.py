"""Which dtypes numbers are counted and summed in."""

from typing import Any

import jax.numpy as jnp


def wide_integers() -> bool:
    """Whether integers have 64 bits (`jax_enable_x64`)."""
    return jnp.zeros((), int).dtype == jnp.int64


def at_least_float32(dtype: Any) -> Any:
    """The dtype to sum in: float32 for narrower floats (also with strict promotion)."""
    return jnp.dtype("float64" if jnp.finfo(dtype).bits == 64 else "float32")
