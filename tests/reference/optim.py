"""Pruning and rewiring in training loops of NumPy."""

from collections.abc import Callable

import numpy as np

from tests.reference import selection


def gradual_pruning(
    weights: list[np.ndarray],
    *,
    gradient: Callable[[np.ndarray], np.ndarray],
    learning_rate: float,
    momentum: float,
    density: Callable[[int], float],
    every: int,
    steps: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """SGD with momentum; every so many steps the smallest weights go for good."""
    sizes = [w.size for w in weights]
    flat = np.concatenate([w.ravel() for w in weights]).astype(np.float64)
    alive, trace = np.ones(flat.size, bool), np.zeros(flat.size)
    for n in range(1, steps + 1):
        trace = gradient(flat) + momentum * trace
        moved = flat - learning_rate * trace
        if n % every == 0:
            order = np.argsort(-np.where(alive, np.abs(flat), -1.0), kind="stable")
            keep = np.zeros(flat.size, bool)
            keep[order[: selection.quota(density(n), flat.size)]] = True
            alive &= keep
        flat = moved * alive
    ends = np.cumsum(sizes)[:-1]
    return [
        (w.reshape(like.shape), m.reshape(like.shape))
        for w, m, like in zip(
            np.split(flat, ends), np.split(alive, ends), weights, strict=True
        )
    ]


def rigl(
    weights: np.ndarray,
    gradient: np.ndarray,
    alive: np.ndarray,
    *,
    learning_rate: float,
    rate: float,
    due: bool,
    also_step: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """A step of SGD, or instead: drop the smallest, grow where the gradient is largest.

    Or both in one step.
    """
    moved = weights - learning_rate * gradient
    if not due:
        return moved * alive, alive
    weights = weights * alive
    count = int(alive.sum())
    goes = selection.quota(rate, count)
    living = np.argwhere(alive.ravel())[:, 0]
    kept = alive.copy()
    for i in sorted(living, key=lambda i: abs(weights.flat[i]))[:goes]:
        kept.flat[i] = False
    free = np.argwhere(~kept.ravel())[:, 0]
    grown = kept.copy()
    for i in sorted(free, key=lambda i: -abs(gradient.flat[i]))[: count - kept.sum()]:
        grown.flat[i] = True
    return (moved if also_step else weights) * (grown & alive), grown


def srigl(
    weights: np.ndarray,
    gradient: np.ndarray,
    alive: np.ndarray,
    *,
    inputs: int,
    rate: float,
    least: float,
) -> np.ndarray:
    """The next mask of a layer [in, out] whose outputs have so many inputs at first."""
    fan_in, outputs = weights.shape
    goes = selection.quota(rate, int(alive.sum()))

    def highest(values: np.ndarray, among: np.ndarray, number: int) -> np.ndarray:
        places = sorted(np.flatnonzero(among), key=lambda i: -abs(values.flat[i]))
        found = np.zeros(values.shape, bool)
        found.flat[places[:number]] = True
        return found

    kept = highest(weights, alive, int(alive.sum()) - goes)
    salient = (kept | highest(gradient, ~alive, goes)).sum(0)
    needed = max(1, selection.quota(least, inputs)) if least else 0
    # As many outputs stay as are needed to hold all weights; those of as many salient
    # inputs stay or go together.
    fewest = max(1, -(-inputs * outputs // fan_in))
    needed = min(needed, sorted(salient)[-fewest])
    active = salient >= needed
    each = inputs * outputs // active.sum()
    mask = np.zeros_like(alive)
    for out in np.flatnonzero(active):
        one = np.zeros_like(alive)
        one[:, out] = True
        mask |= highest(weights, kept & one, each)
        mask |= highest(gradient, one & ~mask, each - int(mask[:, out].sum()))
    return mask
