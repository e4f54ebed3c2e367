"""Families of masks with as many ones each, and as much overlap as was asked for.

Which family, but for the order of its rows and columns, follows from whole numbers
alone: it is found once, with NumPy, while tracing. A key then moves its ones about.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core.trees import Array

# Enough for rows to forget where they came from: each meets as many others.
_TRADES = 16
# How many families are tried where masks would be the same.
_STARTS = 4


class Family(NamedTuple):
    """N masks of C columns, as bytes so that it can be kept.

    Attributes:
        rows: [N, C] boolean.
        shared: Ones that two masks share, summed over all pairs.
        distinct: How many of the masks differ.
    """

    rows: np.ndarray
    shared: int
    distinct: int


@functools.lru_cache(maxsize=512)
def family(members: int, channels: int, ones: int, target: float) -> Family:
    """A family that covers all columns, its overlap nearest the target.

    Masks differ as long as there are different ones, and then each is used as often as
    the others, or once more.

    Args:
        members: N, at least 1.
        channels: C, at least 1.
        ones: Of each mask; N * ones >= C >= ones.
        target: What `shared` should be.
    """
    whole, rest = divmod(members, math.comb(channels, ones))
    if whole:  # all masks that there are, and some of them once more
        every = _every(channels, ones)
        below = np.tile(every, (whole, 1))
        start = lambda rng: every[rng.permutation(len(every))[:rest]]  # noqa: E731
    else:
        degrees = _degrees(members, channels, members * ones, target)
        below = np.zeros((0, channels), bool)
        start = lambda rng: _mixed(_laid_out(degrees, members), rng)  # noqa: E731
    rows, miss = below, math.inf
    for seed in range(_STARTS):
        drawn = start(np.random.default_rng(seed))
        differ = _differing(drawn) == len(drawn)
        if whole or not differ:
            drawn = _towards(_apart(drawn), target, below=below)
        new = np.concatenate([below, drawn])
        if abs(_shared(new) - target) < miss:
            rows, miss = new, abs(_shared(new) - target)
        if miss <= 0.5 or differ and not whole:
            break  # nothing is closer
    rows.setflags(write=False)
    return Family(rows, _shared(rows), _differing(rows))


@jax.jit
def shuffled(rows: Array, distinct: Array, key: Array) -> Array:
    """A family of the same counts, overlap and number of different masks, at random.

    Rows and columns change places. Then pairs of rows trade the ones that only one of
    them has, as many as either has (Strona et al., "curveball", 2014), unless fewer
    masks would differ.
    """
    members, channels = rows.shape
    pairs = members // 2
    sizes = (channels, _TRADES * members, _TRADES * pairs * channels)
    bits = jax.random.bits(key, (sum(sizes),))  # drawn at once: quicker to compile
    for_columns, order, draw = jnp.split(bits, (sizes[0], sizes[0] + sizes[1]))
    rows = rows[:, jnp.argsort(for_columns)]
    order = order.reshape(_TRADES, members)
    draw = draw.reshape(_TRADES, pairs, channels)
    # Low bits are the column's: no two of a row are equal, so that halves are exact.
    low = (1 << (channels - 1).bit_length()) - 1
    high = draw & jnp.uint32(~low & 0xFFFFFFFF)
    draw = high | lax.broadcasted_iota("uint32", high.shape, 2)

    def differing(rows: Array) -> Array:
        values = rows.astype(jnp.float32)
        equal = values @ values.T == jnp.sum(values, 1)[:, None]
        return jnp.sum(~jnp.any(jnp.tril(equal, -1), 1))

    def trade(rows: Array, bits: tuple[Array, Array]) -> tuple[Array, None]:
        rows, draw = rows[jnp.argsort(bits[0])], bits[1]
        a, b = rows[:pairs], rows[pairs : 2 * pairs]
        single = a ^ b
        half = jnp.sum(a & single, 1, dtype=jnp.int32)[:, None]
        ranked = jnp.sort(jnp.where(single, draw, jnp.uint32(0xFFFFFFFF)), 1)
        last = jnp.take_along_axis(ranked, jnp.maximum(half - 1, 0), 1)
        given = single & (draw <= last)
        new = [(a & b) | given, (a & b) | (single & ~given), rows[2 * pairs :]]
        new = jnp.concatenate(new)
        return jnp.where(differing(new) >= distinct, new, rows), None

    return lax.scan(trade, rows, (order, draw))[0]


def _shared(rows: np.ndarray) -> int:
    columns = rows.sum(0, dtype=np.int64)
    return int((columns * (columns - 1) // 2).sum())


def _differing(rows: np.ndarray) -> int:
    return len({row.tobytes() for row in rows})


def _degrees(members: int, channels: int, total: int, target: float) -> np.ndarray:
    """How many masks have each column: nearly binomial, their sum and overlap exact."""
    each = total / channels
    if each == members:
        return np.full(channels, members)
    # If every mask has a column with chance p: the share of those that none has is
    # (1 - p)^N, and they are dropped. Found from the overlap of the others.
    pairs = math.comb(members, 2)
    p = min(max(target / max(pairs * total / members, 1), 1e-6), 1 - 1e-6)
    log = [
        math.lgamma(members + 1) - math.lgamma(k + 1) - math.lgamma(members - k + 1)
        for k in range(1, members + 1)
    ]
    k = np.arange(1, members + 1)
    log = np.array(log) + k * math.log(p) + (members - k) * math.log1p(-p)
    chance = np.exp(log - log.max())
    exact = channels * chance / chance.sum()
    of = np.floor(exact).astype(np.int64)  # of[i] columns that i + 1 masks have
    of[np.argsort(of - exact, kind="stable")[: channels - of.sum()]] += 1
    shared = lambda: int((of * k * (k - 1) // 2).sum())  # noqa: E731
    while short := total - int((of * k).sum()):  # one step for each that is missing
        way = 1 if short > 0 else -1
        costs = k if way > 0 else 1 - k
        usable = (of > 0) & (k + way >= 1) & (k + way <= members)
        wanted = (target - shared()) / abs(short)
        i = np.flatnonzero(usable)[np.argmin(abs(costs[usable] - wanted))]
        of[i] -= 1
        of[i + way] += 1
    return np.repeat(k, _nearer(of, k, target))


def _nearer(of: np.ndarray, k: np.ndarray, target: float) -> np.ndarray:
    """Ones given by columns to others, until the overlap is right."""
    last = len(k) - 1
    change = k[None, :] - k[:, None] + 1  # the first gives, the second takes
    step = 1.0  # no more at once than each must, so that columns stay alike
    while gap := target - (of * k * (k - 1) // 2).sum():
        step = max(step, 2 * abs(gap) / of.sum())
        usable = (of[:, None] > 0) & (of[None, :] > 0) & (abs(change) <= step)
        usable &= (np.arange(len(k)) > 0)[:, None] & (np.arange(len(k)) < last)[None, :]
        usable &= ~np.eye(len(k), dtype=bool) | (of > 1)[:, None]
        left = np.where(usable, abs(gap - change), np.inf)
        give, take = np.unravel_index(np.argmin(left), left.shape)
        if left[give, take] < abs(gap):
            of += np.bincount([give - 1, take + 1], minlength=len(k))
            of -= np.bincount([give, take], minlength=len(k))
        elif step < len(k):
            step += 1
        else:
            break
    return of


def _laid_out(degrees: np.ndarray, members: int) -> np.ndarray:
    """Ones dealt out in turns: each mask gets as many, each column its own."""
    degrees = np.random.default_rng(0).permutation(degrees)
    columns = np.repeat(np.arange(len(degrees)), degrees)
    rows = np.zeros((members, len(degrees)), bool)
    rows[np.arange(len(columns)) % members, columns] = True
    return rows


def _mixed(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ones traded between pairs of masks, until all differ or for some rounds."""
    for _ in range(_TRADES):
        order = rng.permutation(len(rows))
        for a, b in zip(order[::2], order[1::2], strict=False):
            single = rng.permutation(np.flatnonzero(rows[a] != rows[b]))
            half = len(single) // 2
            rows[a, single] = np.arange(len(single)) < half
            rows[b, single] = np.arange(len(single)) >= half
    return rows


