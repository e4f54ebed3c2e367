"""Masks as sets of kept entries: unions, intersections, counts.

Leaves are boolean, packed or `None`; results of packed leaves are packed. Masks that
are combined have the same structure and shapes, and `None` at the same leaves. Of
random masks `expected_count` and `expected_density` take the probabilities.

    >>> a = {"w": jnp.array([True, True, False])}
    >>> b = {"w": jnp.array([True, False, False])}
    >>> algebra.union(a, b)
    {'w': Array([ True,  True, False], dtype=bool)}
    >>> print(algebra.overlap(a, b))
    0.5
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params, Scores

__all__ = [
    "complement",
    "count",
    "density",
    "difference",
    "expected_count",
    "expected_density",
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
    return _combine(_minus, (a, b), fn="maskjax.algebra.difference")


def complement(m: Mask) -> Mask:
    """The mask that keeps what `m` removes; `None` leaves stay `None`.

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
    return trees.map_mask(_flip, m)


def count(m: Mask, params: Params | None = None) -> Array:
    """How many entries the mask keeps, exactly.

    Args:
        m: A mask.
        params: The parameters it is for. If given, a decision that several entries
            share (an axis of 1) counts once for each of them, and True and False may
            stand for whole leaves and subtrees. Parameters without a mask (`None`) are
            not counted.

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
    fn = "maskjax.algebra.count"
    *counted, size = _counted(m, params, fn=fn)
    wide = dtypes.wide_integers()
    if size >= 2**31 and not wide:
        raise ValueError(
            f"`{fn}` needs 64-bit integers to count {size} entries. Set "
            "`jax_enable_x64`."
        )
    return packing.total(*counted, jnp.dtype("int64" if wide else "int32"))


def density(m: Mask, params: Params | None = None) -> Array:
    """The fraction of the masked entries that the mask keeps.

    Args:
        m: A mask.
        params: The parameters it is for. If given, shared decisions count once for each
            parameter that they decide on.

    Returns:
        A float32 scalar in [0, 1]; nan if the mask covers nothing.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the mask does not fit `params`.

    Example:
        >>> print(algebra.density({"w": jnp.array([True, False]), "b": None}))
        0.5
    """
    *counted, size = _counted(m, params, fn="maskjax.algebra.density")
    with dtypes.counting(size):
        kept = packing.total(*counted, dtypes.counts(size))
        share = dtypes.ratio(kept, size, "float32")
    return share if size else jnp.float32(jnp.nan)


def expected_count(probabilities: Scores, params: Params | None = None) -> Array:
    """How many entries a random mask keeps on average.

    It is the sum of the probabilities, and differentiable: a term of a loss that asks
    for fewer. For the count of a mask see `count`.

    Args:
        probabilities: Tree of floating leaves, the probability that each entry is kept
            (`jax.nn.sigmoid` of logits, or `estimator.hard_concrete_probabilities`),
            `None` where a parameter is left alone.
        params: The parameters it is for. If given, a decision that several entries
            share (an axis of 1) counts once for each of them.

    Returns:
        A scalar, float32 or float64.

    Raises:
        TypeError: If a leaf is not floating.
        ValueError: If there is no leaf, the probabilities do not fit `params`, or one
            is outside [0, 1] or nan. Traced values are not looked at: of nan the result
            is nan.

    Example:
        >>> probabilities = {"w": jnp.array([[0.25, 1.0]])}
        >>> print(algebra.expected_count(probabilities))
        1.25
        >>> print(algebra.expected_count(probabilities, {"w": jnp.ones((4, 2))}))
        5.0
    """
    return _expected(probabilities, params, fn="maskjax.algebra.expected_count")[0]


def expected_density(probabilities: Scores, params: Params | None = None) -> Array:
    """The fraction of the entries that a random mask keeps on average.

    Args:
        probabilities: As for `expected_count`.
        params: The parameters it is for. If given, shared decisions count once for each
            parameter that they decide on.

    Returns:
        A scalar in [0, 1], float32 or float64, differentiable; nan if the leaves are
        all empty.

    Raises:
        TypeError: If a leaf is not floating.
        ValueError: If there is no leaf, the probabilities do not fit `params`, or one
            is outside [0, 1] or nan. Traced values are not looked at: of nan the result
            is nan.

    Example:
        >>> print(algebra.expected_density({"w": jnp.array([0.25, 1.0]), "b": None}))
        0.625
    """
    fn = "maskjax.algebra.expected_density"
    total, size = _expected(probabilities, params, fn=fn)
    return total / size if size else jnp.full_like(total, jnp.nan)


def overlap(a: Mask, b: Mask) -> Array:
    """The Jaccard index of two masks, |a and b| / |a or b|.

    Args:
        a: A mask.
        b: A mask of the same structure and shapes.

    Returns:
        A float32 scalar: 0 if they share nothing, 1 if they are equal, also if both
        keep nothing.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the masks differ in structure or shapes.

    Example:
        >>> a = {"w": jnp.array([True, True, False])}
        >>> print(algebra.overlap(a, {"w": jnp.array([False, True, True])}))
        0.33333334
    """
    fn = "maskjax.algebra.overlap"
    each = [_combine(op, (a, b), fn=fn) for op in (operator.and_, operator.or_)]
    (*both, size), (*either, _) = (_counted(m, None, fn=fn) for m in each)
    with dtypes.counting(size):
        dtype = dtypes.counts(size)
        return _jaccard(packing.total(*both, dtype), packing.total(*either, dtype))


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
    pair = functools.partial(_pair, op)
    return functools.reduce(lambda a, b: trees.map_mask(pair, a, b), masks)


@functools.partial(jax.jit, static_argnums=0)
def _pair(op: Callable, x: Array | PackedMask, y: Array | PackedMask) -> Any:
    if isinstance(x, PackedMask) and isinstance(y, PackedMask):
        return PackedMask(op(x.bits, y.bits), x.shape)
    return op(packing.unpack_leaf(x), packing.unpack_leaf(y))


def _minus(x: Array, y: Array) -> Array:
    return x & ~y


@jax.jit
def _flip(leaf: Array | PackedMask) -> Array | PackedMask:
    if isinstance(leaf, PackedMask):
        return PackedMask(leaf.bits ^ packing.valid_bits(leaf.shape), leaf.shape)
    return ~jnp.asarray(leaf)


def _counted(
    mask: Mask, params: Params | None, *, fn: str
) -> tuple[list[Any], tuple[int, ...], int]:
    """The leaves, how many entries share each of their decisions, and all entries."""
    if params is not None:
        mask = checks.spread(params, mask)
    _check(mask, fn=fn)
    checks.together(fn=fn, mask=mask)
    if params is None:
        found = checks.rows(mask, fn=fn, is_leaf=trees.is_mask_leaf)
        leaves = [(m, _unpacked_shape(m)) for (m,) in found if m is not None]
    else:
        pairs = checks.shaped_like(params, mask, fn=fn, names=("params", "mask"))
        leaves = [(m, np.shape(p)) for p, m in pairs if m is not None]
    size = sum(math.prod(shape) for _, shape in leaves)
    shared = tuple(
        math.prod(shape) // max(math.prod(_unpacked_shape(m)), 1) for m, shape in leaves
    )
    return [m for m, _ in leaves], shared, size


def _expected(
    probabilities: Scores, params: Params | None, *, fn: str
) -> tuple[Array, int]:
    """The sum of the probabilities of all entries, and how many entries there are."""
    checks.floating_scores(probabilities, fn=fn, name="probabilities")
    checks.together(fn=fn, probabilities=probabilities)
    checks.probabilities(probabilities, fn=fn, name="probabilities")
    whole = probabilities if params is None else params
    names = ("params", "probabilities")
    pairs = checks.shaped_like(whole, probabilities, fn=fn, names=names)
    found = [(p, math.prod(np.shape(w))) for w, p in pairs if p is not None]
    sums = [_sum(p) * (size / max(p.size, 1)) for p, size in found]
    return dtypes.total(sums), sum(size for _, size in found)


@jax.jit
def _sum(x: Array) -> Array:
    return jnp.sum(x, dtype=dtypes.at_least_float32(x.dtype))


@jax.jit
def _jaccard(both: Array, either: Array) -> Array:
    ratio = both.astype(jnp.float32) / jnp.maximum(either, 1).astype(jnp.float32)
    return jnp.where(either == 0, jnp.float32(1), ratio)


def _unpacked_shape(leaf: Array | PackedMask) -> tuple[int, ...]:
    """The shape of a leaf, for a packed stack with its members' axis."""
    if isinstance(leaf, PackedMask):
        return (*leaf.lead, *leaf.shape)
    return leaf.shape
