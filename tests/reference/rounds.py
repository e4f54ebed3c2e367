"""Masks cut down and filled up, by sorting."""

import numpy as np

from tests.reference import selection


def _split(flat: np.ndarray, like: list[np.ndarray]) -> list[np.ndarray]:
    parts = np.split(flat, np.cumsum([x.size for x in like])[:-1])
    return [p.reshape(x.shape) for p, x in zip(parts, like, strict=True)]


def _by_scope(one, scores, alive, scope):
    """Of each leaf alone, or of all as one long leaf."""
    if scope == "leaf":
        pairs = zip(scores, alive, strict=True)
        return [one(s.ravel(), a.ravel()).reshape(s.shape) for s, a in pairs]
    flat = [np.concatenate([x.ravel() for x in leaves]) for leaves in (scores, alive)]
    return _split(one(*flat), scores)


def drop(scores, alive, rate, *, scope):
    """All alive but the lowest round(rate * alive), the later of equals going first."""

    def one(s, a):
        n = int(a.sum())
        return selection.best(s, n - selection.quota(rate, n), a)

    return _by_scope(one, scores, alive, scope)


def shrink(scores, alive, density, *, scope):
    """The highest round(density * n) of what is alive."""
    return _by_scope(
        lambda s, a: selection.best(s, selection.quota(density, s.size), a),
        scores,
        alive,
        scope,
    )


def grow(scores, alive, density, *, scope):
    """What is alive and the highest of the others, to round(density * n)."""

    def one(s, a):
        more = max(selection.quota(density, s.size) - int(a.sum()), 0)
        return a | selection.best(s, more, ~a)

    return _by_scope(one, scores, alive, scope)
