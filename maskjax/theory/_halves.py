"""Meet in the middle: pairs of sums, one of each part of the coefficients.

A row of n coefficients [r, n] is cut into a left part, of `split` coefficients, and a
right one. A sum is known by its place, whose bit p is the p-th coefficient. All is
float64, on the host.
"""

import math
from collections.abc import Iterator

import numpy as np

_PIECE = 2**23  # bytes: as much as caches hold is done at a time
# Nanoseconds, measured on one core: to look at a pair of sums; to find a sum's place
# among others; to sort one; to call NumPy a few times.
_PAIR, _PLACE, _SORT, _CALL = 3, 60, 15, 20_000
_FEW = 8


def needed(n: int, split: int, targets: int) -> int:
    """What the search works in: sums, sorted sums, and places for every target."""
    left, right = 2**split, 2 ** (n - split)
    return 8 * (2 * left + 2 * right + 6 * left * targets)


def split_at(targets: int, n: int, memory: int, *, fn: str) -> int:
    """How many coefficients are looked up, so that it costs as much as to sort."""
    split = max(0, min(n // 2, round((n - math.log2(targets)) / 2)))
    while split < n // 2 and needed(n, split, 1) > memory:
        split += 1
    if (least := needed(n, split, 1)) > memory:
        raise ValueError(
            f"`{fn}` needs {least / 2**30:,.2f} GiB to search all subsets of {n} "
            f"coefficients, got `memory` of {memory / 2**30:,.2f} GiB. Give it more, "
            "or fewer coefficients, or use `greedy`."
        )
    return split


def pieces(
    shape: tuple[int, int], n: int, split: int, memory: int
) -> Iterator[tuple[slice, slice]]:
    """Parts of the targets, each small enough to work on at once."""
    rows, columns, most = 1, 1, min(memory, _PIECE)
    while columns < shape[1] and needed(n, split, 2 * columns) <= most:
        columns *= 2
    while rows < shape[0] and 2 * rows * needed(n, split, columns) <= most:
        rows *= 2
    for i in range(0, shape[0], rows):
        for j in range(0, shape[1], columns):
            yield slice(i, i + rows), slice(j, j + columns)


def sums_of(c: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    """All sums of either part; bit p of a sum's place is its p-th coefficient."""

    def sums(c: np.ndarray) -> np.ndarray:
        out = np.zeros((len(c), 2 ** c.shape[1]))
        for p in range(c.shape[1]):
            half = 2**p
            np.add(out[:, :half], c[:, p, None], out=out[:, half : 2 * half])
        return out

    return sums(c[:, :split]), sums(c[:, split:])


def closest(
    left: np.ndarray, right: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors [r, m] of the pairs that sum to nearest each target, and their places."""
    (rows, a), b, many = left.shape, right.shape[1], targets.shape[1]
    if _PAIR * a * b * many < _PLACE * a * many + _SORT * b + _CALL:
        size = max(1, _PIECE // (16 * a * b * many))
        parts = [slice(i, i + size) for i in range(0, rows, size)]
        found = [_closest_pair(left[x], right[x], targets[x]) for x in parts]
        error, i, j = (np.concatenate(x) for x in zip(*found, strict=True))
        return error, i, j

    # What is looked up one after the other had better be near one another.
    rank = np.argsort(targets, axis=1)
    small, sums = np.sort(left, axis=1), np.sort(right, axis=1)
    rest = np.take_along_axis(targets, rank, 1)[:, None, :] - small[:, ::-1, None]
    place = np.empty(rest.shape, np.intp)
    for row in range(rows):
        place[row] = np.searchsorted(sums[row], rest[row])
    first = np.arange(rows)[:, None, None] * b
    below = rest - sums.ravel()[first + np.maximum(place - 1, 0)]
    above = sums.ravel()[first + np.minimum(place, b - 1)] - rest
    place -= np.abs(below) <= np.abs(above)
    error = np.minimum(np.abs(below), np.abs(above))
    best = error.argmin(1)
    error, place = (
        np.take_along_axis(x, best[:, None], 1)[:, 0] for x in (error, place)
    )
    i = _unsorted(left, small, a - 1 - best)
    j = _unsorted(right, sums, place.clip(0, b - 1))
    back = np.argsort(rank, axis=1)
    error, i, j = (np.take_along_axis(x, back, 1) for x in (error, i, j))
    return error, i, j


def _closest_pair(
    left: np.ndarray, right: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `closest`, by a look at each pair."""
    pairs = (left[:, :, None] + right[:, None, :]).reshape(len(left), 1, -1)
    error = pairs - targets[:, :, None]
    np.abs(error, out=error)
    best = error.argmin(2)
    least = np.take_along_axis(error, best[..., None], 2)[..., 0]
    return least, *np.divmod(best, right.shape[1])


def _unsorted(values: np.ndarray, ordered: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Where, among values, are those of some places in their order."""
    if place.shape[1] > _FEW:
        return np.take_along_axis(np.argsort(values, axis=1), place, 1)
    # To look at each takes less time than to sort places with the values.
    value = np.take_along_axis(ordered, place, 1)
    return np.argmax(values[:, None, :] == value[..., None], axis=-1)


def closest_of_size(
    left: np.ndarray, right: np.ndarray, targets: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pairs nearest to targets, of subsets of so many coefficients."""
    sizes = [np.bitwise_count(np.arange(s.shape[1])) for s in (left, right)]
    least = max(0, size - int(sizes[1].max()))
    nearest = np.full(targets.shape, np.inf)
    at = np.zeros((2, *targets.shape), np.intp)
    for k in range(least, min(size, int(sizes[0].max())) + 1):
        these = np.flatnonzero(sizes[0] == k), np.flatnonzero(sizes[1] == size - k)
        error, i, j = closest(left[:, these[0]], right[:, these[1]], targets)
        nearer = error < nearest
        at = np.where(nearer, (these[0][i], these[1][j]), at)
        nearest = np.where(nearer, error, nearest)
    return at[0], at[1]


def subset(i: np.ndarray, j: np.ndarray, split: int, n: int) -> np.ndarray:
    """The subsets [r, m, n] whose sums are at these places."""
    bits = [(i[..., None] >> np.arange(split)) & 1 == 1]
    bits.append((j[..., None] >> np.arange(n - split)) & 1 == 1)
    return np.concatenate(bits, -1)
