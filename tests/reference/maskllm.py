"""Learned N:M patterns on arrays [groups, m], in float64."""

import itertools

import numpy as np


def patterns(n: int, m: int) -> np.ndarray:
    every = [p for p in itertools.product([1, 0], repeat=m) if sum(p) == n]
    return np.array(every, np.float64).reshape(-1, m)


def started(noise, prior, *, n, m, strength, deviation):
    """Logits from unit normal noise [groups, P] and a prior mask [groups, m]."""
    shared = prior.astype(np.float64) @ patterns(n, m).T
    return deviation * (noise + strength * (shared - shared.mean(1, keepdims=True)))


def mixed(logits, gumbel, *, n, m, temperature, scale):
    """The shares of patterns [groups, P], and the soft mask [groups, m]."""
    z = (logits * scale + gumbel) / temperature
    shares = np.exp(z - z.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares, shares @ patterns(n, m)


def slopes(shares, incoming, *, n, m, temperature, scale):
    """The gradient of logits, from that of the soft mask [groups, m]."""
    each = incoming @ patterns(n, m).T
    mean = (shares * each).sum(1, keepdims=True)
    return scale / temperature * shares * (each - mean)


def best(logits, *, n, m):
    return patterns(n, m)[logits.argmax(1)].astype(bool)
