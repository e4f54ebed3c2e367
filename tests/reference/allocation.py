"""Erdos-Renyi-kernel densities by the iteration of Evci et al., arXiv:1911.11134.

Leaves whose share would exceed 1 are made dense one after the other, and the factor is
computed anew for the others, until none exceeds.
"""

import math


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
