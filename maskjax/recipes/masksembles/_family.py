"""Families of masks with equally many ones each and a given overlap.

Counts alone determine a family, except for the order of its rows and columns. So it is
found once, with NumPy, while tracing; `_shuffle` then randomizes it with a key.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from maskjax.recipes.masksembles._columns import column_counts
from maskjax.recipes.masksembles._repair import (
    every_mask,
    made_distinct,
    moved_towards,
)

# Rounds in which masks trade ones: enough that nothing is left of the order in which
# ones were dealt.
TRADES = 16
# How many families to try if masks coincide.
_STARTS = 4


class Family(NamedTuple):
    """N masks of C columns.

    Attributes:
        rows: [N, C] boolean, read-only, because families are cached.
        shared: The number of ones that two masks share, summed over all pairs.
        distinct: How many of the masks differ.
    """

    rows: np.ndarray
    shared: int
    distinct: int


@functools.lru_cache(maxsize=512)
def family(members: int, channels: int, ones: int, target: float) -> Family:
    """A family that covers all columns and whose `shared` is nearest to the target.

    Masks are distinct if there are enough different ones. If not, each different mask
    is used equally often, or once more.

    Args:
        members: N, at least 1.
        channels: C, at least 1.
        ones: Of each mask; N * ones >= C >= ones.
        target: What `shared` should be.
    """
    repeats, rest = divmod(members, math.comb(channels, ones))
    if repeats:  # all masks that there are, and some of them once more
        every = every_mask(channels, ones)
        fixed = np.tile(every, (repeats, 1))
    else:
        every = fixed = np.zeros((0, channels), bool)
        counts = column_counts(members, channels, members * ones, target)
    rows, miss = fixed, math.inf
    for seed in range(_STARTS):
        rng = np.random.default_rng(seed)
        if repeats:
            drawn = every[rng.permutation(len(every))[:rest]]
        else:
            drawn = _traded(_dealt(counts, members), rng)
        # Trades keep the column counts, and these have the nearest overlap.
        perfect = not repeats and _distinct(drawn) == len(drawn)
        if not perfect:
            drawn = moved_towards(made_distinct(drawn), target, fixed=fixed)
        new = np.concatenate([fixed, drawn])
        if abs(_shared(new) - target) < miss:
            rows, miss = new, abs(_shared(new) - target)
        if perfect or miss <= 0.5:
            break  # nothing is nearer
    rows.setflags(write=False)
    return Family(rows, _shared(rows), _distinct(rows))


def _shared(rows: np.ndarray) -> int:
    columns = rows.sum(0, dtype=np.int64)
    return int((columns * (columns - 1) // 2).sum())


def _distinct(rows: np.ndarray) -> int:
    return len({row.tobytes() for row in rows})


def _dealt(counts: np.ndarray, members: int) -> np.ndarray:
    """Masks with these column counts: ones are dealt in turns, so all get equally many.

    A column's ones go to consecutive masks, so no mask gets two of them.
    """
    counts = np.random.default_rng(0).permutation(counts)
    columns = np.repeat(np.arange(len(counts)), counts)
    rows = np.zeros((members, len(counts)), bool)
    rows[np.arange(len(columns)) % members, columns] = True
    return rows


def _traded(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pairs of masks deal anew the ones that only one of them has, half to each."""
    for _ in range(TRADES):
        order = rng.permutation(len(rows))
        for a, b in zip(order[::2], order[1::2], strict=False):
            single = rng.permutation(np.flatnonzero(rows[a] != rows[b]))
            half = len(single) // 2
            rows[a, single] = np.arange(len(single)) < half
            rows[b, single] = np.arange(len(single)) >= half
    return rows
