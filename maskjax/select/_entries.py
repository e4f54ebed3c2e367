"""The entries of leaves as a search sees them: keys, counts and positions."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from maskjax._core import dtypes, placement
from maskjax._core.trees import Array
from maskjax.select._count import Kind, fold
from maskjax.select._keys import (
    from_order_key,
    from_unsigned,
    lowest,
    order_key,
    to_unsigned,
)
from maskjax.select._narrow import Interval

# Leaves of one kind are one program if they are stacked, but stacking copies them. So
# larger leaves are stacked only if there are many of them, and huge ones never.
_SMALL, _HUGE, _MANY = 2**20, 2**22, 8


class Cut(NamedTuple):
    """What each search keeps: keys from `sure` on, and the first that equal `last`.

    Attributes:
        sure: Every key at or above it is chosen.
        last: Keys equal to it are chosen up to a number.
        missing: That number.
    """

    sure: Array
    last: Array
    missing: Array


class Data:
    """The leaves, which search each belongs to, and what one pass over them answers.

    Leaves of one kind and type are stacked, so that they cost one program: a stack is
    an array [R, ...] of R leaves. Numbers of each search are vectors, in the order of
    the stacks. One leaf with rows is a stack by itself; numbers of each search have the
    shape of its rows. Positions of a search's entries count down to 1 at the end, so
    that earlier entries are higher.

    Attributes:
        order: For each stack, which leaves are in it.
        lead: How many axes of a stack come before those of the entries.
        shape: Of the numbers of each search.
        lengths: For each leaf, how many entries it has, or each of its rows.
        sizes: For each search in the caller's order, how many entries it has; of a leaf
            with rows, how many each of them has.
    """

    def __init__(
        self,
        leaves: Sequence[Array],
        alive: Sequence[Array | None],
        *,
        kinds: Sequence[int],
        joint: bool,
        rows: int,
    ):
        wide = any(jnp.finfo(x.dtype).bits == 64 for x in leaves)
        self.real = jnp.dtype("float64" if wide else "float32")
        self.key = jnp.dtype("int64" if wide else "int32")
        self.joint = joint
        self.rowed = rows > 0
        self.lead = rows or 1
        self.dtypes = [x.dtype for x in leaves]
        self.order = _order(leaves, alive, kinds)
        self.stacks = tuple(self.stacked(leaves, ids) for ids in self.order)
        self.alive = [
            None if alive[ids[0]] is None else self.stacked(alive, ids)
            for ids in self.order
        ]
        self.firsts = [0, *itertools.accumulate(map(len, self.stacks))]
        self.lengths = [math.prod(x.shape[rows:]) for x in leaves]
        self.sizes = [sum(self.lengths)] if joint else self.lengths
        self.shape = leaves[0].shape[:rows] or (1 if joint else len(leaves),)
        self.count_dtype = dtypes.counts(max(self.sizes))

    def stacked(self, leaves: Sequence[Any], ids: Sequence[int]) -> Array:
        """The leaves of one kind as one array."""
        if self.rowed:
            return leaves[0]
        if len(ids) == 1:
            return leaves[ids[0]][None]
        return jnp.stack([leaves[i] for i in ids])

    def keys_at(self, *values: Any) -> tuple[Any, ...]:
        """The values, and the keys as functions, computed where they are used.

        The barrier ties the keys to the values. Without it XLA computes the keys once
        and stores them: writing and faulting in memory as large as the scores costs
        more than all the passes that would read it.
        """
        tied, values = lax.optimization_barrier((self.stacks, values))

        def order(i: int) -> Array:  # 1.
            return order_key(tied[i].astype(self.real), self.alive[i])

        return order, *values

    def whole(self, *, read: bool) -> tuple[Interval, Sequence[int | Array]]:
        """The keys of all that counts, and how many count in each search.

        Args:
            read: Whether to find the extremes in a pass over the data. Needed where
                only some entries count, and worth it without a guess.
        """
        if read:
            order, _ = self.keys_at(jnp.zeros(()))
            ends = [
                self.extremes(order(i), alive) for i, alive in enumerate(self.alive)
            ]
            low = self.merged(jnp.min, [low for low, _, _ in ends])
            high = self.merged(jnp.max, [high for _, high, _ in ends])
        else:
            low = jnp.full(self.shape, lowest(self.key) + 1, self.key)
            high = jnp.full(self.shape, -lowest(self.key) - 2, self.key)
        none = placement.zeros(low.shape, self.count_dtype, low)
        if read and any(alive is not None for alive in self.alive):
            counted = self.totals([size for *_, size in ends])
            sizes: Sequence[int | Array] = (
                [*counted] if self.joint else self.parted(counted)
            )
        else:
            counted, sizes = self.vector(self.sizes), self.sizes
        interval = Interval(
            to_unsigned(low), to_unsigned(high) + 1, counted + none, none
        )
        return interval, sizes

    def reaching(self, pivots: list[Array], low: Array) -> tuple[list[Array], Array]:
        """How many keys reach each pivot, and the lowest key that reaches `low`."""
        order, low, below = self.keys_at(
            from_unsigned(low, self.key),
            [from_unsigned(p, self.key) - 1 for p in pivots],
        )
        highest = jnp.iinfo(self.key).max
        kinds: list[Kind] = ["sum"] * len(below)
        kinds.append("min")
        stacks = []
        for i in range(len(self.stacks)):
            key = order(i)
            above = jnp.where(key >= self.of(low, i), key, highest)
            flags = [key > self.of(b, i) for b in below]
            stacks.append(self.fold([*flags, above], kinds))
        *counts, lows = zip(*stacks, strict=True)
        lowest = self.merged(jnp.min, list(lows))
        return [self.totals(list(kind)) for kind in counts], to_unsigned(lowest)

    def positions(self, found: Interval) -> Interval:
        """The interval of all positions, with counts of the entries that tie."""
        equals = found.at_low - found.at_high
        unsigned = jnp.dtype(f"u{self.count_dtype.name}")
        first = placement.zeros(equals.shape, unsigned, equals) + 1
        last = first * self.vector(self.sizes).astype(unsigned)
        return Interval(
            first,
            last + 1,
            equals,
            placement.zeros(equals.shape, self.count_dtype, equals),
        )

    def early(self, last: Array, positions: list[Array]) -> list[Array]:
        """How many entries that equal `last` reach each position."""
        rooms = [self.rooms(p) for p in positions]
        order, last, rooms = self.keys_at(last, rooms)
        return self.counts(
            lambda i: [
                (order(i) == self.of(last, i)) & self.within(room, i) for room in rooms
            ]
        )

    def chosen(self, cut: Cut, position: Array) -> list[Array]:
        """For each leaf, True for what reaches the cut."""
        order, sure, last, room = self.keys_at(cut.sure, cut.last, self.rooms(position))
        flags = [
            (order(i) >= self.of(sure, i))
            | ((order(i) == self.of(last, i)) & self.within(room, i))
            for i in range(len(self.stacks))
        ]
        index = _opaque(max(map(len, self.order)), cut.missing)
        found: list[Any] = [None] * len(self.dtypes)
        for ids, stack in zip(self.order, flags, strict=True):
            split = [stack] if self.rowed else _unstacked(stack, index)
            for i, flag in zip(ids, split, strict=True):
                found[i] = flag
        return found

    def cutoffs(self, cut: Cut) -> list[Array]:
        """For each leaf, the score at which its search cut."""
        key = jnp.where(cut.missing > 0, cut.last, cut.sure)
        scores = from_order_key(key, self.real)
        each = [scores[0]] * len(self.dtypes) if self.joint else self.parted(scores)
        return [
            score.astype(dtype) for score, dtype in zip(each, self.dtypes, strict=True)
        ]

    def counts(self, flags: Callable[[int], list[Array]]) -> list[Array]:
        """Flags of each stack to counts of each search, one vector for each flag."""
        each = [flags(i) for i in range(len(self.stacks))]
        kinds: list[Kind] = ["sum"] * len(each[0])
        stacks = [self.fold(flags, kinds) for flags in each]
        return [self.totals(list(kind)) for kind in zip(*stacks, strict=True)]

    def rooms(self, position: Array) -> Array:
        """For each row, how many of its entries reach a position in their search."""
        position = position.astype(self.count_dtype)
        if not self.joint:
            return self.vector(self.lengths) - position + 1
        every = [self.lengths[i] for ids in self.order for i in ids]
        total = [*itertools.accumulate(self.lengths, initial=0)]
        starts = [self.sizes[0] - total[i] for ids in self.order for i in ids]
        room = jnp.array(np.array(starts, self.count_dtype)) - position + 1
        return jnp.clip(room, 0, jnp.array(np.array(every, self.count_dtype)))

    def within(self, rooms: Array, stack: int) -> Array:
        """Whether each entry of a stack is one of the first so many of its row."""
        shape = self.stacks[stack].shape
        left, end = self.rows(rooms, stack), self.lead + dtypes.blocks(shape, self.lead)
        left = _left(left, shape, range(self.lead, end))
        left = jnp.clip(left, 0, math.prod(shape[end:])).astype(jnp.int32)
        return _left(left, shape, range(end, len(shape))) > 0

    def of(self, per_search: Array, stack: int) -> Array:
        """The numbers of the searches that a stack's rows belong to, [R, 1, ...]."""
        return per_search[0] if self.joint else self.rows(per_search, stack)

    def rows(self, per_row: Array, stack: int) -> Array:
        """The numbers of a stack's rows, [R, 1, ...]."""
        if not self.rowed:
            per_row = per_row[self.firsts[stack] : self.firsts[stack + 1]]
        ones = range(self.lead, self.stacks[stack].ndim)
        return lax.expand_dims(per_row, ones)

    def parted(self, per_search: Array) -> list[Array]:
        """The numbers of each leaf in the caller's order."""
        if self.rowed:
            return [per_search]
        places = [i for ids in self.order for i in ids]
        return [per_search[places.index(i)] for i in range(len(places))]

    def vector(self, values: Sequence[ArrayLike]) -> Array:
        """Numbers of each search in the caller's order, as one; integers as counts."""
        numbers = [jnp.asarray(v) for v in values]
        if all(jnp.issubdtype(v.dtype, jnp.integer) for v in numbers):
            numbers = [v.astype(self.count_dtype) for v in numbers]
        if self.rowed:
            return jnp.broadcast_to(numbers[0], self.shape)
        if self.joint:
            return jnp.stack(numbers)
        return jnp.stack([numbers[i] for ids in self.order for i in ids])

    def fold(
        self, operands: Sequence[Array], kinds: Sequence[Kind]
    ) -> tuple[Array, ...]:
        """Arrays shaped like a stack, reduced to numbers of each row."""
        return fold(operands, kinds, self.lead, dtype=self.count_dtype)

    def extremes(self, key: Array, alive: Array | None) -> tuple[Array, Array, Array]:
        """For each row, the lowest and highest key that counts; how many count."""
        if alive is None:
            low, high = self.fold([key, key], ["min", "max"])
            size = math.prod(key.shape[self.lead :])
            return low, high, jnp.full(low.shape, size, self.count_dtype)
        lowest_key = jnp.where(alive, key, jnp.iinfo(key.dtype).max)
        alive = placement.alike(alive, key)
        low, high, size = self.fold([lowest_key, key, alive], ["min", "max", "sum"])
        return low, high, size

    def totals(self, stacks: list[Array]) -> Array:
        """Counts of each row, added up for each search."""
        return self.merged(functools.partial(jnp.sum, dtype=self.count_dtype), stacks)

    def merged(self, merge: Callable[[Array], Array], stacks: list[Array]) -> Array:
        """Numbers of each row, merged for each search."""
        rows = stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)
        return merge(rows)[None] if self.joint else rows


