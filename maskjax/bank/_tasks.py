"""The masks of single tasks: written to a slot, and read from one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax import packing
from maskjax._core import checks, placement, rows, slots, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask
from maskjax.bank._bank import (
    MaskBank,
    capacity,
    packed_stack,
    require_bank,
    require_room,
)


def append(bank: MaskBank, mask: Mask) -> MaskBank:
    """The bank with one more mask.

    If tasks are on several devices, the new mask's bits go to all of them.

    Args:
        bank: The bank.
        mask: The new task's mask, packed or not, in the bank's shapes.

    Returns:
        The bank with `learned` one higher. Under `jit` a full bank cannot raise: its
        masks stay as they are, and `overflowed` is one higher.

    Raises:
        TypeError: If `bank` is not a bank, or a leaf is not a mask.
        ValueError: If the bank is full, or the mask does not fit it.

    Example:
        >>> tasks = bank.empty({"w": jnp.ones((1, 2))}, capacity=2)
        >>> bank.append(tasks, {"w": jnp.array([[True, False]])}).counts["w"]
        Array([[1, 0]], dtype=int32)
    """
    fn = "maskjax.bank.append"
    packed = _fitting(bank, mask, fn)
    require_room(bank, 1, fn=fn)
    return _append(bank, packed)


def extend(bank: MaskBank, stack: Mask) -> MaskBank:
    """The bank with the masks of a stack appended, in order.

    If tasks are on several devices, the new masks' bits are gathered there.

    Args:
        bank: The bank.
        stack: A stack of K masks, packed or not.

    Returns:
        The bank with `learned` higher by K. Under `jit` masks that do not fit in are
        dropped and counted in `overflowed`.

    Raises:
        TypeError: If `bank` is not a bank, or a leaf is not a mask.
        ValueError: If there is no room for K masks, or they do not fit the bank.

    Example:
        >>> tasks = bank.empty({"w": jnp.ones((1, 1))}, capacity=2)
        >>> bank.extend(tasks, {"w": jnp.ones((2, 1, 1), bool)}).learned
        Array(2, dtype=int32)
    """
    fn = "maskjax.bank.extend"
    require_bank(bank, fn=fn)
    checks.boolean(stack, fn=fn, name="stack")
    members = checks.members(stack, fn=fn)
    packed = packed_stack(stack)
    checks.packed_stack(packed, fn=fn)
    checks.same_shapes(bank.masks, packed, fn=fn, names=("bank", "mask"))
    checks.together(fn=fn, bank=bank, stack=packed)
    require_room(bank, members, fn=fn)
    return _extend(bank, packed)


def put(bank: MaskBank, task: ArrayLike, mask: Mask) -> MaskBank:
    """The bank with a learned task's mask replaced.

    If tasks are on several devices, the old and the new mask's bits go to all of them.

    Args:
        bank: The bank.
        task: The task's index, an integer; negative ones count from the last learned.
        mask: The new mask, packed or not.

    Returns:
        The bank. Under `jit`, if the task is not learned, it is returned as it was.

    Raises:
        TypeError: If `bank` is not a bank, the task is not an integer, or a leaf is not
            a mask.
        ValueError: If the task is not learned, or the mask does not fit the bank.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.ones((1, 1, 2), bool)})
        >>> bank.put(tasks, 0, {"w": jnp.array([[True, False]])}).counts["w"]
        Array([[1, 0]], dtype=int32)
    """
    fn = "maskjax.bank.put"
    packed = _fitting(bank, mask, fn)
    index, exists = _slot(bank, task, fn)
    return _put(bank, packed, index, exists)


def take(bank: MaskBank, task: ArrayLike) -> Mask:
    """The mask of a learned task.

    If tasks are on several devices, its bits go to all of them.

    Args:
        bank: The bank.
        task: The task's index, an integer; negative ones count from the last learned.

    Returns:
        A packed mask. Under `jit`, if the task is not learned, it keeps nothing.

    Raises:
        TypeError: If `bank` is not a bank, or the task is not an integer.
        ValueError: If the task is not learned.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[[True]], [[False]]])})
        >>> packing.unpack(bank.take(tasks, -1))
        {'w': Array([[False]], dtype=bool)}
    """
    fn = "maskjax.bank.take"
    require_bank(bank, fn=fn)
    checks.together(fn=fn, bank=bank, task=task)
    index, exists = _slot(bank, task, fn)
    return _take(bank.masks, index, exists)


def _fitting(bank: MaskBank, mask: Mask, fn: str) -> Mask:
    """The mask, packed, after a check that it fits this bank."""
    require_bank(bank, fn=fn)
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    checks.same_shapes(bank.masks, mask, fn=fn, names=("bank", "mask"))
    checks.together(fn=fn, bank=bank, mask=mask)
    return packing.pack(mask)


def _slot(bank: MaskBank, task: ArrayLike, fn: str) -> tuple[Array, Array]:
    """A task's slot, and whether it is learned."""
    index, exists = slots.find(task, bank.learned, capacity(bank), fn=fn)
    return jnp.where(exists, index, 0).astype(jnp.int32), exists


