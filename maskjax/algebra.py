"""Masks as sets of kept entries: unions, intersections, counts.

Leaves are boolean, packed (which stay packed), or `None`. Masks that are combined have
the same structure, the same leaves `None`, and the same shapes.

    >>> a = {"w": jnp.array([True, True, False])}
    >>> b = {"w": jnp.array([True, False, False])}
    >>> algebra.union(a, b)
    {'w': Array([ True,  True, False], dtype=bool)}
    >>> print(algebra.overlap(a, b))
    0.5
"""

import functools
import math
import operator
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params

__all__ = [
    "complement",
    "count",
    "density",
    "difference",
    "intersection",
    "overlap",
    "union",
]


def union(*masks: Mask) -> Mask:
    """What any of the masks keeps.

    Args:
        *masks: At least one mask, all of the same structure and shapes.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If no mask is given, or two differ in structure or shapes.

    Example:
        >>> algebra.union({"w": jnp.array([True, False])}, {"w": jnp.array([True] * 2)})
        {'w': Array([ True,  True], dtype=bool)}
    """
    return _combine(operator.or_, masks, fn="maskjax.algebra.union")


def intersection(*masks: Mask) -> Mask:
    """What all of the masks keep.

    Args:
        *masks: At least one mask, all of the same structure and shapes.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If no mask is given, or two differ in structure or shapes.

    Example:
        >>> a = {"w": jnp.array([True, False])}
        >>> algebra.intersection(a, {"w": jnp.array([True, True])})
        {'w': Array([ True, False], dtype=bool)}
    """
    return _combine(operator.and_, masks, fn="maskjax.algebra.intersection")


def difference(a: Mask, b: Mask) -> Mask:
    """What the first mask keeps and the second does not.

    Args:
        a: A mask.
        b: A mask of the same structure and shapes.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the masks differ in structure or shapes.

    Example:
        >>> a = {"w": jnp.array([True, True])}
        >>> algebra.difference(a, {"w": jnp.array([True, False])})
        {'w': Array([False,  True], dtype=bool)}
    """
    return _combine(lambda x, y: x & ~y, (a, b), fn="maskjax.algebra.difference")


def complement(m: Mask) -> Mask:
    """What the mask removes; leaves that are `None` stay so.

    Args:
        m: A mask.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.

    Example:
        >>> algebra.complement({"w": jnp.array([True, False]), "b": None})
        {'b': None, 'w': Array([False,  True], dtype=bool)}
    """
    _check(m, fn="maskjax.algebra.complement")

    def flip(leaf: Array | PackedMask) -> Array | PackedMask:
        if isinstance(leaf, PackedMask):
            bits = leaf.bits ^ packing.valid_bits(leaf.shape)
            return PackedMask(bits, leaf.shape)
        return ~leaf

    return trees.map_mask(flip, m)


def count(m: Mask, params: Params | None = None) -> Array:
    """How many entries the mask keeps, exactly.

    Args:
        m: A mask.
        params: The parameters it is for. With them, a decision that several entries
            share (an axis of 1) counts as many times. Parameters that are left alone
            (`None`) are not counted.

    Returns:
        An integer scalar: int32, or int64 under `jax_enable_x64`.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the mask does not fit `params`, or there are 2**31 entries or
            more and `jax_enable_x64` is off.

    Example:
        >>> print(algebra.count({"w": jnp.array([[True, False]])}))
        1
        >>> units = {"w": jnp.array([[True, False]])}
        >>> print(algebra.count(units, {"w": jnp.ones((5, 2))}))
        5
    """
    return _count_and_size(m, params, fn="maskjax.algebra.count")[0]


