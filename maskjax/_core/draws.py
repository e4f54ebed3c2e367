"""Noise for gates that are learned: a draw for each entry of an array.

Noise is finite: `jax.random.uniform` returns 0 now and then, and its logarithm is not.
"""

import jax.numpy as jnp

from maskjax._core import placement
from maskjax._core.trees import Array

# Half of the step between two numbers that are drawn, in float32.
_HALF_STEP = 2.0**-24


def logistic(key: Array, like: Array) -> Array:
    """A draw from the logistic distribution for each entry, sharded as the array is."""
    return logit(inside(placement.uniform(key, like)))


def gumbel(key: Array, like: Array) -> Array:
    """A draw from the Gumbel distribution for each entry, sharded as the array is."""
    return -jnp.log(-jnp.log(inside(placement.uniform(key, like))))


def inside(u: Array) -> Array:
    """Numbers in [0, 1) moved into (0, 1), so that u and 1 - u are equally likely."""
    return jnp.minimum(u + _HALF_STEP, 1 - _HALF_STEP)


def logit(u: Array) -> Array:
    """The logarithm of u / (1 - u)."""
    return jnp.log(u) - jnp.log1p(-u)
