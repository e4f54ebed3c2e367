"""The k largest of many floats, exactly and without sorting.

Algorithm (numbers match the comments below):
  1. read each float as an integer key of the same order
  2. start from an interval of keys that contains the k-th largest
  3. narrow it: count how many entries reach a few pivots, in each pass over the data
  4. among entries equal to the k-th largest, find the first ones by position, likewise

Counting is a reduction. It copies nothing across leaves (their counts are added),
gathers nothing across devices (scalars are all-reduced), takes a traced k, and maps
over members.
"""

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

from maskjax._core.trees import Array
from maskjax.select._count import fold, tally
from maskjax.select._keys import (
    from_order_key,
    from_unsigned,
    lowest,
    order_key,
    to_unsigned,
)
from maskjax.select._narrow import Interval, narrow
from maskjax.select._quota import Quota

# Larger leaves are not stacked, because stacking copies.
_SMALL = 2**20


def top_k(
    leaves: Sequence[Array],
    alive: Sequence[Array | None],
    quotas: Sequence[Quota],
    *,
    joint: bool,
    guess: Sequence[Array] | None = None,
    rows: Sequence[bool] | None = None,
) -> tuple[list[Array], list[Array]]:
    """Mark the largest entries, an exact number; among equal entries, the first win.

    Args:
        leaves: Floating arrays of any shapes.
        alive: For each leaf, a boolean array of its shape, True for the entries that
            count, or None if all of them do.
        quotas: For each search, how many of the entries that count it keeps.
        joint: True for one search over all leaves in order, False for one per leaf.
        guess: For each search, a scalar close to its last kept score.
        rows: Whether each row of a leaf, an index of its first axis, is a search of its
            own. Its quota and guess may be vectors then, and its scalars are.

    Returns:
        For each leaf, a boolean array of its shape, True for the chosen; and a scalar
        of its dtype that separates: nothing chosen is below it, nothing else above.
    """
    data = _Data(leaves, alive, rows or [False] * len(leaves), joint=joint)
    extremes_needed = guess is None or any(a is not None for a in alive)
    whole, sizes = data.whole(read=extremes_needed)  # 2.
    k = data.vector([q.of(n) for q, n in zip(quotas, sizes, strict=True)])
    first = None
    if guess is not None:
        first = _around(data.vector([one.astype(data.real) for one in guess]))
    found = narrow(data.reaching, whole, k, first)  # 3.
    cut = _cut(found, k, data.key)
    run = narrow(  # 4.
        lambda positions: data.early(cut.last, positions),
        data.positions(found),
        cut.missing,
    )
    position = jnp.where(run.at_high == cut.missing, run.high, run.low)
    chosen = data.chosen(cut, position.astype(data.count_dtype))
    return chosen, data.cutoffs(cut)


class _Cut(NamedTuple):
    """What each search keeps: keys from `sure` on, and the first that equal `last`.

    Attributes:
        sure: Every key at or above it is chosen.
        last: Keys equal to it are chosen up to a number.
        missing: That number.
    """

    sure: Array
    last: Array
    missing: Array


def _cut(found: Interval, k: Array, key: jnp.dtype) -> _Cut:
    exact = (found.at_low == k) & (found.at_high != k)
    sure = from_unsigned(jnp.where(exact, found.low, found.high), key)
    last = from_unsigned(found.low, key)
    return _Cut(sure, last, jnp.where(exact, 0, k - found.at_high))


