"""Erdos-Renyi-kernel densities by the iteration of Evci et al., arXiv:1911.11134.

Leaves whose share would exceed 1 are made dense one after the other, and the factor is
computed anew for the others, until none exceeds.
"""

import math

import numpy as np


def erk(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """A density for each shape, such that `density` of all entries are kept."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        if not rest:
            return [1.0] * len(shapes)
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        factor = budget / sum(raw[i] * sizes[i] for i in rest)
        largest = max(rest, key=lambda i: raw[i])
        if raw[largest] * factor <= 1:
            return [1.0 if i in dense else raw[i] * factor for i in range(len(shapes))]
        dense.add(largest)


def outliers(scores: list[np.ndarray], outlier: float) -> float:
    """The fraction of a layer's scores, of all its leaves, above so many means."""
    every = np.concatenate([np.ravel(x) for x in scores]).astype(float)
    return float(np.mean(every > outlier * every.mean()))


def owl(
    fractions: list[float], sizes: list[int], density: float, spread: float
) -> list[float]:
    """Densities that rise linearly, with the mean `density`, and within `spread`.

    The linear rule is that of Yin et al., arXiv:2310.05175, section 3.2; what it is
    multiplied with is the most that keeps all densities within their bounds.
    """
    low, high = min(fractions), max(fractions)
    weights = [size / sum(sizes) for size in sizes]
    places = [(f - low) / ((high - low) or 1) for f in fractions]
    mean = sum(w * p for w, p in zip(weights, places, strict=True))
    bounds = [spread / max(abs(p - mean) for p in places) if high > low else 0.0]
    for p in places:
        if p > mean:
            bounds.append((1 - density) / (p - mean))
        elif p < mean:
            bounds.append(density / (mean - p))
    return [density + min(bounds) * (p - mean) for p in places]
