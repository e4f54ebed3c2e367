"""The masks of single tasks: written to a slot, and read from one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maskjax import packing
from maskjax._core import checks, slots, trees
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
    _fitting(bank, jax.tree.map(lambda bits: bits[0], packed), fn)
    require_room(bank, members, fn=fn)
    return _extend(bank, packed)


def put(bank: MaskBank, task: ArrayLike, mask: Mask) -> MaskBank:
    """The bank with a learned task's mask replaced.

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
    index, exists = _slot(bank, task, fn)
    return _take(bank.masks, index, exists)


def _fitting(bank: MaskBank, mask: Mask, fn: str) -> Mask:
    """The mask, packed, after a check that it fits this bank."""
    require_bank(bank, fn=fn)
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    checks.same_shapes(bank.masks, mask, fn=fn, names=("bank", "mask"))
    return packing.pack(mask)


def _slot(bank: MaskBank, task: ArrayLike, fn: str) -> tuple[Array, Array]:
    """A task's slot, and whether it is learned."""
    index, exists = slots.find(task, bank.learned, capacity(bank), fn=fn)
    return jnp.where(exists, index, 0).astype(jnp.int32), exists


@jax.jit
def _take(masks: Mask, index: Array, exists: Array) -> Mask:
    def leaf(packed: PackedMask) -> PackedMask:
        bits = lax.dynamic_index_in_dim(packed.bits, index, keepdims=False)
        return PackedMask(jnp.where(exists, bits, jnp.uint32(0)), packed.shape)

    return trees.map_mask(leaf, masks)


@jax.jit
def _put(bank: MaskBank, packed: Mask, index: Array, exists: Array) -> MaskBank:
    return bank._replace(**_write(bank, packed, index, exists))


@jax.jit
def _append(bank: MaskBank, packed: Mask) -> MaskBank:
    size = next(iter(jax.tree.leaves(bank.masks))).shape[0]
    free = bank.learned < size
    return MaskBank(
        **_write(bank, packed, bank.learned, free),
        learned=bank.learned + free.astype(jnp.int32),
        overflowed=bank.overflowed + (~free).astype(jnp.int32),
    )


@jax.jit
def _extend(bank: MaskBank, packed: Mask) -> MaskBank:
    return lax.scan(lambda b, mask: (_append(b, mask), None), bank, packed)[0]


def _write(bank: MaskBank, packed: Mask, index: Array, allowed: Array) -> Any:
    """Masks and counts after one slot is overwritten, if that is allowed."""

    def bits(leaf: PackedMask, new: PackedMask) -> PackedMask:
        old = lax.dynamic_index_in_dim(leaf.bits, index, keepdims=False)
        kept = jnp.where(allowed, new.bits, old)
        written = lax.dynamic_update_index_in_dim(leaf.bits, kept, index, 0)
        return PackedMask(written, leaf.shape)

    def counts(count: Array, leaf: PackedMask, new: PackedMask) -> Array:
        old = lax.dynamic_index_in_dim(leaf.bits, index, keepdims=False)
        old = packing.unpack_leaf(PackedMask(old, leaf.shape))
        gain = packing.unpack_leaf(new).astype(jnp.int32) - old.astype(jnp.int32)
        return count + jnp.where(allowed, gain, 0)

    return {
        "masks": trees.map_mask(bits, bank.masks, packed),
        "counts": trees.map_mask(counts, bank.counts, bank.masks, packed),
    }
