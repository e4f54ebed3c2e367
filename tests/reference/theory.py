"""Subset sums by a look at every subset, and gadgets neuron by neuron."""

import itertools


def subsets(n):
    """All subsets of n, as tuples of indices, the smallest first."""
    for size in range(n + 1):
        yield from itertools.combinations(range(n), size)


def total(coefficients, subset):
    return sum((float(coefficients[h]) for h in subset), 0.0)


def least_error(target, coefficients):
    """Of all subsets."""
    return min(abs(total(coefficients, s) - target) for s in subsets(len(coefficients)))


def least_size(target, coefficients, tolerance):
    """The smallest cardinality within the tolerance, and the least error of that."""
    for size in range(len(coefficients) + 1):
        errors = [
            abs(total(coefficients, s) - target)
            for s in itertools.combinations(range(len(coefficients)), size)
        ]
        if min(errors) <= tolerance:
            return size, min(errors)
    return None


def greedy(target, coefficients, bins):
    """The walk, with bins by comparison: each holds what is above half its end."""
    end = 1.0
    while max(abs(c) for c in coefficients) >= end:
        end *= 2
    while max(abs(c) for c in coefficients) < end / 2:
        end /= 2
    left, kept = target, set()
    for b in range(bins):
        low = 0 if b == bins - 1 else end / 2
        for h, c in enumerate(coefficients):
            if low <= abs(c) < end and abs(left - c) < abs(left):
                left -= c
                kept.add(h)
        end /= 2
    return kept, abs(left)
