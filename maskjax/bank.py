"""Masks of many tasks, one bit an entry, in a fixed space that fills up.

    >>> params = {"w": jnp.ones((2, 2))}
    >>> tasks = bank.empty(params, capacity=3)
    >>> bank.append(tasks, {"w": jnp.array([[True, False], [True, True]])}).learned
    Array(1, dtype=int32)

A bank is a pytree of fixed shapes: it goes through `jit` and the carry of a scan, and
appending compiles once. Where it is large donate it: appending then writes in place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maskjax import packing
from maskjax._core import checks, slots, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params, Predicate, SoftMask
from maskjax.where import kernels

__all__ = [
    "MaskBank",
    "append",
    "capacity",
    "empty",
    "extend",
    "from_stack",
    "grow",
    "is_used",
    "mean",
    "put",
    "take",
]


class MaskBank(NamedTuple):
    """Masks of the tasks learned so far; a pytree.

    Attributes:
        masks: A packed stack [C, ...]; the slots not learned yet hold no bit.
        counts: int32 in one mask's shapes: how many of the masks keep each entry.
            Divided by `learned` they are the masks' mean, which need not be computed.
        learned: int32, how many slots are.
        refused: int32, how many masks came under `jit` when the bank was full.
    """

    masks: Mask
    counts: Any
    learned: Array
    refused: Array


def empty(params: Params, *, capacity: int, where: Predicate = kernels) -> MaskBank:
    """A bank without a mask.

    Args:
        params: Tree of arrays, of which only the shapes are looked at.
        capacity: C, how many tasks there will be room for.
        where: Which leaves carry a mask.

    Returns:
        The bank.

    Raises:
        TypeError: If a chosen leaf is not floating, or the capacity no whole number.
        ValueError: If the capacity is below 1, or `where` chooses nothing.

    Example:
        >>> tasks = bank.empty({"w": jnp.ones((4, 8))}, capacity=2500)
        >>> tasks.masks["w"].nbytes
        10000
    """
    fn = "maskjax.bank.empty"
    checks.at_least(capacity, 1, fn=fn, name="capacity")
    leaves = checks.chosen_leaves(params, where, fn=fn)

    def bits(leaf: Array) -> PackedMask:
        words = PackedMask.words(leaf.shape)
        return PackedMask(jnp.zeros((capacity, words), jnp.uint32), leaf.shape)

    return MaskBank(
        trees.map_mask(bits, leaves),
        trees.map_mask(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), leaves),
        jnp.int32(0),
        jnp.int32(0),
    )


def from_stack(
    stack: Mask, *, capacity: int | None = None, learned: Array | None = None
) -> MaskBank:
    """A bank that begins with the masks of a stack.

    Args:
        stack: A stack of K masks, packed or not.
        capacity: C, at least K. `None`: K.
        learned: How many of the K count, clipped to that where traced; others are
            cleared. `None`: all do.

    Returns:
        The bank.

    Raises:
        TypeError: If a leaf is no mask, or `learned` no integer.
        ValueError: If there are more masks than room, none, or not `learned` of them.

    Example:
        >>> stack = {"w": jnp.array([[[True]], [[False]]])}
        >>> bank.from_stack(stack).counts
        {'w': Array([[1]], dtype=int32)}
    """
    fn = "maskjax.bank.from_stack"
    checks.boolean(stack, fn=fn, name="stack")
    members = checks.members(stack, fn=fn)
    size = members if capacity is None else capacity
    checks.at_least(size, members, fn=fn, name="capacity")
    packed = _packed_stack(stack)
    checks.packed_stack(packed, fn=fn)
    used = jnp.asarray(members if learned is None else learned)
    checks.counter(used, members, fn=fn, name="learned")
    used = jnp.clip(used, 0, members).astype(jnp.int32)
    room = ((0, size - members), (0, 0))

    def filled(leaf: PackedMask) -> PackedMask:
        bits = leaf.bits
        if learned is not None:
            bits = jnp.where(
                jnp.arange(members, dtype=jnp.int32)[:, None] < used,
                bits,
                jnp.uint32(0),
            )
        return PackedMask(jnp.pad(bits, room), leaf.shape)

    masks = trees.map_mask(filled, packed)
    counts = trees.map_mask(lambda m: packing.tally_leaf(m, used), masks)
    return MaskBank(masks, counts, used, jnp.int32(0))


def append(bank: MaskBank, mask: Mask) -> MaskBank:
    """The bank with one more mask.

    Args:
        bank: The bank.
        mask: The new task's, packed or not, of the bank's shapes.

    Returns:
        The bank, `learned` one higher. Where `learned` is traced a full bank can't be
        an error: it stays as it is, and `refused` is one higher.

    Raises:
        TypeError: If a leaf is no mask.
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
        The bank, `learned` higher by K. Where `learned` is traced, the masks that there
        is no room for are counted in `refused`.

    Raises:
        TypeError: If a leaf is no mask.
        ValueError: If there is no room for K, or the masks do not fit the bank.

    Example:
        >>> tasks = bank.empty({"w": jnp.ones((1, 1))}, capacity=2)
        >>> bank.extend(tasks, {"w": jnp.ones((2, 1, 1), bool)}).learned
        Array(2, dtype=int32)
    """
    fn = "maskjax.bank.extend"
    checks.boolean(stack, fn=fn, name="stack")
    members = checks.members(stack, fn=fn)
    packed = _packed_stack(stack)
    checks.packed_stack(packed, fn=fn)
    _fitting(bank, jax.tree.map(lambda bits: bits[0], packed), fn)
    require_room(bank, members, fn=fn)
    return lax.scan(lambda b, mask: (_append(b, mask), None), bank, packed)[0]


def grow(bank: MaskBank, capacity: int) -> MaskBank:
    """The bank with more room.

    Args:
        bank: The bank.
        capacity: C, at least what it is.

    Returns:
        The bank, with empty slots behind its masks.

    Example:
        >>> bank.capacity(bank.grow(bank.from_stack(jnp.ones((2, 1), bool)), 5))
        5
    """
    size = checks.members(bank.masks, fn="maskjax.bank.grow")
    checks.at_least(capacity, size, fn="maskjax.bank.grow", name="capacity")
    room = ((0, capacity - size), (0, 0))
    masks = jax.tree.map(lambda bits: jnp.pad(bits, room), bank.masks)
    return bank._replace(masks=masks)


def put(bank: MaskBank, task: ArrayLike, mask: Mask) -> MaskBank:
    """The bank with a learned task's mask replaced.

    Args:
        bank: The bank.
        task: Which, an integer; negative ones count from the last learned.
        mask: The new mask, packed or not.

    Returns:
        The bank. Where `task` or `learned` is traced, and the task is not learned, it
        is the bank as it was.

    Raises:
        TypeError: If the task is no integer, or a leaf no mask.
        ValueError: If the task is not learned, or the mask does not fit the bank.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.ones((1, 1, 2), bool)})
        >>> bank.put(tasks, 0, {"w": jnp.array([[True, False]])}).counts["w"]
        Array([[1, 0]], dtype=int32)
    """
    fn = "maskjax.bank.put"
    packed = _fitting(bank, mask, fn)
    index, exists = _slot(bank, task, fn)
    return bank._replace(**_write(bank, packed, index, exists))


def take(bank: MaskBank, task: ArrayLike) -> Mask:
    """The mask of a learned task.

    Args:
        bank: The bank.
        task: Which, an integer; negative ones count from the last learned.

    Returns:
        A packed mask. Where `task` or `learned` is traced, and the task is not learned,
        it is the mask that keeps nothing.

    Raises:
        TypeError: If the task is no integer.
        ValueError: If the task is not learned.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[[True]], [[False]]])})
        >>> packing.unpack(bank.take(tasks, -1))
        {'w': Array([[False]], dtype=bool)}
    """
    index, exists = _slot(bank, task, "maskjax.bank.take")
    nothing = jnp.uint32(0)

    def leaf(packed: PackedMask) -> PackedMask:
        bits = lax.dynamic_index_in_dim(packed.bits, index, keepdims=False)
        return PackedMask(jnp.where(exists, bits, nothing), packed.shape)

    return trees.map_mask(leaf, bank.masks)


def capacity(bank: MaskBank) -> int:
    """How many tasks there is room for.

    Args:
        bank: The bank.

    Returns:
        C, a Python integer.

    Example:
        >>> bank.capacity(bank.empty({"w": jnp.ones((1, 1))}, capacity=7))
        7
    """
    return checks.members(bank.masks, fn="maskjax.bank.capacity")


def is_used(bank: MaskBank) -> Array:
    """Which slots hold a learned task's mask.

    Args:
        bank: The bank.

    Returns:
        [C], boolean.

    Example:
        >>> bank.is_used(bank.empty({"w": jnp.ones((1, 1))}, capacity=2))
        Array([False, False], dtype=bool)
    """
    return jnp.arange(capacity(bank), dtype=jnp.int32) < bank.learned


def mean(bank: MaskBank) -> SoftMask:
    """The mean of the learned masks, from their counts.

    Args:
        bank: The bank.

    Returns:
        A soft mask, float32; of an empty bank 0.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[True, True], [True, False]])})
        >>> bank.mean(tasks)
        {'w': Array([1. , 0.5], dtype=float32)}
    """
    many = jnp.maximum(bank.learned, 1).astype(jnp.float32)
    return trees.map_mask(lambda count: count.astype(jnp.float32) / many, bank.counts)


def _packed_stack(stack: Mask) -> Mask:
    """A stack with its boolean leaves packed; a packed leaf has its K already."""
    return trees.map_mask(
        lambda m: m if isinstance(m, PackedMask) else jax.vmap(packing.pack)(m), stack
    )


def _fitting(bank: MaskBank, mask: Mask, fn: str) -> Mask:
    """The mask, packed, if it is one of this bank's."""
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    checks.same_shapes(bank.masks, mask, fn=fn, names=("bank", "mask"))
    return packing.pack(mask)


