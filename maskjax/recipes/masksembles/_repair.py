"""Masks made distinct, and brought to an overlap by moving single ones."""

import itertools
from collections.abc import Sequence

import numpy as np


def every_mask(channels: int, ones: int) -> np.ndarray:
    """All masks with this many ones, [C choose ones, C]."""
    choices = itertools.combinations(range(channels), ones)
    return np.stack([_mask(choice, channels) for choice in choices])


def made_distinct(rows: np.ndarray) -> np.ndarray:
    """Replace each repeated mask by an unused one."""
    used = {row.tobytes() for row in rows}
    seen: set[bytes] = set()
    rows = rows.copy()
    for i, row in enumerate(rows):
        if row.tobytes() in seen:
            rows[i] = _unused(row, used)
        seen.add(rows[i].tobytes())
        used.add(rows[i].tobytes())
    return rows


def moved_towards(rows: np.ndarray, target: float, *, fixed: np.ndarray) -> np.ndarray:
    """Move ones within masks while that brings the overlap nearer to the target.

    Each step takes the best move of all masks that keeps masks distinct and leaves no
    column empty.

    Args:
        rows: [n, C], distinct masks.
        target: The overlap summed over all pairs, those with `fixed` masks too.
        fixed: [m, C], masks that do not change.
    """
    rows = rows.copy()
    used = {row.tobytes() for row in rows}
    while True:
        counts = fixed.sum(0, dtype=np.int64) + rows.sum(0, dtype=np.int64)
        gap = target - (counts * (counts - 1) // 2).sum()
        best, choice = abs(gap), None
        for i, row in enumerate(rows):
            gives, takes = np.flatnonzero(row & (counts > 1)), np.flatnonzero(~row)
            left = abs(gap - (counts[takes] - counts[gives][:, None] + 1))
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


def _unused(row: np.ndarray, used: set[bytes]) -> np.ndarray:
    """An unused mask with the same number of ones; one move away if possible."""
    for x, y in itertools.product(np.flatnonzero(row), np.flatnonzero(~row)):
        new = _moved(row, x, y)
        if new.tobytes() not in used:
            return new
    for choice in itertools.combinations(range(len(row)), int(row.sum())):
        new = _mask(choice, len(row))
        if new.tobytes() not in used:
            return new
    raise AssertionError("every mask is in use")


def _moved(row: np.ndarray, x: np.intp, y: np.intp) -> np.ndarray:
    new = row.copy()
    new[[x, y]] = new[[y, x]]
    return new


def _mask(ones: Sequence[int], channels: int) -> np.ndarray:
    row = np.zeros(channels, bool)
    row[list(ones)] = True
    return row