def _apart(rows: np.ndarray) -> np.ndarray:
    """Masks that occur before replaced by the next that does not occur."""
    used = {row.tobytes() for row in rows}
    seen: set[bytes] = set()
    rows = rows.copy()
    for i, row in enumerate(rows):
        if row.tobytes() in seen:
            rows[i] = _unused(row, used)
        seen.add(rows[i].tobytes())
        used.add(rows[i].tobytes())
    return rows


def _unused(row: np.ndarray, used: set[bytes]) -> np.ndarray:
    """A mask of as many ones that is not in use, by moving one of them if possible."""
    for x, y in itertools.product(np.flatnonzero(row), np.flatnonzero(~row)):
        new = _moved(row, x, y)
        if new.tobytes() not in used:
            return new
    for ones in itertools.combinations(range(len(row)), int(row.sum())):
        new = _indicator(ones, len(row))
        if new.tobytes() not in used:
            return new
    raise AssertionError("every mask is in use")


def _towards(rows: np.ndarray, target: float, *, below: np.ndarray) -> np.ndarray:
    """Ones moved within masks, which stay different, while that brings the overlap."""
    rows = rows.copy()
    used = {row.tobytes() for row in rows}
    while True:
        degrees = below.sum(0, dtype=np.int64) + rows.sum(0, dtype=np.int64)
        gap = target - (degrees * (degrees - 1) // 2).sum()
        best, choice = abs(gap), None
        for i, row in enumerate(rows):
            gives, takes = np.flatnonzero(row & (degrees > 1)), np.flatnonzero(~row)
            left = abs(gap - (degrees[takes] - degrees[gives][:, None] + 1))
            while left.size and left.min() < best:
                at = np.unravel_index(np.argmin(left), left.shape)
                new = _moved(row, gives[at[0]], takes[at[1]])
                if new.tobytes() not in used:
                    best, choice = left[at], (i, new)
                left[at] = np.inf
        if choice is None:
            return rows
        i, new = choice
        used.remove(rows[i].tobytes())
        used.add(new.tobytes())
        rows[i] = new


def _moved(row: np.ndarray, x: np.intp, y: np.intp) -> np.ndarray:
    new = row.copy()
    new[[x, y]] = new[[y, x]]
    return new


def _every(channels: int, ones: int) -> np.ndarray:
    return np.stack(
        [_indicator(c, channels) for c in itertools.combinations(range(channels), ones)]
    )


def _indicator(ones: Sequence[int], channels: int) -> np.ndarray:
    row = np.zeros(channels, bool)
    row[list(ones)] = True
    return row
