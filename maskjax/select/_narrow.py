"""Where a count falls to k: an interval of integers, narrowed by counting at pivots."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from maskjax._core.trees import Array


class Interval(NamedTuple):
    """Unsigned integers [low, high) around the answer, and how many reach each end.

    at_low >= k >= at_high. All four have the shape of k.
    """

    low: Array
    high: Array
    at_low: Array
    at_high: Array


def narrow(
    count: Callable[[list[Array], Array], tuple[list[Array], Array]],
    interval: Interval,
    k: Array,
    first: list[Array] | None = None,
) -> Interval:
    """Shrink an interval until the count at one end is k, or one integer is left.

    Args:
        count: From pivots and the low end to how many entries reach each pivot, and the
            lowest entry that reaches the low end, or less; all shaped like `k`.
        interval: Where to look.
        k: The wanted counts, one for each independent search.
        first: Pivots to begin with.

    Returns:
        The final interval. Each pass leaves at most half of it, so 32-bit keys take at
        most 33 passes; smooth data take about eight, because the counts at both ends
        tell where to look next, and many equal entries about five, because the low end
        moves up to an entry.
    """

    def unfinished(state: Interval) -> Array:
        return (state.high - state.low > 1) & (state.at_low != k) & (state.at_high != k)

    def update(state: Interval, pivots: list[Array]) -> Interval:
        low, high, at_low, at_high = state
        counts, lowest = count(pivots, low)
        for pivot, reached in zip(pivots, counts, strict=True):
            enough = reached >= k
            low = jnp.where(enough, jnp.maximum(low, pivot), low)
            high = jnp.where(enough, high, jnp.minimum(high, pivot))
            at_low = jnp.where(enough, jnp.minimum(at_low, reached), at_low)
            at_high = jnp.where(enough, at_high, jnp.maximum(at_high, reached))
        low = jnp.maximum(low, jnp.minimum(lowest, high - 1))
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
    """Two that cut off quarters, two around the place where k should be, and low + 1.

    The two lie one standard deviation to either side of the interpolated rank, as if
    the entries were a uniform sample. The last tells whether k falls among entries that
    equal the low end. Five comparisons take hardly longer than one, because a pass is
    bound by memory; measured, more pivots cost more than they save.
    """
    low, high, at_low, at_high = interval
    span = high - low
    inside = (at_low - at_high).astype(jnp.float32)
    rank = ((at_low - k).astype(jnp.float32) + 0.5) / (inside + 1)
    spread = jnp.sqrt(rank * (1 - rank) / jnp.maximum(inside, 1)) + 1 / (inside + 1)
    offsets = [span // 4, span - span // 4, jnp.ones_like(span)]
    for fraction in (rank - spread, rank + spread):
        fraction = jnp.clip(fraction, 0.0, 0.999)
        offsets.append((fraction * span.astype(jnp.float32)).astype(span.dtype))
    return [low + jnp.clip(offset, 1, jnp.maximum(span, 2) - 1) for offset in offsets]
