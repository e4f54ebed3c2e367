"""How many entries whole masks keep, in as many bits as that needs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import dtypes, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask
from maskjax.packing._bits import population


@functools.partial(jax.jit, static_argnums=(1, 2))
def total(leaves: list[Any], shared: tuple[int, ...], dtype: Any) -> Array:
    """The entries kept in all leaves, where each decision is shared by so many."""
    found = jnp.zeros((), dtype)
    for leaf, times in zip(leaves, shared, strict=True):
        if isinstance(leaf, PackedMask):
            kept = jnp.sum(population(leaf, dtype), dtype=dtype)
        else:
            kept = dtypes.summed(leaf, 0, dtype)
        found += kept * times
    return found


def kept_as(leaf: Array | PackedMask, dtype: Any) -> Array:
    """How many entries a leaf of any size keeps, as a float."""
    with dtypes.counting(leaf.size):
        return total([leaf], (1,), dtypes.counts(leaf.size)).astype(dtype)


def kept_by_leaf(mask: Mask) -> Any:
    """How many entries each leaf of a mask with values keeps, as NumPy integers."""
    leaves = jax.tree.leaves(mask, is_leaf=trees.is_mask_leaf)
    most = max((m.size for m in leaves if m is not None), default=0)
    with dtypes.counting(most):
        return jax.device_get(_by_leaf(mask, dtypes.counts(most)))


@functools.partial(jax.jit, static_argnums=1)
def _by_leaf(mask: Mask, dtype: Any) -> Any:
    return trees.map_mask(lambda leaf: total([leaf], (1,), dtype), mask)