def _order(
    leaves: Sequence[Array], alive: Sequence[Array | None], kinds: Sequence[int]
) -> list[list[int]]:
    """The leaves of each stack."""
    alike: dict[Any, list[int]] = {}
    for i, (*pair, kind) in enumerate(zip(leaves, alive, kinds, strict=True)):
        types = (*(x is not None and jax.typeof(x) for x in pair), kind)
        alike.setdefault(types, []).append(i)
    order = []
    for ids in alike.values():
        size = leaves[ids[0]].size
        stacked = size <= _SMALL or size <= _HUGE and len(ids) >= _MANY
        order += [ids] if stacked else [[i] for i in ids]
    return order


def _unstacked(stack: Array, index: Sequence[Array]) -> list[Array]:
    if len(stack) == 1:
        return [stack[0]]
    rows = zip(range(len(stack)), index, strict=False)
    return [lax.dynamic_index_in_dim(stack, i, keepdims=False) for _, i in rows]


def _opaque(n: int, counts: Array) -> Sequence[Array]:
    """0, 1, ..., n - 1 as numbers that XLA does not know.

    It compiles a slice at a known place anew for each place, and at an unknown place
    once: for 150 leaves the difference is two seconds.
    """
    known = tuple(jnp.int32(i) for i in range(n))
    if n == 1:
        return known
    never = jnp.min(counts) < 0
    return lax.cond(never, lambda: known[::-1], lambda: known)


def _left(first: Array, shape: tuple[int, ...], axes: Sequence[int]) -> Array:
    """A number less the place of each index of some axes among the entries."""
    for axis in axes:
        ones = [n if i == axis else 1 for i, n in enumerate(shape)]
        place = lax.broadcasted_iota(first.dtype, ones, axis)
        first -= place * math.prod(shape[axis + 1 :])
    return first
