"""Masks stored with one bit an entry, and sums over packed masks.

    >>> packed = packing.pack({"w": jnp.array([[True, False], [False, True]])})
    >>> packing.unpack(packed)
    {'w': Array([[ True, False],
           [False,  True]], dtype=bool)}

2,500 masks over 266,200 weights take 85 MB packed, 665 MB as booleans and 2.7 GB as
float32. Pack a stack with `jax.vmap(packing.pack)(stack)`. Sums over many packed masks
(`dot`, `stacking.mix`, `superposition`) read the bits and never unpack a whole stack.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from maskjax._core import checks, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask

# What other modules share, and users should not need.
from maskjax.packing._bits import laid_as_bits as laid_as_bits
from maskjax.packing._bits import pack_leaf as pack_leaf
from maskjax.packing._bits import population as population
from maskjax.packing._bits import spec_of_bits as spec_of_bits
from maskjax.packing._bits import unpack_leaf as unpack_leaf
from maskjax.packing._bits import valid_bits as valid_bits
from maskjax.packing._sums import dot_leaf as dot_leaf
from maskjax.packing._sums import mix_leaf as mix_leaf
from maskjax.packing._sums import tally_leaf as tally_leaf
from maskjax.packing._totals import kept_as as kept_as
from maskjax.packing._totals import kept_by_leaf as kept_by_leaf
from maskjax.packing._totals import total as total

__all__ = ["PackedMask", "dot", "pack", "unpack"]


def pack(mask: Mask) -> Mask:
    """Store a mask with one bit an entry.

    The bits are sharded as the mask is (`PackedMask` says how they lie). If a device
    has no multiple of 32 entries of the packed axis, that axis is gathered; a mask that
    is packed as one run is gathered as a whole.

    Args:
        mask: Tree of boolean or packed leaves, or `None`. Packed leaves are returned as
            they are. For a stack use `jax.vmap(packing.pack)`.

    Returns:
        The same mask, every leaf a `PackedMask`: a bit of 1 keeps.

    Raises:
        TypeError: If a leaf is not boolean.

    Example:
        >>> stack = {"w": jnp.ones((3, 40), bool)}
        >>> jax.vmap(packing.pack)(stack)["w"].bits.shape
        (3, 2)
    """
    checks.boolean(mask, fn="maskjax.packing.pack")
    return trees.map_mask(pack_leaf, mask)


def unpack(mask: Mask) -> Mask:
    """Undo `pack`.

    Masks are sharded as their bits are. If the packed axis has no multiple of 32
    entries, or the mask is packed as one run, sharded bits are gathered.

    Args:
        mask: Tree of `PackedMask`, boolean leaves or `None`. The leaves of a packed
            stack of K masks become [K, ...]. Boolean leaves are returned as they are.

    Returns:
        The same mask, every leaf boolean: True keeps.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the bits of a leaf do not fit its shape.

    Example:
        >>> mask = {"w": jnp.array([True, False, True])}
        >>> packing.unpack(packing.pack(mask))
        {'w': Array([ True, False,  True], dtype=bool)}
    """
    fn = "maskjax.packing.unpack"
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=None)
    return trees.map_mask(unpack_leaf, mask)


def dot(stack: Mask, tree: trees.Params) -> Array:
    """The inner product of each mask of a stack with a tree: sum(m_k * tree).

    If `tree` holds weights times their gradients at a mixed mask (`stacking.mix`), the
    result is the gradient of the loss with respect to the mixing coefficients. Every
    device reads the masks, or the entries, that it has; K numbers are added up. `tree`
    is gathered where `pack` would gather a mask of its shapes, and from mesh axes that
    hold masks.

    Args:
        stack: A packed stack of K masks.
        tree: Tree of floating leaves with the masks' structure. A mask's axis of length
            1 stands for all entries along it. Leaves without a mask are ignored.

    Returns:
        [K], float32, or float64 if a leaf is. Beside the result it needs memory for the
        words of 16 masks.

    Raises:
        TypeError: If a leaf of the stack is not packed.
        ValueError: If structures or shapes differ, or bits do not fit their shape.

    Example:
        >>> stack = {"w": jnp.array([[True, True], [True, False]])}
        >>> packing.dot(jax.vmap(packing.pack)(stack), {"w": jnp.array([3.0, 4.0])})
        Array([7., 3.], dtype=float32)

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3: the gradient of the "One-Shot"
        algorithm.
    """
    fn = "maskjax.packing.dot"
    checks.packed_stack(stack, fn=fn)
    pairs = checks.shaped_like(tree, stack, fn=fn, names=("tree", "stack"))
    checks.floating_where_masked(pairs, tree, fn=fn, name="tree")
    chosen = [values for values, m in pairs if m is not None]
    checks.together(fn=fn, stack=stack, tree=chosen)
    sums = [dot_leaf(m, values) for values, m in pairs if m is not None]
    wide = any(s.dtype == jnp.float64 for s in sums)
    dtype = jnp.dtype("float64" if wide else "float32")
    return functools.reduce(jnp.add, [s.astype(dtype) for s in sums])
