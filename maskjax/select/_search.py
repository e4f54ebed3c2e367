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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
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


def top_k(
    leaves: Sequence[Array],
    alive: Sequence[Array | None],
    quotas: Sequence[Quota],
    *,
    joint: bool,
    guess: Sequence[Array] | None = None,
) -> tuple[list[Array], list[Array]]:
    """Mark the largest entries, an exact number; among equal entries, the first win.

    Args:
        leaves: Floating arrays of any shapes.
        alive: For each leaf, a boolean array of its shape, True for the entries that
            count, or None if all of them do.
        quotas: For each search, how many of the entries that count it keeps.
        joint: True for one search over all leaves in order, False for one per leaf.
        guess: For each search, a scalar close to its last kept score.

    Returns:
        For each leaf, a boolean array of its shape, True for the chosen; and a scalar
        of its dtype that separates: nothing chosen is below it, nothing else above.
    """
    data = _Data(leaves, alive, joint=joint)
    extremes_needed = guess is None or any(a is not None for a in alive)
    whole, sizes = data.whole(read=extremes_needed)  # 2.
    k = data.vector([q.of(n) for q, n in zip(quotas, sizes, strict=True)])
    first = None
    if guess is not None:
        first = _around(jnp.stack([one.astype(data.real) for one in guess]))
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

    Numbers of each search are vectors [S]. Positions of a search's entries count down
    to 1 at the end, so that earlier entries are higher.
    """

    def __init__(
        self, leaves: Sequence[Array], alive: Sequence[Array | None], *, joint: bool
    ):
        self.leaves = tuple(leaves)
        self.alive = alive
        wide = any(jnp.finfo(x.dtype).bits == 64 for x in leaves)
        self.real = jnp.dtype("float64" if wide else "float32")
        self.key = jnp.dtype("int64" if wide else "int32")
        self.owner = [0] * len(leaves) if joint else list(range(len(leaves)))
        self.number = 1 if joint else len(leaves)
        self.sizes = self.sums([x.size for x in leaves])
        self.count_dtype = jnp.dtype(
            "int32" if max(self.sizes) < 2**31 - 1 else "int64"
        )

    def keys_at(self, *values: Any) -> tuple[Any, ...]:
        """The values, and the leaves' keys as functions computed where they are used.

        The barrier ties the keys to the values. Without it XLA computes the keys once
        and stores them: writing and faulting in memory as large as the scores costs
        more than all the passes that would read it.
        """
        tied, values = lax.optimization_barrier((self.leaves, values))

        def order(i: int) -> Array:  # 1.
            return order_key(tied[i].astype(self.real), self.alive[i])

        return order, *values

    def whole(self, *, read: bool) -> tuple[Interval, list[int | Array]]:
        """The keys of all that counts, and how many count in each search.

        Args:
            read: Whether to find the extremes in a pass over the data. Needed where
                only some entries count, and worth it without a guess.
        """
        sizes: list[int | Array] = [x.size for x in self.leaves]
        if read:
            order, _ = self.keys_at(jnp.zeros(()))
            ends = [
                _extremes(order(i), alive, self.count_dtype)
                for i, alive in enumerate(self.alive)
            ]
            low = self.over_leaves(jnp.minimum, [low for low, _, _ in ends])
            high = self.over_leaves(jnp.maximum, [high for _, high, _ in ends])
            sizes = [size for _, _, size in ends]
        else:
            low = jnp.full(self.number, lowest(self.key) + 1, self.key)
            high = jnp.full(self.number, -lowest(self.key) - 2, self.key)
        counted = self.sums(sizes)
        none = _zeros(low, self.count_dtype)
        all_of_them = self.vector(counted) + none
        interval = Interval(to_unsigned(low), to_unsigned(high) + 1, all_of_them, none)
        return interval, counted

    def reaching(self, pivots: list[Array]) -> list[Array]:
        """How many keys reach each pivot."""
        order, below = self.keys_at([from_unsigned(p, self.key) - 1 for p in pivots])
        return self.counts(lambda i: [order(i) > self.of(b, i) for b in below])

    def positions(self, found: Interval) -> Interval:
        """The interval of all positions, with counts of the entries that tie."""
        equals = found.at_low - found.at_high
        first = _zeros(equals, found.low.dtype) + 1
        last = first * jnp.array(self.sizes, found.low.dtype)
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
        return [
            (order(i) >= self.of(sure, i))
            | (
                (order(i) == self.of(last, i))
                & (self.position(i, starts) >= self.of(position, i))
            )
            for i in range(len(self.leaves))
        ]

    def cutoffs(self, cut: _Cut) -> list[Array]:
        """For each leaf, the score at which its search cut."""
        key = jnp.where(cut.missing > 0, cut.last, cut.sure)
        return [
            from_order_key(self.of(key, i), x.dtype) for i, x in enumerate(self.leaves)
        ]

    def counts(self, flags: Callable[[int], list[Array]]) -> list[Array]:
        """Flags of each leaf to counts of each search, one vector for each flag."""
        leaves = [tally(flags(i), self.count_dtype) for i in range(len(self.owner))]
        return [
            self.over_leaves(jnp.add, list(kind)) for kind in zip(*leaves, strict=True)
        ]

    def starts(self) -> Array:
        """For each leaf, the position of its first entry."""
        remaining, starts = list(self.sizes), []
        for owner, x in zip(self.owner, self.leaves, strict=True):
            starts.append(remaining[owner])
            remaining[owner] -= x.size
        return self.vector(starts)

    def position(self, leaf: int, starts: Array) -> Array:
        """The position of each entry of a leaf in its search."""
        position, x = starts[leaf], self.leaves[leaf]
        stride = x.size
        for axis, length in enumerate(x.shape):
            stride //= max(length, 1)
            position -= lax.broadcasted_iota(self.count_dtype, x.shape, axis) * stride
        return position

    def of(self, per_search: Array, leaf: int) -> Array:
        """The number of the search that a leaf belongs to."""
        return per_search[self.owner[leaf]]

    def vector(self, values: Sequence[ArrayLike]) -> Array:
        """Scalars as a vector, integers in the dtype of counts."""
        numbers = [jnp.asarray(v) for v in values]
        if all(jnp.issubdtype(v.dtype, jnp.integer) for v in numbers):
            numbers = [v.astype(self.count_dtype) for v in numbers]
        return jnp.stack(numbers)

    def sums(self, per_leaf: Sequence[int | Array]) -> list[Any]:
        """The sum over each search's leaves."""
        totals: list[Any] = [0] * self.number
        for owner, value in zip(self.owner, per_leaf, strict=True):
            totals[owner] = totals[owner] + value
        return totals

    def over_leaves(self, merge: Callable, per_leaf: list[Array]) -> Array:
        """The values of each search's leaves, merged."""
        merged: dict[int, Array] = {}
        for owner, value in zip(self.owner, per_leaf, strict=True):
            merged[owner] = merge(merged[owner], value) if owner in merged else value
        return jnp.stack([merged[owner] for owner in range(self.number)])


def _around(guess: Array) -> list[Array]:
    """Pivots at a guess and at relative distances of about 2**-11, 2**-7 and 2**-3."""
    center = to_unsigned(order_key(guess, None))
    steps = [1 << (jnp.finfo(guess.dtype).nmant - bits) for bits in (11, 7, 3)]
    return [center, *(center + s for s in steps), *(center - s for s in steps)]


def _extremes(
    key: Array, alive: Array | None, dtype: jnp.dtype
) -> tuple[Array, Array, int | Array]:
    """The lowest and highest key that counts, and how many count."""
    if alive is None:
        low, high = fold([key, key], ["min", "max"])
        return low, high, key.size
    highest = jnp.iinfo(key.dtype).max
    alive_key = jnp.where(alive, key, highest)
    low, high, size = fold([alive_key, key, alive.astype(dtype)], ["min", "max", "sum"])
    return low, high, size


def _zeros(x: Array, dtype: jnp.dtype) -> Array:
    """Zeros that, in a `shard_map`, vary over the axes that x does.

    A loop's state has to enter it as it leaves it, which depends on the data.
    """
    return (x ^ x).astype(dtype)
