"""The entries of leaves as a search sees them: keys, counts and positions."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from maskjax._core import dtypes, placement
from maskjax._core.trees import Array
from maskjax.select._count import Kind, fold
from maskjax.select._keys import (
    exactly,
    from_order_key,
    from_unsigned,
    order_key,
    to_unsigned,
)
from maskjax.select._narrow import Interval

# Leaves of one kind are one program if they are stacked, but stacking copies them. So
# larger leaves are stacked only if there are many of them, and huge ones never.
_SMALL, _HUGE, _MANY = 2**20, 2**22, 8


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
        ends: How many, for each stack, come before those of a block (`dtypes.blocks`).
        shape: Of the numbers of each search.
        signed: The dtype of integers that hold keys, counts and positions.
        lengths: For each leaf, how many entries it has, or each of its rows.
        sizes: For each search in the caller's order, how many entries it has; of a leaf
            with rows, how many each of them has.
    """

    def __init__(
        self,
        leaves: Sequence[Array],
        alive: Sequence[Array | None],
        held: Sequence[Array | None],
        *,
        kinds: Sequence[int],
        joint: bool,
        absolute: bool,
        rows: int,
    ):
        wide = any(jnp.finfo(x.dtype).bits == 64 for x in leaves)
        self.real = jnp.dtype("float64" if wide else "float32")
        self.key = jnp.dtype("int64" if wide else "int32")
        self.joint, self.absolute = joint, absolute
        self.rowed = rows > 0
        self.lead = rows or 1
        self.dtypes = [x.dtype for x in leaves]
        given: list[tuple[Any, ...]] = [
            (x, *(None if flag is None else placement.alike(flag, x) for flag in flags))
            for x, *flags in zip(leaves, alive, held, strict=True)
        ]
        self.order = _order(given, kinds)
        stacks = [self.stacked(given, ids) for ids in self.order]
        self.stacks = tuple(x for x, *_ in stacks)
        self.flags = tuple(flags for _, *flags in stacks)
        self.ends = [self.lead + dtypes.blocks(x.shape, self.lead) for x in self.stacks]
        self.firsts = [0, *itertools.accumulate(map(len, self.stacks))]
        self.lengths = [math.prod(x.shape[rows:]) for x in leaves]
        self.sizes = [sum(self.lengths)] if joint else self.lengths
        self.shape = leaves[0].shape[:rows] or (1 if joint else len(leaves),)
        self.count_dtype = dtypes.counts(max(self.sizes))
        self.signed = max(self.key, self.count_dtype, key=lambda d: d.itemsize)

    def stacked(self, leaves: Sequence[tuple[Any, ...]], ids: Sequence[int]) -> Any:
        """The scores, what is alive and what is held of the leaves of one kind."""
        if self.rowed:
            return [*leaves[0]]
        columns = zip(*(leaves[i] for i in ids), strict=True)
        return [None if c[0] is None else _stack(c) for c in columns]

    def at(self, *values: Any) -> tuple[Any, ...]:
        """The values, and the arrays of each stack, to read where they are used.

        The barrier ties the scores to the values. Without it XLA computes their keys
        once and stores them: writing and faulting in memory as large as the scores
        costs more than all the passes that would read it.
        """
        tied, values = lax.optimization_barrier((self.stacks, values))
        stacks = zip(tied, self.flags, strict=True)
        return [(x, *flags) for x, flags in stacks], *values

    def keys(self, scores: Array, alive: Array | None, held: Array | None) -> Array:
        """Keys in the order of the scores."""
        scores = exactly(scores, self.real)
        return order_key(scores, alive, held, absolute=self.absolute)  # 1.

    def whole(self) -> tuple[Interval, Sequence[int | Array]]:
        """The keys of all that counts, and how many count in each search."""
        zero = self.constant(0, self.count_dtype)
        highest = self.constant(jnp.iinfo(self.key).max, self.key)
        if all(alive is None for alive, _ in self.flags):
            # Finding the extremes would cost the passes that it saves.
            ends = self.unsigned(-highest), self.unsigned(highest)
            counted, sizes = self.vector(self.sizes) + zero, self.sizes
        else:
            stacks, _ = self.at(zero)
            lows, highs, numbers = zip(*map(self.extremes, stacks), strict=True)
            low = self.unsigned(self.merged(jnp.min, list(lows)))
            high = self.unsigned(self.merged(jnp.max, list(highs)))
            ends, counted = (low, high + 1), self.totals(list(numbers))
            sizes = [*counted] if self.joint else self.parted(counted)
        return Interval(*ends, counted, zero, highest), sizes

    def extremes(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """For each row, the lowest and highest key that counts; how many count."""

        def made(scores: Array, alive: Array | None, held: Array | None) -> list[Array]:
            key = self.keys(scores, alive, held)
            if alive is None:
                return [key, key, jnp.ones_like(key)]
            lows = jnp.where(alive, key, jnp.iinfo(self.key).max)
            return [lows, key, alive]

        return self.fold(arrays, made, ["min", "max", "sum"])

    def last_position(self) -> Array:
        """The position of the first entry of each search."""
        sizes = self.vector(self.sizes).astype(f"u{self.signed.name}")
        return self.placed(sizes)

    def unsigned(self, key: Array) -> Array:
        """Keys as unsigned integers, wide enough for positions too."""
        return to_unsigned(key.astype(self.signed))

    def key_of(self, value: Array) -> Array:
        """The inverse of `unsigned`."""
        return from_unsigned(value, self.signed).astype(self.key)

    def reaching(
        self, pivots: list[Array], interval: Interval
    ) -> tuple[list[Array], Array]:
        """How many entries reach each pivot, and the lowest key that reaches the low.

        Among ties, that is the low end itself.
        """
        start = self.rooms(interval.low)
        bounds = [self.bound(p, interval, start) for p in (*pivots, interval.low)]
        stacks, tied, start, bounds = self.at(interval.tied, start, bounds)
        kinds: list[Kind] = ["sum"] * len(pivots)
        kinds.append("min")

        def made(*arrays: Array, stack: int) -> list[Array]:
            rank = self.ranks(arrays, tied, start, stack)
            ndim = rank.ndim
            *flags, inside = (
                rank > self.below(b, tied, start, stack, ndim) for b in bounds
            )
            return [*flags, jnp.where(inside, rank, jnp.iinfo(self.key).max)]

        found = [
            self.fold(arrays, functools.partial(made, stack=i), kinds)
            for i, arrays in enumerate(stacks)
        ]
        *counts, lows = zip(*found, strict=True)
        lowest = self.unsigned(self.merged(jnp.min, list(lows)))
        lowest = jnp.where(interval.ties, interval.low, lowest)
        return [self.totals(list(kind)) for kind in counts], lowest

    def ranks(
        self, arrays: Sequence[Array], tied: Array, start: Array, stack: int
    ) -> Array:
        """Integers that fall along the entries of a search from the first to the last.

        They are the keys. Where the ties of a key are searched, these are told apart by
        how far they are before the end of the first `start` entries of their row or
        block, and what is above or below them is so by its rank too.
        """
        key, limits = self.keys(*arrays), jnp.iinfo(self.key)
        left = self.left(start, stack, key.ndim)
        left = _left(left, key.shape, range(self.ends[stack], key.ndim))
        tied = self.of(tied, stack, key.ndim)
        others = jnp.where(tied < limits.max, limits.min, key)
        others = jnp.where(key > tied, limits.max, others)
        return jnp.where(key == tied, placement.alike(left, key), others)

    def bound(self, pivot: Array, interval: Interval, start: Array) -> Array:
        """For each row, the highest number whose ranks do not reach a pivot."""
        below = self.key_of(pivot).astype(self.signed) - 1
        behind = (start - self.rooms(pivot)).astype(self.signed)
        return jnp.where(interval.ties, behind, below)

    def below(
        self, bound: Array, tied: Array, start: Array, stack: int, ndim: int
    ) -> Array:
        """The bound of each row of a stack, or of each block, [R, ..., 1, ...]."""
        each = self.rows(bound, stack, ndim).astype(self.key)
        if self.ends[stack] > self.lead:
            behind = self.left(start, stack, ndim)
            behind -= self.left(start - bound, stack, ndim)
            ties = self.of(tied, stack, ndim) < jnp.iinfo(self.key).max
            each = jnp.where(ties, behind, each)
        return each

    def left(self, rooms: Array, stack: int, ndim: int) -> Array:
        """How many entries of each row or block are among the first of their rows."""
        shape, end = self.stacks[stack].shape, self.ends[stack]
        left = _left(self.rows(rooms, stack, ndim), shape, range(self.lead, end))
        return jnp.clip(left, 0, math.prod(shape[end:])).astype(self.key)

    def chosen(self, found: Interval, answer: Array) -> list[Array]:
        """For each leaf, True for what reaches the answer."""
        start = self.rooms(answer)
        bound = self.bound(answer, found, start)
        stacks, tied, start, bound = self.at(found.tied, start, bound)
        index = _opaque(max(map(len, self.order)), found.at_low)
        split: list[Any] = [None] * len(self.dtypes)
        for i, (ids, arrays) in enumerate(zip(self.order, stacks, strict=True)):
            rank = self.ranks(arrays, tied, start, i)
            flags = rank > self.below(bound, tied, start, i, rank.ndim)
            parts = [flags] if self.rowed else _unstacked(flags, index)
            for leaf, part in zip(ids, parts, strict=True):
                split[leaf] = part
        return split

    def cutoffs(self, found: Interval, answer: Array) -> list[Array]:
        """For each leaf, the score at which its search cut."""
        infinity = int(np.array(np.inf, self.real).view(self.key))
        key = jnp.clip(self.key_of(answer), -infinity, infinity)
        key = jnp.where(found.ties, found.tied, key)
        scores = from_order_key(key, self.real)
        each = [scores[0]] * len(self.dtypes) if self.joint else self.parted(scores)
        return [
            score.astype(dtype) for score, dtype in zip(each, self.dtypes, strict=True)
        ]

    def placed(self, per_search: Array) -> Array:
        """A number for each search, sharded as what a pass over the data finds."""
        return placement.alike(per_search, self.constant(0, self.key))

    def constant(self, value: int, dtype: Any) -> Array:
        """A number for each search, typed like what a pass over the data finds."""
        first = self.stacks[0]
        spec = placement.spec_of(first)[: self.lead] if self.rowed else (None,)
        zeros = placement.zeros(self.shape, dtype, first, spec=spec)
        return placement.vary_like(zeros + value, self.stacks)

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

    def of(self, per_search: Array, stack: int, ndim: int) -> Array:
        """The numbers of the searches that a stack's rows belong to, [R, 1, ...]."""
        return per_search[0] if self.joint else self.rows(per_search, stack, ndim)

    def rows(self, per_row: Array, stack: int, ndim: int) -> Array:
        """The numbers of a stack's rows, [R, 1, ...]."""
        if not self.rowed:
            per_row = per_row[self.firsts[stack] : self.firsts[stack + 1]]
        return lax.expand_dims(per_row, range(self.lead, ndim))

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
        self,
        arrays: Sequence[Array],
        made: Callable[..., Sequence[Array]],
        kinds: Sequence[Kind],
    ) -> tuple[Array, ...]:
        """What is made of a stack's entries, reduced to numbers of each row."""
        return fold(arrays, made, kinds, self.lead, dtype=self.count_dtype)

    def totals(self, stacks: list[Array]) -> Array:
        """Counts of each row, added up for each search."""
        # One conversion of all rows, because each is a program on its own.
        same = len({x.dtype for x in stacks}) == 1
        stacks = stacks if same else [x.astype(self.count_dtype) for x in stacks]
        add = functools.partial(jnp.sum, dtype=self.count_dtype)
        return self.merged(add, stacks).astype(self.count_dtype)

    def merged(self, merge: Callable[[Array], Array], stacks: list[Array]) -> Array:
        """Numbers of each row, merged for each search."""
        rows = stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)
        return merge(rows)[None] if self.joint else rows


