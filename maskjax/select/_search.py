"""The k largest of many floats, exactly and without sorting.

A float's bits, read as an integer, keep its order; the k-th largest entry is found by
narrowing an interval of integers, counting in each pass over the data how many entries
reach a few pivots. Counting is a reduction: it copies nothing across leaves (their
counts are added), gathers nothing across devices (scalars are all-reduced), takes a
traced k, and maps over members. Equal entries are separated the same way, by position.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from maskjax._core.trees import Array
from maskjax.select._count import fold, tally
from maskjax.select._quota import Quota


class Interval(NamedTuple):
    """Unsigned integers [low, high) that hold the answer, and what reaches both ends.

    The counts satisfy at_low >= k >= at_high. All four have the shape of k.
    """

    low: Array
    high: Array
    at_low: Array
    at_high: Array


def top_k(
    leaves: Sequence[Array],
    alive: Sequence[Array | None],
    quotas: Sequence[Quota],
    *,
    joint: bool,
    guess: Sequence[Array] | None = None,
) -> tuple[list[Array], list[Array]]:
    """Mark the largest entries, exactly as many as asked; the first of equals win.

    Args:
        leaves: Floating arrays of any shapes.
        alive: For each, the entries that count, a boolean array of its shape, or None
            for all of them.
        quotas: For each search, how many it keeps of those that count.
        joint: One search over all leaves in order, or one for each leaf.
        guess: For each search, a scalar near which its last kept score is expected.

    Returns:
        For each leaf, a boolean array of its shape, True for the chosen; and a scalar
        of its dtype that separates: nothing chosen is below it, nothing else above.
    """
    search = _Searches(leaves, joint=joint)
    wide = any(jnp.finfo(x.dtype).bits == 64 for x in leaves)
    real = jnp.dtype("float64" if wide else "float32")
    key = jnp.dtype("int64" if wide else "int32")

    def keys_at(*values: Any) -> tuple[Any, ...]:
        """The values, and the leaves' keys as functions computed where they are used.

        The barrier ties the keys to the values. Without it XLA computes the keys once
        and stores them: writing and faulting in memory as large as the scores costs
        more than all the passes that would read it.
        """
        tied, values = lax.optimization_barrier((tuple(leaves), values))
        order = lambda i: order_key(tied[i].astype(real), alive[i])  # noqa: E731
        return order, *values

    sizes: list[int | Array] = [x.size for x in leaves]
    if guess is None or any(a is not None for a in alive):
        order, _ = keys_at(jnp.zeros(()))
        ends = [
            _extremes(order(i), alive[i], search.count_dtype)
            for i in range(len(leaves))
        ]
        low = search.over_leaves(jnp.minimum, [low for low, _, _ in ends])
        high = search.over_leaves(jnp.maximum, [high for _, high, _ in ends])
        sizes = [size for _, _, size in ends]
    else:
        low = jnp.full(search.number, _lowest(key) + 1, key)
        high = jnp.full(search.number, -_lowest(key) - 2, key)
    alive_counts = search.sums(sizes)
    k = search.vector([q.of(n) for q, n in zip(quotas, alive_counts, strict=True)])
    none = _zeros(low, search.count_dtype)
    whole = Interval(
        _to_unsigned(low),
        _to_unsigned(high) + 1,
        search.vector(alive_counts) + none,
        none,
    )

    def reaching(pivots: list[Array]) -> list[Array]:
        order, below = keys_at([_from_unsigned(p, key) - 1 for p in pivots])
        return search.counts(lambda i: [order(i) > search.of(b, i) for b in below])

    first = None
    if guess is not None:
        first = _around(jnp.stack([one.astype(real) for one in guess]))
    found = _narrow(reaching, whole, k, first)

    # Everything that reaches `sure` is chosen, and of what equals `last` enough to make
    # up k. Positions count down to 1 at the end, so that earlier ones are higher.
    exact = (found.at_low == k) & (found.at_high != k)
    sure = _from_unsigned(jnp.where(exact, found.low, found.high), key)
    last = _from_unsigned(found.low, key)
    missing = jnp.where(exact, 0, k - found.at_high)

    def early(cuts: list[Array]) -> list[Array]:
        cuts = [c.astype(search.count_dtype) for c in cuts]
        order, cuts, value, start = keys_at(cuts, last, starts)
        return search.counts(
            lambda i: [
                (order(i) == search.of(value, i))
                & (search.position(i, start) >= search.of(cut, i))
                for cut in cuts
            ]
        )

    starts = search.vector(search.starts)
    equals = found.at_low - found.at_high
    first_position = _zeros(equals, found.low.dtype) + 1
    last_position = first_position * jnp.array(
        search.sums(search.sizes), found.low.dtype
    )
    tied = Interval(
        first_position,
        last_position + 1,
        equals,
        _zeros(equals, search.count_dtype),
    )
    run = _narrow(early, tied, missing)
    cut = jnp.where(run.at_high == missing, run.high, run.low)
    cut = cut.astype(search.count_dtype)
    order, sure, last, cut, start = keys_at(sure, last, cut, starts)
    chosen = [
        (order(i) >= search.of(sure, i))
        | (
            (order(i) == search.of(last, i))
            & (search.position(i, start) >= search.of(cut, i))
        )
        for i in range(len(leaves))
    ]
    cutoff = jnp.where(missing > 0, last, sure)
    cutoffs = [
        _from_order_key(search.of(cutoff, i), x.dtype) for i, x in enumerate(leaves)
    ]
    return chosen, cutoffs


class _Searches:
    """Which search each leaf belongs to; per-search values are vectors [S]."""

    def __init__(self, leaves: Sequence[Array], *, joint: bool):
        self.shapes = [x.shape for x in leaves]
        self.sizes = [x.size for x in leaves]
        self.owner = [0] * len(leaves) if joint else list(range(len(leaves)))
        self.number = 1 if joint else len(leaves)
        largest = max(self.sums(self.sizes))
        remaining = self.sums(self.sizes)
        self.starts = []
        for owner, size in zip(self.owner, self.sizes, strict=True):
            self.starts.append(remaining[owner])
            remaining[owner] -= size
        self.count_dtype = jnp.dtype("int32" if largest < 2**31 - 1 else "int64")

    def of(self, per_search: Array, leaf: int) -> Array:
        return per_search[self.owner[leaf]]

    def vector(self, values: Sequence[ArrayLike]) -> Array:
        numbers = [jnp.asarray(v) for v in values]
        if all(jnp.issubdtype(v.dtype, jnp.integer) for v in numbers):
            numbers = [v.astype(self.count_dtype) for v in numbers]
        return jnp.stack(numbers)

    def sums(self, per_leaf: Sequence[int | Array]) -> list[int | Array]:
        totals: list[int | Array] = [0] * self.number
        for owner, value in zip(self.owner, per_leaf, strict=True):
            totals[owner] = totals[owner] + value
        return totals

    def over_leaves(self, merge: Callable, per_leaf: list[Array]) -> Array:
        merged: dict[int, Array] = {}
        for owner, value in zip(self.owner, per_leaf, strict=True):
            merged[owner] = merge(merged[owner], value) if owner in merged else value
        return jnp.stack([merged[owner] for owner in range(self.number)])

    def counts(self, flags: Callable[[int], list[Array]]) -> list[Array]:
        """Flags of each leaf to counts of each search, one vector for each flag."""
        leaves = [tally(flags(i), self.count_dtype) for i in range(len(self.owner))]
        return [
            self.over_leaves(jnp.add, list(kind)) for kind in zip(*leaves, strict=True)
        ]

    def position(self, leaf: int, starts: Array) -> Array:
        """Each entry's flat position in its search, counted down to 1 at the end."""
        position = starts[leaf]
        stride = self.sizes[leaf]
        for axis, length in enumerate(self.shapes[leaf]):
            stride //= max(length, 1)
            shape = self.shapes[leaf]
            position -= lax.broadcasted_iota(self.count_dtype, shape, axis) * stride
        return position


