"""Meet in the middle: search pairs of sums, one from each half of the coefficients.

Rows of coefficients [r, n] are cut into a left part of `split` coefficients and a right
part. The place of a sum among all sums of a part tells its subset: bit p is coefficient
p. Everything is NumPy in float64.
"""

import math
from collections.abc import Iterator

import numpy as np

_PIECE = 2**23  # bytes to work on at a time: about what caches hold
# Nanoseconds, measured on one core: to compare a pair of sums with a target; to find
# the place of a sum among sorted ones; to sort one sum; to call NumPy a few times.
_PAIR, _PLACE, _SORT, _CALL = 3, 60, 15, 20_000
_FEW = 8  # for so few targets, places are found without another sort


def needed(n: int, split: int, targets: int) -> int:
    """The bytes of a search: sums, sorted sums, and places for every target."""
    left, right = 2**split, 2 ** (n - split)
    return 8 * (2 * left + 2 * right + 6 * left * targets)


def split_at(targets: int, n: int, memory: int, *, fn: str) -> int:
    """The size of the left part for which look-ups cost as much as sorting."""
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
    """Parts of the targets [rows, columns] that are small enough to work on at once."""
    rows, columns, most = 1, 1, min(memory, _PIECE)
    while columns < shape[1] and needed(n, split, 2 * columns) <= most:
        columns *= 2
    while rows < shape[0] and 2 * rows * needed(n, split, columns) <= most:
        rows *= 2
    for i in range(0, shape[0], rows):
        for j in range(0, shape[1], columns):
            yield slice(i, i + rows), slice(j, j + columns)


def sums_of(c: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    """All sums of the left part, and of the right part."""

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
    """For each target [r, m] the pair of sums nearest to it: its error and places."""
    (rows, a), b, many = left.shape, right.shape[1], targets.shape[1]
    if _PAIR * a * b * many < _PLACE * a * many + _SORT * b + _CALL:
        size = max(1, _PIECE // (16 * a * b * many))
        parts = [slice(i, i + size) for i in range(0, rows, size)]
        found = [_closest_pair(left[x], right[x], targets[x]) for x in parts]
        error, i, j = (np.concatenate(x) for x in zip(*found, strict=True))
        return error, i, j

    # Sorted, because consecutive look-ups of near values hit the cache.
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
    """The same as `closest`, by comparing every pair."""
    pairs = (left[:, :, None] + right[:, None, :]).reshape(len(left), 1, -1)
    error = pairs - targets[:, :, None]
    np.abs(error, out=error)
    best = error.argmin(2)
    least = np.take_along_axis(error, best[..., None], 2)[..., 0]
    return least, *np.divmod(best, right.shape[1])


def _unsorted(values: np.ndarray, ordered: np.ndarray, place: np.ndarray) -> np.ndarray:
    """From places among sorted values to places among the values."""
    if place.shape[1] > _FEW:
        return np.take_along_axis(np.argsort(values, axis=1), place, 1)
    # For few targets it is faster to compare all values than to sort them once more.
    value = np.take_along_axis(ordered, place, 1)
    return np.argmax(values[:, None, :] == value[..., None], axis=-1)


def closest_of_size(
    left: np.ndarray, right: np.ndarray, targets: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the nearest pairs among the subsets of `size` coefficients."""
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
    """The subsets [r, m, n] of the sums at these places."""
    bits = [(i[..., None] >> np.arange(split)) & 1 == 1]
    bits.append((j[..., None] >> np.arange(n - split)) & 1 == 1)
    return np.concatenate(bits, -1)