@jax.jit
def _take(masks: Mask, index: Array, exists: Array) -> Mask:
    def leaf(packed: PackedMask) -> PackedMask:
        bits = rows.read(packed.bits, index)
        return PackedMask(jnp.where(exists, bits, jnp.uint32(0)), packed.shape)

    return trees.map_mask(leaf, masks)


@jax.jit
def _put(bank: MaskBank, packed: Mask, index: Array, exists: Array) -> MaskBank:
    def bits(leaf: PackedMask, old: Array, new: PackedMask) -> PackedMask:
        own = placement.place(new.bits, placement.spec_of(old), like=old)
        kept = jnp.where(exists, own, old)
        return PackedMask(rows.written(leaf.bits, kept, index), leaf.shape)

    def counted(count: Array, old: Array, new: PackedMask) -> Array:
        before = packing.unpack_leaf(PackedMask(old, new.shape)).astype(jnp.int32)
        gain = packing.unpack_leaf(new).astype(jnp.int32) - before
        return count + jnp.where(exists, gain, 0)

    # Always 1, which XLA can't know. On CPU it repeats a cheap read wherever its value
    # is used, also after the write, so that it copies the bank. It divides only once.
    one = jnp.where(bank.learned < 0, jnp.uint32(2), jnp.uint32(1))
    old = trees.map_mask(lambda leaf: rows.read(leaf.bits, index) // one, bank.masks)
    return bank._replace(
        masks=trees.map_mask(bits, bank.masks, old, packed),
        counts=trees.map_mask(counted, bank.counts, old, packed),
    )


@jax.jit
def _append(bank: MaskBank, packed: Mask) -> MaskBank:
    room = capacity(bank) - bank.learned

    def counted(count: Array, new: PackedMask) -> Array:
        gain = packing.unpack_leaf(new).astype(jnp.int32)
        return count + jnp.where(room > 0, gain, 0)

    counts = trees.map_mask(counted, bank.counts, packed)
    return _inserted(bank, jax.tree.map(lambda bits: bits[None], packed), counts)


@jax.jit
def _extend(bank: MaskBank, packed: Mask) -> MaskBank:
    room = capacity(bank) - bank.learned

    def gathered(leaf: PackedMask, new: PackedMask) -> PackedMask:
        return PackedMask(rows.whole(new.bits, leaf.bits), new.shape)

    def counted(count: Array, new: PackedMask) -> Array:
        return count + packing.tally_leaf(new, room)

    # Bits travel as they must; then every device counts by itself.
    packed = trees.map_mask(gathered, bank.masks, packed)
    return _inserted(bank, packed, trees.map_mask(counted, bank.counts, packed))


def _inserted(bank: MaskBank, packed: Mask, counts: Any) -> MaskBank:
    """The bank with new masks behind those learned, as far as there is room."""
    many = jax.tree.leaves(packed)[0].shape[0]
    fitting = jnp.clip(capacity(bank) - bank.learned, 0, many)

    def bits(leaf: PackedMask, new: PackedMask) -> PackedMask:
        return PackedMask(rows.inserted(leaf.bits, new.bits, bank.learned), leaf.shape)

    return MaskBank(
        trees.map_mask(bits, bank.masks, packed),
        counts,
        learned=bank.learned + fitting,
        overflowed=bank.overflowed + (many - fitting),
    )