def _narrow(
    count: Callable[[list[Array]], list[Array]],
    interval: Interval,
    k: Array,
    first: list[Array] | None = None,
) -> Interval:
    """Shrink an interval until the count at one end is k, or one integer is left.

    Args:
        count: From pivots to how many entries reach each; all shaped like `k`.
        interval: Where to look.
        k: The wanted counts, one for each independent search.
        first: Pivots to begin with.

    Returns:
        The final interval. Each pass quarters it at least, so that 32-bit keys take at
        most 17 passes whatever the data; the counts at both ends say where to look
        next, so that smooth data take about eight.
    """

    def unfinished(state: Interval) -> Array:
        return (state.high - state.low > 1) & (state.at_low != k) & (state.at_high != k)

    def update(state: Interval, pivots: list[Array]) -> Interval:
        low, high, at_low, at_high = state
        for pivot, reached in zip(pivots, count(pivots), strict=True):
            enough = reached >= k
            low = jnp.where(enough, jnp.maximum(low, pivot), low)
            high = jnp.where(enough, high, jnp.minimum(high, pivot))
            at_low = jnp.where(enough, jnp.minimum(at_low, reached), at_low)
            at_high = jnp.where(enough, at_high, jnp.maximum(at_high, reached))
        return Interval(low, high, at_low, at_high)

    if first is not None:
        ends = interval.low + 1, jnp.maximum(interval.high, 1) - 1
        interval = update(interval, [jnp.clip(p, *ends) for p in first])
    return lax.while_loop(
        lambda state: jnp.any(unfinished(state)),
        lambda state: update(state, _pivots(state, k)),
        interval,
    )


