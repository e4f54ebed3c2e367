"""One leaf packed and unpacked, wherever its shards are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core import dtypes, placement
from maskjax._core.packed import WORD, PackedMask, layout
from maskjax._core.trees import Array


def pack_leaf(leaf: Array | PackedMask) -> PackedMask:
    """One leaf with one bit an entry; it is not checked."""
    return leaf if isinstance(leaf, PackedMask) else _pack_leaf(leaf)


# Compiled, so that a call outside of `jit` is one program and not a hundred.
@jax.jit
def _pack_leaf(leaf: Array) -> PackedMask:
    leaf = jnp.asarray(leaf)
    planes, axis = _planes(leaf), layout(leaf.shape).axis + 1
    bits = lax.index_in_dim(planes, 0, axis, keepdims=False).astype(jnp.uint32)
    for j in range(1, WORD):
        plane = lax.index_in_dim(planes, j, axis, keepdims=False)
        bits |= plane.astype(jnp.uint32) << j
    return PackedMask(bits, leaf.shape)


def unpack_leaf(leaf: Array | PackedMask) -> Array:
    """One leaf with a boolean an entry; it is not checked."""
    return _unpack_leaf(leaf) if isinstance(leaf, PackedMask) else leaf


@jax.jit
def _unpack_leaf(leaf: PackedMask) -> Array:
    how, lead = layout(leaf.shape), len(leaf.lead)
    axis = lead + how.axis
    bits = leaf.bits
    if how.view != leaf.shape or how.view[how.axis] % WORD:
        bits = placement.gathered(bits, axis)
    shifts = jnp.arange(WORD, dtype=jnp.uint32)
    shifts = lax.broadcast_in_dim(
        shifts, (1,) * (axis + 1) + (WORD,) + (1,) * (bits.ndim - axis - 1), (axis + 1,)
    )
    planes = (jnp.expand_dims(bits, axis + 1) >> shifts) & 1 != 0
    return joined(planes, leaf.shape)


def planes_first(values: Array) -> Array:
    """An array as 32 bit planes, [32, *words]; entries past the end are 0."""
    return jnp.moveaxis(_planes(values), layout(values.shape).axis + 1, 0)


def from_planes(planes: Array, shape: tuple[int, ...]) -> Array:
    """Undo `planes_first`."""
    return joined(jnp.moveaxis(planes, 0, layout(shape).axis + 1), shape)


def _planes(values: Array) -> Array:
    """An array with its packed axis as two: words, and the 32 entries of a word."""
    how = layout(values.shape)
    size, words = how.view[how.axis], how.words[how.axis]
    if placement.explicit(values):
        alike = how.view == values.shape
        spec = spec_of_bits(values) if alike else [None] * values.ndim
        values = placement.place(values, spec)
    room = [(0, 0)] * len(how.view)
    room[how.axis] = (0, WORD * words - size)
    values = jnp.pad(values.reshape(how.view), room)
    cut = (*how.view[: how.axis], words, WORD, *how.view[how.axis + 1 :])
    return values.reshape(cut)


def joined(planes: Array, shape: tuple[int, ...]) -> Array:
    """Undo `_planes`, for an array or a stack of them."""
    how = layout(shape)
    lead = planes.shape[: planes.ndim - len(how.view) - 1]
    axis = len(lead) + how.axis
    padded = list(how.view)
    padded[how.axis] = WORD * how.words[how.axis]
    values = planes.reshape(*lead, *padded)
    values = lax.slice_in_dim(values, 0, how.view[how.axis], axis=axis)
    return values.reshape(*lead, *shape)


@functools.partial(jax.jit, static_argnums=1)
def population(leaf: PackedMask, dtype: Any = "int32") -> Array:
    """How many entries each mask of a packed leaf keeps. See `dtypes.counting`."""
    bits, lead = leaf.bits, len(leaf.lead)
    how = layout(leaf.shape)
    if how.view[how.axis] % WORD:  # `jax.tree.map(jnp.invert, packed)` sets more
        bits &= lax.expand_dims(valid_bits(leaf.shape), range(lead))
    kept = lax.population_count(bits).astype(jnp.int32)
    return dtypes.summed(kept, lead, dtype, most=WORD)


def valid_bits(shape: tuple[int, ...]) -> Array:
    """The words of the mask that keeps everything, with axes of 1 where all are alike.

    Bits past the end of the packed axis are 0.
    """
    how = layout(shape)
    size, words = how.view[how.axis], how.words[how.axis]
    left = size - WORD * np.arange(words)
    valid = np.where(left < WORD, (1 << np.minimum(left, 31)) - 1, 2**WORD - 1)
    ones = [1] * len(how.words)
    ones[how.axis] = words
    return jnp.asarray(valid.astype(np.uint32).reshape(ones))


def laid_as_bits(leaf: Array) -> Array:
    """An array in the shape of a leaf's words, with which they lie, if it is packed."""
    return _planes(lax.stop_gradient(leaf)).max(layout(leaf.shape).axis + 1)


def spec_of_bits(leaf: Array) -> tuple[placement.Names, ...]:
    """How the words of a leaf are sharded if it is packed, as far as that is known."""
    how, spec = layout(leaf.shape), list(placement.known_spec(leaf))
    if how.view != leaf.shape:
        return (None,)
    if how.view[how.axis] % (WORD * placement.shards(leaf, how.axis)):
        spec[how.axis] = None
    return tuple(spec)