def require_room(bank: MaskBank, wanted: int, *, fn: str) -> None:
    """Complain if there is no room, as far as that is known."""
    hint = " `bank.grow` makes room."
    slots.require_room(bank.learned, capacity(bank), wanted, fn=fn, hint=hint)


def require_bank(bank: object, *, fn: str) -> None:
    """Raise if something else, such as a raw stack, is passed as a bank."""
    if not isinstance(bank, MaskBank):
        raise TypeError(
            f"`{fn}` needs `bank` as a bank, got {type(bank).__name__}. Of a stack of "
            "masks write `bank.from_stack(stack)`."
        )


def _slot(bank: MaskBank, task: ArrayLike, fn: str) -> tuple[Array, Array]:
    """Where a task is, and whether it is learned."""
    index, exists = slots.find(task, bank.learned, capacity(bank), fn=fn)
    return jnp.where(exists, index, 0).astype(jnp.int32), exists


def _append(bank: MaskBank, packed: Mask) -> MaskBank:
    free = bank.learned < capacity(bank)
    return MaskBank(
        **_write(bank, packed, bank.learned, free),
        learned=bank.learned + free.astype(jnp.int32),
        refused=bank.refused + (~free).astype(jnp.int32),
    )


def _write(bank: MaskBank, packed: Mask, index: Array, allowed: Array) -> Any:
    """Masks and counts with one slot's bits replaced, if that is allowed."""

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