def _order(given: Sequence[tuple[Any, ...]], kinds: Sequence[int]) -> list[list[int]]:
    """The leaves of each stack."""
    alike: dict[Any, list[int]] = {}
    for i, (arrays, kind) in enumerate(zip(given, kinds, strict=True)):
        types = (*(x is not None and jax.typeof(x) for x in arrays), kind)
        alike.setdefault(types, []).append(i)
    order = []
    for ids in alike.values():
        size = given[ids[0]][0].size
        stacked = size <= _SMALL or size <= _HUGE and len(ids) >= _MANY
        order += [ids] if stacked else [[i] for i in ids]
    return order


def _stack(leaves: Sequence[Any]) -> Array:
    return leaves[0][None] if len(leaves) == 1 else jnp.stack(leaves)


def _unstacked(stack: Array, index: Sequence[Array]) -> list[Array]:
    if len(stack) == 1:
        return [stack[0]]
    rows = zip(range(len(stack)), index, strict=False)
    return [lax.dynamic_index_in_dim(stack, i, keepdims=False) for _, i in rows]


def _opaque(n: int, counts: Array) -> tuple[Array, ...]:
    """0, 1, ..., n - 1 as numbers that XLA does not know.

    It compiles a slice at a known place anew for each place, and at an unknown place
    once: for 150 leaves the difference is five seconds.
    """
    known = tuple(jnp.int32(i) for i in range(n))
    return known if n == 1 else _hidden(jnp.any(counts < 0), known)


@jax.custom_batching.custom_vmap
def _hidden(never: Array, known: tuple[Array, ...]) -> tuple[Array, ...]:
    return lax.cond(never, lambda: known[::-1], lambda: known)


@_hidden.def_vmap
def _hidden_from_members(
    size: int, batched: Any, never: Array, known: tuple[Array, ...]
) -> Any:
    """Numbers that differ between members would make each slice a gather."""
    return known, jax.tree.map(lambda _: False, known)


def _left(first: Array, shape: tuple[int, ...], axes: Sequence[int]) -> Array:
    """A number less the place of each index of some axes among the entries."""
    for axis in axes:
        ones = [n if i == axis else 1 for i, n in enumerate(shape)]
        place = lax.broadcasted_iota(first.dtype, ones, axis)
        first -= place * math.prod(shape[axis + 1 :])
    return first