class _Data:
    """The leaves, which search each belongs to, and what one pass over them answers.

    Leaves of one kind are stacked, so that they cost one program: a stack is an array
    [R, ...] of R leaves, or one leaf of R rows. Numbers of each search are vectors [S],
    in the order of the stacks. Positions of a search's entries count down to 1 at the
    end, so that earlier entries are higher.

    Attributes:
        order: For each stack, which leaves are in it.
        sizes: For each search in the caller's order, how many entries it has; of leaves
            with many searches, how many each of them has.
    """

    def __init__(
        self,
        leaves: Sequence[Array],
        alive: Sequence[Array | None],
        rows: Sequence[bool],
        *,
        joint: bool,
    ):
        wide = any(jnp.finfo(x.dtype).bits == 64 for x in leaves)
        self.real = jnp.dtype("float64" if wide else "float32")
        self.key = jnp.dtype("int64" if wide else "int32")
        self.joint = joint
        self.rowed = rows
        self.dtypes = [x.dtype for x in leaves]
        kinds: dict[Any, list[int]] = {}
        for i, (x, a) in enumerate(zip(leaves, alive, strict=True)):
            kind = (*(y is not None and jax.typeof(y) for y in (x, a)),)
            alone = rows[i] or x.size > _SMALL
            kinds.setdefault(i if alone else kind, []).append(i)
        self.order = list(kinds.values())
        stacked = functools.partial(_stacked, rows=rows)
        self.stacks = tuple(stacked(leaves, ids) for ids in self.order)
        self.alive = [
            None if alive[ids[0]] is None else stacked(alive, ids) for ids in self.order
        ]
        self.firsts = [0, *itertools.accumulate(map(len, self.stacks))]
        self.lengths = [
            math.prod(x.shape[row:]) for x, row in zip(leaves, rows, strict=True)
        ]
        self.sizes = [sum(self.lengths)] if joint else self.lengths
        self.count_dtype = jnp.dtype(
            "int32" if max(self.sizes) < 2**31 - 1 else "int64"
        )

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
                _extremes(order(i), alive, self.count_dtype)
                for i, alive in enumerate(self.alive)
            ]
            low = self.merged(jnp.min, [low for low, _, _ in ends])
            high = self.merged(jnp.max, [high for _, high, _ in ends])
        else:
            number = 1 if self.joint else self.firsts[-1]
            low = jnp.full(number, lowest(self.key) + 1, self.key)
            high = jnp.full(number, -lowest(self.key) - 2, self.key)
        none = _zeros(low, self.count_dtype)
        if read and any(alive is not None for alive in self.alive):
            counted = self.merged(_sum, [size for *_, size in ends])
            sizes: Sequence[int | Array] = (
                [*counted] if self.joint else self.parted(counted)
            )
        else:
            counted, sizes = self.vector(self.sizes), self.sizes
        interval = Interval(
            to_unsigned(low), to_unsigned(high) + 1, counted + none, none
        )
        return interval, sizes

    def reaching(self, pivots: list[Array]) -> list[Array]:
        """How many keys reach each pivot."""
        order, below = self.keys_at([from_unsigned(p, self.key) - 1 for p in pivots])
        return self.counts(lambda i: [order(i) > self.of(b, i) for b in below])

    def positions(self, found: Interval) -> Interval:
        """The interval of all positions, with counts of the entries that tie."""
        equals = found.at_low - found.at_high
        first = _zeros(equals, found.low.dtype) + 1
        last = first * self.vector(self.sizes).astype(found.low.dtype)
        return Interval(first, last + 1, equals, _zeros(equals, self.count_dtype))

    def early(self, last: Array, positions: list[Array]) -> list[Array]:
        """How many entries that equal `last` reach each position."""
        positions = [p.astype(self.count_dtype) for p in positions]
        order, positions, last, starts = self.keys_at(positions, last, self.starts())
        return self.counts(
            lambda i: [
                (order(i) == self.of(last, i))
                & (self.position(i, starts) >= self.of(p, i))
                for p in positions
            ]
        )

    def chosen(self, cut: _Cut, position: Array) -> list[Array]:
        """For each leaf, True for what reaches the cut."""
        order, sure, last, position, starts = self.keys_at(
            cut.sure, cut.last, position, self.starts()
        )
        flags = [
            (order(i) >= self.of(sure, i))
            | (
                (order(i) == self.of(last, i))
                & (self.position(i, starts) >= self.of(position, i))
            )
            for i in range(len(self.stacks))
        ]
        index = _opaque(max(map(len, self.order)), position)
        found: list[Any] = [None] * len(self.dtypes)
        for ids, stack in zip(self.order, flags, strict=True):
            split = [stack] if self.rowed[ids[0]] else _unstacked(stack, index)
            for i, flag in zip(ids, split, strict=True):
                found[i] = flag
        return found

    def cutoffs(self, cut: _Cut) -> list[Array]:
        """For each leaf, the score at which its search cut."""
        key = jnp.where(cut.missing > 0, cut.last, cut.sure)
        scores = from_order_key(key, self.real)
        each = [scores[0]] * len(self.dtypes) if self.joint else self.parted(scores)
        return [
            score.astype(dtype) for score, dtype in zip(each, self.dtypes, strict=True)
        ]

    def counts(self, flags: Callable[[int], list[Array]]) -> list[Array]:
        """Flags of each stack to counts of each search, one vector for each flag."""
        stacks = [tally(flags(i), self.count_dtype) for i in range(len(self.stacks))]
        return [self.merged(_sum, list(kind)) for kind in zip(*stacks, strict=True)]

    def starts(self) -> Array:
        """For each row, in the order of the stacks, the position of its first entry."""
        starts = self.lengths
        if self.joint:
            total = itertools.accumulate(self.lengths[:-1], initial=0)
            starts = [self.sizes[0] - before for before in total]
        each = [
            np.repeat([starts[i] for i in ids], len(stack) // len(ids))
            for ids, stack in zip(self.order, self.stacks, strict=True)
        ]
        return jnp.array(np.concatenate(each).astype(self.count_dtype))

    def position(self, stack: int, starts: Array) -> Array:
        """The position of each entry of a stack in its search."""
        x = self.stacks[stack]
        position, stride = self.rows(starts, stack), math.prod(x.shape[1:])
        for axis, length in enumerate(x.shape[1:], 1):
            stride //= max(length, 1)
            position -= lax.broadcasted_iota(self.count_dtype, x.shape, axis) * stride
        return position

    def of(self, per_search: Array, stack: int) -> Array:
        """The numbers of the searches that a stack's rows belong to, [R, 1, ...]."""
        return per_search[0] if self.joint else self.rows(per_search, stack)

    def rows(self, per_row: Array, stack: int) -> Array:
        """The numbers of a stack's rows, [R, 1, ...]."""
        part = per_row[self.firsts[stack] : self.firsts[stack + 1]]
        return part.reshape(-1, *[1] * (self.stacks[stack].ndim - 1))

    def parted(self, per_row: Array) -> list[Array]:
        """The numbers of each leaf in the caller's order, vectors where it has rows."""
        found: list[Any] = [None] * len(self.dtypes)
        for ids, first, end in zip(
            self.order, self.firsts[:-1], self.firsts[1:], strict=True
        ):
            for place, i in enumerate(ids, first):
                found[i] = per_row[first:end] if self.rowed[i] else per_row[place]
        return found

    def vector(self, values: Sequence[ArrayLike]) -> Array:
        """Numbers of each search in the caller's order, as one; integers as counts."""
        numbers = [jnp.asarray(v) for v in values]
        if all(jnp.issubdtype(v.dtype, jnp.integer) for v in numbers):
            numbers = [v.astype(self.count_dtype) for v in numbers]
        if self.joint:
            return jnp.stack(numbers)
        each = [
            jnp.broadcast_to(numbers[ids[0]], len(stack))
            if self.rowed[ids[0]]
            else jnp.stack([numbers[i] for i in ids])
            for ids, stack in zip(self.order, self.stacks, strict=True)
        ]
        return each[0] if len(each) == 1 else jnp.concatenate(each)

    def merged(self, merge: Callable[[Array], Array], stacks: list[Array]) -> Array:
        """Numbers of each row, merged for each search."""
        rows = stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)
        return merge(rows)[None] if self.joint else rows


