"""The state of a bank: its making, its size, and its mean."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import packing
from maskjax._core import checks, placement, slots, trees
from maskjax._core.packed import PackedMask
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Predicate, SoftMask
from maskjax.where import kernels


@stored("maskjax.bank.MaskBank")
class MaskBank(NamedTuple):
    """The masks of the tasks learned so far; a pytree.

    Attributes:
        masks: A packed stack of C slots; slots that are not used hold only zeros.
        counts: int32, in one mask's shapes: how many of the masks keep each entry.
            Divided by `learned` they are the mean of the masks.
        learned: int32, the number of tasks learned so far.
        overflowed: int32, how many masks were dropped under `jit` because the bank was
            full.
    """

    masks: Mask
    counts: Any
    learned: Array
    overflowed: Array


def empty(params: Params, *, capacity: int, where: Predicate = kernels) -> MaskBank:
    """A bank without a mask.

    Args:
        params: Tree of arrays; only their shapes are used, and where they are.
        capacity: C, the number of slots: how many tasks can be learned.
        where: Which leaves carry a mask.

    Returns:
        The bank.

    Raises:
        TypeError: If a chosen leaf is not floating, or the capacity is not a whole
            number.
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
        like = packing.spec_of_bits(leaf)
        shape = (capacity, *PackedMask.words(leaf.shape))
        words = placement.zeros(shape, jnp.uint32, leaf, spec=(None, *like))
        if placement.left_to_compiler(leaf):  # elsewhere its spec says it all
            words = placement.follow(words, packing.laid_as_bits(leaf))
        return PackedMask(words, leaf.shape)

    def count(leaf: Array) -> Array:
        return placement.zeros(leaf.shape, jnp.int32, leaf)

    masks, counts = trees.map_mask(bits, leaves), trees.map_mask(count, leaves)
    return MaskBank(masks, counts, jnp.int32(0), jnp.int32(0))


