"""A Hopfield network, and the search for a mask in it, for one layer and by hand.

The network is (x * mask) @ w; patterns and masks are vectors of d entries.
"""

import numpy as np


def store(psi: np.ndarray, z: np.ndarray, *, rule: str) -> np.ndarray:
    """Entry by entry: z_i z_j / d; Storkey's rule takes z_i h_j and h_i z_j off it."""
    d, after = len(z), psi.copy()
    h = psi @ z
    for i in range(d):
        for j in range(d):
            change = z[i] * z[j]
            if rule == "storkey":
                change -= (i == j) + z[i] * h[j] + h[i] * z[j]
            after[i, j] += change / d
    return after


def energy(psi: np.ndarray, s: np.ndarray) -> float:
    return -0.5 * float(s @ psi @ s)


def descent(psi: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    """The states of one sweep, entry after entry, without an entry's own weight."""
    s, states = s.copy(), [s.copy()]
    for i in range(len(s)):
        others = psi[i] @ s - psi[i, i] * s[i]
        s[i] = s[i] if others == 0 else np.sign(others)
        states.append(s.copy())
    return states


def entropy(w: np.ndarray, mask: np.ndarray, x: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean entropy of the softmax over images, and its gradient by the mask."""
    logits = (x * mask) @ w
    log = logits - logits.max(1, keepdims=True)
    log -= np.log(np.exp(log).sum(1, keepdims=True))
    q = np.exp(log)
    each = -(q * log).sum(1)
    by_logits = -q * (log + each[:, None]) / len(x)
    return float(each.mean()), (x * (by_logits @ w.T)).sum(0)


def recover(
    w: np.ndarray,
    patterns: np.ndarray,
    psi: np.ndarray,
    batches: np.ndarray,
    *,
    learning_rate: float,
    momentum: float,
    decay: float,
    strength: float,
) -> tuple[list[np.ndarray], list[float], list[float]]:
    """Masks after each step; entropies and energies before it."""
    scores, velocity = patterns.mean(0), 0.0
    masks, entropies, energies = [], [], []
    for t, x in enumerate(batches, start=1):
        mask = (scores >= 0).astype(float)
        s = 2 * mask - 1
        value, gradient = entropy(w, mask, x)
        entropies.append(value)
        energies.append(energy(psi, s))
        share = t / len(batches)
        # The factor of 2 is ds / dmask.
        slope = (1 - share) * gradient - share * strength * 2 * (psi @ s)
        velocity = momentum * velocity + slope + decay * scores
        scores = scores - learning_rate * velocity
        masks.append(scores >= 0)
    return masks, entropies, energies
