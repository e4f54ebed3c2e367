"""Subset sums by a look at every subset, and gadgets neuron by neuron."""

import itertools

import numpy as np


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


def block(v, u, w, construction, *, sign, bins=14):
    """The neurons of one block that become one weight where the input has a sign."""
    fires = [h for h in range(len(v)) if sign * v[h] > 0]
    products = {h: float(u[h]) * float(v[h]) for h in fires}
    if construction == "subset_sum":
        listed = [products[h] for h in fires]
        best = min(subsets(len(fires)), key=lambda s: abs(total(listed, s) - w))
        return {fires[p] for p in best}
    if construction == "greedy":
        if not fires:
            return set()
        kept, _ = greedy(w, [products[h] for h in fires], bins)
        return {fires[p] for p in kept}

    def away(h):
        if construction == "product":
            return abs(products[h] - w)
        mine = np.sign(w) * sign
        return max(abs(abs(v[h]) - abs(w)), abs(u[h] - mine))

    best = min(fires, key=away, default=None)
    return set() if best is None or abs(products[best] - w) >= abs(w) else {best}


def network(layers, x):
    """A ReLU network, one layer after the other, in the dtype of its arrays."""
    for i, layer in enumerate(layers):
        x = np.maximum(x, 0) if i else x
        x = x @ layer["kernel"] + layer.get("bias", 0)
    return x


def pairs(layers, mask, x, *, bias):
    """A pruned wide network, block by block."""
    for i, (pair, kept) in enumerate(zip(layers, mask, strict=True)):
        x = np.maximum(x, 0) if i else x
        if bias:
            x = np.concatenate([x, np.ones((len(x), 1))], 1)
        out = 0.0
        for j in range(x.shape[1]):
            hidden = np.maximum(x[:, j, None] * (pair["inner"] * kept["inner"])[j], 0)
            out = out + hidden @ (pair["outer"] * kept["outer"])[j]
        x = out
    return x


def neurons(outputs, y, budget):
    """Neurons added one by one, each time a least squares fit of the scale."""

    def left(kept):
        s = outputs[:, sorted(kept)].sum(1, keepdims=True)
        return np.sum((s @ np.linalg.lstsq(s, y, rcond=None)[0] - y) ** 2)

    kept, seen = set(), []
    for _ in range(min(budget, outputs.shape[1])):
        tried = {h: left(kept | {h}) for h in set(range(outputs.shape[1])) - kept}
        kept = kept | {min(tried, key=tried.get)}
        seen.append((min(tried.values()), kept))
    error, kept = min(seen, key=lambda one: one[0])
    return kept, error / np.sum(y**2)