def from_stack(
    stack: Mask, *, capacity: int | None = None, learned: Array | None = None
) -> MaskBank:
    """A bank that starts with the masks of a stack.

    The bank is sharded as `packing.pack` shards the stack. Counts are sums as in
    `stacking.mix`, and more slots than K move masks as in `grow`.

    Args:
        stack: A stack of K masks, packed or not; of one, `stacking.stack([mask])`.
        capacity: C, the number of slots, at least K. `None` means K.
        learned: How many of the K masks are learned; the others are cleared. A traced
            number is clipped to [0, K]. `None` means all.

    Returns:
        The bank.

    Raises:
        TypeError: If a leaf is not a mask, or `learned` is not an integer.
        ValueError: If there is no mask, more masks than slots, or `learned` is outside
            [0, K].

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
    packed = packed_stack(stack)
    checks.packed_stack(packed, fn=fn)
    checks.together(fn=fn, stack=packed, learned=learned)
    used = jnp.asarray(members if learned is None else learned)
    checks.counter(used, members, fn=fn, name="learned")
    return _from_stack(packed, used, size, clear=learned is not None)


@functools.partial(jax.jit, static_argnums=2, static_argnames="clear")
def _from_stack(packed: Mask, used: Array, size: int, *, clear: bool) -> MaskBank:
    members = next(iter(jax.tree.leaves(packed))).shape[0]
    used = jnp.clip(used, 0, members).astype(jnp.int32)

    def filled(leaf: PackedMask) -> PackedMask:
        bits = leaf.bits
        if clear:
            learned = placement.lead(jnp.arange(members, dtype=jnp.int32) < used, bits)
            bits = jnp.where(learned, bits, jnp.uint32(0))
        return PackedMask(_longer(bits, size), leaf.shape)

    masks = trees.map_mask(filled, packed)
    counts = trees.map_mask(lambda m: packing.tally_leaf(m, used), masks)
    return MaskBank(masks, counts, used, jnp.int32(0))


def grow(bank: MaskBank, capacity: int) -> MaskBank:
    """The bank with more slots.

    If tasks are on several devices, masks move between them.

    Args:
        bank: The bank.
        capacity: C, the new number of slots, at least the present one.

    Returns:
        The bank, with empty slots behind its masks.

    Raises:
        TypeError: If `bank` is not a bank.
        ValueError: If the capacity is below the present one.

    Example:
        >>> bank.capacity(bank.grow(bank.from_stack(jnp.ones((2, 1), bool)), 5))
        5
    """
    fn = "maskjax.bank.grow"
    require_bank(bank, fn=fn)
    checks.at_least(capacity, checks.members(bank.masks, fn=fn), fn=fn, name="capacity")
    checks.together(fn=fn, bank=bank)
    # Copies, because a loop that donates the result must not take the old bank along.
    rest = jax.tree.map(jnp.copy, bank._replace(masks=None))
    return rest._replace(masks=_grown(bank.masks, capacity))


@functools.partial(jax.jit, static_argnums=1)
def _grown(masks: Mask, capacity: int) -> Mask:
    return jax.tree.map(lambda bits: _longer(bits, capacity), masks)


def _longer(bits: Array, size: int) -> Array:
    """The words of a stack with zeros behind them."""
    return jnp.pad(bits, [(0, size - bits.shape[0])] + [(0, 0)] * (bits.ndim - 1))


def capacity(bank: MaskBank) -> int:
    """The number of slots: how many tasks can be learned.

    Args:
        bank: The bank.

    Returns:
        C, a Python integer.

    Raises:
        TypeError: If `bank` is not a bank.

    Example:
        >>> bank.capacity(bank.empty({"w": jnp.ones((1, 1))}, capacity=7))
        7
    """
    fn = "maskjax.bank.capacity"
    require_bank(bank, fn=fn)
    return checks.members(bank.masks, fn=fn)


def is_used(bank: MaskBank) -> Array:
    """Which slots hold the mask of a learned task.

    Args:
        bank: The bank.

    Returns:
        [C], boolean.

    Example:
        >>> bank.is_used(bank.empty({"w": jnp.ones((1, 1))}, capacity=2))
        Array([False, False], dtype=bool)
    """
    require_bank(bank, fn="maskjax.bank.is_used")
    return jnp.arange(capacity(bank), dtype=jnp.int32) < bank.learned


def mean(bank: MaskBank) -> SoftMask:
    """The mean of the learned masks, from their counts.

    Args:
        bank: The bank.

    Returns:
        A soft mask, float32; all 0 if nothing is learned.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[True, True], [True, False]])})
        >>> bank.mean(tasks)
        {'w': Array([1. , 0.5], dtype=float32)}
    """
    require_bank(bank, fn="maskjax.bank.mean")
    checks.together(fn="maskjax.bank.mean", bank=bank)
    return _mean(bank.counts, bank.learned)


@jax.jit
def _mean(counts: Any, learned: Array) -> SoftMask:
    many = jnp.maximum(learned, 1).astype(jnp.float32)
    return trees.map_mask(lambda count: count.astype(jnp.float32) / many, counts)


def require_bank(bank: Any, *, fn: str) -> None:
    """Raise if something is not a bank, and say how to make one of a stack."""
    if not isinstance(bank, MaskBank):
        raise TypeError(
            f"`{fn}` needs `bank` as a `maskjax.bank.MaskBank`, got "
            f"{type(bank).__name__}. `maskjax.bank.from_stack` makes one from a stack."
        )


def require_room(bank: MaskBank, wanted: int, *, fn: str) -> None:
    """Raise if it is known that there is no room for so many masks more."""
    hint = " `bank.grow` makes room."
    slots.require_room(bank.learned, capacity(bank), wanted, fn=fn, hint=hint)


def packed_stack(stack: Mask) -> Mask:
    """The stack with every leaf packed."""
    return trees.map_mask(
        lambda m: m if isinstance(m, PackedMask) else jax.vmap(packing.pack)(m), stack
    )
