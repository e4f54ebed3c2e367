"""Criteria and actions of Zhou et al., arXiv:1905.01067, one leaf at a time."""

import numpy as np

from tests.reference import selection

RANKED = ("large_init_large_final", "small_init_small_final")


def criteria(
    w_i: np.ndarray, w_f: np.ndarray, gradient: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores that are functions of one weight."""
    size_i, size_f = np.abs(w_i), np.abs(w_f)
    same = (w_i > 0) & (w_f > 0) | (w_i < 0) & (w_f < 0)
    diff = (w_i > 0) & (w_f < 0) | (w_i < 0) & (w_f > 0)
    return {
        "large_final": size_f,
        "small_final": -size_f,
        "large_init": size_i,
        "small_init": -size_i,
        "magnitude_increase": size_f - size_i,
        "movement": np.abs(w_f - w_i),
        "large_final_same_sign": np.maximum(0, w_i * w_f / size_i),
        "large_final_diff_sign": np.maximum(0, -w_i * w_f / size_i),
        "magnitude_increase_same_sign": np.where(same, size_f - size_i, 0),
        "magnitude_increase_diff_sign": np.where(diff, size_f - size_i, 0),
        "snip": np.abs(gradient * w_i),
        "grad": np.abs(gradient),
    }


def mask(
    name: str,
    w_i: np.ndarray,
    w_f: np.ndarray,
    gradient: np.ndarray,
    alive: np.ndarray,
    k: int,
) -> np.ndarray:
    """The k weights that are alive and that a criterion values most."""
    if name in RANKED:
        turn = 1 if name.startswith("large") else -1
        sizes = turn * np.abs(w_i), turn * np.abs(w_f)
        return high_in_both(*(x.ravel() for x in sizes), alive.ravel(), k).reshape(
            w_i.shape
        )
    scores = criteria(w_i, w_f, gradient)[name]
    return selection.best(scores.ravel(), k, alive.ravel()).reshape(w_i.shape)


def high_in_both(x: np.ndarray, y: np.ndarray, alive: np.ndarray, k: int) -> np.ndarray:
    """Widen the top q of both until they share k entries; the first of two wins."""
    shared = np.zeros(x.shape, bool)
    for q in range(int(alive.sum()) + 1):
        before = shared
        shared = selection.best(x, q, alive) & selection.best(y, q, alive)
        if shared.sum() >= k:
            new = np.flatnonzero(shared & ~before)
            before[new[: k - before.sum()]] = True
            return before
    raise AssertionError(f"{k} of {alive.sum()}")


def start(
    w_i: np.ndarray, w_f: np.ndarray, kept: np.ndarray, action: str, removed: str
) -> np.ndarray:
    """Where training starts again, for actions without chance; signs are original."""
    out = w_i.copy()
    if action == "constant":
        out[kept] = np.std(w_i) * np.sign(w_i[kept])
    out[zeros(w_i, w_f, kept, removed)] = 0
    return out


def zeros(
    w_i: np.ndarray, w_f: np.ndarray, kept: np.ndarray, removed: str
) -> np.ndarray:
    """Which weights a mask-0 action sets to 0."""
    shrank, grew = np.abs(w_f) < np.abs(w_i), np.abs(w_f) > np.abs(w_i)
    return {
        "zero": ~kept,
        "freeze_init": np.zeros_like(kept),
        "freeze_init_zero_mask": ~kept & shrank,
        "freeze_init_zero_mask_rev": ~kept & grew,
        "freeze_init_zero_all": shrank,
        "freeze_init_zero_all_rev": grew,
    }[removed]
