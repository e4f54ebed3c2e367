"""Whether two trees hold the same weights, told by two numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core import dtypes, placement
from maskjax._core.trees import Array, Params


@jax.jit
def fingerprint(weights: Params) -> Array:
    """[2], uint32: sums over all entries of a hash of the entry's bits and its place.

    Sums of integers modulo 2**32 are the same in every order, so they are the same on
    any number of devices. `None` leaves count as nothing.
    """
    sums = [
        jnp.stack([jnp.sum(_hashed(w, 2 * i + j), dtype=jnp.uint32) for j in range(2)])
        for i, w in enumerate(jax.tree.leaves(weights))
    ]
    return jnp.sum(jnp.stack(sums), axis=0, dtype=jnp.uint32)


def _hashed(w: Array, seed: int) -> Array:
    """A well mixed word for each entry: the last steps of MurmurHash3."""
    word = _words(w) ^ placement.alike(_places(w.shape, seed), w)
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _words(w: Array) -> Array:
    """The bits of each entry as one word."""
    bits = dtypes.bits(w)
    if bits.dtype.itemsize <= 4:
        return bits.astype(jnp.uint32)
    high = (bits >> 32).astype(jnp.uint32)
    return bits.astype(jnp.uint32) ^ (high * np.uint32(0x9E3779B1))


def _places(shape: tuple[int, ...], seed: int) -> Array:
    """A different word for each place of an array, and for each seed."""
    place = jnp.full(shape, np.uint32(seed * 0x27D4EB2F % 2**32), jnp.uint32)
    step = 1
    for axis in reversed(range(len(shape))):
        index = lax.broadcasted_iota(jnp.uint32, shape, axis)
        place += index * np.uint32(step * 0x9E3779B1 % 2**32)
        step *= shape[axis]
    return place