def density(m: Mask, params: Params | None = None) -> Array:
    """The fraction that the mask keeps of the parameters that it covers.

    Args:
        m: A mask.
        params: The parameters it is for, as in `count`. Parameters that are left alone
            (`None`) do not enter.

    Returns:
        A float32 scalar in [0, 1]; nan if the mask covers nothing.

    Raises:
        TypeError: As in `count`.
        ValueError: As in `count`.

    Example:
        >>> print(algebra.density({"w": jnp.array([True, False]), "b": None}))
        0.5
    """
    kept, size = _count_and_size(m, params, fn="maskjax.algebra.density")
    return kept.astype(jnp.float32) / size if size else jnp.float32(jnp.nan)


def overlap(a: Mask, b: Mask) -> Array:
    """The Jaccard index of two masks, |a and b| / |a or b|.

    Args:
        a: A mask.
        b: A mask of the same structure and shapes.

    Returns:
        A float32 scalar: 0 when they share nothing, 1 when they are equal (two masks
        that keep nothing included).

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the masks differ in structure or shapes.

    Example:
        >>> a = {"w": jnp.array([True, True, False])}
        >>> print(algebra.overlap(a, {"w": jnp.array([False, True, True])}))
        0.33333334
    """
    fn = "maskjax.algebra.overlap"
    both = count(_combine(operator.and_, (a, b), fn=fn))
    either = count(_combine(operator.or_, (a, b), fn=fn))
    ratio = both.astype(jnp.float32) / jnp.maximum(either, 1).astype(jnp.float32)
    return jnp.where(either == 0, jnp.float32(1), ratio)


def _check(mask: Mask, *, fn: str, name: str = "mask") -> None:
    checks.boolean(mask, fn=fn, name=name)
    checks.packed(mask, fn=fn, stacked=None)


def _combine(op: Callable, masks: tuple[Mask, ...], *, fn: str) -> Mask:
    if not masks:
        raise ValueError(f"`{fn}` needs at least one mask, got none.")
    for i, mask in enumerate(masks):
        _check(mask, fn=fn, name=f"mask {i}")
    for i, mask in enumerate(masks[1:], start=1):
        checks.same_shapes(masks[0], mask, fn=fn, names=("mask 0", f"mask {i}"))

    def pair(x: Array | PackedMask, y: Array | PackedMask) -> Array | PackedMask:
        if isinstance(x, PackedMask) and isinstance(y, PackedMask):
            return PackedMask(op(x.bits, y.bits), x.shape)
        return op(packing.unpack(x), packing.unpack(y))

    return functools.reduce(lambda a, b: trees.map_mask(pair, a, b), masks)


def _count_and_size(mask: Mask, params: Params | None, *, fn: str) -> tuple[Array, int]:
    _check(mask, fn=fn)
    if params is None:
        named, _ = trees.mask_leaves(mask)
        leaves = [
            (leaf, _unpacked_shape(leaf)) for _, leaf in named if leaf is not None
        ]
    else:
        pairs = checks.mask_of(mask, params, fn=fn, names=("params", "mask"))
        leaves = [(leaf, np.shape(p)) for _, p, leaf in pairs if leaf is not None]
    size = sum(math.prod(shape) for _, shape in leaves)
    wide = dtypes.wide_integers()
    if size >= 2**31 and not wide:
        raise ValueError(
            f"`{fn}` needs 64-bit integers to count {size} entries. Set "
            "`jax_enable_x64`."
        )
    dtype = jnp.dtype("int64" if wide else "int32")
    total = jnp.zeros((), dtype)
    for leaf, shape in leaves:
        if isinstance(leaf, PackedMask):
            kept = jnp.sum(packing.population(leaf), dtype=dtype)
        else:
            kept = jnp.sum(leaf, dtype=dtype)
        shared = math.prod(shape) // max(math.prod(_unpacked_shape(leaf)), 1)
        total += kept * shared
    return total, size


def _unpacked_shape(leaf: Array | PackedMask) -> tuple[int, ...]:
    """The shape of a leaf; of a packed stack, with its members' axis."""
    if isinstance(leaf, PackedMask):
        return (*leaf.bits.shape[:-1], *leaf.shape)
    return leaf.shape
