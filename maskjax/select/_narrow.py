"""Where a count falls to k: an interval of integers, narrowed by counting at pivots."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from maskjax._core.trees import Array


class Interval(NamedTuple):
    """Unsigned integers [low, high) around the answer, and how many entries reach each.

    They are keys, until one key is left of which only some entries are among the k.
    Then they are positions among the entries of that key.

    Attributes:
        low: At least k entries reach it.
        high: At most k entries reach it.
        at_low: How many do. It has the shape of k, as all of them have.
        at_high: How many do.
        tied: The key whose positions are searched. Above all keys while keys are.
    """

    low: Array
    high: Array
    at_low: Array
    at_high: Array
    tied: Array

    @property
    def ties(self) -> Array:
        """Whether positions are searched."""
        return self.tied < jnp.iinfo(self.tied.dtype).max

    def answer(self, k: Array) -> Array:
        """What exactly k entries reach, once the interval is narrow."""
        return jnp.where(self.at_low == k, self.low, self.high)

    def open(self, k: Array) -> Array:
        """Whether neither end is the answer, and there is more to look for."""
        more = ~self.ties | (self.high - self.low > 1)
        return more & (self.at_low != k) & (self.at_high != k)


def narrow(
    count: Callable[[list[Array], Interval], tuple[list[Array], Array]],
    interval: Interval,
    k: Array,
    *,
    last_position: Array,
    key: Callable[[Array], Array],
    first: list[Array] | None = None,
) -> Interval:
    """Shrink an interval until exactly k entries reach one of its ends.

    Args:
        count: From pivots and the interval to how many entries reach each pivot, and
            the lowest entry that reaches the low end, or less; all shaped like `k`.
        interval: Where to look.
        k: The wanted counts, one for each independent search.
        last_position: The highest position in each search. The lowest is 1.
        key: From unsigned integers to the keys that they stand for.
        first: As many pivots as `_pivots` has, to begin with.

    Returns:
        The final interval. Each pass leaves at most half of it, so 32-bit keys take at
        most 33 passes; smooth data take about eight, because the counts at both ends
        tell where to look next, and many equal entries hardly more, because the low
        end moves up to an entry.
    """

    def update(state: tuple[Interval, list[Array]]) -> tuple[Interval, list[Array]]:
        interval, pivots = state
        low, high, at_low, at_high, tied = interval
        counts, lowest = count(pivots, interval)
        for pivot, reached in zip(pivots, counts, strict=True):
            enough = reached >= k
            low = jnp.where(enough, jnp.maximum(low, pivot), low)
            high = jnp.where(enough, high, jnp.minimum(high, pivot))
            at_low = jnp.where(enough, jnp.minimum(at_low, reached), at_low)
            at_high = jnp.where(enough, at_high, jnp.maximum(at_high, reached))
        low = jnp.maximum(low, jnp.minimum(lowest, high - 1))
        interval = Interval(low, high, at_low, at_high, tied)
        tie = ~interval.ties & interval.open(k) & (high - low <= 1)
        interval = interval._replace(
            low=jnp.where(tie, jnp.ones_like(low), low),
            high=jnp.where(tie, last_position + 1, high),
            tied=jnp.where(tie, key(low), tied),
        )
        return interval, _pivots(interval, k)

    if first is None:
        first = _pivots(interval, k)
    else:
        ends = interval.low + 1, jnp.maximum(interval.high, 1) - 1
        first = [jnp.clip(p, *ends) for p in first]
    found, _ = lax.while_loop(
        lambda state: jnp.any(state[0].open(k)), update, (interval, first)
    )
    return found


def _pivots(interval: Interval, k: Array) -> list[Array]:
    """Two that cut off quarters, two around the place where k should be, and low + 1.

    The two lie a quarter of a standard deviation to either side of the interpolated
    rank, as if the entries were a uniform sample. The last tells whether k falls among
    entries that equal the low end. Five comparisons take hardly longer than one,
    because a pass is bound by memory; measured, more cost what they save.
    """
    low, high, at_low, at_high, _ = interval
    span = high - low
    inside = (at_low - at_high).astype(jnp.float32)
    rank = ((at_low - k).astype(jnp.float32) + 0.5) / (inside + 1)
    spread = jnp.sqrt(rank * (1 - rank) / jnp.maximum(inside, 1)) + 1 / (inside + 1)
    offsets = [span // 4, span - span // 4, jnp.ones_like(span)]
    for fraction in (rank - spread / 4, rank + spread / 4):
        fraction = jnp.clip(fraction, 0.0, 0.999)
        offsets.append((fraction * span.astype(jnp.float32)).astype(span.dtype))
    return [low + jnp.clip(offset, 1, jnp.maximum(span, 2) - 1) for offset in offsets]