def _stacked(leaves: Sequence[Any], ids: Sequence[int], rows: Sequence[bool]) -> Array:
    if len(ids) > 1:
        return jnp.stack([leaves[i] for i in ids])
    return leaves[ids[0]] if rows[ids[0]] else leaves[ids[0]][None]


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


def _sum(x: Array) -> Array:
    return jnp.sum(x, dtype=x.dtype)


def _around(guess: Array) -> list[Array]:
    """Pivots at a guess and at relative distances of about 2**-11, 2**-7 and 2**-3."""
    center = to_unsigned(order_key(guess, None))
    steps = [1 << (jnp.finfo(guess.dtype).nmant - bits) for bits in (11, 7, 3)]
    return [center, *(center + s for s in steps), *(center - s for s in steps)]


def _extremes(
    key: Array, alive: Array | None, dtype: jnp.dtype
) -> tuple[Array, Array, Array]:
    """For each row, the lowest and highest key that counts, and how many count."""
    if alive is None:
        low, high = fold([key, key], ["min", "max"])
        return low, high, jnp.full(len(key), math.prod(key.shape[1:]), dtype)
    highest = jnp.iinfo(key.dtype).max
    alive_key = jnp.where(alive, key, highest)
    low, high, size = fold([alive_key, key, alive.astype(dtype)], ["min", "max", "sum"])
    return low, high, size


def _zeros(x: Array, dtype: jnp.dtype) -> Array:
    """Zeros that, in a `shard_map`, vary over the axes that x does.

    A loop's state has to enter it as it leaves it, which depends on the data.
    """
    return (x ^ x).astype(dtype)
