"""A family of masks, randomized with a key."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maskjax._core import placement
from maskjax._core.trees import Array
from maskjax.recipes.masksembles._family import TRADES


@jax.jit
def shuffled(rows: ArrayLike, distinct: ArrayLike, key: Array) -> Array:
    """A random family with the same counts, overlap and number of distinct masks.

    Columns change places. Then random pairs of masks trade: the ones that only one of
    them has are dealt anew, as many to each as before (the "curveball" algorithm),
    unless that would leave fewer distinct masks.

    Args:
        rows: [N, C], the family.
        distinct: How many of the masks differ.
        key: A typed key.

    References:
        Strona et al., "A fast and unbiased procedure to randomize ecological binary
        matrices with fixed row and column totals", Nature Communications 2014.
    """
    rows = jnp.asarray(rows)
    members, channels = rows.shape
    pairs = members // 2
    sizes = channels, TRADES * members, TRADES * pairs * channels
    bits = jax.random.bits(key, (sum(sizes),))  # one draw compiles faster than three
    for_columns, order, draw = jnp.split(bits, (sizes[0], sizes[0] + sizes[1]))
    rows = rows[:, jnp.argsort(for_columns)]
    order = order.reshape(TRADES, members)
    draw = draw.reshape(TRADES, pairs, channels)
    # The low bits hold the column: draws in a row never tie, so counts are exact.
    low = (1 << (channels - 1).bit_length()) - 1
    high = draw & jnp.uint32(~low & 0xFFFFFFFF)
    draw = high | lax.broadcasted_iota("uint32", high.shape, 2)

    def trade(rows: Array, bits: tuple[Array, Array]) -> tuple[Array, None]:
        rows, draw = rows[jnp.argsort(bits[0])], bits[1]
        a, b = rows[:pairs], rows[pairs : 2 * pairs]
        single = a ^ b
        given = _lowest(draw, single, jnp.sum(a & single, 1, dtype=jnp.int32))
        new = [(a & b) | given, (a & b) | (single & ~given), rows[2 * pairs :]]
        new = jnp.concatenate(new)
        return jnp.where(_distinct(new) >= distinct, new, rows), None

    return lax.scan(trade, placement.vary_like(rows, draw), (order, draw))[0]


def _lowest(draw: Array, among: Array, count: Array) -> Array:
    """The entries with the `count` lowest draws of each row."""
    ranked = jnp.sort(jnp.where(among, draw, jnp.uint32(0xFFFFFFFF)), 1)
    last = jnp.take_along_axis(ranked, jnp.maximum(count[:, None] - 1, 0), 1)
    return among & (draw <= last)


def _distinct(rows: Array) -> Array:
    """How many masks differ, if all have equally many ones."""
    values = rows.astype(jnp.float32)
    equal = values @ values.T == jnp.sum(values, 1)[:, None]
    return jnp.sum(~jnp.any(jnp.tril(equal, -1), 1))
