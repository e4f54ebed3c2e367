"""Stacks of masks: made, taken apart, and summed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax import packing
from maskjax._core import checks, placement, rows, slots, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params, SoftMask


def stack(masks: Sequence[Mask]) -> Mask:
    """Stack several masks into one tree.

    Args:
        masks: K >= 1 masks of the same structure, shapes and dtypes, packed or not.

    Returns:
        A stack: a mask whose every leaf has one more, leading axis K. One mask is not a
        stack: where no parameters tell, its first axis is taken for K.

    Raises:
        TypeError: If a leaf is neither an array nor None, as activation functions of
            Equinox modules are. Stack `eqx.filter(module, eqx.is_array)`.
        ValueError: If there is no mask, or two differ in structure, shape or dtype. The
            message lists every bad leaf.

    Example:
        >>> stacking.stack([{"w": jnp.array([True])}, {"w": jnp.array([False])}])
        {'w': Array([[ True],
               [False]], dtype=bool)}
    """
    fn = "maskjax.stacking.stack"
    masks = list(masks)
    if not masks:
        raise ValueError(f"`{fn}` needs at least one mask, got none.")
    if not all(map(checks.shaped, checks.flat(masks[0], fn=fn)[0])):
        named = trees.mask_leaves(masks[0])[0]
        wrong = [
            f"{p}: {checks.kind_of(x)}"
            for p, x in named
            if x is not None and not checks.shaped(x)
        ]
        needs = f"`{fn}` needs every leaf to be an array or None (of an Equinox module "
        needs += "take `eqx.filter(module, eqx.is_array)`)"
        raise checks.listing(wrong, needs, TypeError)
    for i, mask in enumerate(masks[1:], start=1):
        names = ("mask 0", f"mask {i}")
        checks.same_shapes(masks[0], mask, fn=fn, names=names)
        checks.same_kinds(masks[0], mask, fn=fn, names=names)
    checks.together(fn=fn, masks=masks)
    return _stack(masks)


@jax.jit
def _stack(masks: list[Mask]) -> Mask:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks)


def unstack(stack: Mask) -> list[Mask]:
    """Undo `stack`.

    Args:
        stack: A stack of K masks.

    Returns:
        A list of K masks.

    Raises:
        ValueError: If the leaves disagree about K.

    Example:
        >>> stacking.unstack({"w": jnp.array([[True], [False]])})[1]
        {'w': Array([False], dtype=bool)}
    """
    fn = "maskjax.stacking.unstack"
    k = checks.members(stack, fn=fn)
    checks.together(fn=fn, stack=stack)
    return _unstacked(stack, k)


@functools.partial(jax.jit, static_argnames="k")
def _unstacked(stack: Mask, k: int) -> list[Mask]:
    return [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(k)]


def take(stack: Mask, i: ArrayLike) -> Mask:
    """One mask of a stack.

    Args:
        stack: A stack of K masks.
        i: An integer in [-K, K), or an array of integers, whose shape then leads the
            leaves' shapes. Traced indices are clipped to that range.

    Returns:
        A mask, or a stack of them where `i` has axes.

    Raises:
        TypeError: If `i` is not an integer.
        ValueError: If an index is known to be out of range, or the leaves disagree
            about K.

    Example:
        >>> stacking.take({"w": jnp.array([[True], [False]])}, -1)
        {'w': Array([False], dtype=bool)}
    """
    fn = "maskjax.stacking.take"
    k = checks.members(stack, fn=fn)
    checks.together(fn=fn, stack=stack, i=i)
    if not jnp.issubdtype(jnp.result_type(i), jnp.integer):
        raise TypeError(f"`{fn}` needs `i` as an integer, got {checks.kind_of(i)}.")
    slots.in_range(i, k, fn=fn, name="i")
    return _take(stack, jnp.asarray(i), k)


@functools.partial(jax.jit, static_argnums=2)
def _take(stack: Mask, index: Array, k: int) -> Mask:
    if index.dtype.itemsize < 4:  # K may be more than it holds
        index = index.astype(jnp.int32)
    index = jnp.where(index < 0, index + k, index)
    return jax.tree.map(lambda leaf: rows.read(leaf, index), stack)


def size(stack: Mask) -> int:
    """How many masks a stack holds.

    Args:
        stack: A stack of K masks.

    Returns:
        K, a Python integer.

    Raises:
        ValueError: If the leaves disagree about K, or there is none.

    Example:
        >>> stacking.size({"w": jnp.ones((5, 2, 3), bool)})
        5
    """
    return checks.members(stack, fn="maskjax.stacking.size")


def mix(stack: Mask, coefficients: Array) -> SoftMask:
    """The weighted sum of a stack's masks: sum(coefficients[k] * m_k).

    Masks on several devices are read there, and a sum of one mask's shape travels. On
    an Auto mesh, bits of fewer than 32 masks a device are gathered instead.

    Args:
        stack: A stack of K masks. Packed leaves are never unpacked as a whole.
        coefficients: [K], floating.

    Returns:
        A soft mask with one mask's shapes, in the dtype of `coefficients`.

    Raises:
        TypeError: If the coefficients are not floating, or a leaf is not a mask.
        ValueError: If there are not K coefficients, or the leaves disagree about K.

    Example:
        >>> stack = {"w": jnp.array([[True, True], [True, False]])}
        >>> stacking.mix(stack, jnp.array([0.25, 0.5]))
        {'w': Array([0.75, 0.25], dtype=float32)}

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3, equation 2.
    """
    fn = "maskjax.stacking.mix"
    checks.boolean(stack, fn=fn, name="stack")
    checks.coefficients(coefficients, stack, fn=fn)
    checks.packed(stack, fn=fn, stacked=True)
    checks.beside(stack, fn=fn, name="stack", coefficients=coefficients)
    return trees.map_mask(lambda leaf: _mix_leaf(leaf, coefficients), stack)


def _mix_leaf(leaf: Array | PackedMask, coefficients: Array) -> Array:
    if isinstance(leaf, PackedMask):
        return packing.mix_leaf(leaf, coefficients)
    return rows.mixed(leaf, coefficients)


def counts(stack: Mask, members: Array | None = None) -> Params:
    """How many of a stack's masks keep each entry.

    Divided by the number of masks, it is the mean mask. `bank.mean` has that of a bank.

    Masks on several devices: fewer than 64 masks are gathered if they are packed, and
    each device counts them. That moves their bits. Of more masks, sums of one mask's
    shape travel. On an Auto mesh it is as in `mix`.

    Args:
        stack: A stack of K masks, fewer than 2**24. Packed leaves are never unpacked as
            a whole.
        members: [K], boolean, may be traced: which masks to count. `None`: all.

    Returns:
        int32, exact, with one mask's shapes; `None` where the stack has `None`.

    Raises:
        TypeError: If a leaf is not a mask, or `members` is not boolean.
        ValueError: If the leaves disagree about K, or `members` is not of shape [K].

    Example:
        >>> stack = {"w": jnp.array([[True, True], [True, False]])}
        >>> stacking.counts(stack)
        {'w': Array([2, 1], dtype=int32)}
        >>> stacking.counts(stack, jnp.array([True, False]))
        {'w': Array([1, 1], dtype=int32)}
    """
    fn = "maskjax.stacking.counts"
    checks.boolean(stack, fn=fn, name="stack")
    size = checks.members(stack, fn=fn)
    checks.packed(stack, fn=fn, stacked=True)
    if members is not None:
        checks.flags(members, size, fn=fn, name="members")
        checks.beside(stack, fn=fn, name="stack", members=members)
        members = jnp.asarray(members)
    return trees.map_mask(lambda leaf: _counted(leaf, members), stack)


# Bits of fewer masks are fewer bytes than a sum over devices, which moves a float of
# each entry twice.
_FEW = 64


@jax.jit
def _counted(leaf: Array | PackedMask, members: Array | None) -> Array:
    if not isinstance(leaf, PackedMask):
        if members is not None:
            row = placement.spec_of(leaf)[:1]
            members = placement.place(members, row, like=leaf)
            leaf &= placement.lead(members, leaf)
        return jnp.sum(leaf, axis=0, dtype=jnp.int32)
    size = leaf.bits.shape[0]
    # float32 holds whole numbers exactly up to 2**24 masks.
    each = jnp.ones(size, jnp.float32)
    if members is not None:
        each = members.astype(jnp.float32)
    if size < _FEW and placement.explicit(leaf.bits):
        leaf = PackedMask(placement.gathered(leaf.bits, 0), leaf.shape)
        each = placement.place(each, (None,), like=leaf.bits)
    return packing.mix_leaf(leaf, each).astype(jnp.int32)
