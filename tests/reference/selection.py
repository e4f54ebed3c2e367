"""Top-k by a stable descending sort."""

import math
from fractions import Fraction

import numpy as np


def quota(density: Fraction | str | float, n: int) -> int:
    """round_half_up(density * n), in rational numbers."""
    exact = density if isinstance(density, Fraction) else Fraction(str(density))
    return math.floor(exact * n + Fraction(1, 2))


def sort_keys(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending keys for descending scores, -0.0 as 0.0; and which are nan."""
    x = np.asarray(x).astype(np.float64)  # exact for every narrower float
    return np.where(np.isnan(x), np.inf, -(x + 0.0)), np.isnan(x)


def best(flat: np.ndarray, k: int, alive: np.ndarray | None = None) -> np.ndarray:
    """A flat mask of the k largest of what is alive; the first of equals win."""
    alive = np.ones(flat.shape, bool) if alive is None else alive
    key, is_nan = sort_keys(flat)
    place = np.arange(flat.size)
    order = np.lexsort((place, key, is_nan, ~alive))
    mask = np.zeros(flat.shape, bool)
    mask[order[:k]] = True
    return mask & alive


def top_k(
    leaves: list[np.ndarray],
    density: float | list[float],
    *,
    scope: str = "leaf",
    alive: list[np.ndarray] | None = None,
    allowed: list[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Masks of the largest entries of each leaf, or of all leaves together.

    `alive` says what is counted, `allowed` what of it may be kept.
    """
    if alive is None:
        alive = [np.ones(x.shape, bool) for x in leaves]
    if allowed is None:
        allowed = alive
    if scope == "leaf":
        densities = density if isinstance(density, list) else [density] * len(leaves)
        return [
            best(x.ravel(), quota(d, int(a.sum())), (ok & a).ravel()).reshape(x.shape)
            for x, d, a, ok in zip(leaves, densities, alive, allowed, strict=True)
        ]
    flat = np.concatenate([x.ravel() for x in leaves])
    counted = sum(int(a.sum()) for a in alive)
    can = np.concatenate([(a & b).ravel() for a, b in zip(alive, allowed, strict=True)])
    mask = best(flat, quota(density, counted), can)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = np.split(mask, ends)
    return [m.reshape(x.shape) for m, x in zip(parts, leaves, strict=True)]


def best_of_groups(
    x: np.ndarray, n: int, m: int, axis: int, alive: np.ndarray | None = None
) -> np.ndarray:
    """The n best of every m consecutive entries along an axis, group by group."""
    alive = np.ones(x.shape, bool) if alive is None else alive
    mask = np.zeros(x.shape, bool)
    lines, ok, out = (np.moveaxis(a, axis, -1) for a in (x, alive, mask))
    for index in np.ndindex(*lines.shape[:-1]):
        for start in range(0, lines.shape[-1], m):
            group = slice(start, start + m)
            out[index][group] = best(lines[index][group], n, ok[index][group])
    return mask


def blocks(
    x: np.ndarray, shape: tuple[int, int], alive: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of what is alive in each tile of the last two axes, and which have any."""
    alive = np.ones(x.shape, bool) if alive is None else alive
    height, width = shape
    small = (*x.shape[:-2], x.shape[-2] // height, x.shape[-1] // width)
    means, some = np.zeros(small), np.zeros(small, bool)
    for *outer, row, column in np.ndindex(*small):
        rows = slice(row * height, (row + 1) * height)
        columns = slice(column * width, (column + 1) * width)
        tile, live = x[(*outer, rows, columns)], alive[(*outer, rows, columns)]
        some[(*outer, row, column)] = live.any()
        if live.any():
            means[(*outer, row, column)] = tile[live].astype(np.float64).mean()
    return means, some


def tile(decisions: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Every decision over its tile."""
    return np.kron(decisions, np.ones(shape, bool)).astype(bool)


def units(
    x: np.ndarray, axis: int, alive: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of what is alive in each slice along an axis, and which have any."""
    alive = np.ones(x.shape, bool) if alive is None else alive
    lines, live = np.moveaxis(x, axis, 0), np.moveaxis(alive, axis, 0)
    means = np.array(
        [
            s[a].astype(np.float64).mean() if a.any() else 0.0
            for s, a in zip(lines, live, strict=True)
        ]
    )
    some = np.array([a.any() for a in live])
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return means.reshape(shape), some.reshape(shape)