def _pivots(interval: Interval, k: Array) -> list[Array]:
    """Three that quarter the interval, and two around where k should be.

    The two lie one standard deviation of the rank of a uniform sample to either side
    of the interpolated rank. Five comparisons take hardly longer than one, since the
    pass is bound by memory; measured, more pivots cost more than the passes they save.
    """
    low, high, at_low, at_high = interval
    span = high - low
    inside = (at_low - at_high).astype(jnp.float32)
    rank = ((at_low - k).astype(jnp.float32) + 0.5) / (inside + 1)
    spread = jnp.sqrt(rank * (1 - rank) / jnp.maximum(inside, 1)) + 1 / (inside + 1)
    offsets = [span // 4, span // 2, span - span // 4]
    for fraction in (rank - spread, rank + spread):
        fraction = jnp.clip(fraction, 0.0, 0.999)
        offsets.append((fraction * span.astype(jnp.float32)).astype(span.dtype))
    return [low + jnp.clip(offset, 1, jnp.maximum(span, 2) - 1) for offset in offsets]


def _around(guess: Array) -> list[Array]:
    """Pivots at a guess and at relative distances of about 2**-11, 2**-7 and 2**-3."""
    center = _to_unsigned(order_key(guess, None))
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


def _lowest(key: jnp.dtype) -> int:
    return int(jnp.iinfo(key).min)


def order_key(x: Array, alive: Array | None) -> Array:
    """Integers in the order of the floats: -0.0 ties with 0.0, nan is below -inf.

    What is not alive is below everything. It is integer arithmetic throughout, since
    comparing floats flushes subnormal numbers to zero on some backends.
    """
    if jnp.finfo(x.dtype).bits < 32:
        x = x.astype(jnp.float32)
    key = jnp.dtype(f"int{jnp.finfo(x.dtype).bits}")
    infinity = int(np.array(np.inf, x.dtype).view(key))
    bits = lax.bitcast_convert_type(x, key)
    magnitude = bits & int(jnp.iinfo(key).max)
    ordered = jnp.where(bits < 0, -magnitude, magnitude)
    ordered = jnp.where(magnitude > infinity, _lowest(key) + 1, ordered)
    return ordered if alive is None else jnp.where(alive, ordered, _lowest(key))


def _from_order_key(key: Array, dtype: jnp.dtype) -> Array:
    magnitude = jnp.where(key < 0, -key, key)
    bits = jnp.where(key < 0, magnitude | _lowest(key.dtype), magnitude)
    wide = jnp.dtype("float64" if key.dtype == jnp.int64 else "float32")
    return lax.bitcast_convert_type(bits, wide).astype(dtype)


def _to_unsigned(key: Array) -> Array:
    dtype = jnp.dtype(f"u{key.dtype.name}")
    return lax.bitcast_convert_type(key, dtype) ^ _sign_bit(dtype)


def _from_unsigned(value: Array, key: jnp.dtype) -> Array:
    return lax.bitcast_convert_type(value ^ _sign_bit(value.dtype), key)


def _sign_bit(dtype: jnp.dtype) -> Array:
    return jnp.array(1 << (jnp.iinfo(dtype).bits - 1), dtype)
